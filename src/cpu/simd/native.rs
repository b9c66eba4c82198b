//! Vectors for AVX2, NEON and simd128, by `fearless_simd`.

use fearless_simd::{Bytes, Select, Simd, SimdBase, SimdFloat, SimdMask, SimdWiden, f32x16, f64x8};
use fearless_simd::{u32x16, u64x8};

use super::halves;
use super::isa::Isa;
use super::vector::{LANES, Lane, Vector};

/// A vector of sixteen f64, in two halves.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Pair<S: Simd>(f64x8<S>, f64x8<S>);

macro_rules! isa {
    ($(#[$cfg:meta])* $token:path) => {
        $(#[$cfg])*
        impl Isa for $token {
            type F32 = f32x16<Self>;
            type F64 = Pair<Self>;

            #[inline(always)]
            fn vectorize<R>(self, work: impl FnOnce() -> R) -> R {
                Simd::vectorize(self, work)
            }

            #[inline(always)]
            fn load_f16(self, bits: &[u16; LANES]) -> Self::F32 {
                halves::load_f16(self, bits)
            }

            #[inline(always)]
            fn load_bf16(self, bits: &[u16; LANES]) -> Self::F32 {
                halves::load_bf16(self, bits)
            }

            #[inline(always)]
            fn store_f16(self, x: Self::F32) -> [u16; LANES] {
                halves::store_f16(self, x)
            }

            #[inline(always)]
            fn store_bf16(self, x: Self::F32) -> [u16; LANES] {
                halves::store_bf16(self, x)
            }

            #[inline(always)]
            unsafe fn stream<const BYTES: usize>(self, to: *mut u8, values: &[u8; BYTES]) {
                // SAFETY: the caller's promise.
                unsafe { stream(self, to, values) }
            }
        }
    };
}
isa!(
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    fearless_simd::x86::Avx2
);
isa!(
    #[cfg(target_arch = "aarch64")]
    fearless_simd::aarch64::Neon
);
isa!(
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    fearless_simd::wasm32::WasmSimd128
);

macro_rules! shared {
    ($float:ty, $bits:ident, $shift:literal) => {
        const IS_FUSED: bool = IS_FUSED;

        #[inline(always)]
        fn mul_add(self, b: Self, c: Self) -> Self {
            SimdFloat::mul_add(self, b, c)
        }

        #[inline(always)]
        fn at_least(self, low: Self) -> Self {
            // With a NaN, NEON and WebAssembly return NaN, and x86 returns its second operand.
            low.max(self)
        }

        #[inline(always)]
        fn at_most(self, high: Self) -> Self {
            high.min(self)
        }

        #[inline(always)]
        fn power(self) -> Self {
            let bits: $bits<S> = self.bitcast();
            (bits << $shift).bitcast()
        }
    };
}

/// Whether multiply-add rounds once. WebAssembly has the instruction only in relaxed SIMD.
const IS_FUSED: bool = cfg!(any(not(target_arch = "wasm32"), target_feature = "relaxed-simd"));

impl<S: Simd> Lane for f32x16<S> {
    shared!(f32, u32x16, 23);
}

impl<S: Simd> Lane for f64x8<S> {
    shared!(f64, u64x8, 52);
}

/// Sixteen times all bits, then sixteen times none: the elements from `16 - count` on select the
/// first `count` lanes.
const FIRST: [u32; 2 * LANES] = {
    let mut bits = [0; 2 * LANES];
    let mut lane = 0;
    while lane < LANES {
        bits[lane] = u32::MAX;
        lane += 1;
    }
    bits
};
const FIRST_WIDE: [u64; 2 * LANES] = {
    let mut bits = [0; 2 * LANES];
    let mut lane = 0;
    while lane < LANES {
        bits[lane] = u64::MAX;
        lane += 1;
    }
    bits
};

#[inline(always)]
fn first_bits<B>(bits: &[B; 2 * LANES], count: usize) -> &[B; LANES] {
    match bits[LANES - count.min(LANES)..].first_chunk() {
        Some(bits) => bits,
        None => unreachable!("sixteen of thirty-two"),
    }
}

/// Whether max(a, b) is the second operand where either is NaN, as on x86.
const SECOND_WHERE_NAN: bool = cfg!(any(target_arch = "x86", target_arch = "x86_64"));

#[inline(always)]
fn larger<S: Simd, V: SimdFloat<S>>(x: V, best: V) -> V {
    if SECOND_WHERE_NAN { x.max(best) } else { x.max_precise(best) }
}

impl<S: Simd + Isa<F32 = f32x16<S>, F64 = Pair<S>>> Vector<S> for f32x16<S> {
    type W = f32;

    #[inline(always)]
    fn splat(simd: S, value: f32) -> Self {
        SimdBase::splat(simd, value)
    }

    #[inline(always)]
    fn load(simd: S, values: &[f32; LANES]) -> Self {
        Self::load_array_ref(simd, values)
    }

    #[inline(always)]
    fn array(self) -> [f32; LANES] {
        self.into()
    }

    #[inline(always)]
    fn larger(self, best: Self) -> Self {
        larger(self, best)
    }

    #[inline(always)]
    fn where_equal(self, value: Self, then: Self, otherwise: Self) -> Self {
        self.simd_eq(value).select(then, otherwise)
    }

    #[inline(always)]
    fn equal(self, value: Self) -> u32 {
        self.simd_eq(value).to_bitmask() as u32
    }

    #[inline(always)]
    fn interleave(self, other: Self) -> (Self, Self) {
        SimdBase::interleave(self, other)
    }

    #[inline(always)]
    fn deinterleave(self, other: Self) -> (Self, Self) {
        SimdBase::deinterleave(self, other)
    }

    #[inline(always)]
    fn wide(self, _: S) -> Pair<S> {
        let (a, b) = SimdWiden::widen(self);
        Pair(a, b)
    }

    #[inline(always)]
    fn of_wide(simd: S, wide: Pair<S>) -> Self {
        let mut out = [0.0; LANES];
        for (out, wide) in out.iter_mut().zip(wide.array()) {
            *out = wide as f32;
        }
        Self::load_array_ref(simd, &out)
    }

    #[inline(always)]
    fn first_lanes(self, simd: S, count: usize, otherwise: Self) -> Self {
        let first = u32x16::load_array_ref(simd, first_bits(&FIRST, count));
        let (bits, otherwise): (u32x16<S>, u32x16<S>) = (self.bitcast(), otherwise.bitcast());
        ((bits & first) | (otherwise & !first)).bitcast()
    }

    #[inline(always)]
    fn spread(simd: S, values: &[f32; LANES], places: &[u8; LANES]) -> Self {
        let mut out = [0.0; LANES];
        for (out, &place) in out.iter_mut().zip(places) {
            *out = values[usize::from(place) % LANES];
        }
        Self::load_array_ref(simd, &out)
    }
}

macro_rules! both {
    ($($trait:ident $method:ident),*) => {$(
        impl<S: Simd> std::ops::$trait for Pair<S> {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(self.0.$method(other.0), self.1.$method(other.1))
            }
        }
    )*};
}
both!(Add add, Sub sub, Mul mul, Div div);

impl<S: Simd> Lane for Pair<S> {
    const IS_FUSED: bool = IS_FUSED;

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Self(Lane::mul_add(self.0, b.0, c.0), Lane::mul_add(self.1, b.1, c.1))
    }

    #[inline(always)]
    fn at_least(self, low: Self) -> Self {
        Self(self.0.at_least(low.0), self.1.at_least(low.1))
    }

    #[inline(always)]
    fn at_most(self, high: Self) -> Self {
        Self(self.0.at_most(high.0), self.1.at_most(high.1))
    }

    #[inline(always)]
    fn power(self) -> Self {
        Self(self.0.power(), self.1.power())
    }
}

