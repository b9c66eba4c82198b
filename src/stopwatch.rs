//! Times one operation against a plain copy, on the same device in the same run. For the benchmarks; no part of the API.

use std::hint::black_box;
use std::time::Duration;

use crate::curve::Curve;
use crate::device::Place;
use crate::elements::Sealed;
use crate::error::try_vec;
#[cfg(feature = "gpu")]
use crate::gpu::{HeldGiven, Timing};
use crate::job::{Data, Given, Job, Op, RowsOut, Traffic};
use crate::loss::Prepared;
#[cfg(feature = "gpu")]
use crate::settings::Settings;
use crate::waiting::Instant;
#[cfg(feature = "gpu")]
use crate::waiting::{Waiting, block_on};
use crate::{CrossEntropy, Device, Element, Error, Logits, Prediction, Targets, cpu};

/// What can be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Timed {
    Softmax,
    LogSoftmax,
    CrossEntropy,
    CrossEntropyGrad,
    /// So many classes.
    TopK(usize),
}

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

    fn since(start: Instant) -> Self {
        Self { wall: start.elapsed(), device: None }
    }
}

/// An operation with its inputs and results in the device's own memory, ready to be run again and again.
pub struct Stopwatch<'a, T: Element = f32> {
    op: Op,
    k: usize,
    logits: Logits<'a, T>,
    prepared: Prepared<'a>,
    elements: Vec<T>,
    rows: Vec<T::Row>,
    predictions: Vec<Prediction>,
    #[cfg(feature = "gpu")]
    on_gpu: Option<Timing>,
}

impl<'a, T: Element> Stopwatch<'a, T> {
    /// Moves the inputs to where the device works on them. The logits must be contiguous.
    ///
    /// # Errors
    /// As the operation itself.
    pub fn new(
        device: &Device,
        timed: Timed,
        loss: &'a CrossEntropy,
        x: Logits<'a, T>,
        targets: Targets<'a>,
    ) -> Result<Self, Error> {
        let (op, k) = match timed {
            Timed::Softmax => (Op::Softmax, 0),
            Timed::LogSoftmax => (Op::LogSoftmax, 0),
            Timed::CrossEntropy => (Op::CrossEntropy, 0),
            Timed::CrossEntropyGrad => (Op::CrossEntropyGrad, 0),
            Timed::TopK(k) => (Op::TopK, k),
        };
        let (shape, rows) = (x.shape(), x.shape().row_count());
        #[cfg_attr(not(feature = "gpu"), allow(unused_mut))]
        let mut watch = Self {
            op,
            k,
            logits: Logits::new(x.data(), shape)?,
            prepared: loss.prepare(shape, targets)?,
            elements: try_vec("the result", shape.elements()?)?,
            rows: try_vec("losses", rows)?,
            predictions: try_vec("predictions", rows * k)?,
            #[cfg(feature = "gpu")]
            on_gpu: None,
        };
        match device.place() {
            Place::Cpu => {}
            #[cfg(feature = "gpu")]
            Place::Gpu(gpu) => {
                watch.on_gpu = Some(block_on(async {
                    let settings = Settings::default();
                    let input = (x.elements(), shape.block());
                    let mut inputs = vec![gpu.upload(shape, input, settings, Waiting::Here).await?];
                    for _ in 1..Timing::sets(&inputs[0], size_of_val(x.data()) as u64) {
                        inputs.push(gpu.upload(shape, input, settings, Waiting::Here).await?);
                    }
                    let given = Self::given(op, k, &watch.prepared)?;
                    let targets = match op.has_targets() {
                        true => Some(gpu.upload_targets(shape, &given, settings, Waiting::Here).await?),
                        false => None,
                    };
                    let held = HeldGiven { targets: targets.as_ref(), ..HeldGiven::default() };
                    Timing::new(inputs, op, T::DTYPE, &given, held).await
                })?);
            }
        }
        Ok(watch)
    }

    fn given<'g>(op: Op, k: usize, prepared: &'g Prepared<'_>) -> Result<Given<'g>, Error> {
        let given = if op.has_targets() { prepared.given(Curve::default())? } else { Given::default() };
        Ok(Given { k, ..given })
    }

    fn run_on_cpu(&mut self) -> Result<(), Error> {
        let Self { op, k, logits, prepared, elements, rows, predictions, .. } = self;
        let (input, stride) = (logits.elements(), logits.view().stride);
        let data = match op.writes_elements() {
            true => Data::Write { input, stride, output: T::erase_mut(elements) },
            false => Data::Read { input, stride },
        };
        let rows_out = if op.predicts() {
            RowsOut::Predictions(predictions, *k)
        } else if op.has_values() {
            RowsOut::Values(T::Row::erase_mut(rows))
        } else {
            RowsOut::None
        };
        cpu::run(Job::new(*op, logits.view(), data, Self::given(*op, *k, prepared)?, rows_out))
    }

    /// What one run moves, as the plan has it; the CPU has none.
    #[must_use]
    pub fn traffic(&self) -> Option<Traffic> {
        #[cfg(feature = "gpu")]
        return self.on_gpu.as_ref().map(Timing::traffic);
        #[cfg(not(feature = "gpu"))]
        None
    }

    /// One run of the operation, from command to finished result, without any transfer to or from the host.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the GPU fails.
    pub fn operation(&mut self) -> Result<Reading, Error> {
        #[cfg(feature = "gpu")]
        if let Some(timing) = &mut self.on_gpu {
            return timing.operation(Settings::default().patience);
        }
        let start = Instant::now();
        self.run_on_cpu()?;
        black_box(&self.elements);
        Ok(Reading::since(start))
    }

    /// One plain copy of the logits in the device's own memory, on as many threads as the operation may use.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the GPU fails.
    pub fn copy(&mut self) -> Result<Reading, Error> {
        #[cfg(feature = "gpu")]
        if let Some(timing) = &mut self.on_gpu {
            return timing.copy(Settings::default().patience);
        }
        let start = Instant::now();
        copy_on_all_threads(self.logits.data(), &mut self.elements);
        black_box(&self.elements);
        Ok(Reading::since(start))
    }
}

#[cfg(feature = "parallel")]
fn copy_on_all_threads<T: Element>(from: &[T], to: &mut [T]) {
    use rayon::prelude::*;
    let part = from.len().div_ceil(rayon::current_num_threads()).max(1);
    to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
}

#[cfg(not(feature = "parallel"))]
fn copy_on_all_threads<T: Element>(from: &[T], to: &mut [T]) {
    to.copy_from_slice(from);
}
