//! Resident data: logits, targets and results that stay in the device's memory from one call to the
//! next.
//!
//! ```
//! use logits::{CrossEntropy, Device, Logits};
//!
//! let device = Device::new();
//! let x = device.upload(Logits::new(&[2.0_f32, 0.0, 1.0, /* next row */ 0.5, 3.0, 0.0], [2, 3])?)?;
//! let targets = device.upload_targets(&CrossEntropy::default(), [2, 3], &[0, 2])?;
//!
//! let (loss, gradient) = x.cross_entropy_with_gradient(&targets).run()?; // nothing has been read back yet
//! let best = x.predict().run()?.read()?; // and now two predictions
//! println!("class {}, loss {}", best[0].class, loss.read()?.loss);
//! assert_eq!(gradient.read_rows(1..2)?.len(), 3); // only the row asked for
//! # Ok::<(), logits::Error>(())
//! ```

pub(crate) mod calls;

use std::ops::Range;
use std::sync::Arc;

use crate::device::Place;
use crate::gpu::{DeviceArray, DeviceTargets};
use crate::problem::checked_loss::Totals;
use crate::problem::error::try_vec;
use crate::problem::limits::CallLimits;
use crate::problem::logits::View;
use crate::problem::operands::{RowTarget, RowsOut};
use crate::problem::sum::sum_of_rows;
use crate::problem::transform::Transform;
use crate::problem::waiting::{Waiting, block_on};
use crate::{
    CrossEntropy, Device, Element, Error, Logits, Loss, Prediction, Reduction, Shape, Targets,
};

/// Values `[rows, classes]` or `[outer, classes, inner]` on a device: logits, probabilities, a
/// gradient. Clones are cheap: they share the memory, which never changes, and the last one to be
/// dropped frees it.
///
/// Operations neither wait nor read back, and they never overwrite resident data: every result
/// takes memory of its own. A prepared step can overwrite its logits
/// ([`Operation`](crate::Operation), `StepBuffers::in_place`). If the GPU is lost, every earlier
/// handle returns [`Error::Gpu`]; the device opens itself again, and the data must be uploaded
/// again.
#[derive(Clone, Debug)]
pub struct Resident<T: Element = f32> {
    memory: Memory<T>,
    shape: Shape,
    transform: Transform,
    limits: CallLimits,
}

/// Values of rows on a device: log-sum-exps, losses, [`Prediction`]s.
#[derive(Clone, Debug)]
pub struct ResidentRows<T> {
    memory: Memory<T>,
    rows: usize,
    /// The number of values of a row.
    each: usize,
    /// The factor that values are multiplied by when they are read: 1 / [`Totals::unit`] for
    /// losses, 1 for other values.
    scale: f64,
    limits: CallLimits,
}

/// A value of the result of an operation: an [`Element`] or a [`Prediction`]. No other type
/// implements it.
pub trait ResultValue: sealed::ResultValue + bytemuck::Pod + Default {}

impl<T: sealed::ResultValue + bytemuck::Pod + Default> ResultValue for T {}

pub(crate) mod sealed {
    use crate::problem::operands::RowsOut;

    pub trait ResultValue: Sized {
        /// Returns `values` as the destination of a call, which has `per_row` predictions or one
        /// value for each row.
        fn rows_out(values: &mut [Self], per_row: usize) -> RowsOut<'_>;

        /// Multiplies each value by `factor`; does nothing to predictions.
        fn scale(values: &mut [Self], factor: f64);
    }
}

impl<T: Element> sealed::ResultValue for T {
    fn rows_out(values: &mut [Self], _: usize) -> RowsOut<'_> {
        RowsOut::Values(T::erase_mut(values))
    }

    fn scale(values: &mut [Self], factor: f64) {
        T::erase_mut(values).scale(factor);
    }
}

impl sealed::ResultValue for Prediction {
    fn rows_out(values: &mut [Self], per_row: usize) -> RowsOut<'_> {
        RowsOut::Predictions(values, per_row)
    }

    fn scale(_: &mut [Self], _: f64) {}
}

/// Targets on a device, checked, with the options of the loss that they are for.
#[derive(Clone, Debug)]
pub struct ResidentTargets {
    memory: TargetMemory,
    shape: Shape,
    totals: Totals,
    loss: Arc<CrossEntropy>,
    is_soft: bool,
}

/// A loss on a device.
#[derive(Clone, Debug)]
pub struct ResidentLoss<S = f32> {
    per_row: ResidentRows<S>,
    sum: Sum,
    totals: Totals,
    reduction: Reduction,
}

#[derive(Clone, Debug)]
enum Memory<T> {
    Cpu(Arc<Vec<T>>),
    Gpu(DeviceArray),
}

impl<T> Memory<T> {
    fn empty() -> Self {
        Self::Cpu(Arc::default())
    }
}

