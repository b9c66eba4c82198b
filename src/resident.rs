//! Data that stays where the device computes, from one call to the next.
//!
//! ```
//! use logits::{CrossEntropy, Device, Logits};
//!
//! let device = Device::new();
//! let x = device.upload(Logits::new(&[2.0, 0.0, 1.0, /* next row */ 0.5, 3.0, 0.0], [2, 3])?)?;
//! let targets = device.upload_targets(&CrossEntropy::default(), [2, 3], &[0, 2])?;
//!
//! let (loss, gradient) = x.cross_entropy_grad(&targets)?; // nothing has been read back yet
//! let best = x.predict()?.read()?; // and now two predictions
//! println!("class {}, loss {}", best[0].class, loss.read()?.loss);
//! assert_eq!(gradient.read_rows(1..2)?.len(), 3); // only the row asked for
//! # Ok::<(), logits::Error>(())
//! ```

use std::ops::Range;
use std::sync::Arc;

use crate::device::Place;
use crate::error::try_vec;
#[cfg(feature = "gpu")]
use crate::gpu::{Held, HeldTargets};
use crate::job::{Data, Job, Op, RowTarget, RowsOut, Scaling};
use crate::loss::Totals;
use crate::settings::Settings;
use crate::waiting::{Waiting, block_on};
use crate::{CrossEntropy, Device, Error, Logits, Prediction, Reduction, Shape, Targets, cpu};

/// Values `[rows, classes]` on a device: logits, probabilities, a gradient. Cheap to clone, for clones share the memory,
/// which nothing changes; whatever order handles are dropped in, the last one frees it.
///
/// Operations neither wait nor read back. What is lost with a GPU is lost: [`Error::Gpu`], on every handle made before.
/// Upload again then; the device has been opened anew.
#[derive(Clone, Debug)]
pub struct Resident {
    memory: Memory<f32>,
    shape: Shape,
    settings: Settings,
}

/// One value a row on a device: log-sum-exps, losses, [`Prediction`]s.
#[derive(Clone, Debug)]
pub struct ResidentRows<T> {
    memory: Memory<T>,
    rows: usize,
    settings: Settings,
}

/// Targets on a device, checked, with the options of the loss that they are for.
#[derive(Clone, Debug)]
pub struct ResidentTargets {
    memory: TargetMemory,
    shape: Shape,
    totals: Totals,
    loss: Arc<CrossEntropy>,
}

/// A loss on a device.
#[derive(Clone, Debug)]
pub struct ResidentLoss {
    per_row: ResidentRows<f32>,
    sum: Sum,
    totals: Totals,
    reduction: Reduction,
}

/// What a loss came to, without the losses of the rows.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReducedLoss {
    /// As [`Loss::loss`](crate::Loss::loss).
    pub loss: f64,
    /// As [`Loss::rows`](crate::Loss::rows).
    pub rows: usize,
    /// As [`Loss::counted_rows`](crate::Loss::counted_rows).
    pub counted_rows: usize,
    /// As [`Loss::perplexity`](crate::Loss::perplexity).
    pub perplexity: f64,
}

#[derive(Clone, Debug)]
enum Memory<T> {
    Cpu(Arc<[T]>),
    #[cfg(feature = "gpu")]
    Gpu(Held),
}

#[derive(Clone, Debug)]
enum TargetMemory {
    Cpu(Arc<[RowTarget]>),
    #[cfg(feature = "gpu")]
    Gpu(HeldTargets),
}

#[derive(Clone, Debug)]
enum Sum {
    Known(f64),
    #[cfg(feature = "gpu")]
    Gpu(Held),
}

/// What an operation leaves; empty what it has not.
struct Outcome {
    elements: Memory<f32>,
    values: Memory<f32>,
    predictions: Memory<Prediction>,
    sum: Sum,
}

impl Device {
    /// Logits to the device, where they stay.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Gpu`] where they do not fit or the GPU fails: resident data does not fall back.
    pub fn upload(&self, x: Logits<'_>) -> Result<Resident, Error> {
        block_on(self.upload_waiting(x, Waiting::Here))
    }

    /// The async form of [`Device::upload`].
    ///
    /// # Errors
    /// As [`Device::upload`].
    pub async fn upload_async(&self, x: Logits<'_>) -> Result<Resident, Error> {
        self.upload_waiting(x, Waiting::Elsewhere).await
    }

