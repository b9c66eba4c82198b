//! For engines with a wgpu device of their own: operations prepared once, and recorded into the caller's commands over
//! the caller's buffers.

use std::sync::Arc;

use bytemuck::cast_slice;
use pollster::block_on;
use wgpu::{Buffer, BufferSlice, BufferUsages, CommandEncoder, ComputePass, ComputePassDescriptor};

use super::context::{Gpu, Open};
use super::fault::Fault;
use super::record::{Buffers, Dispatch, MOST_IGNORED, Part, Scale, Scratch, Summary};
use crate::job::{Op, Scaling};
use crate::plan::{Plan, Work};
use crate::{CrossEntropy, DType, Error, Reduction, Shape};

/// What to prepare. A `&CrossEntropy` converts into [`Operation::CrossEntropyGrad`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// Probabilities, one an element: [`Device::softmax`](crate::Device::softmax).
    Softmax,
    /// Log-probabilities, one an element: [`Device::log_softmax`](crate::Device::log_softmax).
    LogSoftmax,
    /// One f32 a row: [`Device::log_sum_exp`](crate::Device::log_sum_exp). Next to 0, where its terms cancel, the error is
    /// 2e-7 absolute instead of 1e-6 relative.
    LogSumExp,
    /// One [`Prediction`](crate::Prediction) a row: [`Device::predict`](crate::Device::predict).
    Predict,
    /// The loss alone: [`Device::cross_entropy`](crate::Device::cross_entropy).
    CrossEntropy(&'a CrossEntropy),
    /// The loss and its gradient: [`Device::cross_entropy_grad`](crate::Device::cross_entropy_grad).
    CrossEntropyGrad(&'a CrossEntropy),
}

impl<'a> From<&'a CrossEntropy> for Operation<'a> {
    fn from(loss: &'a CrossEntropy) -> Self {
        Self::CrossEntropyGrad(loss)
    }
}

/// An operation for a shape, with its pipelines compiled and its scratch sized: what costs time is done.
///
/// ```no_run
/// # fn engine(device: logits::wgpu::Device, queue: logits::wgpu::Queue, x: logits::wgpu::Buffer, t: logits::wgpu::Buffer,
/// #     gradient: logits::wgpu::Buffer, loss: logits::wgpu::Buffer) -> Result<(), logits::Error> {
/// use logits::{CrossEntropy, DType, Gpu, StepBuffers};
///
/// let gpu = Gpu::from_wgpu(&device, &queue)?;
/// let step = gpu.prepare(&CrossEntropy::default(), [8192, 32_000], DType::F32)?;
/// let buffers = StepBuffers::new(x.slice(..)).targets(t.slice(..)).output(gradient.slice(..)).loss(loss.slice(..));
/// let bound = step.bind(&buffers)?; // checked, bind groups made: once for these buffers
///
/// let mut encoder = device.create_command_encoder(&Default::default());
/// bound.record(&mut encoder); // every step: no allocation, no submission, no wait
/// queue.submit([encoder.finish()]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Step {
    open: Arc<Open>,
    plan: Plan,
    work: Work,
    scale: Scale,
    weights: Option<(Buffer, u64)>,
    needs_loss: bool,
}

/// The buffers of a step, or parts of them. Each needs the usage `STORAGE`, and an offset that is a multiple of 4.
///
/// One buffer cannot be read and written by one step but in place, nor hold two written parts unless their offsets are
/// multiples of the device's `min_storage_buffer_offset_alignment`.
#[derive(Clone, Copy, Debug)]
pub struct StepBuffers<'b> {
    logits: BufferSlice<'b>,
    in_place: bool,
    targets: Option<BufferSlice<'b>>,
    output: Option<BufferSlice<'b>>,
    rows: Option<BufferSlice<'b>>,
    loss: Option<BufferSlice<'b>>,
    scratch: Option<BufferSlice<'b>>,
}

impl<'b> StepBuffers<'b> {
    /// Logits, f32 `[rows, classes]`, row after row.
    #[must_use]
    pub fn new(logits: BufferSlice<'b>) -> Self {
        Self { logits, in_place: false, targets: None, output: None, rows: None, loss: None, scratch: None }
    }

