//! The entropy of the softmax of each row, in nats, and its gradient.

use super::{Operand, RowOutput, Spec, Statistics};
use crate::ops::Op;

/// `H = -sum_k p_k log p_k`.
pub(super) const ENTROPY: Spec = Spec {
    name: "entropy",
    writes_elements: false,
    row_output: RowOutput::Values,
    operand: Operand::None,
    row_upstream: false,
    is_log: false,
    statistics: Statistics::Softmax,
    side_sums: true,
    rereads_row: false,
    forward: None,
    costs_like: Op::LogSumExp,
    shader: include_str!("../../shaders/entropy.wgsl"),
};

/// `dx_j = -g p_j (log p_j + H) dy_j/dx_j`, with the upstream gradient `g` of the row.
pub(super) const ENTROPY_BACKWARD: Spec = Spec {
    name: "entropy_backward",
    writes_elements: true,
    row_output: RowOutput::None,
    operand: Operand::None,
    row_upstream: true,
    is_log: false,
    statistics: Statistics::Softmax,
    side_sums: true,
    rereads_row: false,
    forward: None,
    costs_like: Op::CrossEntropyGrad,
    shader: include_str!("../../shaders/entropy.wgsl"),
};