    async fn upload_waiting(&self, x: Logits<'_>, waiting: Waiting) -> Result<Resident, Error> {
        let (shape, settings) = (x.shape(), self.settings());
        let _ = waiting;
        let memory = match self.place() {
            Place::Cpu => {
                let (input, stride) = x.parts();
                let mut values = try_vec("the logits", shape.elements()?)?;
                for (row, x) in values.chunks_exact_mut(shape.classes()).zip(input.chunks(stride)) {
                    row.copy_from_slice(&x[..shape.classes()]);
                }
                Memory::Cpu(values.into())
            }
            #[cfg(feature = "gpu")]
            Place::Gpu(gpu) => Memory::Gpu(gpu.upload(shape, x.parts(), settings, waiting).await?),
        };
        Ok(Resident { memory, shape, settings })
    }

    /// Targets to the device, checked against the logits' shape and the options of the loss, which they keep.
    ///
    /// # Errors
    /// As [`Device::cross_entropy`] of the targets and the options, and as [`Device::upload`].
    pub fn upload_targets<'t>(
        &self,
        loss: &CrossEntropy,
        shape: impl Into<Shape>,
        targets: impl Into<Targets<'t>>,
    ) -> Result<ResidentTargets, Error> {
        block_on(self.upload_targets_waiting(loss, shape.into(), targets.into(), Waiting::Here))
    }

    /// The async form of [`Device::upload_targets`].
    ///
    /// # Errors
    /// As [`Device::upload_targets`].
    pub async fn upload_targets_async<'t>(
        &self,
        loss: &CrossEntropy,
        shape: impl Into<Shape>,
        targets: impl Into<Targets<'t>>,
    ) -> Result<ResidentTargets, Error> {
        self.upload_targets_waiting(loss, shape.into(), targets.into(), Waiting::Elsewhere).await
    }

    async fn upload_targets_waiting(
        &self,
        loss: &CrossEntropy,
        shape: Shape,
        targets: Targets<'_>,
        waiting: Waiting,
    ) -> Result<ResidentTargets, Error> {
        shape.elements()?;
        let prepared = loss.prepare(shape, targets)?;
        let totals = prepared.totals(0.0);
        let _ = waiting;
        let memory = match self.place() {
            Place::Cpu => TargetMemory::Cpu(prepared.rows.into()),
            #[cfg(feature = "gpu")]
            Place::Gpu(gpu) => TargetMemory::Gpu(
                gpu.upload_targets(shape, &prepared.rows, prepared.scaling(), self.settings(), waiting).await?,
            ),
        };
        Ok(ResidentTargets { memory, shape, totals, loss: Arc::new(loss.clone()) })
    }
}

impl Resident {
    /// The shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Reads everything back, row after row.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Gpu`] where the GPU fails or was lost.
    pub fn read(&self) -> Result<Vec<f32>, Error> {
        self.read_rows(0..self.shape.row_count())
    }

    /// The async form of [`Resident::read`].
    ///
    /// # Errors
    /// As [`Resident::read`].
    pub async fn read_async(&self) -> Result<Vec<f32>, Error> {
        self.read_rows_async(0..self.shape.row_count()).await
    }

    /// Reads some rows back; those beyond the last are left out.
    ///
    /// # Errors
    /// As [`Resident::read`].
    pub fn read_rows(&self, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        block_on(self.memory.read(self.within(rows), self.shape.classes(), self.settings, Waiting::Here))
    }

    /// The async form of [`Resident::read_rows`].
    ///
    /// # Errors
    /// As [`Resident::read`].
    pub async fn read_rows_async(&self, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        self.memory.read(self.within(rows), self.shape.classes(), self.settings, Waiting::Elsewhere).await
    }

    fn within(&self, rows: Range<usize>) -> Range<usize> {
        let end = rows.end.min(self.shape.row_count());
        rows.start.min(end)..end
    }

    /// Probabilities, as [`Device::softmax`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Gpu`] where the GPU fails or was lost.
    pub fn softmax(&self) -> Result<Resident, Error> {
        block_on(self.softmax_async())
    }

    /// The async form of [`Resident::softmax`].
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    pub async fn softmax_async(&self) -> Result<Resident, Error> {
        Ok(self.of(self.run(Op::Softmax, None).await?.elements))
    }

    /// Log-probabilities, as [`Device::log_softmax`].
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    pub fn log_softmax(&self) -> Result<Resident, Error> {
        block_on(self.log_softmax_async())
    }

    /// The async form of [`Resident::log_softmax`].
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    pub async fn log_softmax_async(&self) -> Result<Resident, Error> {
        Ok(self.of(self.run(Op::LogSoftmax, None).await?.elements))
    }

    /// Log-sum-exps, as [`Device::log_sum_exp`]; but next to 0, where its terms cancel, the error on a GPU is 2e-7
    /// absolute instead of 1e-6 relative.
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    pub fn log_sum_exp(&self) -> Result<ResidentRows<f32>, Error> {
        block_on(self.log_sum_exp_async())
    }

