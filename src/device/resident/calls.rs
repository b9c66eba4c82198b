//! The operations on resident logits, each in a blocking and an async form.

use std::sync::Arc;

use super::{Memory, Resident, ResidentLoss, ResidentRows, ResidentTargets, Sum, TargetMemory};
#[cfg(feature = "gpu")]
use crate::gpu::DeviceOperands;
use crate::ops::{check_k, draw_transform};
use crate::problem::dtype::{Elements, Sealed};
use crate::problem::error::try_vec;
use crate::problem::logits::{View, check_length};
use crate::problem::operation::Op;
use crate::problem::request::{Data, Operands, Request, RowsOut};
use crate::problem::transform::Transform;
use crate::problem::waiting::block_on;
use crate::{Element, Error, Prediction, Sampling, cpu};

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
    /// Probabilities, as [`Device::softmax`](crate::Device::softmax).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Gpu`] where the GPU fails or was lost.
    softmax / softmax_async() -> Resident<T>, |x| Ok(x.of(x.run(Op::Softmax, Beside::default()).await?.elements));

    /// Log-probabilities, as [`Device::log_softmax`](crate::Device::log_softmax).
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    log_softmax / log_softmax_async() -> Resident<T>,
        |x| Ok(x.of(x.run(Op::LogSoftmax, Beside::default()).await?.elements));

    /// From probabilities, as [`Device::softmax_backward`](crate::Device::softmax_backward).
    ///
    /// # Errors
    /// As [`Resident::softmax`], and [`Error::Length`] where the gradient is of another shape.
    softmax_backward / softmax_backward_async(upstream: &Resident<T>) -> Resident<T>,
        |x| x.backward(Op::SoftmaxBackward, upstream).await;

    /// From log-probabilities, as [`Device::log_softmax_backward`](crate::Device::log_softmax_backward).
    ///
    /// # Errors
    /// As [`Resident::softmax_backward`].
    log_softmax_backward / log_softmax_backward_async(upstream: &Resident<T>) -> Resident<T>,
        |x| x.backward(Op::LogSoftmaxBackward, upstream).await;

    /// Log-sum-exps, as [`Device::log_sum_exp`](crate::Device::log_sum_exp); but next to 0, where its terms cancel, the error on a GPU is 2e-7
    /// absolute instead of 1e-6 relative.
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    log_sum_exp / log_sum_exp_async() -> ResidentRows<T::Row>,
        |x| Ok(x.rows(x.run(Op::LogSumExp, Beside::default()).await?.values, 1));

    /// Decisions, as [`Device::predict`](crate::Device::predict).
    ///
    /// # Errors
    /// As [`Resident::softmax`].
    predict / predict_async() -> ResidentRows<Prediction>,
        |x| Ok(x.rows(x.run(Op::Predict, Beside::default()).await?.predictions, 1));

    /// The `k` most likely classes of each row, as [`Device::top_k`](crate::Device::top_k).
    ///
    /// # Errors
    /// As [`Resident::softmax`], and [`Error::TopK`].
    top_k / top_k_async(k: usize) -> ResidentRows<Prediction>,
        |x| {
            check_k(k, x.shape.classes())?;
            Ok(x.rows(x.run(Op::TopK, Beside { k, ..Beside::default() }).await?.predictions, k))
        };

    /// A class drawn of each row, as [`Device::sample`](crate::Device::sample).
    ///
    /// # Errors
    /// As [`Resident::softmax`], and [`Error::OptionValue`].
    sample / sample_async(sampling: &Sampling) -> ResidentRows<Prediction>,
        |x| {
            let beside = Beside { sampling: Some(sampling), ..Beside::default() };
            Ok(x.rows(x.run(Op::Sample, beside).await?.predictions, 1))
        };

    /// The loss alone, as [`Device::cross_entropy`](crate::Device::cross_entropy).
    ///
    /// # Errors
    /// As [`Resident::softmax`], and [`Error::Length`] where the targets are of another shape.
    cross_entropy / cross_entropy_async(targets: &ResidentTargets) -> ResidentLoss<T::Row>,
        |x| {
            let beside = Beside { targets: Some(targets), ..Beside::default() };
            let Outcome { values, sum, .. } = x.run(Op::CrossEntropy, beside).await?;
            Ok(x.loss(targets, values, sum))
        };

    /// The loss and its gradient, as [`Device::cross_entropy_grad`](crate::Device::cross_entropy_grad).
    ///
    /// # Errors
    /// As [`Resident::cross_entropy`].
    cross_entropy_grad / cross_entropy_grad_async(targets: &ResidentTargets) -> (ResidentLoss<T::Row>, Resident<T>),
        |x| {
            let beside = Beside { targets: Some(targets), ..Beside::default() };
            let Outcome { elements, values, sum, .. } = x.run(Op::CrossEntropyGrad, beside).await?;
            Ok((x.loss(targets, values, sum), x.of(elements)))
        };

    /// The gradient from log-sum-exps, as [`Device::cross_entropy_backward`](crate::Device::cross_entropy_backward).
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
        self.transform.without_cap("not set: what comes back through it is another step")?;
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
        let mut operands = Operands { transform: draw_transform(op, self.transform)?, k, ..Operands::default() };
        if let Some(sampling) = sampling {
            operands.draws = sampling.draws()?;
        }
        if let Some(targets) = targets {
            let ResidentTargets { loss, totals, .. } = targets;
            operands.transform = loss.transform(self.transform)?;
            operands.coefficients = loss.coefficients(self.shape.classes(), totals.weight, totals.counted_rows);
        }
        match &self.memory {
            Memory::Cpu(logits) => {
                match targets.map(|targets| &targets.memory) {
                    None => {}
                    Some(TargetMemory::Classes(targets)) => operands.targets = targets,
                    Some(TargetMemory::Probabilities(values)) => operands.soft_targets = Some(Elements::F64(values)),
                    #[cfg(feature = "gpu")]
                    Some(TargetMemory::Gpu(_)) => return Err(Error::ResidentElsewhere),
                }
                match upstream.map(|upstream| &upstream.memory) {
                    None => {}
                    Some(Memory::Cpu(values)) => operands.upstream_gradient = Some(T::erase(values)),
                    #[cfg(feature = "gpu")]
                    Some(Memory::Gpu(_)) => return Err(Error::ResidentElsewhere),
                }
                match log_sum_exps.map(|values| &values.memory) {
                    None => {}
                    Some(Memory::Cpu(values)) => operands.log_sum_exps = Some(T::Row::erase(values)),
                    #[cfg(feature = "gpu")]
                    Some(Memory::Gpu(_)) => return Err(Error::ResidentElsewhere),
                }
                self.run_on_cpu(op, logits, operands)
            }
            #[cfg(feature = "gpu")]
            Memory::Gpu(held) => {
                let mut beside = DeviceOperands::default();
                if let Some(targets) = targets {
                    let TargetMemory::Gpu(of_targets) = &targets.memory else { return Err(Error::ResidentElsewhere) };
                    beside.targets = Some(of_targets);
                    if targets.is_soft {
                        operands.soft_targets = Some(Elements::F32(&[]));
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
                Ok(Outcome::on_gpu(op, held.run(op, T::DTYPE, &operands, beside).await?))
            }
        }
    }

    fn run_on_cpu(&self, op: Op, logits: &[T], operands: Operands<'_>) -> Result<Outcome<T>, Error> {
        let (shape, rows, each) = (self.shape, self.shape.row_count(), operands.k.max(1));
        let mut elements = try_vec("the result", if op.spec().writes_elements { logits.len() } else { 0 })?;
        let mut values: Vec<T::Row> = try_vec("the result", if op.has_values() { rows } else { 0 })?;
        let mut predictions = try_vec("predictions", if op.predicts() { rows * each } else { 0 })?;
        if rows > 0 {
            let (input, stride) = (T::erase(logits), shape.block());
            let data = match op.spec().writes_elements {
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
            let view = View { shape, stride, transform: self.transform };
            cpu::run(Request::new(op, view, data, operands, rows_out))?;
        }
        let sum = Sum::Known(values.iter().fold(0.0, |sum, &loss| sum + loss.into()));
        Ok(Outcome {
            elements: Memory::Cpu(Arc::new(elements)),
            values: Memory::Cpu(Arc::new(values)),
            predictions: Memory::Cpu(Arc::new(predictions)),
            sum,
        })
    }

    /// A result of the same shape; what is made of these logits is at no temperature.
    fn of(&self, memory: Memory<T>) -> Self {
        Self { memory, shape: self.shape, transform: Transform::default(), settings: self.settings }
    }

    fn rows<S>(&self, memory: Memory<S>, each: usize) -> ResidentRows<S> {
        ResidentRows { memory, rows: self.shape.row_count(), each, scale: 1.0, settings: self.settings }
    }

    fn loss(&self, targets: &ResidentTargets, per_row: Memory<T::Row>, sum: Sum) -> ResidentLoss<T::Row> {
        let (totals, reduction) = (targets.totals, targets.loss.reduction);
        let per_row = ResidentRows { scale: 1.0 / totals.unit, ..self.rows(per_row, 1) };
        ResidentLoss { per_row, sum, totals, reduction }
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
