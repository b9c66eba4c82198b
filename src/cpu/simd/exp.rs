//! exp of f32, within 5 units in the last place (a relative error below 6e-7) down to exp(-104),
//! and of f64, relative to a power of two.
//!
//! The argument is reduced with ln 2, for f32 in one step where multiply-add rounds once, else in
//! two parts (Cody and Waite, Software Manual for the Elementary Functions, 1980), and a
//! polynomial, of degree 5 for f32, approximates the rest. The exponentials of a row are relative
//! to a power of two, which enters after the reduction, whereas subtracting the maximum from a
//! logit before it would round. That power is the same for all rows whose maximum is within
//! [`Exp::FIXED_RANGE`], the fixed base: most rows, whose exponentials can be computed before their
//! maxima are known. Any other row has a power of two near its own largest exponential. Where the
//! maximum is beyond [`FAR`], the difference is exact wherever its exponential is not 0, and the
//! maximum is subtracted, as in any f64 row without the fixed base. `shaders/shared/math.wgsl` has
//! the GPU's exponential, with coefficients of its own.

use super::isa::Isa;
use super::vector::{Lane, Real, Vector};

/// From this magnitude of max on, x - max is exact in f32 wherever exp(x - max) is not 0: x is
/// within a factor of two of max.
const FAR: f32 = 220.0;
/// 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
/// The rounding constant of f64: 1.5 * 2^52.
const ROUND_F64: f64 = 6_755_399_441_055_744.0;
/// ln 2 in two parts; the first has 9 bits, so that its product with the exponent is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// ln 2 in two parts for f64; the first has 32 bits.
const LN2_HIGH_F64: f64 = 2_977_044_471.0 / 4_294_967_296.0;
const LN2_LOW_F64: f64 = 1.908_214_929_270_587_8e-10;
/// exp(r) = 1 + r + r^2 * Q(r), fitted for the least relative error (1.05e-7) over |r| <= ln 2 / 2.
const Q: [f32; 4] = [0.499_992_3, 0.166_671_14, 0.041_890_21, 0.008_312_577];
/// tanh(s ln 2 / 2) = s * T(s^2), the highest power first, fitted (Remez) for the least relative
/// error (1.3e-15 with these rounded coefficients) over |s| <= 1/2.
const T: [f64; 6] = [
    -7.405_589_193_525_705e-8,
    1.576_838_234_514_318_3e-6,
    -3.241_196_051_022_456e-5,
    0.000_666_677_901_542_470_1,
    -0.013_876_027_166_081_698,
    0.346_573_590_279_972_2,
];
/// Exponentials relative to the fixed base, 2^-FIXED, are stored 2^FIXED times as large as they
/// are. The largest of a row is then between 2^26 (`EXCESS`, for a maximum of -23.5) and 2^115 (for
/// 38), so that a sum of more than 4,096 is finite.
const FIXED: i32 = 60;
const FIXED_F64: i32 = 500;
/// A base of a row is this many powers of two below the largest exponential, so that small
/// exponentials are not subnormal: exp(-105), with half a power of two for rounding `n`, is 2^-152.
/// The factors that exponentials are multiplied by in the end make up for it.
const EXCESS: i32 = 26;
const EXCESS_F64: i32 = 55;

/// The exponent base of a row, which the exponentials of its logits are relative to.
#[derive(Clone, Copy, Default, PartialEq)]
pub(in crate::cpu) struct ExpBase<W> {
    /// The offset that is subtracted from logits.
    pub(in crate::cpu) offset: W,
    /// The offset that is subtracted from transformed logits, which are f64.
    pub(in crate::cpu) wide_offset: f64,
    /// The number that is added to (x - offset) * log2(e), to round it to an integer and to get the
    /// biased exponent of the stored power of two in the low bits.
    pub(in crate::cpu) rounding_bias: W,
    /// A difference x - offset that is no larger than this has the exponential 0.
    pub(in crate::cpu) underflow: W,
    /// The logarithm of the power of two: the stored exponential of y is exp(y - log_base), where
    /// log_base is the sum of the offsets and this.
    pub(in crate::cpu) log_power: f64,
}

