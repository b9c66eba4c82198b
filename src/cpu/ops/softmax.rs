//! softmax(y)_j = exp(y_j - max) / sum, and its logarithm. Twin of `shaders/softmax.wgsl`.

use crate::cpu::rows::{ROWS, Rows};
use crate::cpu::simd::Real;
use crate::cpu::transform::Kind;

#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows>(rows: &mut R) {
    let stats = rows.reduce(true);
    let mut factors = [0.0; ROWS];
    for row in 0..ROWS {
        factors[row] = stats.share(row);
    }
    rows.scale(&stats, &factors);
}

#[inline(always)]
pub(in crate::cpu) fn log_rows<R: Rows>(rows: &mut R) {
    let kind = rows.kind();
    let logs = rows.reduce(false).logs(kind);
    rows.map(
        #[inline(always)]
        |row, _, x| R::W::of((kind.value(x) - logs.tops[row]) - logs.sums[row]),
    );
}
