//! The GPU path, and the only folder that uses wgpu.

mod adapter;
mod chunks;
mod context;
mod failure;
mod interface;
mod params;
mod pipelines;
mod planned;
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

pub(crate) use adapter::{list, open};
pub use context::Gpu;
pub(crate) use interface::{DeviceInputs, DeviceOperands, Opened, Results};
pub use params::Summary;
pub(crate) use resident::{DeviceArray, DeviceTargets};
pub use step::{BoundStep, Step, StepBuffers, StepBuilder};
pub(crate) use timing::Timing;
