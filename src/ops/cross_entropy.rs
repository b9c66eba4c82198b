//! Cross-entropy: the loss, the loss with its gradient, and the gradient from saved log-sum-exps.

use super::{Operand, RowOutput, SideSums, Spec, Statistics};
use crate::ops::Op;

/// The loss of each row.
pub(super) const CROSS_ENTROPY: Spec = Spec {
    name: "cross_entropy",
    writes_elements: false,
    row_output: RowOutput::Values,
    operand: Operand::Targets,
    is_log: false,
    statistics: Statistics::Softmax,
    side_sums: SideSums::Labels,
    rereads_row: false,
    forward: None,
    costs_like: Op::CrossEntropy,
    shader: include_str!("../../shaders/cross_entropy.wgsl"),
};

/// The loss of each row and its gradient.
pub(super) const CROSS_ENTROPY_GRAD: Spec = Spec {
    name: "cross_entropy_grad",
    writes_elements: true,
    row_output: RowOutput::Values,
    operand: Operand::Targets,
    is_log: false,
    statistics: Statistics::Softmax,
    side_sums: SideSums::Labels,
    rereads_row: false,
    forward: None,
    costs_like: Op::CrossEntropyGrad,
    shader: include_str!("../../shaders/cross_entropy.wgsl"),
};

/// The gradient alone, from saved log-sum-exps.
pub(super) const CROSS_ENTROPY_BACKWARD: Spec = Spec {
    name: "cross_entropy_backward",
    writes_elements: true,
    row_output: RowOutput::None,
    operand: Operand::Targets,
    is_log: false,
    statistics: Statistics::Saved,
    side_sums: SideSums::None,
    rereads_row: false,
    forward: None,
    costs_like: Op::CrossEntropyGrad,
    shader: include_str!("../../shaders/cross_entropy_backward.wgsl"),
};
