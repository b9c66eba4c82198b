//! Chooses the instruction set of the inner loops, once, at run time.

use std::sync::OnceLock;

use crate::Error;

/// The environment variable that forces a level.
const VARIABLE: &str = "LOGITS_SIMD";

/// Instruction sets that the inner loops are compiled for, with the proof that this machine has
/// them.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) enum Level {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    Avx512(super::avx512::Avx512),
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    Avx2(fearless_simd::x86::Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(fearless_simd::aarch64::Neon),
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Simd128(fearless_simd::wasm32::WasmSimd128),
    /// Plain Rust, for machines without any of the others. A WebAssembly module with simd128 runs
    /// only on machines that have it, so there is no such level in it.
    #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
    Portable,
}

impl Level {
    pub(in crate::cpu) fn name(self) -> &'static str {
        match self {
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Self::Avx512(_) => "avx512",
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Self::Simd128(_) => "simd128",
            #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
            Self::Portable => "portable",
        }
    }
}

/// Returns the name of the instruction set that the CPU path computes with, the best that this
/// machine has: `avx512` (as of Skylake-X and Zen 4), `avx2` (with FMA), `neon`, `simd128` (where
/// it is compiled in, and then alone) or `portable`.
///
/// The environment variable `LOGITS_SIMD` forces one of them. It is read once, and an empty value
/// forces none. `avx512`, `avx2` and `neon` give the same bits; the others have no fused
/// multiply-add, and may differ from those in the last place.
///
/// # Errors
/// [`Error::SimdLevel`] where `LOGITS_SIMD` names no level that this machine has.
pub fn simd_level() -> Result<&'static str, Error> {
    level().map(Level::name)
}

pub(in crate::cpu) fn level() -> Result<Level, Error> {
    static LEVEL: OnceLock<Result<Level, Error>> = OnceLock::new();
    LEVEL
        .get_or_init(|| {
            chosen(std::env::var_os(VARIABLE).map(|asked| asked.to_string_lossy().into_owned()))
        })
        .clone()
}

fn chosen(asked: Option<String>) -> Result<Level, Error> {
    let available = available();
    let Some(asked) = asked.filter(|asked| !asked.is_empty()) else { return Ok(available[0]) };
    match available.iter().find(|level| level.name() == asked) {
        Some(&level) => Ok(level),
        None => Err(Error::SimdLevel {
            asked,
            available: available.into_iter().map(Level::name).collect(),
        }),
    }
}

/// Returns the levels that this machine has, best first.
pub(in crate::cpu) fn available() -> Vec<Level> {
    let mut levels = Vec::new();
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        levels.extend(super::avx512::Avx512::new().map(Level::Avx512));
        levels.extend(fearless_simd::Level::new().as_avx2().map(Level::Avx2));
    }
    #[cfg(target_arch = "aarch64")]
    levels.extend(fearless_simd::Level::new().as_neon().map(Level::Neon));
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    levels.extend(fearless_simd::Level::new().as_wasm_simd128().map(Level::Simd128));
    #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
    levels.push(Level::Portable);
    levels
}

/// Evaluates an expression with the token of a level, compiled for its instructions. Functions that
/// it calls must be inlined, or call `vectorize` themselves.
macro_rules! at_level {
    ($level:expr, $isa:ident => $body:expr) => {{
        use $crate::cpu::simd::{Isa as _, Level};
        match $level {
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Level::Avx512($isa) => $isa.vectorize(
                #[inline(always)]
                || $body,
            ),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Level::Avx2($isa) => $isa.vectorize(
                #[inline(always)]
                || $body,
            ),
            #[cfg(target_arch = "aarch64")]
            Level::Neon($isa) => $isa.vectorize(
                #[inline(always)]
                || $body,
            ),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Level::Simd128($isa) => $isa.vectorize(
                #[inline(always)]
                || $body,
            ),
            #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
            Level::Portable => {
                let $isa = $crate::cpu::simd::Portable;
                $isa.vectorize(
                    #[inline(always)]
                    || $body,
                )
            }
        }
    }};
}
pub(in crate::cpu) use at_level;
