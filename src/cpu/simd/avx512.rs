//! Vectors for AVX-512: sixteen f32 in one register, sixteen f64 in two.
//!
//! The level needs only what every processor with AVX-512 has had since Skylake-X: the F, BW, CD,
//! DQ and VL parts. [`Avx512`] is the proof that the machine has them, and vectors are made only
//! with it, so that operators of vectors, which get no proof, may use the instructions too. In the
//! order of this file: the proof, the instruction set ([`Isa`]), and the two vectors.

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::isa::Isa;
use super::vector::{LANES, Lane, Vector};

/// Proof that this machine has AVX-512. [`Avx512::new`] is the only way to get one.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct Avx512(());

/// Sixteen f32. A value exists only where an [`Avx512`] did.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct F32(__m512);

/// Sixteen f64, the first eight and the last eight. A value exists only where an [`Avx512`] did.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct F64(__m512d, __m512d);

/// Evaluates an expression of intrinsics that take and return values: they are unsafe only because
/// a machine may lack the instructions. Intrinsics that access memory have blocks of their own.
macro_rules! avx512 {
    ($value:expr) => {{
        // SAFETY: each function that uses this macro takes an `Avx512` or a vector, either of which
        // proves that the machine has the instructions.
        unsafe { $value }
    }};
}

/// Defines what depends on the list of features: the check for them, and the function that is
/// compiled for them.
macro_rules! features {
    ($($feature:tt),*) => {
        impl Avx512 {
            /// Returns the proof, where this machine has all that the level is compiled for.
            pub(super) fn new() -> Option<Self> {
                let has_all = $(is_x86_feature_detected!($feature))&&*;
                has_all.then_some(Self(()))
            }
        }

        $(#[target_feature(enable = $feature)])*
        #[inline]
        fn compiled_for_avx512<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
    };
}
features!(
    "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "f16c", "bmi1",
    "bmi2", "lzcnt", "popcnt"
);

impl Isa for Avx512 {
    type F32 = F32;
    type F64 = F64;

    #[inline(always)]
    fn vectorize<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: `self` proves that the machine has the features.
        unsafe { compiled_for_avx512(work) }
    }

    #[inline(always)]
    fn load_f16(self, bits: &[u16; LANES]) -> F32 {
        F32(avx512!(_mm512_cvtph_ps(halves(self, bits))))
    }

    #[inline(always)]
    fn load_bf16(self, bits: &[u16; LANES]) -> F32 {
        // A bf16 is the upper half of an f32.
        let bits = halves(self, bits);
        F32(avx512!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))))
    }

    #[inline(always)]
    fn store_f16(self, x: F32) -> [u16; LANES] {
        let bits = avx512!(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0));
        // SAFETY: both are 32 bytes, which mean numbers whatever they are.
        unsafe { std::mem::transmute::<__m256i, [u16; LANES]>(bits) }
    }

    #[inline(always)]
    fn store_bf16(self, x: F32) -> [u16; LANES] {
        let bits = avx512!({
            let bits = _mm512_castps_si512(x.0);
            // Rounds to nearest, ties to even.
            let is_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), is_odd);
            let rounded = _mm512_add_epi32(bits, half);
            // A NaN becomes quiet, so that it stays a NaN without its low bits.
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x.0, x.0);
            let quiet = _mm512_set1_epi32(0x0040_0000);
            let rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, quiet);
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
        });
        // SAFETY: both are 32 bytes, which mean numbers whatever they are.
        unsafe { std::mem::transmute::<__m256i, [u16; LANES]>(bits) }
    }

    /// A store through the caches reads a line before it writes it, which is a waste where results
    /// are larger than the caches.
    #[inline(always)]
    unsafe fn stream<const BYTES: usize>(self, to: &mut [u8; BYTES], values: &[u8; BYTES]) {
        match BYTES {
            32 => {
                // SAFETY: `self` proves the instructions; `values` and `to` are references to the
                // 32 bytes that are read and written. The load needs no alignment; the caller
                // promises that `to` is a multiple of 32, and the fence.
                unsafe {
                    let part = _mm256_loadu_si256(values.as_ptr().cast());
                    _mm256_stream_si256(to.as_mut_ptr().cast(), part);
                }
            }
            64 | 128 => {
                let parts = values.as_chunks::<64>().0;
                for (to, part) in to.as_chunks_mut::<64>().0.iter_mut().zip(parts) {
                    // SAFETY: `self` proves the instructions; `part` and `to` are references to the
                    // 64 bytes that are read and written. The load needs no alignment; the caller
                    // promises that `to` is a multiple of 64, and the fence.
                    unsafe {
                        let part = _mm512_loadu_si512(part.as_ptr().cast());
                        _mm512_stream_si512(to.as_mut_ptr().cast(), part);
                    }
                }
            }
            _ => *to = *values,
        }
    }

    #[inline(always)]
    fn fence(self) {
        avx512!(_mm_sfence());
    }
}

