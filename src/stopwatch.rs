//! Times one operation against a plain copy, on the same device in the same run. For the benchmarks; no part of the API.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::device::Place;
use crate::error::try_vec;
#[cfg(feature = "gpu")]
use crate::gpu::Timing;
use crate::job::{Data, Job, Op, RowTarget, RowsOut};
use crate::loss::Prepared;
#[cfg(feature = "gpu")]
use crate::settings::Settings;
#[cfg(feature = "gpu")]
use crate::waiting::{Waiting, block_on};
use crate::{CrossEntropy, Device, Error, Logits, Shape, Targets, cpu};

/// What can be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Timed {
    Softmax,
    LogSoftmax,
    CrossEntropy,
    CrossEntropyGrad,
}

/// An operation with its inputs and results in the device's own memory, ready to be run again and again.
pub struct Stopwatch<'a> {
    op: Op,
    shape: Shape,
    logits: &'a [f32],
    prepared: Prepared<'a>,
    elements: Vec<f32>,
    rows: Vec<f32>,
    #[cfg(feature = "gpu")]
    on_gpu: Option<Timing>,
}

impl<'a> Stopwatch<'a> {
    /// Moves the inputs to where the device works on them. The logits must be contiguous.
    ///
    /// # Errors
    /// As the operation itself.
    pub fn new(
        device: &Device,
        timed: Timed,
        loss: &'a CrossEntropy,
        x: Logits<'a>,
        targets: Targets<'_>,
    ) -> Result<Self, Error> {
        let op = match timed {
            Timed::Softmax => Op::Softmax,
            Timed::LogSoftmax => Op::LogSoftmax,
            Timed::CrossEntropy => Op::CrossEntropy,
            Timed::CrossEntropyGrad => Op::CrossEntropyGrad,
        };
        let shape = x.shape();
        let prepared = loss.prepare(shape, targets)?;
        #[cfg_attr(not(feature = "gpu"), allow(unused_mut))]
        let mut watch = Self {
            op,
            shape,
            logits: Logits::new(x.parts().0, shape)?.parts().0,
            prepared,
            elements: try_vec("the result", shape.elements()?)?,
            rows: try_vec("losses", shape.row_count())?,
            #[cfg(feature = "gpu")]
            on_gpu: None,
        };
        match device.place() {
            Place::Cpu => {}
            #[cfg(feature = "gpu")]
            Place::Gpu(gpu) => {
                watch.on_gpu = Some(block_on(async {
                    let settings = Settings::default();
                    let logits = gpu.upload(shape, x.parts(), settings, Waiting::Here).await?;
                    let targets = if watch.takes_targets() {
                        let Prepared { rows, .. } = &watch.prepared;
                        Some(gpu.upload_targets(shape, rows, watch.prepared.scaling(), settings, Waiting::Here).await?)
                    } else {
                        None
                    };
                    Timing::new(logits, op, shape.classes(), targets.as_ref()).await
                })?);
            }
        }
        Ok(watch)
    }

    #[cfg(feature = "gpu")]
    fn takes_targets(&self) -> bool {
        matches!(self.op, Op::CrossEntropy | Op::CrossEntropyGrad)
    }

    fn job(&mut self) -> Job<'_> {
        let Self { op, shape, logits, prepared, elements, rows, .. } = self;
        let (op, shape, stride, input) = (*op, *shape, shape.classes(), *logits);
        let targets: &[RowTarget] = match op {
            Op::CrossEntropy | Op::CrossEntropyGrad => &prepared.rows,
            _ => &[],
        };
        let data = match op {
            Op::CrossEntropy => Data::Read { input, stride },
            _ => Data::Write { input, stride, output: elements },
        };
        let rows_out = if targets.is_empty() { RowsOut::None } else { RowsOut::Values(rows) };
        Job { op, shape, data, targets, scaling: prepared.scaling(), rows_out }
    }

    /// One run of the operation, from command to finished result, without any transfer to or from the host.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the GPU fails.
    pub fn operation(&mut self) -> Result<Duration, Error> {
        #[cfg(feature = "gpu")]
        if let Some(timing) = &self.on_gpu {
            return timing.operation(Settings::default().patience);
        }
        let start = Instant::now();
        cpu::run(self.job());
        black_box(&self.elements);
        Ok(start.elapsed())
    }

    /// One plain copy of the logits in the device's own memory, on as many threads as the operation may use.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the GPU fails.
    pub fn copy(&mut self) -> Result<Duration, Error> {
        #[cfg(feature = "gpu")]
        if let Some(timing) = &self.on_gpu {
            return timing.copy(Settings::default().patience);
        }
        let start = Instant::now();
        copy_on_all_threads(self.logits, &mut self.elements);
        black_box(&self.elements);
        Ok(start.elapsed())
    }
}

#[cfg(feature = "parallel")]
fn copy_on_all_threads(from: &[f32], to: &mut [f32]) {
    use rayon::prelude::*;
    let part = from.len().div_ceil(rayon::current_num_threads()).max(1);
    to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
}

#[cfg(not(feature = "parallel"))]
fn copy_on_all_threads(from: &[f32], to: &mut [f32]) {
    to.copy_from_slice(from);
}
