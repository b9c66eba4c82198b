//! The batches of `logits check`, which break softmax, compared with the oracle element by element.

mod cases;
mod report;

pub use cases::{Case, IGNORED, SHAPES, of_shape};
pub use report::{Finding, Report};