/// Returns sixteen halves in one register.
#[inline(always)]
fn halves(_isa: Avx512, bits: &[u16; LANES]) -> __m256i {
    // SAFETY: `_isa` proves the instruction; `bits` is a reference to the bytes that it reads; it
    // needs no alignment.
    unsafe { _mm256_loadu_si256(bits.as_ptr().cast()) }
}

macro_rules! operators {
    ($($trait:ident $method:ident $single:ident $double:ident),*) => {$(
        impl $trait for F32 {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(avx512!($single(self.0, other.0)))
            }
        }

        impl $trait for F64 {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                avx512!(Self($double(self.0, other.0), $double(self.1, other.1)))
            }
        }
    )*};
}
operators!(
    Add add _mm512_add_ps _mm512_add_pd,
    Sub sub _mm512_sub_ps _mm512_sub_pd,
    Mul mul _mm512_mul_ps _mm512_mul_pd,
    Div div _mm512_div_ps _mm512_div_pd
);

impl Lane for F32 {
    const IS_FUSED: bool = true;

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Self(avx512!(_mm512_fmadd_ps(self.0, b.0, c.0)))
    }

    // With a NaN, or with two zeros, max and min return their second operand.
    #[inline(always)]
    fn at_least(self, low: Self) -> Self {
        Self(avx512!(_mm512_max_ps(low.0, self.0)))
    }

    #[inline(always)]
    fn at_most(self, high: Self) -> Self {
        Self(avx512!(_mm512_min_ps(high.0, self.0)))
    }

    #[inline(always)]
    fn power(self) -> Self {
        let bits = avx512!(_mm512_slli_epi32::<23>(_mm512_castps_si512(self.0)));
        Self(avx512!(_mm512_castsi512_ps(bits)))
    }
}

impl Lane for F64 {
    const IS_FUSED: bool = true;

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        avx512!(Self(_mm512_fmadd_pd(self.0, b.0, c.0), _mm512_fmadd_pd(self.1, b.1, c.1)))
    }

    #[inline(always)]
    fn at_least(self, low: Self) -> Self {
        avx512!(Self(_mm512_max_pd(low.0, self.0), _mm512_max_pd(low.1, self.1)))
    }

    #[inline(always)]
    fn at_most(self, high: Self) -> Self {
        avx512!(Self(_mm512_min_pd(high.0, self.0), _mm512_min_pd(high.1, self.1)))
    }

    #[inline(always)]
    fn power(self) -> Self {
        avx512!(Self(
            _mm512_castsi512_pd(_mm512_slli_epi64::<52>(_mm512_castpd_si512(self.0))),
            _mm512_castsi512_pd(_mm512_slli_epi64::<52>(_mm512_castpd_si512(self.1))),
        ))
    }
}

