//! Waiting for a GPU: on the calling thread, or without it.

use std::thread;
use std::time::Duration;

use futures_channel::oneshot;
use wgpu::{Buffer, BufferAsyncError, Device, MapMode, PollError, PollType, SubmissionIndex};

use super::fault::{Fault, survive};
use crate::waiting::Instant;

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The thread that polls the future, which is ready when it has been polled once.
    Here,
    /// A thread of ours, or a browser's event loop; the future is woken.
    Elsewhere,
}

/// What is known when a buffer has been mapped, or cannot be.
pub(super) type Mapped = oneshot::Receiver<Result<(), BufferAsyncError>>;

/// Asks for the first bytes of a buffer, to be had once the submissions before are done.
pub(super) fn map(buffer: &Buffer, mode: MapMode, bytes: u64) -> Mapped {
    let (sender, receiver) = oneshot::channel();
    // Nobody listens any more once waiting has failed.
    buffer.map_async(mode, ..bytes, move |result| drop(sender.send(result)));
    receiver
}

/// Waits for one device.
pub(super) struct Poller {
    /// Dropped first: the thread ends while there is a device and its driver.
    elsewhere: Elsewhere,
    device: Device,
}

impl Poller {
    pub(super) fn new(device: &Device) -> Self {
        Self { elsewhere: Elsewhere::default(), device: device.clone() }
    }

    /// Does not wait: whatever has happened is told.
    pub(super) fn poll(&self) -> Result<(), Fault> {
        poll(&self.device, PollType::Poll)
    }

    /// After a fault: gives what is under way a second.
    pub(super) fn settle_down(&self) -> Result<(), Fault> {
        let wait = PollType::Wait { submission_index: None, timeout: Some(Duration::from_secs(1)) };
        // That it has not settled is no news.
        survive(|| drop(self.device.poll(wait)))
    }

    /// Returns when the submission is done and everything in `mapped` is mapped.
    pub(super) async fn settle(
        &self,
        submission: Option<SubmissionIndex>,
        mapped: Vec<Mapped>,
        patience: Duration,
        waiting: Waiting,
    ) -> Result<(), Fault> {
        if submission.is_some() {
            self.wait(submission, patience, waiting).await?;
        } else {
            self.poll()?;
        }
        for mut receiver in mapped {
            let answer = match receiver.try_recv() {
                // Polling has called back, unless another thread is about to.
                Ok(None) if waiting == Waiting::Here => self.spin(&mut receiver, patience)?,
                Ok(None) => {
                    self.wait(None, patience, waiting).await?;
                    receiver.await.ok()
                }
                Ok(answer) => answer,
                Err(oneshot::Canceled) => None,
            };
            match answer {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(Fault::new(error.to_string())),
                None => return Err(Fault::new("results were never mapped")),
            }
        }
        Ok(())
    }

    async fn wait(
        &self,
        submission_index: Option<SubmissionIndex>,
        patience: Duration,
        waiting: Waiting,
    ) -> Result<(), Fault> {
        let wait = PollType::Wait { submission_index, timeout: Some(patience) };
        match waiting {
            Waiting::Here => poll(&self.device, wait),
            Waiting::Elsewhere => self.elsewhere.wait(&self.device, wait).await,
        }
    }

    fn spin(&self, receiver: &mut Mapped, patience: Duration) -> Result<Option<Result<(), BufferAsyncError>>, Fault> {
        let deadline = Instant::now() + patience;
        loop {
            self.poll()?;
            match receiver.try_recv() {
                Ok(None) if Instant::now() < deadline => thread::yield_now(),
                Ok(answer) => return Ok(answer),
                Err(oneshot::Canceled) => return Ok(None),
            }
        }
    }
}

/// A browser polls by itself, and calls back.
#[cfg(target_arch = "wasm32")]
#[derive(Default)]
struct Elsewhere;

#[cfg(target_arch = "wasm32")]
impl Elsewhere {
    async fn wait(&self, _: &Device, _: PollType) -> Result<(), Fault> {
        Ok(())
    }
}

/// The thread that waits for futures, once there is one. It has ended when this has been dropped: one that ends later may find
/// its driver unloaded, or the process half gone.
#[cfg(not(target_arch = "wasm32"))]
#[derive(Default)]
struct Elsewhere(std::sync::Mutex<Option<Waiter>>);

#[cfg(not(target_arch = "wasm32"))]
struct Waiter {
    requests: std::sync::mpsc::Sender<Request>,
    thread: thread::JoinHandle<()>,
}

#[cfg(not(target_arch = "wasm32"))]
impl Drop for Elsewhere {
    fn drop(&mut self) {
        let waiter = self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(Waiter { requests, thread }) = waiter else { return };
        drop(requests);
        // Whoever it wakes may drop all there is, on that very thread.
        if thread.thread().id() != thread::current().id() {
            drop(thread.join());
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
struct Request {
    wait: PollType,
    done: oneshot::Sender<Result<(), Fault>>,
}

#[cfg(not(target_arch = "wasm32"))]
impl Elsewhere {
    async fn wait(&self, device: &Device, wait: PollType) -> Result<(), Fault> {
        let (done, answer) = oneshot::channel();
        self.ask(device, Request { wait, done })?;
        answer.await.map_err(|_| Fault::new("nobody waits for the GPU any more"))?
    }

    fn ask(&self, device: &Device, request: Request) -> Result<(), Fault> {
        let mut waiter = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Waiter { requests, thread } = match waiter.take() {
            Some(waiter) => waiter,
            None => {
                let (requests, receiver) = std::sync::mpsc::channel::<Request>();
                let device = device.clone();
                let thread = thread::Builder::new()
                    .name("logits-poll".to_owned())
                    .spawn(move || {
                        for Request { wait, done } in receiver {
                            drop(done.send(poll(&device, wait)));
                        }
                    })
                    .map_err(|error| Fault::new(format!("no thread to wait for the GPU: {error}")))?;
                Waiter { requests, thread }
            }
        };
        let sent = requests.send(request);
        *waiter = Some(Waiter { requests, thread });
        sent.map_err(|_| Fault::new("the thread that waits for the GPU is gone"))
    }
}

/// Callbacks run in here, those of a caller who shares the device too.
fn poll(device: &Device, how: PollType) -> Result<(), Fault> {
    match survive(|| device.poll(how))? {
        Ok(_) => Ok(()),
        Err(PollError::Timeout) => Err(Fault::new("it was not done within the time allowed")),
        Err(error) => Err(Fault::new(error.to_string())),
    }
}
