//! The plain data of a call: shapes, types, views of logits, targets, options and their checks; the
//! sum of row losses (`sum.rs`); how calls wait (`waiting.rs`), and for how long (`limits.rs`). No
//! module here uses wgpu.

pub(crate) mod adapter;
pub(crate) mod checked_loss;
pub(crate) mod dtype;
pub(crate) mod error;
pub(crate) mod limits;
pub(crate) mod logits;
pub(crate) mod loss;
#[cfg(feature = "ndarray")]
mod ndarray;
pub(crate) mod operands;
pub(crate) mod sampling;
pub(crate) mod shape;
pub(crate) mod sum;
pub(crate) mod targets;
pub(crate) mod transform;
pub(crate) mod waiting;
