//! Draws a class from the softmax by the Gumbel-max trick. Counterpart of `shaders/sample.wgsl`,
//! with the same bits: both use integers, and f32 additions and multiplications that are each
//! rounded.

use super::predict;
use crate::Prediction;
use crate::cpu::rows::{Rows, Wanted};
use crate::cpu::simd::{Real, Vector};
use crate::problem::sampling::{Draws, threefry};

/// Draws a class of the first row; `x` is its logits, `index` its number in the batch, and `scale`
/// the scale of the logit transform.
///
/// ```text
/// for each class:  t = (x - max) scale;  score = t + noise of the class, unless key of t < lowest
/// class = the first with the largest score;  p = exp(y - log_base) / sum
/// ```
#[inline(always)]
pub(in crate::cpu) fn row<R: Rows<N>, const N: usize>(
    rows: &mut R,
    x: &[R::W],
    index: usize,
    scale: f64,
    draws: &Draws,
) -> Prediction {
    let stats = rows.reduce(Wanted::Rest { keeps: false });
    if !stats.is_regular(0) {
        let stats = rows.reduce(Wanted::Class);
        return predict::best(rows, &stats, 0);
    }
    let max: f64 = stats.max[0].into();
    let scale = scale as f32;
    // The difference is rounded once, to f32: in f64 it is exact wherever it matters.
    let difference = |x: R::W| (x.into() - max) as f32 * scale;
    let lowest = lowest_key(x, draws, difference);
    let key = draws.key();
    let mut best = (f32::NEG_INFINITY, 0);
    for (class, &x) in x.iter().enumerate() {
        let t = difference(x);
        if t == f32::NEG_INFINITY || key_of(t) < lowest {
            continue;
        }
        let [bits, _] = threefry(key, [class as u32, index as u32]);
        let score = t + gumbel(bits);
        if score > best.0 {
            best = (score, class);
        }
    }
    let class = best.1;
    let [term, ..] = rows.terms_of_first(Vector::splat(rows.isa(), x[class])).array();
    Prediction { class: class as u32, probability: (term.into() * stats.inverse_sum(0)) as f32 }
}

/// Returns the least key of a class that may be drawn. The key of a class is that of the scaled
/// difference of its logit from the maximum (`key_of`).
fn lowest_key<W: Real>(x: &[W], draws: &Draws, difference: impl Fn(W) -> f32) -> i32 {
    let mut lowest = key_of(f32::MIN);
    if (draws.top_k as usize) < x.len() {
        let count = |key| x.iter().filter(|&&x| key_of(difference(x)) >= key).count();
        lowest = largest_key_where(lowest, |key| count(key) >= draws.top_k as usize);
    }
    if draws.top_p < 1.0 {
        let mass = |key| {
            let weights =
                x.iter().map(|&x| difference(x)).filter(|&t| key_of(t) >= key).map(fixed_point_exp);
            rounded_down(weights.fold(0_u64, |sum, weight| sum + u64::from(weight)))
        };
        let wanted = draws.top_p * mass(lowest);
        lowest = largest_key_where(lowest, |key| mass(key) >= wanted);
    }
    lowest
}

