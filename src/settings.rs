//! What a device may use.

use std::time::Duration;

/// Bounds on a call that runs on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Bytes of device memory that a call over host memory holds at once, and that are kept for the next.
    pub(crate) memory_budget: u64,
    /// How long a submission may take before the GPU counts as hung.
    pub(crate) patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { memory_budget: 512 << 20, patience: Duration::from_secs(300) }
    }
}
