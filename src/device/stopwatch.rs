//! Times one operation against a plain copy, on the same device in the same run. It serves the
//! benchmarks, and is not part of the API.

use std::borrow::Cow;
use std::hint::black_box;
use std::time::Duration;

use crate::device::Place;
use crate::gpu::{DeviceInputs, DeviceOperands, Gpu, Timing};
use crate::ops::Request;
use crate::ops::{Op, Operation};
use crate::ops::{check_k, draw_transform};
use crate::plan::Traffic;
use crate::problem::checked_loss::CheckedLoss;
use crate::problem::dtype::Sealed;
use crate::problem::error::try_vec;
use crate::problem::limits::CallLimits;
use crate::problem::logits::View;
use crate::problem::operands::{Data, Operands, RowsOut};
use crate::problem::sampling::Draws;
use crate::problem::transform::Transform;
use crate::problem::waiting::{Instant, Reading};
use crate::problem::waiting::{Waiting, block_on};
use crate::{CrossEntropy, Device, Element, Error, Logits, Prediction, Targets, cpu};

/// An operation with its inputs and results in the device's own memory, which can be run
/// repeatedly. Every operation reads the logits as the loss sees them. A backward starts from the
/// result of its forward, with the logits as upstream gradient.
pub struct Stopwatch<'a, T: Element = f32> {
    bytes: u64,
    limits: CallLimits,
    runs: Runs<'a, T>,
}

enum Runs<'a, T: Element> {
    OnCpu(Box<OnCpu<'a, T>>),
    OnGpu(Timing),
}

/// A checked operation, with the options of its loss.
struct Task<'a> {
    op: Op,
    loss: CheckedLoss<'a>,
    transform: Transform,
    draws: Draws,
    k: usize,
}

impl<'a> Task<'a> {
    fn new<T: Element>(
        operation: Operation,
        loss: &'a CrossEntropy,
        x: &Logits<'_, T>,
        targets: Targets<'a>,
    ) -> Result<Self, Error> {
        let op = operation.op();
        let transform = draw_transform(op, loss.transform(x.view().transform)?)?;
        if op.spec().forward.is_some() {
            transform.without_cap("not set: the gradient of a cap is another step")?;
        }
        let loss = loss.prepare(x.shape(), targets)?;
        let mut task = Self { op, loss, transform, draws: Draws::default(), k: 0 };
        match operation {
            Operation::TopK(k) => {
                check_k(k, x.shape().classes())?;
                task.k = k;
            }
            Operation::Sample(sampling) => task.draws = sampling.draws()?,
            _ => {}
        }
        Ok(task)
    }

    fn operands(&self) -> Operands<'_> {
        let operands = Operands {
            transform: self.transform,
            draws: self.draws,
            k: self.k,
            ..Operands::default()
        };
        if !self.op.has_targets() {
            return operands;
        }
        Operands {
            coefficients: self.loss.coefficients(),
            targets: &self.loss.rows,
            soft_targets: self.loss.soft_targets,
            ..operands
        }
    }
}

/// The inputs and results of a task in host memory; a copy is written to `elements`.
struct OnCpu<'a, T: Element> {
    task: Task<'a>,
    /// The logits, or the result of the forward that a backward starts from.
    logits: Cow<'a, [T]>,
    /// The upstream gradient of a backward; `None` for other operations.
    upstream: Option<&'a [T]>,
    log_sum_exps: Vec<T::Row>,
    view: View,
    elements: Vec<T>,
    rows: Vec<T::Row>,
    predictions: Vec<Prediction>,
}

impl<'a, T: Element> OnCpu<'a, T> {
    fn new(device: &Device, task: Task<'a>, seen: Logits<'a, T>) -> Result<Self, Error> {
        let (shape, op) = (seen.shape(), task.op);
        let rows = shape.row_count();
        let made = match op.spec().forward {
            Some(Op::Softmax) => Some(device.softmax(seen).to_vec()?.values),
            Some(_) => Some(device.log_softmax(seen).to_vec()?.values),
            None => None,
        };
        let upstream = made.is_some().then(|| seen.data());
        let log_sum_exps = match op.reads_log_sum_exps() {
            true => device.log_sum_exp(seen).to_vec()?.values,
            false => Vec::new(),
        };
        Ok(Self {
            logits: made.map_or(Cow::Borrowed(seen.data()), Cow::Owned),
            upstream,
            log_sum_exps,
            view: seen.view(),
            elements: try_vec("the result", shape.elements()?)?,
            rows: try_vec("the result", rows)?,
            predictions: try_vec("predictions", rows * task.k.max(1))?,
            task,
        })
    }

    fn run(&mut self) -> Result<(), Error> {
        let Self { task, logits, upstream, log_sum_exps, view, elements, rows, predictions } = self;
        let (input, stride, op) = (T::erase(logits), view.stride, task.op);
        let data = match op.spec().writes_elements {
            true => Data::Write { input, stride, output: T::erase_mut(elements) },
            false => Data::Read { input, stride },
        };
        let rows_out = if op.predicts() {
            RowsOut::Predictions(predictions, task.k.max(1))
        } else if op.has_values() {
            RowsOut::Values(T::Row::erase_mut(rows))
        } else {
            RowsOut::None
        };
        let mut operands = task.operands();
        operands.upstream_gradient = upstream.map(T::erase);
        if !log_sum_exps.is_empty() {
            operands.log_sum_exps = Some(T::Row::erase(log_sum_exps));
        }
        cpu::run(Request::new(op, *view, data, operands, rows_out))?;
        black_box((elements, rows, predictions));
        Ok(())
    }

    fn operand_bytes(&self) -> usize {
        let soft = self
            .task
            .operands()
            .soft_targets
            .map_or(0, |values| values.len() * values.dtype().size());
        self.upstream.map_or(soft, size_of_val)
    }
}

