//! Waits for a GPU: on the calling thread, or in a future that another thread wakes.

use std::thread;
use std::time::Duration;
#[cfg(target_arch = "wasm32")]
use std::{pin::Pin, task::Poll};

use futures_channel::oneshot;
use wgpu::{
    Buffer, BufferAsyncError, Device, MapMode, PollError, PollType, Queue, SubmissionIndex,
};

use super::failure::{GpuError, catch_panic};
use crate::problem::limits::CallLimits;
use crate::problem::waiting::{Instant, Waiting};

/// The longest single wait that wgpu is asked for. Its GL waits for two seconds at most, whatever
/// the timeout; and between waits a dropped future is noticed.
const SLICE: Duration = Duration::from_millis(100);

const LATE: &str = "it was not done within the time allowed";

/// Receives the outcome of mapping a buffer.
pub(super) type Mapped = oneshot::Receiver<Result<(), BufferAsyncError>>;

/// Maps the first `bytes` bytes of a buffer, once all earlier submissions are done.
pub(super) fn map(buffer: &Buffer, mode: MapMode, bytes: u64) -> Mapped {
    let (sender, receiver) = oneshot::channel();
    // After a failed wait the receiver is gone.
    buffer.map_async(mode, ..bytes, move |result| drop(sender.send(result)));
    receiver
}

/// Returns a receiver that a browser answers when the work submitted so far is done, because there
/// a wait for a submission's index returns at once. Empty elsewhere.
pub(super) fn submitted(queue: &Queue) -> Vec<Mapped> {
    if !cfg!(target_arch = "wasm32") {
        return Vec::new();
    }
    let (sender, receiver) = oneshot::channel();
    queue.on_submitted_work_done(move || drop(sender.send(Ok(()))));
    vec![receiver]
}

/// Waits for one device.
pub(super) struct Poller {
    /// Dropped before the device, so that the thread ends while the driver is loaded.
    elsewhere: Elsewhere,
    device: Device,
}

impl Poller {
    pub(super) fn new(device: &Device) -> Self {
        Self { elsewhere: Elsewhere::default(), device: device.clone() }
    }

    /// Runs the callbacks that are due, without waiting.
    pub(super) fn poll(&self) -> Result<(), GpuError> {
        poll(&self.device, PollType::Poll).map(drop)
    }

    /// Returns when the submission is done and everything in `mapped` is mapped.
    pub(super) async fn settle(
        &self,
        submission: Option<SubmissionIndex>,
        mapped: Vec<Mapped>,
        call: CallLimits,
    ) -> Result<(), GpuError> {
        let CallLimits { timeout, waiting, .. } = call;
        let since = Instant::now();
        if submission.is_some() {
            self.wait(submission, timeout, waiting).await?;
        } else {
            self.poll()?;
        }
        for mut receiver in mapped {
            let answer = match receiver.try_recv() {
                // Polling has run the callback, unless another thread is about to.
                Ok(None) if waiting == Waiting::Here => self.spin(&mut receiver, timeout)?,
                Ok(None) => {
                    self.wait(None, timeout, waiting).await?;
                    within(timeout.saturating_sub(since.elapsed()), receiver).await?
                }
                Ok(answer) => answer,
                Err(oneshot::Canceled) => None,
            };
            match answer {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(GpuError::new(error.to_string())),
                None => return Err(GpuError::new("results were never mapped")),
            }
        }
        Ok(())
    }

    async fn wait(
        &self,
        of: Option<SubmissionIndex>,
        timeout: Duration,
        waiting: Waiting,
    ) -> Result<(), GpuError> {
        match waiting {
            Waiting::Here => self.wait_here(of, timeout),
            Waiting::Elsewhere => self.elsewhere.wait(&self.device, of, timeout).await,
        }
    }

