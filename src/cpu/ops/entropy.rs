//! The entropy of softmax(y) and its gradient, by the distances `d_j = max - y_j`, with
//! `e_j = exp(-d_j)` and `sum = sum_j e_j`. Twin of `shaders/entropy.wgsl`.
//!
//! ```text
//! H = -sum_j p_j log p_j = log(sum) + mean, where mean = sum_j e_j d_j / sum
//! gradient_j = -g p_j (log p_j + H) dy_j/dx_j = g e_j / sum (d_j - mean) dy_j/dx_j
//! ```
//!
//! Neither term of H is negative, so nothing cancels.

use crate::cpu::RowOperands;
use crate::cpu::rows::{ROWS, Rows, Stats};
use crate::cpu::simd::{Exp, Real};
use crate::cpu::transform::LogitTransform;

/// Where log(sum) is below this, H is summed class by class as e_j (1 + d_j): the exponentials that
/// log(sum) was made from may have been rounded to 0 in `W`.
const CONFIDENT: f64 = 1e-30;

/// Returns exp(-d) in f64, as the square of exp(-d / 2), which `W` can hold.
#[inline(always)]
fn wide_exp<W: Exp>(d: f64) -> f64 {
    let root: f64 = W::exp_wide(-0.5 * d).into();
    root * root
}

/// Returns `weight(d_j) e_j`, which is 0 for a logit of -inf.
#[inline(always)]
fn term<W: Exp>(d: f64, weight: impl Fn(f64) -> f64) -> f64 {
    let e = wide_exp::<W>(d);
    if e == 0.0 { 0.0 } else { e * weight(d) }
}

/// Returns the mean distance of each row from its maximum:
///
/// ```text
/// for each class: mean += e_j d_j
/// mean /= sum
/// ```
#[inline(always)]
fn means<R: Rows>(rows: &R, stats: &Stats<R::W>, max: &[f64; ROWS]) -> [f64; ROWS] {
    let transform = rows.transform();
    let mut means = rows.sums(
        #[inline(always)]
        |row, _, x| term::<R::W>(max[row] - transform.value(x), |d| d),
    );
    for row in 0..ROWS {
        means[row] *= stats.max_probability(row);
    }
    means
}

/// Returns the entropy of each row.
#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows>(rows: &mut R) -> [R::W; ROWS] {
    let stats = rows.reduce(false);
    let transform = rows.transform();
    let lse = stats.log_sum_exps(transform);
    let means = means(rows, &stats, &lse.max);
    let mut entropies = [0.0; ROWS];
    let mut is_confident = false;
    for row in 0..rows.count() {
        entropies[row] = lse.log1p_rest[row] + means[row];
        is_confident |= lse.log1p_rest[row] < CONFIDENT;
    }
    if is_confident {
        // for each class below the maximum: H += e_j (1 + d_j)
        let sums = rows.sums(
            #[inline(always)]
            |row, _, x| {
                let d = lse.max[row] - transform.value(x);
                if d > 0.0 { term::<R::W>(d, |d| 1.0 + d) } else { 0.0 }
            },
        );
        for row in 0..rows.count() {
            if lse.log1p_rest[row] < CONFIDENT {
                entropies[row] = sums[row];
            }
        }
    }
    let mut values = [R::W::ZERO; ROWS];
    for row in 0..rows.count() {
        values[row] = if stats.is_regular(row) { R::W::of(entropies[row]) } else { R::W::NAN };
    }
    values
}

/// Replaces the logits by the gradient.
#[inline(always)]
pub(in crate::cpu) fn backward_rows<R: Rows>(rows: &mut R, operands: &RowOperands<'_, R::W>) {
    let stats = rows.reduce(false);
    let transform = rows.transform();
    let max = stats.log_sum_exps(transform).max;
    let means = means(rows, &stats, &max);
    let mut factors = [0.0; ROWS];
    for row in 0..rows.count() {
        factors[row] = operands.gradients[row] * stats.max_probability(row);
    }
    // for each class: gradient_j = g / sum * e_j (d_j - mean) * dy_j/dx_j; adding 0 turns -0 into 0
    rows.map(
        #[inline(always)]
        |row, _, x| {
            let gradient = term::<R::W>(max[row] - transform.value(x), |d| d - means[row]);
            let value = factors[row] * gradient * transform.derivative(x);
            R::W::of(if stats.is_regular(row) { value + 0.0 } else { f64::NAN })
        },
    );
}
