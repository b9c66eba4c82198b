//! The operations on resident logits, each in a blocking and an async form.

use std::sync::Arc;

use super::{Memory, Resident, ResidentLoss, ResidentRows, ResidentTargets, Sum, TargetMemory};
use crate::gpu::DeviceOperands;
use crate::ops::Op;
use crate::ops::Request;
use crate::ops::{check_k, draw_transform};
use crate::problem::checked_loss::Totals;
use crate::problem::dtype::{Elements, Sealed};
use crate::problem::error::try_vec;
use crate::problem::logits::{View, check_length};
use crate::problem::loss::check_upstream_gradients;
use crate::problem::operands::{Data, Operands, RowsOut};
use crate::problem::sum::sum_of_rows;
use crate::problem::transform::Transform;
use crate::problem::waiting::block_on;
use crate::{Element, Error, Prediction, Reduction, Sampling, cpu};

/// Where the results of an operation are; each is empty where the operation has no such result.
struct Outcome<T: Element> {
    elements: Memory<T>,
    values: Memory<T::Row>,
    predictions: Memory<Prediction>,
    sum: Sum,
    /// How the losses of the rows are reduced.
    totals: Totals,
    reduction: Reduction,
}

/// The inputs of a call beside the logits.
#[derive(Clone, Copy, Debug)]
struct Inputs<'c, T: Element> {
    targets: Option<&'c ResidentTargets>,
    upstream: Option<&'c Resident<T>>,
    log_sum_exps: Option<&'c ResidentRows<T::Row>>,
    /// One factor of the gradient for each row, in host memory.
    row_upstream: Option<&'c [f32]>,
    k: Option<usize>,
    sampling: Option<&'c Sampling>,
}

impl<T: Element> Default for Inputs<'_, T> {
    fn default() -> Self {
        Self {
            targets: None,
            upstream: None,
            log_sum_exps: None,
            row_upstream: None,
            k: None,
            sampling: None,
        }
    }
}

/// An operation over resident logits, whose result `R` is resident too. It does nothing until it is
/// run.
#[derive(Debug)]
#[must_use = "a call does nothing until it is run"]
pub struct ResidentCall<'c, T: Element, R> {
    x: &'c Resident<T>,
    op: Op,
    inputs: Inputs<'c, T>,
    result: fn(&Resident<T>, &Inputs<'_, T>, Outcome<T>) -> R,
}

impl<T: Element, R> Clone for ResidentCall<'_, T, R> {
    fn clone(&self) -> Self {
        *self
    }
}

// Not derived: no result type is `Copy`.
impl<T: Element, R> Copy for ResidentCall<'_, T, R> {}

impl<T: Element, R> ResidentCall<'_, T, R> {
    /// Hands the operation to the device. On a GPU this neither waits for the result nor reads it
    /// back.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::SimdLevel`] on the CPU; [`Error::Gpu`] where the GPU fails
    /// or was lost; [`Error::ResidentElsewhere`] where the inputs are on different devices; and the
    /// errors of the operation.
    pub fn run(self) -> Result<R, Error> {
        block_on(self.run_async())
    }

    /// The async form of [`ResidentCall::run`].
    ///
    /// # Errors
    /// Fails as [`ResidentCall::run`] does.
    pub async fn run_async(self) -> Result<R, Error> {
        let Self { x, op, inputs, result } = self;
        Ok(result(x, &inputs, x.run(op, &inputs).await?))
    }
}