    /// Blocks until the submission `of` is done, or with `None` every submission.
    pub(super) fn wait_here(
        &self,
        of: Option<SubmissionIndex>,
        timeout: Duration,
    ) -> Result<(), GpuError> {
        wait_in_slices(
            Instant::now(),
            timeout,
            || true,
            |slice| poll_for(&self.device, of.clone(), slice),
        )
    }

    fn spin(
        &self,
        receiver: &mut Mapped,
        timeout: Duration,
    ) -> Result<Option<Result<(), BufferAsyncError>>, GpuError> {
        let since = Instant::now();
        loop {
            self.poll()?;
            match receiver.try_recv() {
                Ok(None) if since.elapsed() < timeout => thread::yield_now(),
                Ok(answer) => return Ok(answer),
                Err(oneshot::Canceled) => return Ok(None),
            }
        }
    }
}

/// Returns the answer of a mapping whose submission has been waited for, or `None` where its sender
/// is gone.
#[cfg(not(target_arch = "wasm32"))]
async fn within(
    _: Duration,
    receiver: Mapped,
) -> Result<Option<Result<(), BufferAsyncError>>, GpuError> {
    Ok(receiver.await.ok())
}

/// Waits up to `timeout` for the answer of a mapping: a browser has no other wait.
#[cfg(target_arch = "wasm32")]
async fn within(
    timeout: Duration,
    mut receiver: Mapped,
) -> Result<Option<Result<(), BufferAsyncError>>, GpuError> {
    // A browser's timers count 31 bits of milliseconds.
    let mut timer =
        gloo_timers::future::TimeoutFuture::new(timeout.as_millis().min(i32::MAX as u128) as u32);
    std::future::poll_fn(|context| {
        if let Poll::Ready(answer) = Pin::new(&mut receiver).poll(context) {
            return Poll::Ready(Ok(answer.ok()));
        }
        Pin::new(&mut timer).poll(context).map(|()| Err(GpuError::new(LATE)))
    })
    .await
}

/// A browser polls by itself, and calls back.
#[cfg(target_arch = "wasm32")]
#[derive(Default)]
struct Elsewhere;

#[cfg(target_arch = "wasm32")]
impl Elsewhere {
    async fn wait(
        &self,
        _: &Device,
        _: Option<SubmissionIndex>,
        _: Duration,
    ) -> Result<(), GpuError> {
        Ok(())
    }
}

/// The thread that waits for futures, once one was needed. Dropping this joins the thread: one that
/// ends later may find its driver unloaded, or the process exiting.
#[cfg(not(target_arch = "wasm32"))]
#[derive(Default)]
struct Elsewhere(std::sync::Mutex<Option<Waiter>>);

#[cfg(not(target_arch = "wasm32"))]
struct Waiter {
    requests: std::sync::mpsc::Sender<Request>,
    thread: thread::JoinHandle<()>,
    /// The process that has the thread.
    process: u32,
}

#[cfg(not(target_arch = "wasm32"))]
impl Drop for Elsewhere {
    fn drop(&mut self) {
        let waiter = self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(Waiter { requests, thread, process }) = waiter else { return };
        drop(requests);
        // A future that the thread wakes may drop this on the thread itself, which cannot join
        // itself. A forked process has no such thread.
        if thread.thread().id() != thread::current().id() && process == super::context::process() {
            drop(thread.join());
        }
    }
}

/// A wait for the submission `of`, or with `None` for every submission, by a future that may be
/// dropped meanwhile.
#[cfg(not(target_arch = "wasm32"))]
struct Request {
    of: Option<SubmissionIndex>,
    since: Instant,
    timeout: Duration,
    done: oneshot::Sender<Result<(), GpuError>>,
}