    /// The async form of [`Resident::log_sum_exp`].
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    pub async fn log_sum_exp_async(&self) -> Result<ResidentRows<f32>, Error> {
        Ok(self.rows(self.run(Op::LogSumExp, None).await?.values))
    }

    /// Decisions, as [`Device::predict`].
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    pub fn predict(&self) -> Result<ResidentRows<Prediction>, Error> {
        block_on(self.predict_async())
    }

    /// The async form of [`Resident::predict`].
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    pub async fn predict_async(&self) -> Result<ResidentRows<Prediction>, Error> {
        Ok(self.rows(self.run(Op::Predict, None).await?.predictions))
    }

    /// The loss alone, as [`Device::cross_entropy`].
    ///
    /// # Errors
    /// As [`Resident::softmax`], and [`Error::Length`] where the targets are of another shape.
    pub fn cross_entropy(&self, targets: &ResidentTargets) -> Result<ResidentLoss, Error> {
        block_on(self.cross_entropy_async(targets))
    }

    /// The async form of [`Resident::cross_entropy`].
    ///
    /// # Errors
    /// As [`Resident::cross_entropy`].
    pub async fn cross_entropy_async(&self, targets: &ResidentTargets) -> Result<ResidentLoss, Error> {
        let Outcome { values, sum, .. } = self.run(Op::CrossEntropy, Some(targets)).await?;
        Ok(self.loss(targets, values, sum))
    }

    /// The loss and its gradient, as [`Device::cross_entropy_grad`].
    ///
    /// # Errors
    /// As [`Resident::cross_entropy`].
    pub fn cross_entropy_grad(&self, targets: &ResidentTargets) -> Result<(ResidentLoss, Resident), Error> {
        block_on(self.cross_entropy_grad_async(targets))
    }

    /// The async form of [`Resident::cross_entropy_grad`].
    ///
    /// # Errors
    /// As [`Resident::cross_entropy`].
    pub async fn cross_entropy_grad_async(&self, targets: &ResidentTargets) -> Result<(ResidentLoss, Resident), Error> {
        let Outcome { elements, values, sum, .. } = self.run(Op::CrossEntropyGrad, Some(targets)).await?;
        Ok((self.loss(targets, values, sum), self.of(elements)))
    }

    async fn run(&self, op: Op, targets: Option<&ResidentTargets>) -> Result<Outcome, Error> {
        if let Some(ResidentTargets { shape, .. }) = targets.filter(|targets| targets.shape != self.shape) {
            let rows = ("targets", self.shape.row_count(), shape.row_count());
            let classes = ("classes of the targets", self.shape.classes(), shape.classes());
            let (what, expected, found) = if rows.1 == rows.2 { classes } else { rows };
            return Err(Error::Length { what, expected, found });
        }
        let scaling = targets.map(ResidentTargets::scaling).unwrap_or_default();
        match (&self.memory, targets.map(|targets| &targets.memory)) {
            (Memory::Cpu(logits), None) => self.run_on_cpu(op, logits, &[], scaling),
            (Memory::Cpu(logits), Some(TargetMemory::Cpu(targets))) => self.run_on_cpu(op, logits, targets, scaling),
            #[cfg(feature = "gpu")]
            (Memory::Gpu(held), None) => Ok(Outcome::on_gpu(op, held.run(op, self.shape.classes(), None).await?)),
            #[cfg(feature = "gpu")]
            (Memory::Gpu(held), Some(TargetMemory::Gpu(targets))) => {
                Ok(Outcome::on_gpu(op, held.run(op, self.shape.classes(), Some(targets)).await?))
            }
            #[cfg(feature = "gpu")]
            _ => Err(Error::ResidentElsewhere),
        }
    }

    fn run_on_cpu(
        &self,
        op: Op,
        logits: &[f32],
        targets: &[RowTarget],
        scaling: Scaling<'_>,
    ) -> Result<Outcome, Error> {
        let (shape, rows) = (self.shape, self.shape.row_count());
        let elements = if op.writes_elements() { logits.len() } else { 0 };
        let (values, predictions) = match op {
            Op::Softmax | Op::LogSoftmax => (0, 0),
            Op::Predict => (0, rows),
            _ => (rows, 0),
        };
        let mut elements = try_vec("the result", elements)?;
        let mut values = try_vec("the result", values)?;
        let mut predictions = try_vec("predictions", predictions)?;
        if rows > 0 {
            let (input, stride) = (logits, shape.classes());
            let data = match op.writes_elements() {
                true => Data::Write { input, stride, output: &mut elements },
                false => Data::Read { input, stride },
            };
            let rows_out = match op {
                Op::Softmax | Op::LogSoftmax => RowsOut::None,
                Op::Predict => RowsOut::Predictions(&mut predictions),
                _ => RowsOut::Values(&mut values),
            };
            cpu::run(Job { op, shape, data, targets, scaling, rows_out });
        }
        let sum = Sum::Known(values.iter().fold(0.0, |sum, &loss| sum + f64::from(loss)));
        Ok(Outcome {
            elements: Memory::Cpu(elements.into()),
            values: Memory::Cpu(values.into()),
            predictions: Memory::Cpu(predictions.into()),
            sum,
        })
    }