/// Returns the largest key from `lowest` to that of 0 for which `holds` is true, by bisection: it
/// is true for `lowest`, and false for all keys above one for which it is false.
fn largest_key_where(lowest: i32, holds: impl Fn(i32) -> bool) -> i32 {
    let (mut low, mut high) = (lowest, 0);
    while low < high {
        // `high - low` may be beyond i32.
        let middle = low.wrapping_add(((high.wrapping_sub(low) as u32).div_ceil(2)) as i32);
        if holds(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// Returns an integer that is ordered as `x` is, for `x` up to 0.
fn key_of(x: f32) -> i32 {
    let bits = x.to_bits() as i32;
    let order = bits ^ ((bits >> 31) & 0x7fff_ffff);
    if order == -1 { 0 } else { order }
}

/// Returns exp(t) for `t` up to 0, in multiples of 2^-31.
fn fixed_point_exp(t: f32) -> u32 {
    let t = t.max(-40.0);
    let n = (t * std::f32::consts::LOG2_E).round_ties_even();
    let r = (t - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut q = 0.001_381_869_8;
    for term in [0.008_368_716, 0.041_668_292, 0.166_665_21, 0.499_999_94] {
        q = q * r + term;
    }
    let power = 1.0 + (r + r * r * q);
    (power * f32::from_bits(((n as i32 + 31 + 127) as u32) << 23)) as u32
}

/// Returns `mass` truncated to its leading 24 bits.
fn rounded_down(mass: u64) -> f32 {
    let excess = (64 - mass.leading_zeros()).saturating_sub(24);
    (mass >> excess) as f32 * f32::from_bits((excess + 127) << 23)
}

/// Returns -log(-log(1 - v)), where v in (0, 1) is `(bits | 1) / 2^32` truncated to 24 significant
/// bits.
fn gumbel(bits: u32) -> f32 {
    let zeros = (bits | 1).leading_zeros();
    let mantissa = ((bits | 1) << zeros) >> 8;
    let v = mantissa as f32 * f32::from_bits((127 - 24 - zeros) << 23);
    let exponential = if v < 0.25 { -log1p(-v) } else { -log(1.0 - v) };
    -log(exponential)
}

/// Returns log(x) for a normal number `x`.
fn log(x: f32) -> f32 {
    // x = 2^k * (1 + f), with 1 + f between 3/4 and 3/2.
    let bits = x.to_bits() as i32;
    let k = (bits - 0x3f40_0000) >> 23;
    let f = f32::from_bits((bits - (k << 23)) as u32) - 1.0;
    k as f32 * std::f32::consts::LN_2 + log1p(f)
}

/// Returns log(1 + f) for `f` from -1/4 to 1/2. The polynomial is fitted for the least relative
/// error (1.0e-7 with rounding).
fn log1p(f: f32) -> f32 {
    let mut q = 0.052_806_754;
    for term in [
        -0.119_419_396,
        0.149_702_32,
        -0.168_371_16,
        0.199_794_19,
        -0.249_928_79,
        0.333_334_92,
        -0.500_000_7,
        1.0,
    ] {
        q = q * f + term;
    }
    f * q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_gumbel_s() {
        let mut worst = 0.0_f64;
        for bits in (0..=u32::MAX).step_by(4099).chain([1, 2, u32::MAX]) {
            // v has the leading 24 bits, as in `gumbel`.
            let zeros = (bits | 1).leading_zeros();
            let v = f64::from(((bits | 1) << zeros) >> 8) * 2.0_f64.powi(-24 - zeros as i32);
            let exact = -(-(-v).ln_1p()).ln();
            worst = worst.max((f64::from(gumbel(bits)) - exact).abs() / (1.0 + exact.abs()));
        }
        println!("worst error of the noise: {worst:.1e}");
        assert!(worst < 3e-7, "{worst}");
    }

    #[test]
    fn the_lowest_key_is_where_a_sort_would_make_it() {
        let mut x: Vec<f32> = (0..997_u32).map(|n| ((n * 7919) % 1009) as f32 * 0.01).collect();
        x[5] = f32::NEG_INFINITY;
        let max = x.iter().copied().fold(f32::MIN, f32::max);
        let mut sorted = x.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let total: f64 = sorted.iter().map(|&x| f64::from(x - max).exp()).sum();
        for (top_k, top_p) in
            [(1, 1.0), (10, 1.0), (996, 1.0), (u32::MAX, 0.5), (u32::MAX, 0.999), (50, 0.3)]
        {
            let draws = Draws { top_k, top_p, ..Draws::default() };
            let lowest = lowest_key(&x, &draws, |x| x - max);
            let kept = x.iter().filter(|&&x| key_of(x - max) >= lowest).count();
            let mut wanted = sorted.len().min(top_k as usize);
            let mass = |count: usize| {
                sorted[..count].iter().map(|&x| f64::from(x - max).exp()).sum::<f64>()
            };
            if top_p < 1.0 {
                let of = if top_k == u32::MAX { total } else { mass(wanted) };
                wanted = (1..=wanted).find(|&count| mass(count) >= f64::from(top_p) * of).unwrap();
            }
            assert_eq!(kept, wanted, "top_k {top_k}, top_p {top_p}");
        }
    }
}