impl F32 {
    /// Folds all lanes, in the order of the first lane of [`Vector::total`]: neighbours, then
    /// lanes two apart, four and eight.
    #[inline(always)]
    fn fold(self, with: impl Fn(Self, Self) -> Self) -> f32 {
        let all = self.0;
        let all = with(Self(all), Self(avx512!(_mm512_permute_ps::<0b10_11_00_01>(all)))).0;
        let all = with(Self(all), Self(avx512!(_mm512_permute_ps::<0b01_00_11_10>(all)))).0;
        let quarters = avx512!(_mm512_shuffle_f32x4::<0b10_11_00_01>(all, all));
        let all = with(Self(all), Self(quarters)).0;
        let halves = avx512!(_mm512_shuffle_f32x4::<0b01_00_11_10>(all, all));
        avx512!(_mm512_cvtss_f32(with(Self(all), Self(halves)).0))
    }
}

impl Vector<Avx512> for F32 {
    type W = f32;

    #[inline(always)]
    fn splat(_: Avx512, value: f32) -> Self {
        Self(avx512!(_mm512_set1_ps(value)))
    }

    #[inline(always)]
    fn load(_isa: Avx512, values: &[f32; LANES]) -> Self {
        // SAFETY: `_isa` proves the instruction; `values` is a reference to the bytes that it
        // reads; it needs no alignment.
        Self(unsafe { _mm512_loadu_ps(values.as_ptr()) })
    }

    #[inline(always)]
    fn array(self) -> [f32; LANES] {
        // SAFETY: both are sixteen f32.
        unsafe { std::mem::transmute::<__m512, [f32; LANES]>(self.0) }
    }

    #[inline(always)]
    fn larger(self, best: Self) -> Self {
        Self(avx512!(_mm512_max_ps(self.0, best.0)))
    }

    #[inline(always)]
    fn where_equal(self, value: Self, then: Self, otherwise: Self) -> Self {
        avx512!({
            let is_equal = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, value.0);
            Self(_mm512_mask_blend_ps(is_equal, otherwise.0, then.0))
        })
    }

    #[inline(always)]
    fn equal(self, value: Self) -> u32 {
        avx512!(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, value.0)).into()
    }

    #[inline(always)]
    fn interleave(self, other: Self) -> (Self, Self) {
        // Lanes of the second operand count from sixteen.
        avx512!({
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            (
                Self(_mm512_permutex2var_ps(self.0, low, other.0)),
                Self(_mm512_permutex2var_ps(self.0, high, other.0)),
            )
        })
    }

    #[inline(always)]
    fn deinterleave(self, other: Self) -> (Self, Self) {
        avx512!({
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            (
                Self(_mm512_permutex2var_ps(self.0, even, other.0)),
                Self(_mm512_permutex2var_ps(self.0, odd, other.0)),
            )
        })
    }

    #[inline(always)]
    fn wide(self, _: Avx512) -> F64 {
        avx512!(F64(
            _mm512_cvtps_pd(_mm512_castps512_ps256(self.0)),
            _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(self.0)),
        ))
    }

    #[inline(always)]
    fn of_wide(_: Avx512, wide: F64) -> Self {
        avx512!({
            let low = _mm512_castps256_ps512(_mm512_cvtpd_ps(wide.0));
            Self(_mm512_insertf32x8::<1>(low, _mm512_cvtpd_ps(wide.1)))
        })
    }

    #[inline(always)]
    fn first_lanes(self, _: Avx512, count: usize, otherwise: Self) -> Self {
        let first = first_bits(count);
        Self(avx512!(_mm512_mask_blend_ps(first, otherwise.0, self.0)))
    }

    #[inline(always)]
    fn spread(isa: Avx512, values: &[f32; LANES], places: &[u8; LANES]) -> Self {
        let (values, places) = (Self::load(isa, values), bytes(isa, places));
        Self(avx512!(_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(places), values.0)))
    }

    #[inline(always)]
    fn paired<const STEP: usize>(self, _: Avx512, other: Self) -> (Self, Self) {
        let (a, b) = (self.0, other.0);
        // A blend runs on another port than a shuffle, so that one of each takes half the time of
        // two shuffles.
        let (own, across) = avx512!(match STEP {
            8 => {
                let across = _mm512_shuffle_f32x4::<0b01_00_11_10>(a, b);
                (_mm512_mask_blend_ps(0xff00, a, b), across)
            }
            4 => {
                let lanes =
                    _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
                (_mm512_mask_blend_ps(0xf0f0, a, b), _mm512_permutex2var_ps(a, lanes, b))
            }
            2 => {
                let across = _mm512_shuffle_ps::<0b01_00_11_10>(a, b);
                (_mm512_mask_blend_ps(0xcccc, a, b), across)
            }
            _ => {
                let lanes =
                    _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
                (_mm512_mask_blend_ps(0xaaaa, a, b), _mm512_permutex2var_ps(a, lanes, b))
            }
        });
        (Self(own), Self(across))
    }

    #[inline(always)]
    fn total(self) -> f32 {
        self.fold(
            #[inline(always)]
            |a, b| a + b,
        )
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.fold(
            #[inline(always)]
            |a, b| a.larger(b),
        )
    }
}