    /// Targets of a loss, `u32` or `i32` `[rows]`. One that is neither a class nor the ignored index makes its row's
    /// results NaN, and [`Summary::first_invalid_row`] names it: a GPU cannot refuse.
    #[must_use]
    pub fn targets(mut self, targets: BufferSlice<'b>) -> Self {
        self.targets = Some(targets);
        self
    }

    /// Where probabilities, log-probabilities or the gradient go, f32 `[rows, classes]`.
    #[must_use]
    pub fn output(mut self, output: BufferSlice<'b>) -> Self {
        (self.output, self.in_place) = (Some(output), false);
        self
    }

    /// They go where the logits are.
    #[must_use]
    pub fn in_place(mut self) -> Self {
        (self.output, self.in_place) = (None, true);
        self
    }

    /// Where one value a row goes: log-sum-exps and weighted losses as f32 `[rows]`, or
    /// [`Prediction`](crate::Prediction)s. A loss may do without.
    #[must_use]
    pub fn rows(mut self, rows: BufferSlice<'b>) -> Self {
        self.rows = Some(rows);
        self
    }

    /// Where the [`Summary`] of a loss goes, 32 bytes; not needed with [`Reduction::None`].
    #[must_use]
    pub fn loss(mut self, loss: BufferSlice<'b>) -> Self {
        self.loss = Some(loss);
        self
    }

    /// Scratch of yours, [`Step::scratch_bytes`] of it, at a multiple of 256 bytes. Steps that run one after the other may
    /// share it. Without, [`Step::bind`] allocates it.
    #[must_use]
    pub fn scratch(mut self, scratch: BufferSlice<'b>) -> Self {
        self.scratch = Some(scratch);
        self
    }
}

/// A step over buffers, to be recorded any number of times. It keeps the buffers alive.
#[derive(Debug)]
pub struct BoundStep {
    dispatches: Vec<Dispatch>,
}

impl BoundStep {
    /// Records the step as one compute pass. Nothing is allocated, submitted or waited for, beyond what wgpu keeps of
    /// any command.
    pub fn record(&self, encoder: &mut CommandEncoder) {
        let descriptor = ComputePassDescriptor { label: Some("logits"), timestamp_writes: None };
        self.record_in(&mut encoder.begin_compute_pass(&descriptor));
    }

    /// Records the step into a pass of yours. It sets the pipeline and bind group 0, and leaves them so.
    pub fn record_in(&self, pass: &mut ComputePass<'_>) {
        self.dispatches.iter().for_each(|dispatch| dispatch.record(pass));
    }

    /// How many dispatches that is.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        self.dispatches.len()
    }
}