#[derive(Clone, Debug)]
enum TargetMemory {
    Classes(Arc<Vec<RowTarget>>),
    Probabilities(Arc<Vec<f64>>),
    Gpu(DeviceTargets),
}

#[derive(Clone, Debug)]
enum Sum {
    Known(f64),
    /// In the summary that the GPU has written.
    Gpu(DeviceArray),
    /// The losses of the rows must be read and summed.
    OfRows,
}

impl Device {
    /// Copies logits to the device, where they stay.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Gpu`] where the logits do not fit or the GPU fails, since
    /// resident data does not fall back; [`Error::DType`] for f64 on a GPU.
    pub fn upload<T: Element>(&self, x: Logits<'_, T>) -> Result<Resident<T>, Error> {
        block_on(self.upload_waiting(x, Waiting::Here))
    }

    /// The async form of [`Device::upload`].
    ///
    /// # Errors
    /// Fails as [`Device::upload`] does.
    pub async fn upload_async<T: Element>(&self, x: Logits<'_, T>) -> Result<Resident<T>, Error> {
        self.upload_waiting(x, Waiting::Elsewhere).await
    }

    async fn upload_waiting<T: Element>(
        &self,
        x: Logits<'_, T>,
        waiting: Waiting,
    ) -> Result<Resident<T>, Error> {
        let (View { shape, stride, transform }, limits) = (x.view(), self.limits(waiting));
        let memory = match self.place() {
            Place::Cpu => {
                let mut values = try_vec("the logits", shape.elements()?)?;
                for (block, x) in values
                    .chunks_exact_mut(shape.block().max(1))
                    .zip(x.data().chunks(stride.max(1)))
                {
                    block.copy_from_slice(&x[..shape.block()]);
                }
                Memory::Cpu(Arc::new(values))
            }
            Place::Gpu(gpu) if T::DTYPE == crate::DType::F64 => {
                return Err(Error::DType { dtype: T::DTYPE, adapter: gpu.name().to_owned() });
            }
            Place::Gpu(gpu) => {
                Memory::Gpu(gpu.upload(shape, (x.elements(), stride), limits).await?)
            }
        };
        Ok(Resident { memory, shape, transform, limits })
    }

    /// Checks targets against the shape of the logits and the options of the loss, and copies them
    /// to the device with these options.
    ///
    /// # Errors
    /// Fails as [`LossCall::loss`](crate::LossCall::loss) does for the targets and the options,
    /// with [`Error::ZeroClasses`] or [`Error::ShapeTooLarge`] for the shape, and as
    /// [`Device::upload`] does.
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
    /// Fails as [`Device::upload_targets`] does.
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
        let mut prepared = loss.prepare(shape, targets)?;
        let totals = prepared.totals(0.0);
        let is_soft = prepared.soft_targets.is_some();
        let memory = match (self.place(), prepared.soft_targets) {
            (Place::Cpu, None) => {
                TargetMemory::Classes(Arc::new(std::mem::take(&mut prepared.rows)))
            }
            (Place::Cpu, Some(values)) => {
                let mut copy = try_vec("the targets", values.len())?;
                copy.iter_mut().enumerate().for_each(|(place, value)| *value = values.at(place));
                TargetMemory::Probabilities(Arc::new(copy))
            }
            (Place::Gpu(gpu), _) => TargetMemory::Gpu(
                gpu.upload_targets(
                    shape,
                    &prepared.operands(Transform::default())?,
                    self.limits(waiting),
                )
                .await?,
            ),
        };
        Ok(ResidentTargets {
            memory,
            shape,
            totals,
            loss: Arc::new(prepared.kept_loss()?),
            is_soft,
        })
    }
}

impl<T: Element> Resident<T> {
    /// Returns the shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Returns the same values, which every operation reads as if divided by `temperature`:
    /// [`Logits::temperature`].
    ///
    /// # Errors
    /// Fails as [`Logits::temperature`] does.
    pub fn temperature(&self, temperature: f32) -> Result<Self, Error> {
        Ok(Self { transform: self.transform.at_temperature(temperature)?, ..self.clone() })
    }

    /// Returns the same values as a loss sees them: [`Logits::as_seen_by`].
    ///
    /// # Errors
    /// Fails as [`Logits::as_seen_by`] does.
    pub fn as_seen_by(&self, loss: &CrossEntropy) -> Result<Self, Error> {
        Ok(Self { transform: loss.transform(self.transform)?, ..self.clone() })
    }

    /// Reads all values back, in their order in memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Gpu`] where the GPU fails or was lost.
    pub fn read(&self) -> Result<Vec<T>, Error> {
        block_on(self.read_waiting(0..self.shape.outer(), Waiting::Here))
    }

    /// The async form of [`Resident::read`].
    ///
    /// # Errors
    /// Fails as [`Resident::read`] does.
    pub async fn read_async(&self) -> Result<Vec<T>, Error> {
        self.read_waiting(0..self.shape.outer(), Waiting::Elsewhere).await
    }

