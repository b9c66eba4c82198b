//! Data that stays where the device computes, from one call to the next.
//!
//! ```
//! use logits::{CrossEntropy, Device, Logits};
//!
//! let device = Device::new();
//! let x = device.upload(Logits::new(&[2.0_f32, 0.0, 1.0, /* next row */ 0.5, 3.0, 0.0], [2, 3])?)?;
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

use crate::curve::Curve;
use crate::device::Place;
use crate::elements::{Elements, Sealed};
use crate::error::try_vec;
#[cfg(feature = "gpu")]
use crate::gpu::{Held, HeldGiven, HeldTargets};
use crate::job::{Data, Given, Job, Op, RowTarget, RowsOut};
use crate::logits::{View, check_length};
use crate::loss::Totals;
use crate::operations::{check_top, of_draws};
use crate::settings::Settings;
use crate::waiting::{Waiting, block_on};
use crate::{CrossEntropy, Device, Element, Error, Logits, Prediction, Reduction, Sampling, Shape, Targets, cpu};

/// Values `[rows, classes]` or `[outer, classes, inner]` on a device: logits, probabilities, a gradient. Cheap to clone, for
/// clones share the memory, which nothing changes; whatever order handles are dropped in, the last one frees it.
///
/// Operations neither wait nor read back. What is lost with a GPU is lost: [`Error::Gpu`], on every handle made before.
/// Upload again then; the device has been opened anew.
#[derive(Clone, Debug)]
pub struct Resident<T: Element = f32> {
    memory: Memory<T>,
    shape: Shape,
    curve: Curve,
    settings: Settings,
}

/// Values of rows on a device: log-sum-exps, losses, [`Prediction`]s.
#[derive(Clone, Debug)]
pub struct ResidentRows<T> {
    memory: Memory<T>,
    rows: usize,
    each: usize,
    settings: Settings,
}

/// Targets on a device, checked, with the options of the loss that they are for.
#[derive(Clone, Debug)]
pub struct ResidentTargets {
    memory: TargetMemory,
    shape: Shape,
    totals: Totals,
    loss: Arc<CrossEntropy>,
    #[cfg(feature = "gpu")]
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

#[cfg(feature = "gpu")]
impl<T> Memory<T> {
    fn empty() -> Self {
        Self::Cpu(Arc::new([]))
    }
}

#[derive(Clone, Debug)]
enum TargetMemory {
    Classes(Arc<[RowTarget]>),
    Probabilities(Arc<[f64]>),
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
struct Outcome<T: Element> {
    elements: Memory<T>,
    values: Memory<T::Row>,
    predictions: Memory<Prediction>,
    sum: Sum,
}

/// What an operation is given beside the logits.
#[derive(Clone, Copy)]
struct Beside<'b, T: Element> {
    targets: Option<&'b ResidentTargets>,
    upstream: Option<&'b Resident<T>>,
    log_sum_exps: Option<&'b ResidentRows<T::Row>>,
    k: usize,
    sampling: Option<&'b Sampling>,
}

impl<T: Element> Default for Beside<'_, T> {
    fn default() -> Self {
        Self { targets: None, upstream: None, log_sum_exps: None, k: 0, sampling: None }
    }
}

impl Device {
    /// Logits to the device, where they stay.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Gpu`] where they do not fit or the GPU fails: resident data does not fall back;
    /// [`Error::DType`] for f64 on a GPU.
    pub fn upload<T: Element>(&self, x: Logits<'_, T>) -> Result<Resident<T>, Error> {
        block_on(self.upload_waiting(x, Waiting::Here))
    }

    /// The async form of [`Device::upload`].
    ///
    /// # Errors
    /// As [`Device::upload`].
    pub async fn upload_async<T: Element>(&self, x: Logits<'_, T>) -> Result<Resident<T>, Error> {
        self.upload_waiting(x, Waiting::Elsewhere).await
    }

