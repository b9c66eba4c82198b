//! Vectors for AVX2, NEON and simd128, by `fearless_simd`.

use fearless_simd::{Bytes, Select, Simd, SimdBase, SimdFloat, SimdMask, SimdWiden, f32x16, f64x8};
use fearless_simd::{u8x16, u32x16, u64x8};

use super::halves;
use super::isa::Isa;
use super::vector::{LANES, Lane, Vector, paired_arrays};

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
            unsafe fn stream<const BYTES: usize>(self, to: &mut [u8; BYTES], values: &[u8; BYTES]) {
                // SAFETY: the caller's promise, which is the same.
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

/// Whether max(a, b) is b where either is NaN and where both are zeros, as on x86. NEON has an
/// instruction that returns the other operand for most NaN, but not for signalling ones.
const SECOND_OF_UNORDERED: bool = cfg!(any(target_arch = "x86", target_arch = "x86_64"));

#[inline(always)]
fn larger<S: Simd, V: SimdFloat<S, Mask: Select<V>>>(x: V, best: V) -> V {
    if SECOND_OF_UNORDERED { x.max(best) } else { x.simd_gt(best).select(x, best) }
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
        simd.narrow_f64x8(wide.0, wide.1)
    }

    #[inline(always)]
    fn first_lanes(self, simd: S, count: usize, otherwise: Self) -> Self {
        let first = u32x16::load_array_ref(simd, first_bits(&FIRST, count));
        let (bits, otherwise): (u32x16<S>, u32x16<S>) = (self.bitcast(), otherwise.bitcast());
        ((bits & first) | (otherwise & !first)).bitcast()
    }

    #[inline(always)]
    fn spread(simd: S, values: &[f32; LANES], places: &[u8; LANES]) -> Self {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        if let Some(own) = simd.level().as_avx2() {
            return Self::load_array_ref(simd, &avx2::spread(own, *values, *places));
        }
        if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
            // The four bytes of a lane are at four times its place. NEON looks all bytes up at
            // once; other instruction sets would take many steps for that.
            let (low, high) = u8x16::load_array_ref(simd, places).widen();
            let (low, high) = simd.combine_u16x8(low, high).widen();
            let all = <u32x16<S> as SimdBase<S>>::splat;
            let bytes =
                simd.combine_u32x8(low, high) * all(simd, 0x0404_0404) + all(simd, 0x0302_0100);
            let values = <Self as Vector<S>>::load(simd, values);
            return simd.swizzle_dyn_f32x16(values, bytes.bitcast());
        }
        let mut out = [0.0; LANES];
        for (out, &place) in out.iter_mut().zip(places) {
            *out = values[usize::from(place) % LANES];
        }
        Self::load_array_ref(simd, &out)
    }

    #[inline(always)]
    fn paired<const STEP: usize>(self, simd: S, other: Self) -> (Self, Self) {
        let ((a, c), (b, d)) = (simd.split_f32x16(self), simd.split_f32x16(other));
        if STEP == LANES / 2 {
            return (simd.combine_f32x8(a, d), simd.combine_f32x8(c, b));
        }
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        if let Some(own) = simd.level().as_avx2() {
            let (a, b, c, d) = (a.into(), b.into(), c.into(), d.into());
            let [(low, low_across), (high, high_across)] = match STEP {
                4 => [avx2::paired_4(own, a, b), avx2::paired_4(own, c, d)],
                2 => [avx2::paired_2(own, a, b), avx2::paired_2(own, c, d)],
                _ => [avx2::paired_1(own, a, b), avx2::paired_1(own, c, d)],
            };
            return (
                Self::load_array_ref(simd, &bytemuck::cast([low, high])),
                Self::load_array_ref(simd, &bytemuck::cast([low_across, high_across])),
            );
        }
        let (own, across) = paired_arrays::<f32, STEP>(self.array(), other.array());
        (Self::load_array_ref(simd, &own), Self::load_array_ref(simd, &across))
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

/// Returns the bits of `x` that are set in `bits`, and the others of `otherwise`. (A closure might
/// not be inlined, and would then not be compiled for the instruction set.)
#[inline(always)]
fn selected<S: Simd>(simd: S, bits: &[u64], x: f64x8<S>, otherwise: f64x8<S>) -> f64x8<S> {
    let (x, otherwise): (u64x8<S>, u64x8<S>) = (x.bitcast(), otherwise.bitcast());
    let bits = u64x8::from_slice(simd, bits);
    ((x & bits) | (otherwise & !bits)).bitcast()
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
        Self(selected(simd, low, self.0, otherwise.0), selected(simd, high, self.1, otherwise.1))
    }

    #[inline(always)]
    fn spread(simd: S, values: &[f64; LANES], places: &[u8; LANES]) -> Self {
        let mut out = [0.0; LANES];
        for (out, &place) in out.iter_mut().zip(places) {
            *out = values[usize::from(place) % LANES];
        }
        <Self as Vector<S>>::load(simd, &out)
    }

    #[inline(always)]
    fn paired<const STEP: usize>(self, simd: S, other: Self) -> (Self, Self) {
        if STEP == LANES / 2 {
            return (Self(self.0, other.1), Self(self.1, other.0));
        }
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        if let Some(own) = simd.level().as_avx2() {
            // Four registers of four lanes.
            let [a, b]: [[[f64; 4]; 4]; 2] =
                [bytemuck::cast(self.array()), bytemuck::cast(other.array())];
            let (mut from, mut across) = (a, b);
            for at in 0..4 {
                (from[at], across[at]) = match STEP {
                    4 if at % 2 == 0 => (a[at], a[at + 1]),
                    4 => (b[at], b[at - 1]),
                    2 => avx2::wide_paired_2(own, a[at], b[at]),
                    _ => avx2::wide_paired_1(own, a[at], b[at]),
                };
            }
            let [own, across]: [[f64; LANES]; 2] = [bytemuck::cast(from), bytemuck::cast(across)];
            return (
                <Self as Vector<S>>::load(simd, &own),
                <Self as Vector<S>>::load(simd, &across),
            );
        }
        let (own, across) = paired_arrays::<f64, STEP>(self.array(), other.array());
        (<Self as Vector<S>>::load(simd, &own), <Self as Vector<S>>::load(simd, &across))
    }
}

