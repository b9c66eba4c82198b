//! Log-sum-exp: log(sum_j exp(y_j)). Counterpart of `shaders/log_sum_exp.wgsl`.

use crate::cpu::rows::{Lanes, LogSumExps, Rows, Stats, Wanted, Wide};
use crate::cpu::simd::{Real, Vector, exp_lanes, log1p};
use crate::cpu::transform::LogitTransform;
use crate::cpu::transform::{Identity, ScaledCapped};
use crate::problem::transform::Transform;

/// The exponentials of an f32 row are f32, so the logarithm has an error of up to 4e-7 * (1 -
/// p_max), where p_max is the probability of the maximum. Where the maximum nearly cancels the
/// logarithm, that would be a large relative error. A result below this times (1 - p_max) is
/// computed again in f64.
const NEAR_ZERO: f64 = 0.8;

#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows<N>, const N: usize>(rows: &mut R) -> [R::W; N] {
    let (stats, transform) = (rows.reduce(Wanted::Rest { keeps: false }), rows.transform());
    let lse = stats.log_sum_exps(rows.isa(), transform);
    let (mut values, mut is_near_zero) = ([0.0; N], [false; N]);
    for row in 0..N {
        values[row] = lse.total(row);
        is_near_zero[row] = values[row].abs() < NEAR_ZERO * stats.max_complement(row);
    }
    if is_near_zero[..rows.count()].contains(&true) {
        let exact = totals(rows, &stats, &lse);
        for row in 0..N {
            values[row] = if is_near_zero[row] { exact[row] } else { values[row] };
        }
    }
    let mut results = [R::W::ZERO; N];
    for row in 0..rows.count() {
        results[row] = R::W::of(if stats.is_regular(row) {
            values[row]
        } else if rows.find_nan(row).is_some() {
            // PyTorch has -inf for a row of nothing but -inf, +inf for a row with a +inf, and NaN
            // for a row with a NaN.
            f64::NAN
        } else {
            transform.value_of_max(stats.max[row])
        });
    }
    results
}

/// Returns the log-sum-exp of each row, computed in f64 throughout.
///
/// ```text
/// for each class: d = y - y(max);  sum += d == 0 ? 0 : exp(d);  times += d == 0
/// log-sum-exp = y(max) + log1p(sum + times - 1)
/// ```
#[inline(always)]
fn totals<R: Rows<N>, const N: usize>(
    rows: &R,
    stats: &Stats<R::W, N>,
    lse: &LogSumExps<N>,
) -> [f64; N] {
    let (isa, transform) = (rows.isa(), rows.transform());
    let all = |value| Wide::<R, N>::splat(isa, value);
    let max_logits = stats.max_logits(transform);
    let [sums, times] = rows.sums(
        #[inline(always)]
        |place, x| {
            // Both are computed in the same way, so that the maximum is 0 apart from itself.
            let max: Lanes<R, N> = place.of_row(isa, &max_logits);
            let y = transform.values::<R::I, R::W>(isa, x);
            let d = y - transform.values::<R::I, R::W>(isa, max);
            let is_max = d.where_equal(all(0.0), all(1.0), all(0.0));
            [d.where_equal(all(0.0), all(0.0), exp_lanes(isa, d)), is_max]
        },
    );
    let mut totals = [0.0; N];
    for row in 0..N {
        totals[row] = lse.max[row] + log1p(sums[row] + (times[row] - 1.0));
    }
    totals
}

/// Returns the log-sum-exp of the row `x`, computed in f64 throughout. It is slow, and is meant for
/// the rare rows of a GPU whose log-sum-exp is near 0.
///
/// ```text
/// for each class: y == max ? times += 1 : rest_sum += exp(y - max)
/// log-sum-exp = max + log1p(rest_sum + times - 1)
/// ```
pub(crate) fn exact(x: &[f32], transform: &Transform) -> f32 {
    fn of<Y: LogitTransform>(transform: Y, x: &[f32]) -> f64 {
        let max = x
            .iter()
            .map(|&x| transform.value(x))
            .fold(f64::NEG_INFINITY, |a, b| if a > b { a } else { b });
        if !max.is_finite() {
            return max;
        }
        let (mut rest_sum, mut times_max) = (0.0_f64, 0_u64);
        for &x in x {
            match transform.value(x) {
                y if y == max => times_max += 1,
                y => rest_sum += (y - max).exp(),
            }
        }
        max + (rest_sum + times_max.saturating_sub(1) as f64).ln_1p()
    }
    (if transform.is_identity() { of(Identity, x) } else { of(ScaledCapped::new(*transform), x) })
        as f32
}
