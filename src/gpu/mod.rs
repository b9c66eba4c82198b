//! The GPU path through wgpu; the only folder that knows it.

mod adapter;
mod bind;
mod chunks;
mod context;
mod failure;
mod pipelines;
mod pool;
mod prepared;
mod resident;
mod self_test;
mod staging;
mod step;
#[cfg(test)]
mod tests;
mod timing;
mod wait;

pub(crate) use adapter::{Opened, list, open};
pub use bind::Summary;
pub use context::Gpu;
pub(crate) use resident::{DeviceArray, DeviceOperands, DeviceTargets, Results};
pub use step::{BoundStep, Step, StepBuffers, StepBuilder};
pub(crate) use timing::{DeviceInputs, Timing};
