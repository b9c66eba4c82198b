//! Softmax and log-softmax.

use super::{Operand, RowOutput, SideSums, Spec, Statistics};
use crate::ops::Op;

/// `softmax(x)_j = exp(x_j) / sum_k exp(x_k)`.
pub(super) const SOFTMAX: Spec = Spec {
    name: "softmax",
    writes_elements: true,
    row_output: RowOutput::None,
    operand: Operand::None,
    is_log: false,
    statistics: Statistics::Softmax,
    side_sums: SideSums::None,
    rereads_row: false,
    forward: None,
    costs_like: Op::Softmax,
    shader: include_str!("../../shaders/softmax.wgsl"),
};

/// `log softmax(x)_j = x_j - log sum_k exp(x_k)`.
pub(super) const LOG_SOFTMAX: Spec = Spec {
    name: "log_softmax",
    writes_elements: true,
    row_output: RowOutput::None,
    operand: Operand::None,
    is_log: true,
    statistics: Statistics::Softmax,
    side_sums: SideSums::None,
    rereads_row: false,
    forward: None,
    costs_like: Op::LogSoftmax,
    shader: include_str!("../../shaders/softmax.wgsl"),
};