    async fn upload_waiting<T: Element>(&self, x: Logits<'_, T>, waiting: Waiting) -> Result<Resident<T>, Error> {
        let (View { shape, stride, curve }, settings) = (x.view(), self.settings());
        let _ = waiting;
        let memory = match self.place() {
            Place::Cpu => {
                let mut values = try_vec("the logits", shape.elements()?)?;
                for (block, x) in values.chunks_exact_mut(shape.block().max(1)).zip(x.data().chunks(stride.max(1))) {
                    block.copy_from_slice(&x[..shape.block()]);
                }
                Memory::Cpu(values.into())
            }
            #[cfg(feature = "gpu")]
            Place::Gpu(gpu) if T::DTYPE == crate::DType::F64 => {
                return Err(Error::DType { dtype: T::DTYPE, adapter: gpu.name().to_owned() });
            }
            #[cfg(feature = "gpu")]
            Place::Gpu(gpu) => Memory::Gpu(gpu.upload(shape, (x.elements(), stride), settings, waiting).await?),
        };
        Ok(Resident { memory, shape, curve, settings })
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
        #[cfg(feature = "gpu")]
        let is_soft = prepared.second.is_some();
        let _ = waiting;
        let memory = match (self.place(), prepared.second) {
            (Place::Cpu, None) => TargetMemory::Classes(prepared.rows.into()),
            (Place::Cpu, Some(values)) => {
                let mut copy = try_vec("the targets", values.len())?;
                copy.iter_mut().enumerate().for_each(|(place, value)| *value = values.at(place));
                TargetMemory::Probabilities(copy.into())
            }
            #[cfg(feature = "gpu")]
            (Place::Gpu(gpu), _) => {
                let settings = self.settings();
                TargetMemory::Gpu(
                    gpu.upload_targets(shape, &prepared.given(Curve::default())?, settings, waiting).await?,
                )
            }
        };
        Ok(ResidentTargets {
            memory,
            shape,
            totals,
            loss: Arc::new(loss.clone()),
            #[cfg(feature = "gpu")]
            is_soft,
        })
    }
}

impl<T: Element> Resident<T> {
    /// The shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The same values, read by every operation as if divided by `temperature`: [`Logits::temperature`].
    ///
    /// # Errors
    /// As [`Logits::temperature`].
    pub fn temperature(&self, temperature: f32) -> Result<Self, Error> {
        Ok(Self { curve: self.curve.at_temperature(temperature)?, ..self.clone() })
    }

    /// The same values as a loss sees them: [`Logits::as_seen_by`].
    ///
    /// # Errors
    /// As [`Logits::as_seen_by`].
    pub fn as_seen_by(&self, loss: &CrossEntropy) -> Result<Self, Error> {
        Ok(Self { curve: loss.curve(self.curve)?, ..self.clone() })
    }

    /// Reads everything back, as it lies.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Gpu`] where the GPU fails or was lost.
    pub fn read(&self) -> Result<Vec<T>, Error> {
        block_on(self.read_waiting(0..self.shape.outer(), Waiting::Here))
    }

    /// The async form of [`Resident::read`].
    ///
    /// # Errors
    /// As [`Resident::read`].
    pub async fn read_async(&self) -> Result<Vec<T>, Error> {
        self.read_waiting(0..self.shape.outer(), Waiting::Elsewhere).await
    }

    /// Reads some rows back, or of a shape `[outer, classes, inner]` some blocks of `classes * inner`; those beyond the last
    /// are left out.
    ///
    /// # Errors
    /// As [`Resident::read`].
    pub fn read_rows(&self, rows: Range<usize>) -> Result<Vec<T>, Error> {
        block_on(self.read_waiting(rows, Waiting::Here))
    }

    /// The async form of [`Resident::read_rows`].
    ///
    /// # Errors
    /// As [`Resident::read`].
    pub async fn read_rows_async(&self, rows: Range<usize>) -> Result<Vec<T>, Error> {
        self.read_waiting(rows, Waiting::Elsewhere).await
    }

    async fn read_waiting(&self, blocks: Range<usize>, waiting: Waiting) -> Result<Vec<T>, Error> {
        let end = blocks.end.min(self.shape.outer());
        let (start, inner) = (blocks.start.min(end), self.shape.inner());
        self.memory.read(start * inner..end * inner, self.shape.classes(), self.settings, waiting).await
    }
}

