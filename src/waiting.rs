//! Futures on a thread that has nothing else to do.

#[cfg(feature = "gpu")]
pub(crate) use crate::gpu::Waiting;
#[cfg(feature = "gpu")]
pub(crate) use pollster::block_on;

/// Who waits; nobody has to where all is computed on the CPU.
#[cfg(not(feature = "gpu"))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiting {
    Here,
    Elsewhere,
}

/// Nothing in the CPU path is ever pending.
#[cfg(not(feature = "gpu"))]
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
