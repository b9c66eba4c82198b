//! What a call is about: shapes, types, views of logits, targets, options and their checks as plain
//! data; the one sum of row losses (`sum.rs`); and who waits, and how long (`waiting.rs`,
//! `limits.rs`). No module here knows of wgpu.

pub(crate) mod adapter;
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
