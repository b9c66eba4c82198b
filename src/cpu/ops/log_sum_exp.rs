//! log(sum_j exp(y_j)). Twin of `shaders/log_sum_exp.wgsl`.

use crate::cpu::rows::{ROWS, Rows};
use crate::cpu::simd::Real;
use crate::cpu::transform::Kind;
use crate::cpu::transform::{Curved, Plain};
use crate::problem::transform::Transform;

#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows>(rows: &mut R) -> [R::W; ROWS] {
    let (stats, kind) = (rows.reduce(false), rows.kind());
    let logs = stats.logs(kind);
    let mut values = [R::W::ZERO; ROWS];
    for row in 0..rows.count() {
        let value = logs.whole(row);
        values[row] = R::W::of(if !stats.is_regular(row) {
            // -inf of nothing but -inf, +inf with a +inf, else NaN: as PyTorch.
            if rows.first(row, |x| !x.is_number()).is_some() { f64::NAN } else { kind.top(stats.max[row]) }
        } else if value.abs() < 0.32 * (1.0 - stats.top_share(row)) {
            // The exponentials of an f32 row are f32, so the logarithm is off by up to 1e-7 of its slope
            // 1 - p of the largest; where max all but cancels it, that would be much of the little that is left.
            exact_about((0..rows.classes()).map(|class| kind.value(rows.get(row, class))), logs.tops[row])
        } else {
            value
        });
    }
    values
}

/// The same in float64 throughout: slow, for the rare rows of a GPU whose log-sum-exp is next to 0.
pub(crate) fn exact(x: &[f32], transform: &Transform) -> f32 {
    fn of<K: Kind>(kind: K, x: &[f32]) -> f64 {
        let top = x.iter().map(|&x| kind.value(x)).fold(f64::NEG_INFINITY, |a, b| if a > b { a } else { b });
        if !top.is_finite() { top } else { exact_about(x.iter().map(|&x| kind.value(x)), top) }
    }
    (if transform.is_identity() { of(Plain, x) } else { of(Curved(*transform), x) }) as f32
}

fn exact_about(values: impl Iterator<Item = f64>, top: f64) -> f64 {
    let (mut others, mut tops) = (0.0_f64, 0_u64);
    for y in values {
        if y == top {
            tops += 1;
        } else {
            others += (y - top).exp();
        }
    }
    top + (others + tops.saturating_sub(1) as f64).ln_1p()
}
