//! What a device may use.

use std::time::Duration;

/// Bounds on a call that runs on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Bytes of device memory that a call over host memory and what is kept for the next take together.
    pub(crate) memory_budget: u64,
    /// How long a submission may take before the GPU counts as hung.
    pub(crate) timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { memory_budget: 512 << 20, timeout: Duration::from_secs(300) }
    }
}

impl Settings {
    /// What a call may use, and what may wait for the next: a call of other shapes finds nothing of use among the latter.
    pub(crate) fn half(self) -> u64 {
        self.memory_budget / 2
    }
}