impl<W: Exp> ExpBase<W> {
    /// Returns log_base - y, where log_base is the sum of the offsets and `log_power`.
    #[inline(always)]
    pub(in crate::cpu) fn log_base_less(&self, y: f64) -> f64 {
        // One offset is 0. Large numbers cancel before small ones are added.
        (self.offset.into() + self.wide_offset - y) + self.log_power
    }

    /// Returns the difference of the log_base of two bases.
    #[inline(always)]
    pub(in crate::cpu) fn log_ratio(&self, other: &Self) -> f64 {
        let offset: f64 = self.offset.into();
        let wide_offset = self.wide_offset - other.wide_offset;
        (offset - other.offset.into() + wide_offset) + (self.log_power - other.log_power)
    }
}

/// The exponential of each type.
pub(in crate::cpu) trait Exp: Real {
    const LOG2_E: Self;
    /// ln 2 in two parts, each negative.
    const LN2: [Self; 2];
    /// Minus ln 2 for a reduction in one step; `None` where its rounding would be too large.
    const LN2_WHOLE: Option<Self>;
    /// Q of exp(r) = 1 + r + r^2 * Q(r), the highest power first.
    const POLYNOMIAL: &[Self];
    const MIN_NORMAL: f64;
    /// A power of two whose inverse is a normal number too. A factor of an exponential that is
    /// subnormal or beyond the type is applied as two: this or its inverse, and the rest.
    const SPLIT: f64;
    /// The base of rows whose largest logit is within `FIXED_RANGE`: the stored exponential of y is
    /// exp(y) times a power of two. The largest of a row is at least 2^26 for f32, so that those of
    /// small logits stay normal, and so small that a sum of 4,096 is finite.
    const FIXED_BASE: ExpBase<Self>;
    const FIXED_RANGE: [Self; 2];
    /// The sums, relative to the fixed base, that prove that it suits a row. Where sum / classes is
    /// at least the first, the maximum is above the low end of `FIXED_RANGE`; where the sum is at
    /// most the second, it is below the high end. A sum of NaN fails both.
    const FIXED_SUMS: [f64; 2];
    /// A logit above `FIXED_RANGE` whose exponential relative to the fixed base is finite.
    const FIXED_LIMIT: Self;
    /// Returns the exponent base of a row whose largest logit is `max`.
    #[inline(always)]
    fn exp_base(max: Self) -> ExpBase<Self> {
        let [low, high] = Self::FIXED_RANGE;
        if max >= low && max <= high { Self::FIXED_BASE } else { Self::own_base(max) }
    }
    /// Returns a base near the exponential of `max`: the stored exponential of `max` is about 2^26
    /// for f32.
    #[inline(always)]
    fn own_base(max: Self) -> ExpBase<Self> {
        Self::base_near(max, Self::EXCESS)
    }
    /// The power of two that is about the stored exponential of `max`, relative to `own_base`: so
    /// large that those of small logits stay normal.
    const EXCESS: i32;
    /// Returns a base near the exponential of `max`, whose stored exponential is about
    /// 2^`excess`.
    fn base_near(max: Self, excess: i32) -> ExpBase<Self>;
    /// Returns the largest differences from the offset whose exponentials are finite.
    fn largest_difference<I: Isa>(isa: I, rounding_bias: Self::V<I>) -> Self::V<I>;
    /// Returns the exponential of `difference`, which is above -1e19, relative to `base`, whose
    /// offset is left out.
    fn exp_of_wide<I: Isa>(isa: I, difference: I::F64, base: &ExpBase<Self::V<I>>) -> Self::V<I>;
    /// Returns the one of two roundings of a number that is of this type. (Rounding it in an inner
    /// loop takes steps.)
    fn either(single: f32, double: f64) -> Self;
    /// Returns cap * tanh(x * doublings * ln 2 / 2) - offset, with `x` clamped to `limit` either
    /// way. The relative error of tanh is below 4e-15, which is enough for rows of this type;
    /// `None` where it is not.
    fn quickly_capped<I: Isa>(
        isa: I,
        x: Self::V<I>,
        cap_and_doublings: [f64; 2],
        limit: f32,
        offset: I::F64,
    ) -> Option<I::F64>;
}