impl F64 {
    /// Folds all lanes, in the order of the first lane of [`Vector::total`]: neighbours, then
    /// lanes two apart, four and eight.
    #[inline(always)]
    fn fold(self, with: impl Fn(Self, Self) -> Self) -> f64 {
        let all = self;
        let swapped =
            avx512!(Self(_mm512_permute_pd::<0x55>(all.0), _mm512_permute_pd::<0x55>(all.1),));
        let all = with(all, swapped);
        let quarters = avx512!(Self(
            _mm512_shuffle_f64x2::<0b10_11_00_01>(all.0, all.0),
            _mm512_shuffle_f64x2::<0b10_11_00_01>(all.1, all.1),
        ));
        let all = with(all, quarters);
        let halves = avx512!(Self(
            _mm512_shuffle_f64x2::<0b01_00_11_10>(all.0, all.0),
            _mm512_shuffle_f64x2::<0b01_00_11_10>(all.1, all.1),
        ));
        let all = with(all, halves);
        avx512!(_mm512_cvtsd_f64(with(all, Self(all.1, all.0)).0))
    }
}

impl Vector<Avx512> for F64 {
    type W = f64;

    #[inline(always)]
    fn splat(_: Avx512, value: f64) -> Self {
        avx512!(Self(_mm512_set1_pd(value), _mm512_set1_pd(value)))
    }

    #[inline(always)]
    fn load(_isa: Avx512, values: &[f64; LANES]) -> Self {
        let from = values.as_ptr();
        // SAFETY: `_isa` proves the instruction; `values` is a reference to the bytes that the two
        // loads read; they need no alignment.
        unsafe { Self(_mm512_loadu_pd(from), _mm512_loadu_pd(from.add(LANES / 2))) }
    }

    #[inline(always)]
    fn array(self) -> [f64; LANES] {
        // SAFETY: both are sixteen f64.
        unsafe { std::mem::transmute::<[__m512d; 2], [f64; LANES]>([self.0, self.1]) }
    }

    #[inline(always)]
    fn larger(self, best: Self) -> Self {
        avx512!(Self(_mm512_max_pd(self.0, best.0), _mm512_max_pd(self.1, best.1)))
    }

    #[inline(always)]
    fn where_equal(self, value: Self, then: Self, otherwise: Self) -> Self {
        avx512!({
            let low = _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(self.0, value.0);
            let high = _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(self.1, value.1);
            Self(
                _mm512_mask_blend_pd(low, otherwise.0, then.0),
                _mm512_mask_blend_pd(high, otherwise.1, then.1),
            )
        })
    }

    #[inline(always)]
    fn equal(self, value: Self) -> u32 {
        let low = avx512!(_mm512_cmp_pd_mask::<_CMP_EQ_OQ>(self.0, value.0));
        let high = avx512!(_mm512_cmp_pd_mask::<_CMP_EQ_OQ>(self.1, value.1));
        u32::from(low) | u32::from(high) << (LANES / 2)
    }

