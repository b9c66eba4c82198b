//! Log-sum-exp: log(sum_j exp(y_j)). Twin of `shaders/log_sum_exp.wgsl`.

use crate::cpu::rows::{ROWS, Rows};
use crate::cpu::simd::Real;
use crate::cpu::transform::LogitTransform;
use crate::cpu::transform::{Identity, ScaledCapped};
use crate::problem::transform::Transform;

#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows>(rows: &mut R) -> [R::W; ROWS] {
    let (stats, transform) = (rows.reduce(false), rows.transform());
    let lse = stats.log_sum_exps(transform);
    let mut values = [R::W::ZERO; ROWS];
    for row in 0..rows.count() {
        let value = lse.total(row);
        values[row] = R::W::of(if !stats.is_regular(row) {
            // PyTorch has -inf for a row of nothing but -inf, +inf for a row with a +inf, and NaN
            // for a row with a NaN.
            if rows.find_where(row, |x| !x.is_number()).is_some() {
                f64::NAN
            } else {
                transform.value_of_max(stats.max[row])
            }
        } else if value.abs() < 0.32 * (1.0 - stats.max_probability(row)) {
            // The exponentials of an f32 row are f32, so the logarithm has an error of up to 1e-7 *
            // (1 - p_max), where p_max is the probability of the maximum. Where the maximum nearly
            // cancels the logarithm, that would be a large relative error.
            exact_with_max(
                (0..rows.classes()).map(|class| transform.value(rows.get(row, class))),
                lse.max[row],
            )
        } else {
            value
        });
    }
    values
}

/// Returns the log-sum-exp of the row `x`, computed in f64 throughout. It is slow, and is meant for
/// the rare rows of a GPU whose log-sum-exp is near 0.
pub(crate) fn exact(x: &[f32], transform: &Transform) -> f32 {
    fn of<Y: LogitTransform>(transform: Y, x: &[f32]) -> f64 {
        let max = x
            .iter()
            .map(|&x| transform.value(x))
            .fold(f64::NEG_INFINITY, |a, b| if a > b { a } else { b });
        if !max.is_finite() {
            max
        } else {
            exact_with_max(x.iter().map(|&x| transform.value(x)), max)
        }
    }
    (if transform.is_identity() { of(Identity, x) } else { of(ScaledCapped(*transform), x) }) as f32
}

fn exact_with_max(values: impl Iterator<Item = f64>, max: f64) -> f64 {
    let (mut rest_sum, mut times_max) = (0.0_f64, 0_u64);
    for y in values {
        if y == max {
            times_max += 1;
        } else {
            rest_sum += (y - max).exp();
        }
    }
    max + (rest_sum + times_max.saturating_sub(1) as f64).ln_1p()
}
