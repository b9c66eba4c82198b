//! The backward of softmax, p_j * (g_j - sum_k g_k * p_k), and of log-softmax, g_j - exp(l_j) *
//! sum_k g_k, from their results. Twin of `shaders/backward.wgsl`.
//!
//! A scale of the logits is a factor of the gradient alone.
//!
//! Sums and products are f64: a gradient may be the small difference of large terms.

use crate::cpu::RowOperands;
use crate::cpu::rows::{Lanes, Rows, Wide};
use crate::cpu::simd::{Real, Vector};

/// Computes the backward of softmax, from probabilities p.
///
/// ```text
/// for each class: dot += g p
/// for each class: out = p (g - dot) scale
/// ```
#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows<N>, const N: usize>(
    rows: &mut R,
    operands: &RowOperands<'_, R::W, N>,
) {
    let isa = rows.isa();
    let scale = Wide::<R, N>::splat(isa, operands.transform.scale);
    let upstream = operands.elementwise;
    let [dots] = rows.sums(
        #[inline(always)]
        |place, p| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            [g.wide(isa) * p.wide(isa)]
        },
    );
    rows.map(
        #[inline(always)]
        |place, p| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            let centred = g.wide(isa) - place.of_row(isa, &dots);
            Lanes::<R, N>::of_wide(isa, p.wide(isa) * centred * scale)
        },
    );
}

/// Computes the backward of log-softmax, from log-probabilities l.
///
/// ```text
/// for each class: sum += g
/// for each class: out = (g - exp(l) sum) scale
/// ```
#[inline(always)]
pub(in crate::cpu) fn log_rows<R: Rows<N>, const N: usize>(
    rows: &mut R,
    operands: &RowOperands<'_, R::W, N>,
) {
    let isa = rows.isa();
    let scale = Wide::<R, N>::splat(isa, operands.transform.scale);
    let upstream = operands.elementwise;
    let [sums] = rows.sums(
        #[inline(always)]
        |place, _| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            [g.wide(isa)]
        },
    );
    let factors = rows.normalize(&[R::W::ZERO; N]);
    rows.map_p(
        &factors,
        #[inline(always)]
        |place, _, p| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            let sum: Wide<R, N> = place.of_row(isa, &sums);
            Lanes::<R, N>::of_wide(isa, (g.wide(isa) - p.wide(isa) * sum) * scale)
        },
    );
}
