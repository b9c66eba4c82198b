//! exp(x - max) of f32 to about one unit in the last place, the same bits on every machine.
//!
//! The difference is split into what f32 holds and what it drops (Knuth's two-sum: The Art of Computer Programming, vol.
//! 2, 4.2.2), the power of two is taken out by a two-part ln 2 (Cody and Waite, Software Manual for the Elementary
//! Functions, 1980), and a polynomial of degree 6 does the rest. No fused multiply-add: the compiler must
//! not be able to change a bit between SIMD levels. `shaders/shared/math.wgsl` is the twin.

/// Below this exp is 0 in f32 (the smallest subnormal is exp(-103.28)).
const LOWEST: f32 = -110.0;
/// 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has 9 bits, so that its product with the exponent is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// exp(r) = 1 + r + r^2 * Q(r), fitted for the least relative error (3.2e-9) over |r| <= ln 2 / 2.
const Q: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_292, 0.008_368_716, 0.001_381_869_8];

/// x - max, and what rounding that difference to f32 lost.
#[inline(always)]
pub(super) fn difference(x: f32, max: f32) -> (f32, f32) {
    let d = x - max;
    let back = d + max;
    let lost = (x - back) + ((back - d) - max);
    // Past LOWEST nothing is lost that could matter, and for -inf the difference above is NaN.
    (d, if d > LOWEST { lost } else { 0.0 })
}

/// exp(x - max) for a finite `max >= x`; `x` may be -inf.
#[inline(always)]
pub(super) fn exp_difference(x: f32, max: f32) -> f32 {
    let (d, lost) = difference(x, max);
    exp_pair(d, lost)
}

/// exp(d + lost) for d up to 128, where it is infinite.
#[inline(always)]
pub(super) fn exp_pair(d: f32, lost: f32) -> f32 {
    let d = if d > LOWEST { d } else { LOWEST };
    let shifted = d * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (d - n * LN2_HIGH) - n * LN2_LOW + lost;
    let q = (((Q[4] * r + Q[3]) * r + Q[2]) * r + Q[1]) * r + Q[0];
    let power = 1.0 + (r + r * r * q);
    // 2^n in two factors, for 2^-159 is no f32.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = exponent >> 1;
    power * exponential_of_two(half) * exponential_of_two(exponent - half)
}

#[inline(always)]
fn exponential_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// 1 / n! for n from 2 to 13: the series of exp, which over |r| <= ln 2 / 2 ends within 1e-17.
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

/// exp(d) - 1 and exp(d) in f64, to about two units in the last place; d is clamped to [-1000, 710].
#[inline(always)]
fn expm1_and_exp(d: f64) -> (f64, f64) {
    // The first has 32 bits, so that its product with the exponent is exact.
    const LN2_HIGH: f64 = 2_977_044_471.0 / 4_294_967_296.0;
    const LN2_LOW: f64 = 1.908_214_929_270_587_8e-10;
    /// 1.5 * 2^52.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let d = d.clamp(-1000.0, 710.0);
    let shifted = d * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (d - n * LN2_HIGH) - n * LN2_LOW;
    let mut q = 0.0;
    for &term in SERIES.iter().rev() {
        q = q * r + term;
    }
    let minus_one = r + r * r * q;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i64;
    let half = exponent >> 1;
    let power = |n: i64| f64::from_bits(((n + 1023) as u64) << 52);
    let (a, b) = (power(half), power(exponent - half));
    (minus_one * a * b + (a * b - 1.0), (1.0 + minus_one) * a * b)
}

/// exp(d) in f64.
#[inline(always)]
pub(super) fn exp(d: f64) -> f64 {
    expm1_and_exp(d).1
}

/// tanh(u), and its derivative, in f64.
#[inline(always)]
pub(super) fn tanh(u: f64) -> (f64, f64) {
    // Of exp(-2 |u|), for which nothing overflows.
    let (minus_one, e) = expm1_and_exp(-2.0 * u.abs());
    let whole = 1.0 + e;
    ((-minus_one / whole).copysign(u), 4.0 * e / (whole * whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every f32 from -104 to 0 would take minutes; a prime step of bit patterns visits 16 million of them.
    #[test]
    fn error_stays_near_one_unit_in_the_last_place() {
        let mut worst = 0.0_f64;
        for bits in (0x8000_0000_u32..=(-104.0_f32).to_bits()).step_by(67) {
            let x = f32::from_bits(bits);
            let exact = f64::from(x).exp();
            let unit = 2.0_f64.powi((exact.log2().floor() as i32).max(-126) - 23);
            worst = worst.max((f64::from(exp_difference(x, 0.0)) - exact).abs() / unit);
        }
        assert!(worst < 1.1, "{worst} units in the last place");
        println!("worst error of exp: {worst} units in the last place");
    }

    #[test]
    fn float64_is_as_good_as_the_platform_s() {
        let worst = |error: fn(f64) -> f64| {
            (1..200_000).map(|n| error(f64::from(n) * 1.3e-3 * f64::from(n).sqrt())).fold(0.0_f64, f64::max)
        };
        let exp_error = worst(|d| if d > 700.0 { 0.0 } else { (exp(-d) / (-d).exp() - 1.0).abs() });
        let tanh_error = worst(|u| (tanh(u * 1e-3).0 / (u * 1e-3).tanh() - 1.0).abs());
        println!("worst relative errors: exp {exp_error:.1e}, tanh {tanh_error:.1e}");
        assert!(exp_error < 1e-15 && tanh_error < 1e-15, "{exp_error} {tanh_error}");
        assert_eq!([tanh(f64::INFINITY).0, tanh(-1e300).0, tanh(f64::INFINITY).1], [1.0, -1.0, 0.0]);
        assert_eq!([tanh(1e-300).0, exp(f64::NEG_INFINITY), exp(f64::INFINITY)], [1e-300, 0.0, 710.0_f64.exp()]);
        assert!(tanh(f64::NAN).0.is_nan() && exp(f64::NAN).is_nan());
    }

    #[test]
    fn a_rounded_difference_is_made_good() {
        // 0.1234567 - 80.3 is not an f32; without its lost part the exponential would be off by 4e-6 of itself.
        for (x, max) in [
            (29_999.877_f32, 30_000.0_f32),
            (-1e-3, 3.3),
            (0.123_456_7, 80.3),
            (-0.1, 16_777_216.0),
            (-3e38, 3e38),
            (f32::NEG_INFINITY, 1.0),
        ] {
            let exact = (f64::from(x) - f64::from(max)).exp();
            let got = f64::from(exp_difference(x, max));
            assert!((got - exact).abs() <= 1.3e-7 * exact + 1e-45, "{x} {max}: {got} {exact}");
        }
    }
}