impl Gpu {
    /// Compiles what the operation needs for a shape, and uploads class weights.
    ///
    /// # Errors
    /// [`Error::ZeroClasses`], [`Error::ShapeTooLarge`]; [`Error::Length`], [`Error::Weight`], [`Error::OptionValue`] or
    /// [`Error::IgnoredIndices`] of the options; [`Error::Gpu`] where the device cannot do it.
    pub fn prepare<'a>(
        &self,
        operation: impl Into<Operation<'a>>,
        shape: impl Into<Shape>,
        dtype: DType,
    ) -> Result<Step, Error> {
        block_on(self.prepare_async(operation, shape, dtype))
    }

    /// The async form of [`Gpu::prepare`].
    ///
    /// # Errors
    /// As [`Gpu::prepare`].
    pub async fn prepare_async<'a>(
        &self,
        operation: impl Into<Operation<'a>>,
        shape: impl Into<Shape>,
        dtype: DType,
    ) -> Result<Step, Error> {
        let DType::F32 = dtype;
        let (shape, operation) = (shape.into(), operation.into());
        shape.elements()?;
        let (op, loss) = match operation {
            Operation::Softmax => (Op::Softmax, None),
            Operation::LogSoftmax => (Op::LogSoftmax, None),
            Operation::LogSumExp => (Op::LogSumExp, None),
            Operation::Predict => (Op::Predict, None),
            Operation::CrossEntropy(loss) => (Op::CrossEntropy, Some(loss)),
            Operation::CrossEntropyGrad(loss) => (Op::CrossEntropyGrad, Some(loss)),
        };
        let needs_loss = loss.is_some_and(|loss| loss.reduction != Reduction::None);
        let (rows, classes) = (shape.row_count() as u64, shape.classes() as u64);
        let weighted = loss.is_some_and(|loss| loss.weight.is_some());
        let work = Work { op, rows, classes, weighted, count: needs_loss, sum: needs_loss };
        let scale = match loss {
            None => Scale::given(Scaling::default()),
            Some(loss) => {
                loss.check(shape)?;
                // Targets have 32 bits; an index that does not fit is met by none.
                let fits =
                    |&index: &i64| i32::try_from(index).map(|index| index as u32).or_else(|_| u32::try_from(index));
                let ignored: Vec<u32> = loss.ignored.iter().filter_map(|index| fits(index).ok()).collect();
                if ignored.len() > MOST_IGNORED {
                    return Err(Error::IgnoredIndices { most: MOST_IGNORED, found: ignored.len() });
                }
                let scaling = loss.scaling(shape.classes(), 1.0, 1);
                Scale::new(scaling, loss.reduction == Reduction::Mean, &ignored)
            }
        };
        let open = self.current().await?;
        let plan = Plan::new(work, open.limits).map_err(|why| open.error(Fault::new(why.to_string())))?;
        let weights = open
            .guarded(|| {
                open.compile(&plan, work, scale);
                open.probe();
                let Some(weight) = loss.and_then(|loss| loss.weight.as_deref()) else { return Ok(None) };
                Ok(Some((open.filled(BufferUsages::STORAGE, cast_slice(weight))?, size_of_val(weight) as u64)))
            })
            .await
            .map_err(|fault| open.error(fault))?;
        Ok(Step { open, plan, work, scale, weights, needs_loss })
    }
}

