//! The GPU path through wgpu; the only folder that knows it.

mod adapter;
mod buffers;
mod context;
mod engine;
mod fault;
mod kernels;
mod port;
mod record;
mod resident;
mod self_test;
mod stream;
#[cfg(test)]
mod tests;
mod timing;
mod wait;

pub(crate) use adapter::{Opened, list, open};
pub use context::Gpu;
pub use engine::{BoundStep, Operation, Step, StepBuffers, StepLayout};
pub use record::Summary;
pub(crate) use resident::{Held, HeldGiven, HeldTargets, Results};
pub(crate) use timing::{HeldInputs, Timing};
pub(crate) use wait::Waiting;