    fn of(&self, memory: Memory<f32>) -> Self {
        Self { memory, ..*self }
    }

    fn rows<T>(&self, memory: Memory<T>) -> ResidentRows<T> {
        ResidentRows { memory, rows: self.shape.row_count(), settings: self.settings }
    }

    fn loss(&self, targets: &ResidentTargets, per_row: Memory<f32>, sum: Sum) -> ResidentLoss {
        let (totals, reduction) = (targets.totals, targets.loss.reduction);
        ResidentLoss { per_row: self.rows(per_row), sum, totals, reduction }
    }
}

impl<T: bytemuck::Pod + Default> ResidentRows<T> {
    /// How many rows there are.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.rows
    }

    /// Reads them back.
    ///
    /// # Errors
    /// As [`Resident::read`].
    pub fn read(&self) -> Result<Vec<T>, Error> {
        block_on(self.memory.read(0..self.rows, 1, self.settings, Waiting::Here))
    }

    /// The async form of [`ResidentRows::read`].
    ///
    /// # Errors
    /// As [`Resident::read`].
    pub async fn read_async(&self) -> Result<Vec<T>, Error> {
        self.memory.read(0..self.rows, 1, self.settings, Waiting::Elsewhere).await
    }
}

impl ResidentTargets {
    /// Rows whose target is not the ignored index.
    #[must_use]
    pub fn counted_rows(&self) -> usize {
        self.totals.counted_rows
    }

    fn scaling(&self) -> Scaling<'_> {
        self.loss.scaling(self.shape.classes(), self.totals.weight, self.totals.counted_rows)
    }
}

impl ResidentLoss {
    /// The weighted loss of each row, where it is.
    #[must_use]
    pub fn per_row(&self) -> &ResidentRows<f32> {
        &self.per_row
    }

    /// Reads the reduced loss back: 32 bytes, not a row.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the GPU fails or was lost.
    pub fn read(&self) -> Result<ReducedLoss, Error> {
        block_on(self.read_waiting(Waiting::Here))
    }

    /// The async form of [`ResidentLoss::read`].
    ///
    /// # Errors
    /// As [`ResidentLoss::read`].
    pub async fn read_async(&self) -> Result<ReducedLoss, Error> {
        self.read_waiting(Waiting::Elsewhere).await
    }

    async fn read_waiting(&self, waiting: Waiting) -> Result<ReducedLoss, Error> {
        let _ = waiting;
        let sum = match &self.sum {
            Sum::Known(sum) => *sum,
            #[cfg(feature = "gpu")]
            Sum::Gpu(summaries) => summaries.sum(self.per_row.settings, waiting).await?,
        };
        let totals = Totals { sum, ..self.totals };
        let (loss, perplexity) = totals.reduce(self.reduction);
        Ok(ReducedLoss { loss, rows: totals.rows, counted_rows: totals.counted_rows, perplexity })
    }
}

impl<T: bytemuck::Pod + Default> Memory<T> {
    async fn read(
        &self,
        rows: Range<usize>,
        width: usize,
        settings: Settings,
        waiting: Waiting,
    ) -> Result<Vec<T>, Error> {
        let _ = (settings, waiting);
        match self {
            Self::Cpu(values) => {
                let values = &values[rows.start * width..rows.end * width];
                let mut copy = try_vec("the rows read back", values.len())?;
                copy.copy_from_slice(values);
                Ok(copy)
            }
            #[cfg(feature = "gpu")]
            Self::Gpu(held) => held.read(rows, settings, waiting).await,
        }
    }
}

#[cfg(feature = "gpu")]
impl Outcome {
    fn on_gpu(op: Op, results: crate::gpu::Results) -> Self {
        let nothing = || Memory::Cpu([].into());
        let rows = results.rows;
        let (values, predictions) = match op {
            Op::Predict => (nothing(), rows.map_or(Memory::Cpu([].into()), Memory::Gpu)),
            _ => (rows.map_or_else(nothing, Memory::Gpu), Memory::Cpu([].into())),
        };
        Self {
            elements: results.elements.map_or_else(nothing, Memory::Gpu),
            values,
            predictions,
            sum: results.summaries.map_or(Sum::Known(0.0), Sum::Gpu),
        }
    }
}
