//! The most likely class of each row.

use super::{Operand, RowOutput, SideSums, Spec, Statistics};
use crate::ops::Op;

/// The most likely class of each row.
pub(super) const PREDICT: Spec = Spec {
    name: "predict",
    writes_elements: false,
    row_output: RowOutput::Predictions,
    operand: Operand::None,
    is_log: false,
    statistics: Statistics::Softmax,
    side_sums: SideSums::None,
    rereads_row: false,
    forward: None,
    costs_like: Op::Predict,
    shader: include_str!("../../shaders/predict.wgsl"),
};