/// An operation in both its forms. None waits; the async ones are for where nothing may.
macro_rules! operations {
    ($(
        $(#[$doc:meta])*
        $name:ident / $name_async:ident($($argument:ident: $ty:ty),*) -> $result:ty, |$x:ident| $body:expr;
    )*) => {
        impl<T: Element> Resident<T> {$(
            $(#[$doc])*
            pub fn $name(&self, $($argument: $ty),*) -> Result<$result, Error> {
                block_on(self.$name_async($($argument),*))
            }

            #[doc = concat!("The async form of [`Resident::", stringify!($name), "`].")]
            ///
            /// # Errors
            #[doc = concat!("As [`Resident::", stringify!($name), "`].")]
            pub async fn $name_async(&self, $($argument: $ty),*) -> Result<$result, Error> {
                let $x = self;
                $body
            }
        )*}
    };
}

operations! {
    /// Probabilities, as [`Device::softmax`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Gpu`] where the GPU fails or was lost.
    softmax / softmax_async() -> Resident<T>, |x| Ok(x.of(x.run(Op::Softmax, Beside::default()).await?.elements));

    /// Log-probabilities, as [`Device::log_softmax`].
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    log_softmax / log_softmax_async() -> Resident<T>,
        |x| Ok(x.of(x.run(Op::LogSoftmax, Beside::default()).await?.elements));

    /// From probabilities, as [`Device::softmax_backward`].
    ///
    /// # Errors
    /// As [`Resident::softmax`], and [`Error::Length`] where the gradient is of another shape.
    softmax_backward / softmax_backward_async(upstream: &Resident<T>) -> Resident<T>,
        |x| x.backward(Op::SoftmaxBackward, upstream).await;

    /// From log-probabilities, as [`Device::log_softmax_backward`].
    ///
    /// # Errors
    /// As [`Resident::softmax_backward`].
    log_softmax_backward / log_softmax_backward_async(upstream: &Resident<T>) -> Resident<T>,
        |x| x.backward(Op::LogSoftmaxBackward, upstream).await;

    /// Log-sum-exps, as [`Device::log_sum_exp`]; but next to 0, where its terms cancel, the error on a GPU is 2e-7
    /// absolute instead of 1e-6 relative.
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    log_sum_exp / log_sum_exp_async() -> ResidentRows<T::Row>,
        |x| Ok(x.rows(x.run(Op::LogSumExp, Beside::default()).await?.values, 1));

    /// Decisions, as [`Device::predict`].
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    predict / predict_async() -> ResidentRows<Prediction>,
        |x| Ok(x.rows(x.run(Op::Predict, Beside::default()).await?.predictions, 1));

    /// The `k` most likely classes of each row, as [`Device::top_k`].
    ///
    /// # Errors
    /// As [`Resident::softmax`], and [`Error::TopK`].
    top_k / top_k_async(k: usize) -> ResidentRows<Prediction>,
        |x| {
            check_top(k, x.shape.classes())?;
            Ok(x.rows(x.run(Op::TopK, Beside { k, ..Beside::default() }).await?.predictions, k))
        };

    /// A class drawn of each row, as [`Device::sample`].
    ///
    /// # Errors
    /// As [`Resident::softmax`], and [`Error::OptionValue`].
    sample / sample_async(sampling: &Sampling) -> ResidentRows<Prediction>,
        |x| {
            let beside = Beside { sampling: Some(sampling), ..Beside::default() };
            Ok(x.rows(x.run(Op::Sample, beside).await?.predictions, 1))
        };

    /// The loss alone, as [`Device::cross_entropy`].
    ///
    /// # Errors
    /// As [`Resident::softmax`], and [`Error::Length`] where the targets are of another shape.
    cross_entropy / cross_entropy_async(targets: &ResidentTargets) -> ResidentLoss<T::Row>,
        |x| {
            let beside = Beside { targets: Some(targets), ..Beside::default() };
            let Outcome { values, sum, .. } = x.run(Op::CrossEntropy, beside).await?;
            Ok(x.loss(targets, values, sum))
        };

    /// The loss and its gradient, as [`Device::cross_entropy_grad`].
    ///
    /// # Errors
    /// As [`Resident::cross_entropy`].
    cross_entropy_grad / cross_entropy_grad_async(targets: &ResidentTargets) -> (ResidentLoss<T::Row>, Resident<T>),
        |x| {
            let beside = Beside { targets: Some(targets), ..Beside::default() };
            let Outcome { elements, values, sum, .. } = x.run(Op::CrossEntropyGrad, beside).await?;
            Ok((x.loss(targets, values, sum), x.of(elements)))
        };

    /// The gradient from log-sum-exps, as [`Device::cross_entropy_backward`].
    ///
    /// # Errors
    /// As [`Resident::cross_entropy`].
    cross_entropy_backward / cross_entropy_backward_async(
        targets: &ResidentTargets, log_sum_exps: &ResidentRows<T::Row>
    ) -> Resident<T>,
        |x| {
            check_length("log-sum-exps", x.shape.row_count(), log_sum_exps.rows * log_sum_exps.each)?;
            let beside = Beside { targets: Some(targets), log_sum_exps: Some(log_sum_exps), ..Beside::default() };
            Ok(x.of(x.run(Op::CrossEntropyBackward, beside).await?.elements))
        };
}

impl<T: Element> Resident<T> {
    async fn backward(&self, op: Op, upstream: &Self) -> Result<Self, Error> {
        if upstream.shape != self.shape {
            let (expected, found) = (self.shape.elements()?, upstream.shape.elements()?);
            return Err(Error::Length { what: "upstream gradients", expected, found });
        }
        self.curve.without_cap("not set: what comes back through it is another step")?;
        Ok(self.of(self.run(op, Beside { upstream: Some(upstream), ..Beside::default() }).await?.elements))
    }

    async fn run(&self, op: Op, beside: Beside<'_, T>) -> Result<Outcome<T>, Error> {
        let Beside { targets, upstream, log_sum_exps, k, sampling } = beside;
        if let Some(ResidentTargets { shape, .. }) = targets.filter(|targets| targets.shape != self.shape) {
            let rows = ("targets", self.shape.row_count(), shape.row_count());
            let classes = ("classes of the targets", self.shape.classes(), shape.classes());
            let (what, expected, found) = if rows.1 == rows.2 { classes } else { rows };
            return Err(Error::Length { what, expected, found });
        }
        let mut given = Given { curve: of_draws(op, self.curve)?, k, ..Given::default() };
        if let Some(sampling) = sampling {
            given.draws = sampling.draws()?;
        }
        if let Some(targets) = targets {
            let ResidentTargets { loss, totals, .. } = targets;
            given.curve = loss.curve(self.curve)?;
            given.scaling = loss.scaling(self.shape.classes(), totals.weight, totals.counted_rows);
        }
        match &self.memory {
            Memory::Cpu(logits) => {
                match targets.map(|targets| &targets.memory) {
                    None => {}
                    Some(TargetMemory::Classes(targets)) => given.targets = targets,
                    Some(TargetMemory::Probabilities(values)) => given.second = Some(Elements::F64(values)),
                    #[cfg(feature = "gpu")]
                    Some(TargetMemory::Gpu(_)) => return Err(Error::ResidentElsewhere),
                }
                match upstream.map(|upstream| &upstream.memory) {
                    None => {}
                    Some(Memory::Cpu(values)) => given.second = Some(T::erase(values)),
                    #[cfg(feature = "gpu")]
                    Some(Memory::Gpu(_)) => return Err(Error::ResidentElsewhere),
                }
                match log_sum_exps.map(|values| &values.memory) {
                    None => {}
                    Some(Memory::Cpu(values)) => given.log_sum_exps = Some(T::Row::erase(values)),
                    #[cfg(feature = "gpu")]
                    Some(Memory::Gpu(_)) => return Err(Error::ResidentElsewhere),
                }
                self.run_on_cpu(op, logits, given)
            }
            #[cfg(feature = "gpu")]
            Memory::Gpu(held) => {
                let mut beside = HeldGiven::default();
                if let Some(targets) = targets {
                    let TargetMemory::Gpu(of_targets) = &targets.memory else { return Err(Error::ResidentElsewhere) };
                    beside.targets = Some(of_targets);
                    if targets.is_soft {
                        given.second = Some(Elements::F32(&[]));
                    }
                }
                if let Some(upstream) = upstream {
                    let Memory::Gpu(of_upstream) = &upstream.memory else { return Err(Error::ResidentElsewhere) };
                    beside.upstream = Some(of_upstream);
                }
                if let Some(values) = log_sum_exps {
                    let Memory::Gpu(of_rows) = &values.memory else { return Err(Error::ResidentElsewhere) };
                    beside.log_sum_exps = Some(of_rows);
                }
                Ok(Outcome::on_gpu(op, held.run(op, T::DTYPE, &given, beside).await?))
            }
        }
    }

    fn run_on_cpu(&self, op: Op, logits: &[T], given: Given<'_>) -> Result<Outcome<T>, Error> {
        let (shape, rows, each) = (self.shape, self.shape.row_count(), given.k.max(1));
        let mut elements = try_vec("the result", if op.writes_elements() { logits.len() } else { 0 })?;
        let mut values: Vec<T::Row> = try_vec("the result", if op.has_values() { rows } else { 0 })?;
        let mut predictions = try_vec("predictions", if op.predicts() { rows * each } else { 0 })?;
        if rows > 0 {
            let (input, stride) = (T::erase(logits), shape.block());
            let data = match op.writes_elements() {
                true => Data::Write { input, stride, output: T::erase_mut(&mut elements) },
                false => Data::Read { input, stride },
            };
            let rows_out = if op.predicts() {
                RowsOut::Predictions(&mut predictions, each)
            } else if op.has_values() {
                RowsOut::Values(T::Row::erase_mut(&mut values))
            } else {
                RowsOut::None
            };
            let view = View { shape, stride, curve: self.curve };
            cpu::run(Job::new(op, view, data, given, rows_out))?;
        }
        let sum = Sum::Known(values.iter().fold(0.0, |sum, &loss| sum + loss.into()));
        Ok(Outcome {
            elements: Memory::Cpu(elements.into()),
            values: Memory::Cpu(values.into()),
            predictions: Memory::Cpu(predictions.into()),
            sum,
        })
    }

    /// A result of the same shape; what is made of these logits is at no temperature.
    fn of(&self, memory: Memory<T>) -> Self {
        Self { memory, shape: self.shape, curve: Curve::default(), settings: self.settings }
    }

    fn rows<S>(&self, memory: Memory<S>, each: usize) -> ResidentRows<S> {
        ResidentRows { memory, rows: self.shape.row_count(), each, settings: self.settings }
    }

    fn loss(&self, targets: &ResidentTargets, per_row: Memory<T::Row>, sum: Sum) -> ResidentLoss<T::Row> {
        let (totals, reduction) = (targets.totals, targets.loss.reduction);
        ResidentLoss { per_row: self.rows(per_row, 1), sum, totals, reduction }
    }
}

impl<T: bytemuck::Pod + Default> ResidentRows<T> {
    /// How many rows there are.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.rows
    }

    /// How many values there are of each.
    #[must_use]
    pub fn values_per_row(&self) -> usize {
        self.each
    }

    /// Reads them back.
    ///
    /// # Errors
    /// As [`Resident::read`].
    pub fn read(&self) -> Result<Vec<T>, Error> {
        block_on(self.memory.read(0..self.rows, self.each, self.settings, Waiting::Here))
    }

    /// The async form of [`ResidentRows::read`].
    ///
    /// # Errors
    /// As [`Resident::read`].
    pub async fn read_async(&self) -> Result<Vec<T>, Error> {
        self.memory.read(0..self.rows, self.each, self.settings, Waiting::Elsewhere).await
    }
}

impl ResidentTargets {
    /// Rows whose target is not an ignored index.
    #[must_use]
    pub fn counted_rows(&self) -> usize {
        self.totals.counted_rows
    }
}

impl<S> ResidentLoss<S> {
    /// The weighted loss of each row, where it is.
    #[must_use]
    pub fn per_row(&self) -> &ResidentRows<S> {
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
impl<T: Element> Outcome<T> {
    fn on_gpu(op: Op, results: crate::gpu::Results) -> Self {
        let (values, predictions) = match results.rows {
            None => (Memory::empty(), Memory::empty()),
            Some(rows) if op.predicts() => (Memory::empty(), Memory::Gpu(rows)),
            Some(rows) => (Memory::Gpu(rows), Memory::empty()),
        };
        Self {
            elements: results.elements.map_or_else(Memory::empty, Memory::Gpu),
            values,
            predictions,
            sum: results.summaries.map_or(Sum::Known(0.0), Sum::Gpu),
        }
    }
}