/// Returns exp(x - log_base) of a value or a vector, NaN for NaN.
///
/// ```text
/// d = max(x - offset, underflow)
/// shifted = d * log2(e) + rounding_bias       // the biased exponent of 2^n is in its low bits
/// n = shifted - rounding_bias                 // round(d * log2(e))
/// r = d - n * ln 2                            // |r| <= ln 2 / 2
/// exp = power(shifted) * (1 + r + r^2 * Q(r))
/// ```
#[inline(always)]
pub(super) fn exp_of<W: Exp, V: Lane>(all: impl Fn(W) -> V, x: V, base: &ExpBase<V>) -> V {
    let d = (x - base.offset).at_least(base.underflow);
    let shifted = d.mul_add(all(W::LOG2_E), base.rounding_bias);
    let n = shifted - base.rounding_bias;
    // In two steps the product n * LN2[0] is exact, and so is its difference from d.
    let high = n.mul_add(all(W::LN2[0]), d);
    let r = match W::LN2_WHOLE {
        Some(ln2) if V::IS_FUSED => n.mul_add(all(ln2), d),
        _ => n.mul_add(all(W::LN2[1]), high),
    };
    let mut q = r.mul_add(all(W::POLYNOMIAL[0]), all(W::POLYNOMIAL[1]));
    for &term in &W::POLYNOMIAL[2..] {
        q = q.mul_add(r, all(term));
    }
    let fraction = if V::IS_FUSED {
        q.mul_add(r, all(W::ONE)).mul_add(r, all(W::ONE))
    } else {
        // The small terms are added first, so that only the last two additions round leading bits.
        let small = q * (r * r) + n * all(W::LN2[1]);
        all(W::ONE) + (high + small)
    };
    fraction * shifted.power()
}

