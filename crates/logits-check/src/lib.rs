//! The reference that results of `logits` are compared with. The tests, `logits check`, the example
//! `conformance`, the page and the fuzz targets share it.
//!
//! * [`oracle`] computes in float64, from slices and numbers, and shares no code with `logits`.
//! * [`Options`] are a choice of options, for `logits` and for the oracle.
//! * [`Batch`] holds the elements of `[outer, classes, inner]`, and [`noise`] is what
//!   tests fill it with.
//! * [`excess`] is the error of a result.
//! * [`battery`] compares batches that break softmax with the oracle, element by element.
//! * [`conformance`] runs every operation, option and type on a device.

mod batch;
pub mod battery;
pub mod conformance;
mod measure;
mod options;
pub mod oracle;

pub use batch::{Batch, noise};
pub use measure::excess;
pub use options::Options;