impl<S: Simd + Isa<F32 = f32x16<S>, F64 = Self>> Vector<S> for Pair<S> {
    type W = f64;

    #[inline(always)]
    fn splat(simd: S, value: f64) -> Self {
        Self(f64x8::splat(simd, value), f64x8::splat(simd, value))
    }

    #[inline(always)]
    fn load(simd: S, values: &[f64; LANES]) -> Self {
        let (a, b) = values.split_at(LANES / 2);
        Self(f64x8::from_slice(simd, a), f64x8::from_slice(simd, b))
    }

    #[inline(always)]
    fn array(self) -> [f64; LANES] {
        bytemuck::cast([<[f64; 8]>::from(self.0), <[f64; 8]>::from(self.1)])
    }

    #[inline(always)]
    fn larger(self, best: Self) -> Self {
        Self(larger(self.0, best.0), larger(self.1, best.1))
    }

    #[inline(always)]
    fn where_equal(self, value: Self, then: Self, otherwise: Self) -> Self {
        let (a, b) = (self.0.simd_eq(value.0), self.1.simd_eq(value.1));
        Self(a.select(then.0, otherwise.0), b.select(then.1, otherwise.1))
    }

    #[inline(always)]
    fn equal(self, value: Self) -> u32 {
        let (a, b) = (self.0.simd_eq(value.0), self.1.simd_eq(value.1));
        (a.to_bitmask() | b.to_bitmask() << (LANES / 2)) as u32
    }