    /// Reads the given rows back, or, for a shape `[outer, classes, inner]`, the given blocks of
    /// `classes * inner` values. Rows or blocks beyond the last are left out.
    ///
    /// # Errors
    /// Fails as [`Resident::read`] does.
    pub fn read_rows(&self, rows: Range<usize>) -> Result<Vec<T>, Error> {
        block_on(self.read_waiting(rows, Waiting::Here))
    }

    /// The async form of [`Resident::read_rows`].
    ///
    /// # Errors
    /// Fails as [`Resident::read`] does.
    pub async fn read_rows_async(&self, rows: Range<usize>) -> Result<Vec<T>, Error> {
        self.read_waiting(rows, Waiting::Elsewhere).await
    }

    async fn read_waiting(&self, blocks: Range<usize>, waiting: Waiting) -> Result<Vec<T>, Error> {
        let end = blocks.end.min(self.shape.outer());
        let (start, inner) = (blocks.start.min(end), self.shape.inner());
        let limits = CallLimits { waiting, ..self.limits };
        self.memory.read(start * inner..end * inner, self.shape.classes(), limits).await
    }
}

impl<T: ResultValue> ResidentRows<T> {
    /// Returns the number of rows.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.rows
    }

    /// Reads the values back.
    ///
    /// # Errors
    /// Fails as [`Resident::read`] does.
    pub fn read(&self) -> Result<Vec<T>, Error> {
        block_on(self.read_waiting(Waiting::Here))
    }

    /// The async form of [`ResidentRows::read`].
    ///
    /// # Errors
    /// Fails as [`Resident::read`] does.
    pub async fn read_async(&self) -> Result<Vec<T>, Error> {
        self.read_waiting(Waiting::Elsewhere).await
    }

    async fn read_waiting(&self, waiting: Waiting) -> Result<Vec<T>, Error> {
        let limits = CallLimits { waiting, ..self.limits };
        let mut values = self.memory.read(0..self.rows, self.each, limits).await?;
        if self.scale != 1.0 {
            T::scale(&mut values, self.scale);
        }
        Ok(values)
    }
}

impl<S> ResidentLoss<S> {
    /// Returns the weighted loss of each row, which stays on the device.
    #[must_use]
    pub fn per_row(&self) -> &ResidentRows<S> {
        &self.per_row
    }
}

impl<S: Element> ResidentLoss<S> {
    /// Reads the reduced loss back; [`Loss::per_row`] stays empty. On a GPU this reads 32 bytes.
    /// Where the logits did not fit one buffer, or the sum is beyond f32, it reads the losses of
    /// the rows, and sums them on the host.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the GPU fails or was lost; [`Error::OutOfMemory`].
    pub fn read(&self) -> Result<Loss<S>, Error> {
        block_on(self.read_waiting(Waiting::Here))
    }

    /// The async form of [`ResidentLoss::read`].
    ///
    /// # Errors
    /// Fails as [`ResidentLoss::read`] does.
    pub async fn read_async(&self) -> Result<Loss<S>, Error> {
        self.read_waiting(Waiting::Elsewhere).await
    }

    async fn read_waiting(&self, waiting: Waiting) -> Result<Loss<S>, Error> {
        let ResidentRows { memory, rows, each, limits, .. } = &self.per_row;
        let limits = CallLimits { waiting, ..*limits };
        let known = match &self.sum {
            Sum::Known(sum) => Some(*sum),
            // A device returns the sum as f32s, so an infinite sum may be finite in f64.
            Sum::Gpu(summary) => Some(summary.sum(limits).await?).filter(|sum| !sum.is_infinite()),
            Sum::OfRows => None,
        };
        let sum = match known {
            Some(sum) => sum,
            // The losses are read as they are on the device, multiplied by `unit` as the totals
            // are.
            None => sum_of_rows(&memory.read(0..*rows, *each, limits).await?),
        };
        let totals = Totals { sum, ..self.totals };
        let (loss, perplexity) = totals.reduce(self.reduction);
        let (rows, counted_rows) = (totals.rows, totals.counted_rows);
        Ok(Loss { loss, rows, counted_rows, perplexity, per_row: Vec::new(), fell_back: None })
    }
}

impl<T: bytemuck::Pod + Default> Memory<T> {
    async fn read(
        &self,
        rows: Range<usize>,
        width: usize,
        limits: CallLimits,
    ) -> Result<Vec<T>, Error> {
        match self {
            Self::Cpu(values) => {
                let values = &values[rows.start * width..rows.end * width];
                let mut copy = try_vec("the rows read back", values.len())?;
                copy.copy_from_slice(values);
                Ok(copy)
            }
            Self::Gpu(array) => array.read(rows, limits).await,
        }
    }
}