impl<'a, T: Element> Stopwatch<'a, T> {
    /// Moves the inputs to the device's memory, and computes there the results of a forward that
    /// the operation starts from. The logits must be contiguous.
    ///
    /// # Errors
    /// Fails as the operation itself does.
    pub fn new(
        device: &Device,
        operation: Operation,
        loss: &'a CrossEntropy,
        x: Logits<'a, T>,
        targets: Targets<'a>,
    ) -> Result<Self, Error> {
        let task = Task::new(operation, loss, &x, targets)?;
        let writes = u64::from(task.op.spec().writes_elements);
        let once = size_of_val(x.data()) as u64;
        let (operand, runs) = match device.place() {
            Place::Cpu => {
                let on_cpu = OnCpu::new(device, task, x.as_seen_by(loss)?)?;
                (on_cpu.operand_bytes() as u64, Runs::OnCpu(Box::new(on_cpu)))
            }
            Place::Gpu(gpu) => {
                let operands = task.operands();
                let each = task.op.operand_bytes(T::DTYPE, operands.soft_targets.is_some());
                let timing = block_on(async {
                    let upload =
                        || upload(gpu, task.op, &x, &operands, device.limits(Waiting::Here));
                    let mut inputs = vec![upload().await?];
                    for _ in 1..Timing::sets(&inputs[0], once) {
                        inputs.push(upload().await?);
                    }
                    Timing::new(inputs, task.op, T::DTYPE, &operands).await
                })?;
                (x.data().len() as u64 * each, Runs::OnGpu(timing))
            }
        };
        Ok(Self {
            bytes: once * (1 + writes) + operand,
            limits: device.limits(Waiting::Here),
            runs,
        })
    }

    /// Returns the bytes that one run must read and write in arrays of the shape of the logits;
    /// values of rows are not counted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the bytes that one run moves, as the plan counts them; `None` on the CPU.
    #[must_use]
    pub fn traffic(&self) -> Option<Traffic> {
        match &self.runs {
            Runs::OnCpu(_) => None,
            Runs::OnGpu(timing) => Some(timing.traffic()),
        }
    }

    /// Keeps a hardware GPU busy for 0.3 s, and does nothing on other devices. A GPU raises its
    /// clock only under load, and lowers it while the host is busy: without a warm-up an NVIDIA
    /// H200 took up to six times as long.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the GPU fails.
    pub fn warm_up(&mut self) -> Result<(), Error> {
        if let Runs::OnGpu(timing) = &mut self.runs
            && timing.is_hardware()
        {
            let (start, timeout) = (Instant::now(), self.limits.timeout);
            while start.elapsed() < Duration::from_millis(300) {
                timing.copy(timeout)?;
                timing.operation(timeout)?;
            }
        }
        Ok(())
    }

    /// Times one run of the operation, from command to finished result, without any transfer to or
    /// from the host.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the GPU fails.
    pub fn operation(&mut self) -> Result<Reading, Error> {
        match &mut self.runs {
            Runs::OnCpu(on_cpu) => {
                let start = Instant::now();
                on_cpu.run()?;
                Ok(Reading::since(start))
            }
            Runs::OnGpu(timing) => timing.operation(self.limits.timeout),
        }
    }

    /// Times one plain copy of the logits in the device's own memory, on as many threads as the
    /// operation may use; on a hardware GPU by a copy of buffers or by a shader, whichever was
    /// faster.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the GPU fails.
    pub fn copy(&mut self) -> Result<Reading, Error> {
        match &mut self.runs {
            Runs::OnCpu(on_cpu) => {
                let start = Instant::now();
                copy_on_all_threads(&on_cpu.logits, &mut on_cpu.elements);
                black_box(&on_cpu.elements);
                Ok(Reading::since(start))
            }
            Runs::OnGpu(timing) => timing.copy(self.limits.timeout),
        }
    }
}

/// Uploads the inputs of one run on a GPU, into memory of their own.
async fn upload<T: Element>(
    gpu: &Gpu,
    op: Op,
    x: &Logits<'_, T>,
    operands: &Operands<'_>,
    limits: CallLimits,
) -> Result<DeviceInputs, Error> {
    let shape = x.shape();
    let logits = gpu.upload(shape, (x.elements(), shape.block()), limits).await?;
    let seen = Operands { transform: operands.transform, ..Operands::default() };
    let before = op.spec().forward.or(op.reads_log_sum_exps().then_some(Op::LogSumExp));
    let made = match before {
        Some(before) => Some(logits.run(before, T::DTYPE, &seen, DeviceOperands::default()).await?),
        None => None,
    };
    let targets = match op.has_targets() {
        true => Some(gpu.upload_targets(shape, operands, limits).await?),
        false => None,
    };
    let (elements, log_sum_exps) = made.map_or((None, None), |made| (made.elements, made.rows));
    Ok(match elements {
        Some(elements) => {
            DeviceInputs { logits: elements, upstream: Some(logits), targets, log_sum_exps }
        }
        None => DeviceInputs { logits, upstream: None, targets, log_sum_exps },
    })
}

#[cfg(feature = "parallel")]
fn copy_on_all_threads<T: Element>(from: &[T], to: &mut [T]) {
    use rayon::prelude::*;
    let threads = crate::cpu::thread_count();
    if threads == 1 {
        return to.copy_from_slice(from);
    }
    let part = from.len().div_ceil(threads).max(1);
    to.par_chunks_mut(part)
        .zip(from.par_chunks(part))
        .for_each(|(to, from)| to.copy_from_slice(from));
}

#[cfg(not(feature = "parallel"))]
fn copy_on_all_threads<T: Element>(from: &[T], to: &mut [T]) {
    to.copy_from_slice(from);
}
