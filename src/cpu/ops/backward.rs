//! The backward of softmax, p_j * (g_j - sum_k g_k * p_k), and of log-softmax, g_j - exp(l_j) *
//! sum_k g_k, from their results. Twin of `shaders/backward.wgsl`.

use crate::cpu::RowOperands;
use crate::cpu::rows::Rows;
use crate::cpu::simd::{Exp, Real};

/// Computes the backward of softmax, from probabilities p.
#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows>(rows: &mut R, operands: &RowOperands<'_, R::W>) {
    let scale = operands.transform.scale;
    let dots = rows.sums(
        #[inline(always)]
        |row, class, p| operands.elementwise(row, class).into() * p.into(),
    );
    rows.map(
        #[inline(always)]
        |row, class, p| {
            R::W::of(p.into() * (operands.elementwise(row, class).into() - dots[row]) * scale)
        },
    );
}

/// Computes the backward of log-softmax, from log-probabilities l.
#[inline(always)]
pub(in crate::cpu) fn log_rows<R: Rows>(rows: &mut R, operands: &RowOperands<'_, R::W>) {
    let scale = operands.transform.scale;
    let sums = rows.sums(
        #[inline(always)]
        |row, class, _| operands.elementwise(row, class).into(),
    );
    rows.map(
        #[inline(always)]
        |row, class, l| {
            let p: f64 = R::W::exp_wide(l.into()).into();
            R::W::of((operands.elementwise(row, class).into() - p * sums[row]) * scale)
        },
    );
}
