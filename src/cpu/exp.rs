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
