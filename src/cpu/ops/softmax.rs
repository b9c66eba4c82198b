//! softmax(y)_j = exp(y_j - max) / sum, and its logarithm. Twin of `shaders/softmax.wgsl`.

use crate::cpu::rows::{ROWS, Rows};
use crate::cpu::simd::Real;
use crate::cpu::transform::LogitTransform;

#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows>(rows: &mut R) {
    let stats = rows.reduce(true);
    let mut factors = [0.0; ROWS];
    for row in 0..ROWS {
        factors[row] = stats.inverse_sum(row);
    }
    rows.scale(&stats, &factors);
}

#[inline(always)]
pub(in crate::cpu) fn log_rows<R: Rows>(rows: &mut R) {
    let transform = rows.transform();
    let lse = rows.reduce(false).log_sum_exps(transform);
    rows.map(
        #[inline(always)]
        |row, _, x| R::W::of((transform.value(x) - lse.max[row]) - lse.log1p_rest[row]),
    );
}
