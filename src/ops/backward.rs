//! The backward of softmax and of log-softmax.

use super::{Operand, RowOutput, SideSums, Spec, Statistics};
use crate::ops::Op;

/// `dx_j = y_j (dy_j - sum_k dy_k y_k)`.
pub(super) const SOFTMAX_BACKWARD: Spec = Spec {
    name: "softmax_backward",
    writes_elements: true,
    row_output: RowOutput::None,
    operand: Operand::UpstreamGradient,
    is_log: false,
    statistics: Statistics::GradientSum,
    side_sums: SideSums::None,
    rereads_row: false,
    forward: Some(Op::Softmax),
    costs_like: Op::Softmax,
    shader: include_str!("../../shaders/backward.wgsl"),
};

/// `dx_j = dy_j - exp(y_j) sum_k dy_k`.
pub(super) const LOG_SOFTMAX_BACKWARD: Spec = Spec {
    name: "log_softmax_backward",
    writes_elements: true,
    row_output: RowOutput::None,
    operand: Operand::UpstreamGradient,
    is_log: true,
    statistics: Statistics::GradientSum,
    side_sums: SideSums::None,
    rereads_row: false,
    forward: Some(Op::LogSoftmax),
    costs_like: Op::Softmax,
    shader: include_str!("../../shaders/backward.wgsl"),
};
