//! Waits for futures where a thread may wait, and measures times.

/// The clock: that of the standard library panics in a browser.
#[cfg(not(all(feature = "gpu", target_arch = "wasm32")))]
pub(crate) use std::time::Instant;
#[cfg(all(feature = "gpu", target_arch = "wasm32"))]
pub(crate) use web_time::Instant;

use std::time::Duration;

use crate::Error;

/// The measured time of a run.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The time from submission to the end of waiting.
    pub wall: Duration,
    /// The time by the device's own timestamps; `None` where it has none.
    pub device: Option<Duration>,
}

impl Reading {
    /// Returns the device's time where there is one, else the wall time.
    #[must_use]
    pub fn best(self) -> Duration {
        self.device.unwrap_or(self.wall)
    }

    pub(crate) fn since(start: Instant) -> Self {
        Self { wall: start.elapsed(), device: None }
    }
}

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The thread that polls the future: the first poll waits, and the future is then ready.
    Here,
    /// A thread of the crate, or a browser's event loop, which wakes the future.
    Elsewhere,
}

/// Blocks until `future` is done.
#[cfg(all(feature = "gpu", not(target_arch = "wasm32")))]
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    pollster::block_on(future)
}

/// Polls `future` once. A browser's thread must not wait, because its event loop could then never
/// complete the future; futures of the CPU path are never pending.
#[cfg(not(all(feature = "gpu", not(target_arch = "wasm32"))))]
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => Err(must_not_wait("webgpu")),
    }
}

/// Returns the error of a call that would have to wait on a thread that must not.
#[cfg(any(not(feature = "gpu"), target_arch = "wasm32"))]
pub(crate) fn must_not_wait(adapter: &str) -> Error {
    let reason = "a thread of a browser must not wait for it: call the `_async` form".to_owned();
    Error::Gpu { adapter: adapter.to_owned(), reason }
}
