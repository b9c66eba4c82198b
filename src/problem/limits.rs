//! The bounds of a call, and who waits for it.

use std::time::Duration;

use crate::problem::waiting::Waiting;

/// The bounds of a call that runs on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallLimits {
    /// Bytes of device memory that a call over host memory and the buffers kept for the next call
    /// take together.
    pub(crate) memory_budget: u64,
    /// The time that a submission may take before the GPU counts as hung.
    pub(crate) timeout: Duration,
    /// Who waits for the submissions of the call.
    pub(crate) waiting: Waiting,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self { memory_budget: 512 << 20, timeout: Duration::from_secs(300), waiting: Waiting::Here }
    }
}

impl CallLimits {
    /// Returns the bytes that a call may use. As many are left to buffers that are kept for the
    /// next call: a call of other shapes cannot use those.
    pub(crate) fn half(self) -> u64 {
        self.memory_budget / 2
    }
}
