//! Waiting, and how long it took: where a thread may wait for a future, and where it must not.

/// The standard library's clock panics in a browser.
#[cfg(not(all(feature = "gpu", target_arch = "wasm32")))]
pub(crate) use std::time::Instant;
#[cfg(all(feature = "gpu", target_arch = "wasm32"))]
pub(crate) use web_time::Instant;

use std::time::Duration;

use crate::Error;

/// How long something took.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// From submission to the end of waiting.
    pub wall: Duration,
    /// By the device's own timestamps, where it has them.
    pub device: Option<Duration>,
}

impl Reading {
    /// By the best clock that there is.
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
    /// The thread that polls the future, which is ready when it has been polled once.
    Here,
    /// A thread of ours, or a browser's event loop; the future is woken.
    Elsewhere,
}

/// Blocks until it is done.
#[cfg(all(feature = "gpu", not(target_arch = "wasm32")))]
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    pollster::block_on(future)
}

/// A browser's thread must not wait, or what it waits for never happens; and nothing in the CPU
/// path is ever pending.
#[cfg(not(all(feature = "gpu", not(target_arch = "wasm32"))))]
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => Err(must_not_wait("webgpu")),
    }
}

/// What a call that would wait ends with where none may.
#[cfg(any(not(feature = "gpu"), target_arch = "wasm32"))]
pub(crate) fn must_not_wait(adapter: &str) -> Error {
    let reason = "a thread of a browser must not wait for it: call the `_async` form".to_owned();
    Error::Gpu { adapter: adapter.to_owned(), reason }
}
