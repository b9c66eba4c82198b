//! The `k` most likely classes of each row.

use super::{Operand, RowOutput, SideSums, Spec, Statistics};
use crate::Error;
use crate::ops::Op;

/// The largest `k`.
pub(crate) const MAX_K: usize = 64;

/// The `k` most likely classes of each row.
pub(super) const TOP_K: Spec = Spec {
    name: "top_k",
    writes_elements: false,
    row_output: RowOutput::Predictions,
    operand: Operand::None,
    is_log: false,
    statistics: Statistics::Softmax,
    side_sums: SideSums::None,
    rereads_row: true,
    forward: None,
    costs_like: Op::Predict,
    shader: include_str!("../../shaders/top_k.wgsl"),
};

/// Refuses a `k` of 0, above [`MAX_K`] or above the number of classes.
pub(crate) fn check_k(k: usize, classes: usize) -> Result<(), Error> {
    if (1..=classes.min(MAX_K)).contains(&k) {
        Ok(())
    } else {
        Err(Error::TopK { k, classes, most: MAX_K })
    }
}
