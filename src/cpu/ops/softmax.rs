//! softmax(y)_j = exp(y_j - max) / sum, and its logarithm. Counterpart of `shaders/softmax.wgsl`.

use crate::cpu::rows::{Lanes, Rows, Wanted, Wide};
use crate::cpu::simd::{Real, Vector};
use crate::cpu::transform::LogitTransform;

/// ```text
/// for each class: out = exp(y - log_base) / sum
/// ```
#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows<N>, const N: usize>(rows: &mut R) {
    let stats = rows.reduce(Wanted::Sum);
    rows.scale(stats.inverse_sums());
}

/// ```text
/// for each class: out = (y - max) - log1p(rest_sum / max_exp)
/// ```
#[inline(always)]
pub(in crate::cpu) fn log_rows<R: Rows<N>, const N: usize>(rows: &mut R) {
    let (isa, transform) = (rows.isa(), rows.transform());
    let lse = rows.reduce(Wanted::Rest { keeps: false }).log_sum_exps(isa, transform);
    if R::Y::IS_IDENTITY {
        // Each difference is rounded once, and neither is positive, so nothing cancels.
        let (mut max, mut log1p_rest) = ([R::W::ZERO; N], [R::W::ZERO; N]);
        for row in 0..N {
            (max[row], log1p_rest[row]) = (R::W::of(lse.max[row]), R::W::of(lse.log1p_rest[row]));
        }
        rows.map(
            #[inline(always)]
            |place, x| {
                let max: Lanes<R, N> = place.of_row(isa, &max);
                (x - max) - place.of_row(isa, &log1p_rest)
            },
        );
        return;
    }
    rows.map(
        #[inline(always)]
        |place, x| {
            let y = transform.values::<R::I, R::W>(isa, x);
            let max: Wide<R, N> = place.of_row(isa, &lse.max);
            Lanes::<R, N>::of_wide(isa, (y - max) - place.of_row(isa, &lse.log1p_rest))
        },
    );
}