impl Exp for f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2: [f32; 2] = [-LN2_HIGH, -LN2_LOW];
    const LN2_WHOLE: Option<f32> = Some(-std::f32::consts::LN_2);
    const POLYNOMIAL: &[f32] = &[Q[3], Q[2], Q[1], Q[0]];
    const MIN_NORMAL: f64 = f32::MIN_POSITIVE as f64;
    const SPLIT: f64 = (1_u128 << 126) as f64;
    const FIXED_BASE: ExpBase<f32> = ExpBase {
        offset: 0.0,
        wide_offset: 0.0,
        rounding_bias: ROUND + (127 + FIXED) as f32,
        underflow: (-127 - FIXED) as f32 * std::f32::consts::LN_2,
        log_power: -(FIXED as f64) * std::f64::consts::LN_2,
    };
    const FIXED_RANGE: [f32; 2] = [-23.5, 38.0];
    const FIXED_SUMS: [f64; 2] = [7.2e7, 3.6e34];
    const FIXED_LIMIT: f32 = 46.0;
    const EXCESS: i32 = EXCESS;

    #[inline(always)]
    fn base_near(max: f32, excess: i32) -> ExpBase<f32> {
        let is_far = max.abs() >= FAR && max.is_finite();
        let (offset, near) = if is_far { (max, 0.0) } else { (0.0, max) };
        // Any base will do for infinities and NaN, as long as the exponential of -inf is 0.
        let near = if near.abs() < FAR { near } else { 0.0 };
        let n = (near * std::f32::consts::LOG2_E + ROUND) - ROUND;
        let log_power = (f64::from(n) - f64::from(excess)) * std::f64::consts::LN_2;
        let nothing = (-127 - excess) as f32;
        let underflow = (n + nothing) * std::f32::consts::LN_2;
        let rounding_bias = (ROUND - nothing) - n;
        ExpBase { offset, wide_offset: 0.0, rounding_bias, underflow, log_power }
    }

    #[inline(always)]
    fn largest_difference<I: Isa>(isa: I, rounding_bias: I::F32) -> I::F32 {
        let all = |value| I::F32::splat(isa, value);
        (all(ROUND + 254.0) - rounding_bias) * all(std::f32::consts::LN_2)
    }

    /// ```text
    /// n = round(d * log2(e)),  r = d - n * ln 2        // in f64
    /// exp = power(n + rounding_bias) * ((1 + r + r^2 * (Q0 + Q1 r)) + r^4 * (Q2 + Q3 r))
    /// ```
    #[inline(always)]
    fn exp_of_wide<I: Isa>(isa: I, difference: I::F64, base: &ExpBase<I::F32>) -> I::F32 {
        let all = |value| I::F32::splat(isa, value);
        let wide = |value| I::F64::splat(isa, value);
        let n = difference.mul_add(wide(f64::LOG2_E), wide(ROUND_F64)) - wide(ROUND_F64);
        let r = I::F32::of_wide(isa, n.mul_add(wide(-std::f64::consts::LN_2), difference));
        let n = I::F32::of_wide(isa, n);
        let power = (n + base.rounding_bias).at_least(all(ROUND)).power();
        // The terms are added in pairs, which shortens the chain of steps.
        let squared = r * r;
        let low = squared.mul_add(r.mul_add(all(Q[1]), all(Q[0])), r + all(1.0));
        power * (squared * squared).mul_add(r.mul_add(all(Q[3]), all(Q[2])), low)
    }

    #[inline(always)]
    fn either(single: f32, _: f64) -> f32 {
        single
    }

    /// ```text
    /// n = round(x * doublings),  s = x * doublings - n,  t = tanh(s ln 2 / 2) = s * T(s^2)
    /// tanh = (a + b t) / (b + a t),  a = 2^n - 1,  b = 2^n + 1        // a / b = tanh(n ln 2 / 2)
    /// ```
    #[inline(always)]
    fn quickly_capped<I: Isa>(
        isa: I,
        x: I::F32,
        [cap, doublings]: [f64; 2],
        limit: f32,
        offset: I::F64,
    ) -> Option<I::F64> {
        let all = |value| I::F64::splat(isa, value);
        let (bias, limit) = (all(ROUND_F64 + 1023.0), I::F32::splat(isa, limit));
        let x = x.at_least(I::F32::splat(isa, 0.0) - limit).at_most(limit).wide(isa);
        let shifted = x.mul_add(all(doublings), bias);
        let s = x.mul_add(all(doublings), bias - shifted);
        let z = s * s;
        let mut t = all(T[0]);
        for &term in &T[1..] {
            t = t.mul_add(z, all(term));
        }
        let t = t * s;
        let power = shifted.power();
        let (a, b) = (power - all(1.0), power + all(1.0));
        let (above, below) = (b.mul_add(t, a), a.mul_add(t, b));
        Some((above / below).mul_add(all(cap), all(0.0) - offset))
    }
}

impl Exp for f64 {
    const LOG2_E: f64 = std::f64::consts::LOG2_E;
    const LN2: [f64; 2] = [-LN2_HIGH_F64, -LN2_LOW_F64];
    const LN2_WHOLE: Option<f64> = None;
    const POLYNOMIAL: &[f64] = &[
        SERIES[11], SERIES[10], SERIES[9], SERIES[8], SERIES[7], SERIES[6], SERIES[5], SERIES[4],
        SERIES[3], SERIES[2], SERIES[1], SERIES[0],
    ];
    const MIN_NORMAL: f64 = f64::MIN_POSITIVE;
    const SPLIT: f64 = f64::from_bits((1023 + 1022) << 52);
    const FIXED_BASE: ExpBase<f64> = ExpBase {
        offset: 0.0,
        wide_offset: 0.0,
        rounding_bias: ROUND_F64 + (1023 + FIXED_F64) as f64,
        underflow: (-1023 - FIXED_F64) as f64 * std::f64::consts::LN_2,
        log_power: -(FIXED_F64 as f64) * std::f64::consts::LN_2,
    };
    const FIXED_RANGE: [f64; 2] = [-300.0, 340.0];
    const FIXED_SUMS: [f64; 2] = [1.7e20, 1.4e298];
    const FIXED_LIMIT: f64 = 350.0;
    const EXCESS: i32 = EXCESS_F64;

