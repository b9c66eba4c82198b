//! The GPU path through wgpu; the only folder that knows it.

mod adapter;
mod pool;
mod context;
mod step;
mod failure;
mod pipelines;
mod staging;
mod bind;
mod resident;
mod self_test;
mod chunks;
#[cfg(test)]
mod tests;
mod timing;
mod wait;

pub(crate) use adapter::{Opened, list, open};
pub use context::Gpu;
pub use step::{BoundStep, Operation, Step, StepBuffers, StepLayout};
pub use bind::Summary;
pub(crate) use resident::{Held, HeldGiven, HeldTargets, Results};
pub(crate) use timing::{HeldInputs, Timing};