#[cfg(not(target_arch = "wasm32"))]
impl Request {
    fn answer(self, device: &Device) {
        let Self { of, since, timeout, done } = self;
        if !done.is_canceled() {
            let poll = |slice| poll_for(device, of.clone(), slice);
            let waited = wait_in_slices(since, timeout, || !done.is_canceled(), poll);
            drop(done.send(waited));
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Elsewhere {
    async fn wait(
        &self,
        device: &Device,
        of: Option<SubmissionIndex>,
        timeout: Duration,
    ) -> Result<(), GpuError> {
        let (done, answer) = oneshot::channel();
        self.ask(device, Request { of, since: Instant::now(), timeout, done })?;
        answer.await.map_err(|_| GpuError::new("nobody waits for the GPU any more"))?
    }

    fn ask(&self, device: &Device, request: Request) -> Result<(), GpuError> {
        let mut waiter = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let request = match &*waiter {
            // Sending fails if the thread has ended.
            Some(Waiter { requests, .. }) => match requests.send(request) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.0,
            },
            None => request,
        };
        let (requests, receiver) = std::sync::mpsc::channel::<Request>();
        let device = device.clone();
        let thread = thread::Builder::new()
            .name("logits-poll".to_owned())
            .spawn(move || {
                // A waker that panics must not end the thread.
                receiver
                    .into_iter()
                    .for_each(|request| drop(catch_panic(|| request.answer(&device))));
            })
            .map_err(|error| GpuError::new(format!("no thread to wait for the GPU: {error}")))?;
        // The thread has just started, and ends when nothing can be sent any more.
        drop(requests.send(request));
        *waiter = Some(Waiter { requests, thread, process: super::context::process() });
        Ok(())
    }
}

/// Calls `poll` with the longest time that it may wait, until it returns true, `timeout` has passed
/// since `since`, or `is_wanted` returns false.
fn wait_in_slices(
    since: Instant,
    timeout: Duration,
    is_wanted: impl Fn() -> bool,
    mut poll: impl FnMut(Duration) -> Result<bool, GpuError>,
) -> Result<(), GpuError> {
    loop {
        let left = timeout.saturating_sub(since.elapsed());
        let start = Instant::now();
        if poll(left.min(SLICE))? {
            return Ok(());
        }
        if left.is_zero() || !is_wanted() {
            return Err(GpuError::new(LATE));
        }
        // A driver that cannot wait returns at once.
        if start.elapsed() < Duration::from_millis(1) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Waits up to `time`, and returns whether the submission is done.
fn poll_for(
    device: &Device,
    submission_index: Option<SubmissionIndex>,
    time: Duration,
) -> Result<bool, GpuError> {
    poll(device, PollType::Wait { submission_index, timeout: Some(time) })
}

/// Polls the device. Callbacks run in here, also those of a caller who shares the device.
fn poll(device: &Device, how: PollType) -> Result<bool, GpuError> {
    match catch_panic(|| device.poll(how))? {
        Ok(_) => Ok(true),
        Err(PollError::Timeout) => Ok(false),
        Err(error) => Err(GpuError::new(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(30);

    #[test]
    fn a_wait_goes_on_until_its_time_is_over() {
        let mut polls = 0;
        // GL may wait for less than the timeout.
        let done = wait_in_slices(
            Instant::now(),
            Duration::MAX,
            || true,
            |slice| {
                polls += 1;
                assert!(slice <= SLICE);
                Ok(polls == 4)
            },
        );
        assert!(done.is_ok() && polls == 4);
        let start = Instant::now();
        let late = wait_in_slices(start, MOMENT, || true, |_| Ok(false));
        assert!(late.is_err() && start.elapsed() >= MOMENT);
        // It polls once, even if no time is left.
        assert!(wait_in_slices(start, Duration::ZERO, || true, |_| Ok(true)).is_ok());
        assert!(wait_in_slices(start, Duration::ZERO, || true, |_| Ok(false)).is_err());
    }

    #[test]
    fn a_wait_that_nobody_wants_ends() {
        let start = Instant::now();
        let is_wanted = || start.elapsed() < MOMENT;
        assert!(wait_in_slices(start, Duration::MAX, is_wanted, |_| Ok(false)).is_err());
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
