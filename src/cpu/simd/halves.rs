//! Converts vectors of f16 and bf16 to f32 and back, by instructions for them or by operations on
//! their bits.

use fearless_simd::{Bytes, Select, Simd, SimdBase, SimdFloat, SimdWiden, f32x16, u16x16, u32x16};

use super::vector::LANES;

#[inline(always)]
pub(super) fn load_bf16<S: Simd>(simd: S, bits: &[u16; LANES]) -> f32x16<S> {
    (widened(simd, bits) << 16).bitcast()
}

#[inline(always)]
pub(super) fn store_bf16<S: Simd>(simd: S, value: f32x16<S>) -> [u16; LANES] {
    let bits: u32x16<S> = value.bitcast();
    let all = |bits: u32| <u32x16<S> as SimdBase<S>>::splat(simd, bits);
    // Rounds to nearest, ties to even; a NaN stays a NaN.
    let rounded = bits + all(0x7fff) + ((bits >> 16) & all(1));
    low_halves(simd, SimdFloat::is_nan(value).select(bits | all(0x0040_0000), rounded) >> 16)
}

#[inline(always)]
fn widened<S: Simd>(simd: S, bits: &[u16; LANES]) -> u32x16<S> {
    let (a, b) = u16x16::from_slice(simd, bits).widen();
    simd.combine_u32x8(a, b)
}

/// Returns the low 16 bits of each lane.
#[inline(always)]
fn low_halves<S: Simd>(simd: S, bits: u32x16<S>) -> [u16; LANES] {
    simd.split_u16x32(simd.narrow_u32x16(bits, bits)).0.into()
}

/// AVX2 machines have instructions for f16 (F16C).
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod x86 {
    #[cfg(target_arch = "x86")]
    use std::arch::x86::*;
    #[cfg(target_arch = "x86_64")]
    use std::arch::x86_64::*;

    use fearless_simd::x86::Avx2;
    use fearless_simd::{SimdInto, f32x8, u16x8};

    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn load_avx2(simd: Avx2, bits: [u16; 8]) -> [f32; 8] {
            let bits: u16x8<Avx2> = bits.simd_into(simd);
            let value: f32x8<Avx2> = _mm256_cvtph_ps(bits.into()).simd_into(simd);
            value.into()
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn store_avx2(simd: Avx2, value: [f32; 8]) -> [u16; 8] {
            let value: f32x8<Avx2> = value.simd_into(simd);
            let bits: u16x8<Avx2> =
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value.into()).simd_into(simd);
            bits.into()
        }
    );
}

#[inline(always)]
pub(super) fn load_f16<S: Simd>(simd: S, bits: &[u16; LANES]) -> f32x16<S> {
    match simd.level() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        fearless_simd::Level::Avx2(own) => {
            let [a, b]: [[u16; 8]; 2] = bytemuck::cast(*bits);
            f32x16::load_array_ref(
                simd,
                &bytemuck::cast([x86::load_avx2(own, a), x86::load_avx2(own, b)]),
            )
        }
        _ => f16_load_by_bits(simd, bits),
    }
}

#[inline(always)]
pub(super) fn store_f16<S: Simd>(simd: S, value: f32x16<S>) -> [u16; LANES] {
    match simd.level() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        fearless_simd::Level::Avx2(own) => {
            let [a, b]: [[f32; 8]; 2] = bytemuck::cast(<[f32; LANES]>::from(value));
            bytemuck::cast([x86::store_avx2(own, a), x86::store_avx2(own, b)])
        }
        _ => f16_store_by_bits(simd, value),
    }
}

#[inline(always)]
fn f16_load_by_bits<S: Simd>(simd: S, bits: &[u16; LANES]) -> f32x16<S> {
    let all = |bits: u32| <u32x16<S> as SimdBase<S>>::splat(simd, bits);
    let bits = widened(simd, bits);
    let magnitude = bits & all(0x7fff);
    // The exponent is too small by 112, also that of subnormal numbers.
    let scaled: f32x16<S> = (magnitude << 13).bitcast();
    let scaled =
        scaled * <f32x16<S> as SimdBase<S>>::splat(simd, f32::from_bits((112 + 127) << 23));
    let number: u32x16<S> = scaled.bitcast();
    let sign = (bits & all(0x8000)) << 16;
    // Infinities and NaN have all bits of the exponent set; a NaN becomes quiet.
    let special = (magnitude << 13) | all(0x7f80_0000);
    let special = magnitude.simd_gt(all(0x7c00)).select(special | all(0x0040_0000), special);
    (magnitude.simd_ge(all(0x7c00)).select(special, number) | sign).bitcast()
}

#[inline(always)]
fn f16_store_by_bits<S: Simd>(simd: S, value: f32x16<S>) -> [u16; LANES] {
    let all = |bits: u32| <u32x16<S> as SimdBase<S>>::splat(simd, bits);
    let float = |bits: u32| <f32x16<S> as SimdBase<S>>::splat(simd, f32::from_bits(bits));
    let bits: u32x16<S> = value.bitcast();
    let sign = (bits >> 16) & all(0x8000);
    let magnitude = bits & all(0x7fff_ffff);
    // Normal numbers get the other bias, and are rounded to nearest, ties to even.
    let normal = (magnitude - all(112 << 23) + all(0xfff) + ((magnitude >> 13) & all(1))) >> 13;
    // For smaller numbers, adding 0.5 rounds at the last bit of subnormal f16.
    let small: f32x16<S> = magnitude.bitcast();
    let small: u32x16<S> = (small + float(0x3f00_0000)).bitcast();
    let small = small - all(0x3f00_0000);
    // 65520 and beyond are infinite.
    let large = magnitude
        .simd_gt(all(0x7f80_0000))
        .select(all(0x7e00) | ((magnitude >> 13) & all(0x3ff)), all(0x7c00));
    let number = magnitude.simd_lt(all(113 << 23)).select(small, normal);
    low_halves(simd, magnitude.simd_ge(all(0x477f_f000)).select(large, number) | sign)
}
