//! Sampling from the softmax of each row.

use super::{Operand, RowOutput, SideSums, Spec, Statistics};
use crate::Error;
use crate::ops::Op;
use crate::problem::transform::Transform;

/// A class drawn from the softmax of each row.
pub(super) const SAMPLE: Spec = Spec {
    name: "sample",
    writes_elements: false,
    row_output: RowOutput::Predictions,
    operand: Operand::DrawCounter,
    is_log: false,
    statistics: Statistics::Softmax,
    side_sums: SideSums::None,
    rereads_row: true,
    forward: None,
    costs_like: Op::Predict,
    shader: include_str!("../../shaders/sample.wgsl"),
};

/// Returns the transform under which a class is drawn: a positive scale alone, for draws are
/// defined to the bit.
pub(crate) fn draw_transform(op: Op, transform: Transform) -> Result<Transform, Error> {
    if !op.draws() {
        return Ok(transform);
    }
    if transform.scale < 0.0 {
        let (option, value) = ("scale of the logits", transform.scale as f32);
        return Err(Error::OptionValue { option, value, range: "positive where a class is drawn" });
    }
    transform.without_cap(
        "not set where a class is drawn: draw from the log-softmax, which is as good as the logits",
    )
}
