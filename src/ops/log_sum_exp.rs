//! The log-sum-exp of each row.

use super::{Operand, RowOutput, SideSums, Spec, Statistics};
use crate::ops::Op;

/// `log sum_k exp(x_k)`.
pub(super) const LOG_SUM_EXP: Spec = Spec {
    name: "log_sum_exp",
    writes_elements: false,
    row_output: RowOutput::Values,
    operand: Operand::None,
    is_log: false,
    statistics: Statistics::Softmax,
    side_sums: SideSums::None,
    rereads_row: false,
    forward: None,
    costs_like: Op::LogSumExp,
    shader: include_str!("../../shaders/log_sum_exp.wgsl"),
};