    #[inline(always)]
    fn base_near(max: f64, excess: i32) -> ExpBase<f64> {
        let offset = if max.is_finite() { max } else { 0.0 };
        let log_power = -f64::from(excess) * std::f64::consts::LN_2;
        let nothing = f64::from(-1023 - excess);
        let underflow = nothing * std::f64::consts::LN_2;
        let rounding_bias = ROUND_F64 - nothing;
        ExpBase { offset, wide_offset: 0.0, rounding_bias, underflow, log_power }
    }

    #[inline(always)]
    fn largest_difference<I: Isa>(isa: I, rounding_bias: I::F64) -> I::F64 {
        let all = |value| I::F64::splat(isa, value);
        (all(ROUND_F64 + 2046.0) - rounding_bias) * all(std::f64::consts::LN_2)
    }

    #[inline(always)]
    fn exp_of_wide<I: Isa>(isa: I, difference: I::F64, base: &ExpBase<I::F64>) -> I::F64 {
        I::F64::exp(isa, difference, base)
    }

    #[inline(always)]
    fn either(_: f32, double: f64) -> f64 {
        double
    }

    #[inline(always)]
    fn quickly_capped<I: Isa>(_: I, _: I::F64, _: [f64; 2], _: f32, _: I::F64) -> Option<I::F64> {
        None
    }
}

/// Returns exp(d) of lanes up to 700 in f64, 0 below -708.
#[inline(always)]
pub(in crate::cpu) fn exp_lanes<I: Isa>(isa: I, d: I::F64) -> I::F64 {
    let base = ExpBase {
        offset: I::F64::splat(isa, 0.0),
        wide_offset: 0.0,
        rounding_bias: I::F64::splat(isa, ROUND_F64 + 1023.0),
        underflow: I::F64::splat(isa, -1023.0 * std::f64::consts::LN_2),
        log_power: 0.0,
    };
    I::F64::exp(isa, d, &base)
}

/// Returns exp(d) - 1 of lanes from -40 to 40 in f64, within a few units in the last place.
///
/// ```text
/// expm1 = 2^n * (r + r^2 * Q(r)) + (2^n - 1)
/// ```
#[inline(always)]
pub(in crate::cpu) fn expm1_lanes<I: Isa>(isa: I, d: I::F64) -> I::F64 {
    let all = |value| I::F64::splat(isa, value);
    let bias = all(ROUND_F64 + 1023.0);
    let shifted = d.mul_add(all(f64::LOG2_E), bias);
    let n = shifted - bias;
    let r = n.mul_add(all(f64::LN2[1]), n.mul_add(all(f64::LN2[0]), d));
    let mut q = all(f64::POLYNOMIAL[0]);
    for &term in &f64::POLYNOMIAL[1..] {
        q = q.mul_add(r, all(term));
    }
    let (minus_one, power) = ((r * r).mul_add(q, r), shifted.power());
    minus_one.mul_add(power, power - all(1.0))
}

/// Returns log(1 + u) for `u` >= 0, in f64, within a few units in the last place: k ln 2 + 2
/// artanh(s), where 1 + u = 2^k (1 + f) and s = f / (2 + f). It has no branches, so that loops over
/// rows are vectorized.
#[inline(always)]
pub(in crate::cpu) fn log1p(u: f64) -> f64 {
    let y = 1.0 + u;
    let bits = y.to_bits();
    // m = 1 + f is between 3/4 and 3/2.
    let k = (bits.wrapping_sub(0x3fe8_0000_0000_0000) as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((k << 52) as u64));
    // Where k is 0, f is u itself, which 1 + u may have rounded.
    let f = if k == 0 { u } else { m - 1.0 };
    let s = f / (2.0 + f);
    let z = s * s;
    let mut q = 0.0;
    for odd in [23.0, 21.0, 19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        q = q * z + 1.0 / odd;
    }
    // k is within i32, which every instruction set can convert.
    let value = f64::from(k as i32) * std::f64::consts::LN_2 + 2.0 * (s + s * z * q);
    // The steps above are wrong for infinities and NaN, which are returned.
    if u < f64::MAX { value } else { u }
}

/// 1 / n! for n from 2 to 13: the series of exp, whose next term over |r| <= ln 2 / 2 is below
/// 1e-17.
const SERIES: [f64; 12] = [
    1.0 / 2.0,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5040.0,
    1.0 / 40_320.0,
    1.0 / 362_880.0,
    1.0 / 3_628_800.0,
    1.0 / 39_916_800.0,
    1.0 / 479_001_600.0,
    1.0 / 6_227_020_800.0,
];

