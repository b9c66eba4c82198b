//! Everything that depends on the instruction set: the choice of a level, vectors of sixteen
//! elements, loads and stores for each type of logits, and the exponential.
//!
//! Vectors have sixteen lanes at every level, in as many registers as that takes, so that sums are
//! in the same order everywhere. AVX2, AVX-512 and NEON give the same bits; portable code has no
//! fused multiply-add and may differ from them in the last place.

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod avx512;
mod exp;
#[cfg(any(
    target_arch = "x86",
    target_arch = "x86_64",
    target_arch = "aarch64",
    all(target_arch = "wasm32", target_feature = "simd128")
))]
mod halves;
mod isa;
mod level;
mod memory;
#[cfg(any(
    target_arch = "x86",
    target_arch = "x86_64",
    target_arch = "aarch64",
    all(target_arch = "wasm32", target_feature = "simd128")
))]
mod native;
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod portable;
#[cfg(test)]
mod tests;
mod vector;

pub(super) use exp::{Exp, ExpBase, exp, exp_lanes, expm1_lanes, log1p, tanh};
pub(super) use isa::Isa;
#[cfg(test)]
pub(super) use level::available;
pub use level::simd_level;
pub(super) use level::{Level, at_level, level};
pub(super) use memory::{CACHE_LINE, Number, load_all, store_all};
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
pub(super) use portable::Portable;
pub(super) use vector::{LANES, Lane, Real, Vector, each};
