//! The GPU path through wgpu; the only folder that knows it.

mod adapter;
mod buffers;
mod context;
mod kernels;
mod run;
#[cfg(test)]
mod tests;

pub(crate) use adapter::{Opened, list, open};
pub(crate) use context::Gpu;
pub(crate) use run::Resident;
