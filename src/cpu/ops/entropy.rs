//! The entropy of softmax(y) and its gradient, by the distances `d_j = max - y_j`, with
//! `e_j = exp(-d_j)` and `sum = sum_j e_j`. Counterpart of `shaders/entropy.wgsl`.
//!
//! ```text
//! H = -sum_j p_j log p_j = log(sum) + mean, where mean = sum_j e_j d_j / sum
//! gradient_j = -g p_j (log p_j + H) dy_j/dx_j = g e_j / sum (d_j - mean) dy_j/dx_j
//! ```
//!
//! Neither term of H is negative, so nothing cancels. Exponentials are f64, which holds those that
//! would be 0 in f32.

use crate::cpu::RowOperands;
use crate::cpu::rows::{Lanes, Place, Rows, Stats, Wanted, Wide};
use crate::cpu::simd::{Isa, Lane, Real, Vector, exp_lanes};
use crate::cpu::transform::LogitTransform;

/// Where log(sum) is below this, H is summed class by class as e_j (1 + d_j): the exponentials that
/// log(sum) was made from may have been rounded to 0 in `W`.
const CONFIDENT: f64 = 1e-30;

/// Returns the distances of logits from the maxima of their rows, `max_logits`, which are 0 apart
/// from themselves.
#[inline(always)]
fn distances<R: Rows<N>, const N: usize>(
    (isa, transform): (R::I, R::Y),
    max_logits: &[R::W; N],
    place: Place<'_>,
    x: Lanes<R, N>,
) -> Wide<R, N> {
    let max: Lanes<R, N> = place.of_row(isa, max_logits);
    let y = transform.values::<R::I, R::W>(isa, x);
    (transform.values::<R::I, R::W>(isa, max) - y).at_least(Wide::<R, N>::splat(isa, 0.0))
}

/// Returns `e_j weight(d_j)`, which is 0 for a logit of -inf.
#[inline(always)]
fn term<I: Isa>(isa: I, d: I::F64, weight: impl Fn(I::F64) -> I::F64) -> I::F64 {
    let zero = I::F64::splat(isa, 0.0);
    let e = exp_lanes(isa, zero - d);
    e.where_equal(zero, zero, e * weight(d))
}

/// Returns the mean distance of each row from its maximum:
///
/// ```text
/// for each class: mean += e_j d_j
/// mean /= sum
/// ```
#[inline(always)]
fn means<R: Rows<N>, const N: usize>(
    rows: &R,
    stats: &Stats<R::W, N>,
    max: &[R::W; N],
) -> [f64; N] {
    let isa = rows.isa();
    let of = (isa, rows.transform());
    let [mut means] = rows.sums(
        #[inline(always)]
        |place, x| {
            [term(
                isa,
                distances::<R, N>(of, max, place, x),
                #[inline(always)]
                |d| d,
            )]
        },
    );
    for row in 0..N {
        means[row] *= stats.max_probability(row);
    }
    means
}

/// Returns the entropy of each row.
#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows<N>, const N: usize>(rows: &mut R) -> [R::W; N] {
    let stats = rows.reduce(Wanted::Rest { keeps: false });
    let isa = rows.isa();
    let lse = stats.log_sum_exps(isa, rows.transform());
    let max = stats.max_logits(rows.transform());
    let means = means(rows, &stats, &max);
    let mut entropies = [0.0; N];
    let mut is_confident = false;
    for row in 0..rows.count() {
        entropies[row] = lse.log1p_rest[row] + means[row];
        is_confident |= lse.log1p_rest[row] < CONFIDENT;
    }
    if is_confident {
        let (zero, one) = (Wide::<R, N>::splat(isa, 0.0), Wide::<R, N>::splat(isa, 1.0));
        let of = (isa, rows.transform());
        // for each class below the maximum: H += e_j (1 + d_j)
        let [sums] = rows.sums(
            #[inline(always)]
            |place, x| {
                let d = distances::<R, N>(of, &max, place, x);
                let below = term(
                    isa,
                    d,
                    #[inline(always)]
                    |d| one + d,
                );
                [d.where_equal(zero, zero, below)]
            },
        );
        for row in 0..rows.count() {
            if lse.log1p_rest[row] < CONFIDENT {
                entropies[row] = sums[row];
            }
        }
    }
    let mut values = [R::W::ZERO; N];
    for row in 0..rows.count() {
        values[row] = if stats.is_regular(row) { R::W::of(entropies[row]) } else { R::W::NAN };
    }
    values
}

/// Replaces the logits by the gradient.
///
/// ```text
/// for each class: gradient_j = g / sum * e_j (d_j - mean) * dy_j/dx_j
/// ```
#[inline(always)]
pub(in crate::cpu) fn backward_rows<R: Rows<N>, const N: usize>(
    rows: &mut R,
    operands: &RowOperands<'_, R::W, N>,
) {
    let stats = rows.reduce(Wanted::Rest { keeps: false });
    let (isa, transform) = (rows.isa(), rows.transform());
    let max = stats.max_logits(rows.transform());
    let means = means(rows, &stats, &max);
    let mut factors = [f64::NAN; N];
    for row in 0..rows.count() {
        if stats.is_regular(row) {
            factors[row] = operands.row_upstream[row] * stats.max_probability(row);
        }
    }
    rows.map(
        #[inline(always)]
        |place, x| {
            let d = distances::<R, N>((isa, transform), &max, place, x);
            let mean: Wide<R, N> = place.of_row(isa, &means);
            let gradient = term(
                isa,
                d,
                #[inline(always)]
                |d| d - mean,
            );
            let factor: Wide<R, N> = place.of_row(isa, &factors);
            let slope = transform.derivatives::<R::I, R::W>(isa, x).wide(isa);
            // Adding 0 turns -0 into 0.
            let zero = Wide::<R, N>::splat(isa, 0.0);
            Lanes::<R, N>::of_wide(isa, factor * gradient * slope + zero)
        },
    );
}
