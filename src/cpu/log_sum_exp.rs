//! log(sum_j exp(x_j)). Twin of `shaders/log_sum_exp.wgsl`.

use super::lanes;

pub(super) fn row(x: &[f32]) -> f32 {
    let max = lanes::max(x);
    if !max.is_finite() {
        // -inf of nothing but -inf, +inf with a +inf, else NaN: as PyTorch.
        return max;
    }
    let stats = lanes::stats(x, max);
    let log_sum_exp = stats.log_sum_exp();
    // The exponentials are f32, so the logarithm is off by up to 1e-7 of its slope others / (1 + others); where max all
    // but cancels it, that would be much of the little that is left.
    if log_sum_exp.abs() < 0.32 * stats.others / stats.sum() { exact(x) } else { log_sum_exp as f32 }
}

/// The same in float64 throughout: slow, for the rare rows whose log-sum-exp is next to 0.
pub(crate) fn exact(x: &[f32]) -> f32 {
    let max = lanes::max(x);
    if !max.is_finite() {
        return max;
    }
    let (mut others, mut tops) = (0.0_f64, 0_u64);
    for &x in x {
        if x == max {
            tops += 1;
        } else {
            others += (f64::from(x) - f64::from(max)).exp();
        }
    }
    (f64::from(max) + (others + tops.saturating_sub(1) as f64).ln_1p()) as f32
}