    #[inline(always)]
    fn interleave(self, other: Self) -> (Self, Self) {
        // Lanes of the second operand count from eight.
        avx512!({
            let low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
            let high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
            (
                Self(
                    _mm512_permutex2var_pd(self.0, low, other.0),
                    _mm512_permutex2var_pd(self.0, high, other.0),
                ),
                Self(
                    _mm512_permutex2var_pd(self.1, low, other.1),
                    _mm512_permutex2var_pd(self.1, high, other.1),
                ),
            )
        })
    }

    #[inline(always)]
    fn deinterleave(self, other: Self) -> (Self, Self) {
        avx512!({
            let even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
            let odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
            (
                Self(
                    _mm512_permutex2var_pd(self.0, even, self.1),
                    _mm512_permutex2var_pd(other.0, even, other.1),
                ),
                Self(
                    _mm512_permutex2var_pd(self.0, odd, self.1),
                    _mm512_permutex2var_pd(other.0, odd, other.1),
                ),
            )
        })
    }

    #[inline(always)]
    fn wide(self, _: Avx512) -> Self {
        self
    }

    #[inline(always)]
    fn of_wide(_: Avx512, wide: Self) -> Self {
        wide
    }

    #[inline(always)]
    fn first_lanes(self, _: Avx512, count: usize, otherwise: Self) -> Self {
        let [low, high] = first_bits(count).to_le_bytes();
        avx512!(Self(
            _mm512_mask_blend_pd(low, otherwise.0, self.0),
            _mm512_mask_blend_pd(high, otherwise.1, self.1),
        ))
    }

    #[inline(always)]
    fn spread(isa: Avx512, values: &[f64; LANES], places: &[u8; LANES]) -> Self {
        let (values, places) = (Self::load(isa, values), bytes(isa, places));
        avx512!({
            let low = _mm512_cvtepu8_epi64(places);
            let high = _mm512_cvtepu8_epi64(_mm_unpackhi_epi64(places, places));
            Self(
                _mm512_permutex2var_pd(values.0, low, values.1),
                _mm512_permutex2var_pd(values.0, high, values.1),
            )
        })
    }

    #[inline(always)]
    fn paired<const STEP: usize>(self, _: Avx512, other: Self) -> (Self, Self) {
        let ((a, c), (b, d)) = ((self.0, self.1), (other.0, other.1));
        avx512!(match STEP {
            8 => (Self(a, d), Self(c, b)),
            4 => (
                Self(_mm512_mask_blend_pd(0xf0, a, b), _mm512_mask_blend_pd(0xf0, c, d)),
                Self(
                    _mm512_shuffle_f64x2::<0b01_00_11_10>(a, b),
                    _mm512_shuffle_f64x2::<0b01_00_11_10>(c, d),
                ),
            ),
            2 => {
                let lanes = _mm512_setr_epi64(2, 3, 8, 9, 6, 7, 12, 13);
                (
                    Self(_mm512_mask_blend_pd(0xcc, a, b), _mm512_mask_blend_pd(0xcc, c, d)),
                    Self(_mm512_permutex2var_pd(a, lanes, b), _mm512_permutex2var_pd(c, lanes, d)),
                )
            }
            _ => (
                Self(_mm512_mask_blend_pd(0xaa, a, b), _mm512_mask_blend_pd(0xaa, c, d)),
                Self(_mm512_shuffle_pd::<0x55>(a, b), _mm512_shuffle_pd::<0x55>(c, d)),
            ),
        })
    }

    #[inline(always)]
    fn total(self) -> f64 {
        self.fold(
            #[inline(always)]
            |a, b| a + b,
        )
    }

    #[inline(always)]
    fn largest(self) -> f64 {
        self.fold(
            #[inline(always)]
            |a, b| a.larger(b),
        )
    }
}

/// Returns a bit for each of the first `count` lanes.
#[inline(always)]
fn first_bits(count: usize) -> u16 {
    ((1_u32 << count.min(LANES)) - 1) as u16
}

/// Returns sixteen bytes in one register.
#[inline(always)]
fn bytes(_isa: Avx512, bytes: &[u8; LANES]) -> __m128i {
    // SAFETY: `_isa` proves the instruction; `bytes` is a reference to the bytes that it reads; it
    // needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}
