//! Batches that break softmax, held against the oracle element by element: what `logits check`
//! runs.

mod cases;
mod report;

pub use cases::{Case, IGNORED, SHAPES, of_shape};
pub use report::{Finding, Report};