    #[inline(always)]
    fn interleave(self, other: Self) -> (Self, Self) {
        let ((a, b), (c, d)) = (self.0.interleave(other.0), self.1.interleave(other.1));
        (Self(a, b), Self(c, d))
    }

    #[inline(always)]
    fn deinterleave(self, other: Self) -> (Self, Self) {
        let ((a, b), (c, d)) = (self.0.deinterleave(self.1), other.0.deinterleave(other.1));
        (Self(a, c), Self(b, d))
    }

    #[inline(always)]
    fn wide(self, _: S) -> Self {
        self
    }

    #[inline(always)]
    fn of_wide(_: S, wide: Self) -> Self {
        wide
    }

    #[inline(always)]
    fn first_lanes(self, simd: S, count: usize, otherwise: Self) -> Self {
        let (low, high) = first_bits(&FIRST_WIDE, count).split_at(LANES / 2);
        let select = |x: f64x8<S>, otherwise: f64x8<S>, bits: &[u64]| {
            let (x, otherwise): (u64x8<S>, u64x8<S>) = (x.bitcast(), otherwise.bitcast());
            let first = u64x8::from_slice(simd, bits);
            ((x & first) | (otherwise & !first)).bitcast()
        };
        Self(select(self.0, otherwise.0, low), select(self.1, otherwise.1, high))
    }

    #[inline(always)]
    fn spread(simd: S, values: &[f64; LANES], places: &[u8; LANES]) -> Self {
        let mut out = [0.0; LANES];
        for (out, &place) in out.iter_mut().zip(places) {
            *out = values[usize::from(place) % LANES];
        }
        <Self as Vector<S>>::load(simd, &out)
    }
}

/// Writes `values` to `to`, past the caches where there is an instruction for it. A store through
/// the caches reads a line before it writes it, which is a waste where results are larger than the
/// caches.
///
/// # Safety
/// `to` is valid for writes of `BYTES` bytes, which nothing else accesses meanwhile, and is a
/// multiple of 64 or of `BYTES`.
#[inline(always)]
unsafe fn stream<S: Simd, const BYTES: usize>(simd: S, to: *mut u8, values: &[u8; BYTES]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        fearless_simd::kernel!(
            #[inline(always)]
            fn store_32(_simd: Avx2, to: *mut u8, values: [u8; 32]) {
                // SAFETY: the caller's promise.
                unsafe {
                    _mm256_stream_si256(to.cast(), _mm256_loadu_si256(values.as_ptr().cast()))
                }
            }
        );
        let level = simd.level();
        if let (Some(own), true) = (level.as_avx2(), BYTES.is_multiple_of(32)) {
            for (nth, part) in values.as_chunks().0.iter().enumerate() {
                store_32(own, to.wrapping_add(nth * 32), *part);
            }
            return;
        }
    }
    let _ = simd;
    // SAFETY: the caller's promise.
    unsafe { to.cast::<[u8; BYTES]>().write(*values) }
}