impl<T: Element> Resident<T> {
    /// Probabilities: [`Device::softmax`](crate::Device::softmax).
    pub fn softmax(&self) -> ResidentCall<'_, T, Self> {
        self.elements_call(Op::Softmax, Inputs::default())
    }

    /// Log-probabilities: [`Device::log_softmax`](crate::Device::log_softmax).
    pub fn log_softmax(&self) -> ResidentCall<'_, T, Self> {
        self.elements_call(Op::LogSoftmax, Inputs::default())
    }

    /// The backward of softmax, from probabilities:
    /// [`Device::softmax_backward`](crate::Device::softmax_backward).
    ///
    /// Running the call fails with [`Error::Length`] where `upstream` has another shape, and with
    /// [`Error::OptionValue`] where a cap is set.
    pub fn softmax_backward<'c>(&'c self, upstream: &'c Self) -> ResidentCall<'c, T, Self> {
        self.elements_call(
            Op::SoftmaxBackward,
            Inputs { upstream: Some(upstream), ..Inputs::default() },
        )
    }

    /// The backward of log-softmax, from log-probabilities:
    /// [`Device::log_softmax_backward`](crate::Device::log_softmax_backward).
    ///
    /// Running the call fails with [`Error::Length`] where `upstream` has another shape, and with
    /// [`Error::OptionValue`] where a cap is set.
    pub fn log_softmax_backward<'c>(&'c self, upstream: &'c Self) -> ResidentCall<'c, T, Self> {
        self.elements_call(
            Op::LogSoftmaxBackward,
            Inputs { upstream: Some(upstream), ..Inputs::default() },
        )
    }

    /// Log-sum-exps: [`Device::log_sum_exp`](crate::Device::log_sum_exp). On a GPU the error within
    /// 0.5 of 0, where the terms of a log-sum-exp cancel, is 2e-7 absolute instead of 1e-6
    /// relative.
    pub fn log_sum_exp(&self) -> ResidentCall<'_, T, ResidentRows<T::Row>> {
        self.values_call(Op::LogSumExp)
    }

    /// The entropy of the softmax of each row: [`Device::entropy`](crate::Device::entropy).
    pub fn entropy(&self) -> ResidentCall<'_, T, ResidentRows<T::Row>> {
        self.values_call(Op::Entropy)
    }

    /// The gradient of the entropies of the rows, each times its value of `upstream`:
    /// [`Device::entropy_backward`](crate::Device::entropy_backward). On a GPU `upstream`, one f32
    /// for each row, is uploaded by the call.
    ///
    /// Running the call fails with [`Error::Length`] where there is not one value for each row, and
    /// with [`Error::UpstreamGradient`] where one is not finite.
    pub fn entropy_backward<'c>(&'c self, upstream: &'c [f32]) -> ResidentCall<'c, T, Self> {
        let inputs = Inputs { row_upstream: Some(upstream), ..Inputs::default() };
        self.elements_call(Op::EntropyBackward, inputs)
    }

    /// The most likely class of each row: [`Device::predict`](crate::Device::predict).
    pub fn predict(&self) -> ResidentCall<'_, T, ResidentRows<Prediction>> {
        self.predictions_call(Op::Predict, Inputs::default())
    }

    /// The `k` most likely classes of each row: [`Device::top_k`](crate::Device::top_k).
    ///
    /// Running the call fails with [`Error::TopK`] where `k` is 0, above 64, or above the number of
    /// classes.
    pub fn top_k(&self, k: usize) -> ResidentCall<'_, T, ResidentRows<Prediction>> {
        self.predictions_call(Op::TopK, Inputs { k: Some(k), ..Inputs::default() })
    }

    /// A class drawn for each row: [`Device::sample`](crate::Device::sample).
    ///
    /// Running the call fails with [`Error::OptionValue`] where an option is out of range, and
    /// where the logits are under a cap or have a negative scale.
    pub fn sample<'c>(
        &'c self,
        sampling: &'c Sampling,
    ) -> ResidentCall<'c, T, ResidentRows<Prediction>> {
        self.predictions_call(Op::Sample, Inputs { sampling: Some(sampling), ..Inputs::default() })
    }

    /// The loss alone: [`LossCall::loss`](crate::LossCall::loss).
    ///
    /// Running the call fails with [`Error::Length`] where the targets are of another shape.
    pub fn cross_entropy<'c>(
        &'c self,
        targets: &'c ResidentTargets,
    ) -> ResidentCall<'c, T, ResidentLoss<T::Row>> {
        let inputs = Inputs { targets: Some(targets), ..Inputs::default() };
        let result = |x: &Self, _: &Inputs<'_, T>, outcome: Outcome<T>| x.loss(outcome).0;
        ResidentCall { x: self, op: Op::CrossEntropy, inputs, result }
    }

    /// The loss and its gradient: [`LossCall::with_gradient`](crate::LossCall::with_gradient).
    ///
    /// Running the call fails with [`Error::Length`] where the targets are of another shape.
    pub fn cross_entropy_with_gradient<'c>(
        &'c self,
        targets: &'c ResidentTargets,
    ) -> ResidentCall<'c, T, (ResidentLoss<T::Row>, Self)> {
        let inputs = Inputs { targets: Some(targets), ..Inputs::default() };
        let result = |x: &Self, _: &Inputs<'_, T>, outcome: Outcome<T>| {
            let (loss, gradient) = x.loss(outcome);
            (loss, x.elements(gradient))
        };
        ResidentCall { x: self, op: Op::CrossEntropyGrad, inputs, result }
    }

    /// The gradient from saved log-sum-exps:
    /// [`Device::cross_entropy_backward`](crate::Device::cross_entropy_backward).
    ///
    /// Running the call fails with [`Error::Length`] where the targets are of another shape, or
    /// where there is not one log-sum-exp a row.
    pub fn cross_entropy_backward<'c>(
        &'c self,
        targets: &'c ResidentTargets,
        log_sum_exps: &'c ResidentRows<T::Row>,
    ) -> ResidentCall<'c, T, Self> {
        let inputs = Inputs {
            targets: Some(targets),
            log_sum_exps: Some(log_sum_exps),
            ..Inputs::default()
        };
        self.elements_call(Op::CrossEntropyBackward, inputs)
    }

    fn elements_call<'c>(&'c self, op: Op, inputs: Inputs<'c, T>) -> ResidentCall<'c, T, Self> {
        let result =
            |x: &Self, _: &Inputs<'_, T>, outcome: Outcome<T>| x.elements(outcome.elements);
        ResidentCall { x: self, op, inputs, result }
    }

    fn values_call(&self, op: Op) -> ResidentCall<'_, T, ResidentRows<T::Row>> {
        let result = |x: &Self, _: &Inputs<'_, T>, outcome: Outcome<T>| x.rows(outcome.values, 1);
        ResidentCall { x: self, op, inputs: Inputs::default(), result }
    }

    fn predictions_call<'c>(
        &'c self,
        op: Op,
        inputs: Inputs<'c, T>,
    ) -> ResidentCall<'c, T, ResidentRows<Prediction>> {
        let result = |x: &Self, inputs: &Inputs<'_, T>, outcome: Outcome<T>| {
            x.rows(outcome.predictions, inputs.k.unwrap_or(1))
        };
        ResidentCall { x: self, op, inputs, result }
    }

    /// Checks the inputs that do not depend on where they are.
    fn check(&self, inputs: &Inputs<'_, T>) -> Result<(), Error> {
        let shape = self.shape;
        if let Some(k) = inputs.k {
            check_k(k, shape.classes())?;
        }
        if let Some(upstream) = inputs.upstream {
            if upstream.shape != shape {
                let (expected, found) = (shape.elements()?, upstream.shape.elements()?);
                return Err(Error::Length { what: "upstream gradients", expected, found });
            }
            self.transform.without_cap("not set: the gradient of a cap is another step")?;
        }
        if let Some(factors) = inputs.row_upstream {
            check_upstream_gradients(shape, factors)?;
        }
        if let Some(values) = inputs.log_sum_exps {
            check_length("log-sum-exps", shape.row_count(), values.rows * values.each)?;
        }
        if let Some(targets) = inputs.targets.filter(|targets| targets.shape != shape) {
            let rows = ("targets", shape.row_count(), targets.shape.row_count());
            let classes = ("classes of the targets", shape.classes(), targets.shape.classes());
            let (what, expected, found) = if rows.1 == rows.2 { classes } else { rows };
            return Err(Error::Length { what, expected, found });
        }
        Ok(())
    }

    async fn run(&self, op: Op, inputs: &Inputs<'_, T>) -> Result<Outcome<T>, Error> {
        self.check(inputs)?;
        let &Inputs { targets, upstream, log_sum_exps, row_upstream, k, sampling } = inputs;
        let mut operands = Operands {
            transform: draw_transform(op, self.transform)?,
            k: k.unwrap_or(0),
            ..Operands::default()
        };
        if let Some(sampling) = sampling {
            operands.draws = sampling.draws()?;
        }
        operands.coefficients.row_upstream = row_upstream;
        if let Some(targets) = targets {
            let ResidentTargets { loss, totals, .. } = targets;
            operands.transform = loss.transform(self.transform)?;
            operands.coefficients =
                loss.coefficients(self.shape.classes(), totals.weight, totals.counted_rows);
        }
        let outcome = match &self.memory {
            Memory::Cpu(logits) => {
                match targets.map(|targets| &targets.memory) {
                    None => {}
                    Some(TargetMemory::Classes(targets)) => operands.targets = targets,
                    Some(TargetMemory::Probabilities(values)) => {
                        operands.soft_targets = Some(Elements::F64(values))
                    }
                    Some(TargetMemory::Gpu(_)) => return Err(Error::ResidentElsewhere),
                }
                match upstream.map(|upstream| &upstream.memory) {
                    None => {}
                    Some(Memory::Cpu(values)) => {
                        operands.upstream_gradient = Some(T::erase(values))
                    }
                    Some(Memory::Gpu(_)) => return Err(Error::ResidentElsewhere),
                }
                match log_sum_exps.map(|values| &values.memory) {
                    None => {}
                    Some(Memory::Cpu(values)) => {
                        operands.log_sum_exps = Some(T::Row::erase(values))
                    }
                    Some(Memory::Gpu(_)) => return Err(Error::ResidentElsewhere),
                }
                self.run_on_cpu(op, logits, operands)
            }
            Memory::Gpu(logits) => {
                let mut on_gpu = DeviceOperands::default();
                if let Some(targets) = targets {
                    let TargetMemory::Gpu(of_targets) = &targets.memory else {
                        return Err(Error::ResidentElsewhere);
                    };
                    on_gpu.targets = Some(of_targets);
                    if targets.is_soft {
                        operands.soft_targets = Some(Elements::F32(&[]));
                    }
                }
                if let Some(upstream) = upstream {
                    let Memory::Gpu(of_upstream) = &upstream.memory else {
                        return Err(Error::ResidentElsewhere);
                    };
                    on_gpu.upstream = Some(of_upstream);
                }
                if let Some(values) = log_sum_exps {
                    let Memory::Gpu(of_rows) = &values.memory else {
                        return Err(Error::ResidentElsewhere);
                    };
                    on_gpu.log_sum_exps = Some(of_rows);
                }
                Ok(Outcome::on_gpu(op, logits.run(op, T::DTYPE, &operands, on_gpu).await?))
            }
        };
        let of_targets = |outcome| match targets {
            Some(ResidentTargets { totals, loss, .. }) => {
                Outcome { totals: *totals, reduction: loss.reduction, ..outcome }
            }
            None => outcome,
        };
        outcome.map(of_targets)
    }

    fn run_on_cpu(
        &self,
        op: Op,
        logits: &[T],
        operands: Operands<'_>,
    ) -> Result<Outcome<T>, Error> {
        let (shape, rows, each) = (self.shape, self.shape.row_count(), operands.k.max(1));
        let mut elements =
            try_vec("the result", if op.spec().writes_elements { logits.len() } else { 0 })?;
        let mut values: Vec<T::Row> =
            try_vec("the result", if op.has_values() { rows } else { 0 })?;
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
        let sum = if op.has_targets() { Sum::Known(sum_of_rows(&values)) } else { Sum::OfRows };
        Ok(Outcome {
            elements: Memory::Cpu(Arc::new(elements)),
            values: Memory::Cpu(Arc::new(values)),
            predictions: Memory::Cpu(Arc::new(predictions)),
            sum,
            totals: Totals::default(),
            reduction: Reduction::default(),
        })
    }

    /// Returns a result of the same shape, which has no temperature.
    fn elements(&self, memory: Memory<T>) -> Self {
        Self { memory, shape: self.shape, transform: Transform::default(), limits: self.limits }
    }

    fn rows<S>(&self, memory: Memory<S>, each: usize) -> ResidentRows<S> {
        ResidentRows { memory, rows: self.shape.row_count(), each, scale: 1.0, limits: self.limits }
    }

    /// Returns the loss, and where its gradient is.
    fn loss(&self, outcome: Outcome<T>) -> (ResidentLoss<T::Row>, Memory<T>) {
        let Outcome { elements, values, sum, totals, reduction, .. } = outcome;
        let per_row = ResidentRows { scale: 1.0 / totals.unit, ..self.rows(values, 1) };
        (ResidentLoss { per_row, sum, totals, reduction }, elements)
    }
}

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
            sum: results.summary.map_or(Sum::OfRows, Sum::Gpu),
            totals: Totals::default(),
            reduction: Reduction::default(),
        }
    }
}
