//! One error type for everything that goes wrong on a GPU: errors of wgpu and of the driver, and
//! panics of callbacks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The reason why a call of the GPU failed.
#[derive(Clone, Debug)]
pub(super) struct GpuError {
    pub(super) reason: String,
    /// Whether memory was short, so that a smaller part may fit.
    pub(super) out_of_memory: bool,
}

impl GpuError {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), out_of_memory: false }
    }
}

/// Turns a panic in `work` into a [`GpuError`]. A callback may panic, or wgpu where it does not
/// expect a driver to fail.
pub(super) fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, GpuError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        GpuError::new(format!("a panic while the GPU was used: {text}"))
    })
}

/// Returns the text of an error and of its causes in one line; errors of wgpu span several.
pub(super) fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Locks a mutex, even one whose holder panicked.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
