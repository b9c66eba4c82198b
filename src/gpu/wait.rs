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
    device: Device,
    elsewhere: Elsewhere,
}

impl Poller {
    pub(super) fn new(device: &Device) -> Self {
        Self { device: device.clone(), elsewhere: Elsewhere::default() }
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

/// The thread that waits for futures, once there is one. It ends when this is dropped.
#[cfg(not(target_arch = "wasm32"))]
#[derive(Default)]
struct Elsewhere(std::sync::Mutex<Option<std::sync::mpsc::Sender<Request>>>);

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
        let mut thread = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let sender = match thread.take() {
            Some(sender) => sender,
            None => {
                let (sender, receiver) = std::sync::mpsc::channel::<Request>();
                let device = device.clone();
                thread::Builder::new()
                    .name("logits-poll".to_owned())
                    .spawn(move || {
                        for Request { wait, done } in receiver {
                            drop(done.send(poll(&device, wait)));
                        }
                    })
                    .map_err(|error| Fault::new(format!("no thread to wait for the GPU: {error}")))?;
                sender
            }
        };
        let sent = sender.send(request);
        *thread = Some(sender);
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