impl Step {
    /// How much memory the step needs beside the buffers that it is given.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        Scratch::bytes(self.plan.partial_bytes()) + self.losses_bytes()
    }

    /// Losses that are summed stand somewhere, even if nobody asked for them.
    fn losses_bytes(&self) -> u64 {
        if self.work.op.has_targets() { (self.work.rows * 4).next_multiple_of(Scratch::ALIGNMENT) } else { 0 }
    }

    /// Checks the buffers and makes the bind groups over them; scratch too, where none was given.
    ///
    /// # Errors
    /// [`Error::BufferMissing`], [`Error::BufferSize`], [`Error::BufferUsage`], [`Error::BufferOffset`] or
    /// [`Error::BufferOverlap`], naming the buffer; [`Error::Gpu`] for what only wgpu can tell, such as a buffer of another
    /// device.
    pub fn bind(&self, buffers: &StepBuffers<'_>) -> Result<BoundStep, Error> {
        block_on(self.bind_async(buffers))
    }

    /// The async form of [`Step::bind`].
    ///
    /// # Errors
    /// As [`Step::bind`].
    pub async fn bind_async(&self, buffers: &StepBuffers<'_>) -> Result<BoundStep, Error> {
        let Work { op, rows, classes, .. } = self.work;
        let element_bytes = rows * classes * 4;
        let row_bytes = rows * if op == Op::Predict { 8 } else { 4 };
        let mut parts = Parts { alignment: u64::from(self.open.limits.offset_alignment), taken: Vec::new() };
        let writes = op.writes_elements();
        let in_place = writes && buffers.in_place;
        let logits = parts.take("logits", buffers.logits, element_bytes, in_place)?;
        let (logits, elements) = match writes {
            false => (Some(logits), None),
            true if in_place => (None, Some(logits)),
            true => {
                let output = buffers.output.ok_or(Error::BufferMissing { what: "output" })?;
                (Some(logits), Some(parts.take("output", output, element_bytes, true)?))
            }
        };
        let (mut targets, mut summary) = (None, None);
        if self.work.op.has_targets() {
            targets = Some(parts.take(
                "targets",
                buffers.targets.ok_or(Error::BufferMissing { what: "targets" })?,
                rows * 4,
                false,
            )?);
        }
        if self.needs_loss {
            let bytes = size_of::<Summary>() as u64;
            summary =
                Some(parts.take("loss", buffers.loss.ok_or(Error::BufferMissing { what: "loss" })?, bytes, true)?);
        }
        let rows_out = match buffers.rows {
            Some(slice) if !matches!(op, Op::Softmax | Op::LogSoftmax) => {
                Some(parts.take("rows", slice, row_bytes, true)?)
            }
            None if matches!(op, Op::LogSumExp | Op::Predict) => return Err(Error::BufferMissing { what: "rows" }),
            _ => None,
        };
        let given = match buffers.scratch {
            None => None,
            Some(slice) if !slice.offset().is_multiple_of(Scratch::ALIGNMENT) => {
                let (offset, alignment) = (slice.offset(), Scratch::ALIGNMENT);
                return Err(Error::BufferOffset { what: "scratch", offset, alignment });
            }
            Some(slice) => Some(parts.take("scratch", slice, self.scratch_bytes(), true)?),
        };

        let open = &self.open;
        let passes = self.plan.passes();
        let dispatches = open
            .guarded(|| {
                let own;
                let scratch = match given {
                    Some(scratch) => scratch,
                    None => {
                        own = open.pool.take(&open.device, BufferUsages::STORAGE, self.scratch_bytes())?;
                        Part::whole(&own, self.scratch_bytes())
                    }
                };
                let (losses, rest) = scratch.split(self.losses_bytes());
                let buffers = Buffers {
                    logits,
                    targets,
                    weights: self.weights.as_ref().map(|(buffer, bytes)| Part::whole(buffer, *bytes)),
                    elements,
                    rows_out: rows_out.or(self.work.op.has_targets().then_some(losses)),
                    summary,
                    scratch: Scratch { part: rest, partial_bytes: self.plan.partial_bytes() },
                };
                let params = Open::params_bytes(passes.len());
                let params = open.pool.take(&open.device, Open::PARAMS_USAGE, params)?;
                let (dispatches, contents) = open.bind(&self.plan, self.work, &passes, self.scale, &buffers, &params);
                open.queue.write_buffer(&params, 0, &contents);
                Ok(dispatches)
            })
            .await
            .map_err(|fault| open.error(fault))?;
        Ok(BoundStep { dispatches })
    }
}

/// The parts of a step's buffers that were found to be as they must be, and which of them are written.
struct Parts<'b> {
    alignment: u64,
    taken: Vec<(&'static str, Part<'b>, bool)>,
}

impl<'b> Parts<'b> {
    fn take(
        &mut self,
        what: &'static str,
        slice: BufferSlice<'b>,
        needed: u64,
        is_written: bool,
    ) -> Result<Part<'b>, Error> {
        let (buffer, offset, found) = (slice.buffer(), slice.offset(), slice.size());
        if found < needed {
            return Err(Error::BufferSize { what, needed, found });
        }
        if !buffer.usage().contains(BufferUsages::STORAGE) {
            return Err(Error::BufferUsage { what, missing: "STORAGE" });
        }
        if !offset.is_multiple_of(4) {
            return Err(Error::BufferOffset { what, offset, alignment: 4 });
        }
        let part = Part { buffer, offset, bytes: needed };
        for &(other, taken, other_is_written) in &self.taken {
            if taken.buffer != buffer || !(is_written || other_is_written) {
                continue;
            }
            let apart = offset + needed <= taken.offset || taken.offset + taken.bytes <= offset;
            if !(is_written && other_is_written && apart) {
                return Err(Error::BufferOverlap { what, other });
            }
            for (what, offset) in [(what, offset), (other, taken.offset)] {
                if !offset.is_multiple_of(self.alignment) {
                    return Err(Error::BufferOffset { what, offset, alignment: self.alignment });
                }
            }
        }
        self.taken.push((what, part, is_written));
        Ok(part)
    }
}