/// Permutations for AVX2 that `fearless_simd` has no fast form of.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod avx2 {
    #[cfg(target_arch = "x86")]
    use std::arch::x86::*;
    #[cfg(target_arch = "x86_64")]
    use std::arch::x86_64::*;

    use fearless_simd::x86::Avx2;
    use fearless_simd::{Simd, SimdInto, f32x8, f32x16, f64x4, u8x16};

    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn spread(simd: Avx2, values: [f32; 16], places: [u8; 16]) -> [f32; 16] {
            let values: f32x16<Avx2> = values.simd_into(simd);
            let places: u8x16<Avx2> = places.simd_into(simd);
            let (low, high) = simd.split_f32x16(values);
            let (low, high, places): (__m256, __m256, __m128i) =
                (low.into(), high.into(), places.into());
            let place = [
                _mm256_cvtepu8_epi32(places),
                _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(places, places)),
            ];
            let mut out = [[0.0; 8]; 2];
            for half in 0..2 {
                // A permutation looks at the lowest three bits. A blend looks at the highest bit,
                // and takes the higher half where it is set: bit 3 is shifted there.
                let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(place[half]));
                let from_low = _mm256_permutevar8x32_ps(low, place[half]);
                let from_high = _mm256_permutevar8x32_ps(high, place[half]);
                let found: f32x8<Avx2> =
                    _mm256_blendv_ps(from_low, from_high, is_high).simd_into(simd);
                out[half] = found.into();
            }
            bytemuck::cast(out)
        }
    );

    /// Defines [`Vector::paired`](super::Vector::paired) for a register and a step.
    macro_rules! paired {
        ($name:ident, $ty:ty, $vector:ident, $a:ident, $b:ident => $own:expr, $across:expr) => {
            fearless_simd::kernel!(
                #[inline(always)]
                pub(super) fn $name(simd: Avx2, a: $ty, b: $ty) -> ($ty, $ty) {
                    let (a, b): ($vector<Avx2>, $vector<Avx2>) =
                        (a.simd_into(simd), b.simd_into(simd));
                    let ($a, $b) = (a.into(), b.into());
                    let (own, across): ($vector<Avx2>, $vector<Avx2>) =
                        ($own.simd_into(simd), $across.simd_into(simd));
                    (own.into(), across.into())
                }
            );
        };
    }
    paired!(paired_4, [f32; 8], f32x8, a, b =>
        _mm256_blend_ps::<0xf0>(a, b), _mm256_permute2f128_ps::<0x21>(a, b));
    paired!(paired_2, [f32; 8], f32x8, a, b =>
        _mm256_blend_ps::<0xcc>(a, b), _mm256_shuffle_ps::<0b01_00_11_10>(a, b));
    paired!(paired_1, [f32; 8], f32x8, a, b =>
        _mm256_blend_ps::<0xaa>(a, b),
        _mm256_permute_ps::<0b10_11_00_01>(_mm256_blend_ps::<0x55>(a, b)));
    paired!(wide_paired_2, [f64; 4], f64x4, a, b =>
        _mm256_blend_pd::<0xc>(a, b), _mm256_permute2f128_pd::<0x21>(a, b));
    paired!(wide_paired_1, [f64; 4], f64x4, a, b =>
        _mm256_blend_pd::<0xa>(a, b), _mm256_shuffle_pd::<0x5>(a, b));
}

/// Writes `values` to `to`, past the caches where there is an instruction for it. A store through
/// the caches reads a line before it writes it, which is a waste where results are larger than the
/// caches.
///
/// # Safety
/// The promise of [`Isa::stream`].
#[inline(always)]
unsafe fn stream<S: Simd, const BYTES: usize>(simd: S, to: &mut [u8; BYTES], values: &[u8; BYTES]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        fearless_simd::kernel!(
            #[inline(always)]
            fn store_32(_simd: Avx2, to: &mut [u8; 32], values: &[u8; 32]) {
                // SAFETY: both are references to the 32 bytes that are written and read. `stream`
                // is the only caller, and its caller promises that `to` is a multiple of 32, which
                // the store needs, and the fence; the load needs no alignment.
                unsafe {
                    _mm256_stream_si256(
                        to.as_mut_ptr().cast(),
                        _mm256_loadu_si256(values.as_ptr().cast()),
                    )
                }
            }
        );
        let level = simd.level();
        if let (Some(own), true) = (level.as_avx2(), BYTES.is_multiple_of(32)) {
            for (to, values) in to.as_chunks_mut().0.iter_mut().zip(values.as_chunks().0) {
                store_32(own, to, values);
            }
            return;
        }
    }
    let _ = simd;
    *to = *values;
}