/// Returns exp(d) - 1 and exp(d) in f64, within about two units in the last place; `d` is clamped
/// to [-1000, 710].
#[inline(always)]
fn expm1_and_exp(d: f64) -> (f64, f64) {
    let d = d.clamp(-1000.0, 710.0);
    let shifted = d * std::f64::consts::LOG2_E + ROUND_F64;
    let n = shifted - ROUND_F64;
    let r = (d - n * LN2_HIGH_F64) - n * LN2_LOW_F64;
    let mut q = 0.0;
    for &term in SERIES.iter().rev() {
        q = q * r + term;
    }
    let minus_one = r + r * r * q;
    let exponent = shifted.to_bits().wrapping_sub(ROUND_F64.to_bits()) as i64;
    let half = exponent >> 1;
    let power = |n: i64| f64::from_bits(((n + 1023) as u64) << 52);
    let (a, b) = (power(half), power(exponent - half));
    (minus_one * a * b + (a * b - 1.0), (1.0 + minus_one) * a * b)
}

/// Returns exp(d) in f64.
#[inline(always)]
pub(in crate::cpu) fn exp(d: f64) -> f64 {
    expm1_and_exp(d).1
}

/// Returns tanh(u) and its derivative, in f64.
#[inline(always)]
pub(in crate::cpu) fn tanh(u: f64) -> (f64, f64) {
    // tanh is computed from exp(-2 |u|), which cannot overflow.
    let (minus_one, e) = expm1_and_exp(-2.0 * u.abs());
    let whole = 1.0 + e;
    ((-minus_one / whole).copysign(u), 4.0 * e / (whole * whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{LANES, at_level, available};

    /// Returns the worst error of exp over the f32 with the given bits, in units in the last place.
    #[inline(always)]
    fn worst_error<I: Isa>(isa: I, bits: std::ops::Range<u32>) -> f64 {
        let ExpBase { offset, wide_offset, rounding_bias, underflow, log_power } =
            f32::own_base(0.0);
        let all = |value| I::F32::splat(isa, value);
        let bases = ExpBase {
            offset: all(offset),
            wide_offset,
            rounding_bias: all(rounding_bias),
            underflow: all(underflow),
            log_power,
        };
        let mut worst = [0.0_f64; LANES];
        for start in bits.step_by(LANES) {
            let mut x = [0.0; LANES];
            for lane in 0..LANES {
                x[lane] = f32::from_bits(start + lane as u32);
            }
            let found = I::F32::exp(isa, I::F32::load(isa, &x), &bases);
            let found = (found * all((-f64::from(EXCESS)).exp2() as f32)).array();
            for lane in 0..LANES {
                let wanted = exp(f64::from(x[lane]));
                // A unit in the last place is 2^-23 of the power of two below `wanted`, or the
                // smallest subnormal.
                let power = f64::from_bits(wanted.to_bits() & 0x7ff0_0000_0000_0000)
                    .max(f64::from(f32::MIN_POSITIVE));
                let error =
                    (f64::from(found[lane]) - wanted).abs() / (power * f64::from(f32::EPSILON));
                worst[lane] = if error > worst[lane] { error } else { worst[lane] };
            }
        }
        worst.into_iter().fold(0.0, f64::max)
    }

    #[test]
    fn exp_of_every_f32_is_within_five_units_in_the_last_place() {
        let (first, last) = ((-0.0_f32).to_bits(), (-104.0_f32).to_bits());
        for level in available() {
            // The full tier takes every stretch, except for portable code, which takes ten times as
            // long: every sixteenth. The default tier takes a sixteenth of that.
            let step = if level.name() == "portable" { 16 } else { 1 }
                * if crate::tier::is_full() { 1 } else { 16 };
            let stretch = 1 << 16;
            let starts = (first..last).step_by(stretch * step);
            let of = |start: u32| {
                let bits = start..start + stretch as u32;
                at_level!(level, isa => worst_error(isa, bits))
            };
            #[cfg(feature = "parallel")]
            let worst = {
                use rayon::prelude::*;
                let starts: Vec<u32> = starts.collect();
                starts.into_par_iter().map(of).reduce(|| 0.0, f64::max)
            };
            #[cfg(not(feature = "parallel"))]
            let worst = starts.map(of).fold(0.0, f64::max);
            println!("{level:?}: {worst:.4} units in the last place");
            // ln 2 in one step is off by 1.9e-9, 150 times at exp(-104).
            assert!(worst < 5.0, "{level:?}: {worst} units in the last place");
        }
    }

    #[test]
    fn tanh_of_f32_rows_is_within_4e_15() {
        let doublings = 2.0 * std::f64::consts::LOG2_E;
        let limit = (60.0 / doublings) as f32;
        for level in available() {
            let tanh_of = |x: &[f32; LANES]| {
                at_level!(level, isa => {
                    let zero = Vector::splat(isa, 0.0);
                    let x = Vector::load(isa, x);
                    f32::quickly_capped(isa, x, [1.0, doublings], limit, zero).map(Vector::array)
                })
            };
            // A prime step reaches every exponent, and all kinds of digits.
            let floats: Vec<f32> = (0..=u32::MAX).step_by(1009).map(f32::from_bits).collect();
            let mut worst = 0.0_f64;
            for x in floats.as_chunks::<LANES>().0 {
                for (&x, found) in x.iter().zip(tanh_of(x).unwrap_or([f64::NAN; LANES])) {
                    let wanted = f64::from(x).tanh();
                    assert_eq!(found.is_nan(), x.is_nan(), "{level:?}: {found} of {x}");
                    if x != 0.0 && !x.is_nan() {
                        worst = worst.max((found / wanted - 1.0).abs());
                    }
                }
            }
            println!("{level:?}: {worst:.1e}");
            assert!(worst < 4e-15, "{level:?}: {worst:e}");
            let mut x = [0.0; LANES];
            (x[1], x[2]) = (f32::INFINITY, f32::NEG_INFINITY);
            let found = tanh_of(&x).unwrap_or([f64::NAN; LANES]);
            assert_eq!(found[..3], [0.0, 1.0, -1.0], "{level:?}");
        }
    }

    #[test]
    fn logarithms_of_sums_are_as_good_as_the_platform_s() {
        let mut worst = 0.0_f64;
        for n in 0..400_000 {
            let u = (f64::from(n) * 1e-3 - 200.0).exp2();
            worst = worst.max((log1p(u) / u.ln_1p() - 1.0).abs());
        }
        println!("worst relative error: {worst:.1e}");
        assert!(worst < 1e-15, "{worst}");
        assert_eq!([log1p(0.0), log1p(f64::INFINITY), log1p(1e-300)], [0.0, f64::INFINITY, 1e-300]);
        assert!(log1p(f64::NAN).is_nan());
    }

    #[test]
    fn float64_is_as_good_as_the_platform_s() {
        let worst = |error: fn(f64) -> f64| {
            (1..200_000)
                .map(|n| error(f64::from(n) * 1.3e-3 * f64::from(n).sqrt()))
                .fold(0.0_f64, f64::max)
        };
        let exp_error = worst(|d| if d > 700.0 { 0.0 } else { (exp(-d) / (-d).exp() - 1.0).abs() });
        let tanh_error = worst(|u| (tanh(u * 1e-3).0 / (u * 1e-3).tanh() - 1.0).abs());
        println!("worst relative errors: exp {exp_error:.1e}, tanh {tanh_error:.1e}");
        assert!(exp_error < 1e-15 && tanh_error < 1e-15, "{exp_error} {tanh_error}");
        assert_eq!(
            [tanh(f64::INFINITY).0, tanh(-1e300).0, tanh(f64::INFINITY).1],
            [1.0, -1.0, 0.0]
        );
        assert_eq!(
            [tanh(1e-300).0, exp(f64::NEG_INFINITY), exp(f64::INFINITY)],
            [1e-300, 0.0, 710.0_f64.exp()]
        );
        assert!(tanh(f64::NAN).0.is_nan() && exp(f64::NAN).is_nan());
    }
}
