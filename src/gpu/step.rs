//! For engines with a wgpu device of their own: operations prepared once, and recorded into the
//! caller's commands over the caller's buffers.

use std::sync::Arc;

use wgpu::{BufferSlice, BufferUsages, CommandEncoder, ComputePass};

use super::context::{Gpu, GpuContext};
use super::params::{KernelOptions, MOST_IGNORED, Summary};
use super::prepared::{Bound, Buffers, FilledBuffer, Part, Prepared, Scratch};
use crate::ops::Operation;
use crate::ops::{Operand, check_k, draw_transform};
use crate::plan::KernelProblem;
use crate::problem::operands::{LossCoefficients, Operands};
use crate::problem::transform::Transform;
use crate::problem::waiting::block_on;
use crate::{CrossEntropy, DType, Error, Reduction, Shape};

/// A step to be prepared: an operation, the options of its loss, and the layout of its elements.
/// [`StepBuilder::build`] prepares it.
///
/// ```no_run
/// # fn f(gpu: &logits::Gpu) -> Result<(), logits::Error> {
/// use logits::{DType, Operation};
/// // Rows of 50,257 classes, padded to 50,304, at a temperature of 0.7.
/// let step = gpu.prepare(Operation::TopK(8), [32, 50_257], DType::F16).row_stride(50_304).temperature(0.7)?.build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a step is not prepared until it is built"]
pub struct StepBuilder<'g> {
    gpu: &'g Gpu,
    operation: Operation,
    shape: Shape,
    dtype: DType,
    loss: Option<&'g CrossEntropy>,
    has_soft_targets: bool,
    row_stride: Option<usize>,
    output_row_stride: Option<usize>,
    transform: Transform,
}

impl<'g> StepBuilder<'g> {
    /// The options of the loss; those of `CrossEntropy::default()` if not set. Operations without
    /// targets ignore them; [`StepBuilder::as_seen_by`] applies the scale and the cap of a loss to
    /// their logits.
    pub fn loss(mut self, loss: &'g CrossEntropy) -> Self {
        self.loss = Some(loss);
        self
    }

    /// Takes targets that are probabilities: f32, of the shape of the logits and without gaps.
    /// Operations without targets ignore this.
    pub fn soft_targets(mut self) -> Self {
        self.has_soft_targets = true;
        self
    }

    /// Sets the elements from one row of the logits to the next, or for a shape `[outer, classes,
    /// inner]` from one block of `classes * inner` to the next.
    pub fn row_stride(mut self, elements: usize) -> Self {
        self.row_stride = Some(elements);
        self
    }

    /// Sets the elements from one row of the results to the next, where they are not in place of
    /// the logits.
    pub fn output_row_stride(mut self, elements: usize) -> Self {
        self.output_row_stride = Some(elements);
        self
    }

    /// Divides the logits by `temperature`: [`Logits::temperature`](crate::Logits::temperature).
    ///
    /// # Errors
    /// Fails as [`Logits::temperature`](crate::Logits::temperature) does.
    pub fn temperature(self, temperature: f32) -> Result<Self, Error> {
        Ok(Self { transform: self.transform.at_temperature(temperature)?, ..self })
    }

    /// Reads the logits as a loss sees them: [`Logits::as_seen_by`](crate::Logits::as_seen_by).
    ///
    /// # Errors
    /// Fails as [`Logits::as_seen_by`](crate::Logits::as_seen_by) does.
    pub fn as_seen_by(self, loss: &CrossEntropy) -> Result<Self, Error> {
        Ok(Self { transform: loss.transform(self.transform)?, ..self })
    }

    /// Compiles the kernels of the operation for the shape, and uploads class weights and upstream
    /// gradients of rows. The kernels for one buffer that holds both inputs and results
    /// ([`StepBuffers`]), and those for upstream gradients of rows in a buffer
    /// ([`StepBuffers::upstream`]), are compiled by the first [`Step::bind`] that needs them.
    ///
    /// # Errors
    /// [`Error::ZeroClasses`], [`Error::ShapeTooLarge`], [`Error::RowStride`]; [`Error::Length`],
    /// [`Error::Weight`], [`Error::OptionValue`], [`Error::UpstreamGradient`], [`Error::TopK`] or
    /// [`Error::IgnoredIndices`] for the options; [`Error::DType`] for f64; [`Error::Gpu`] if the
    /// device cannot do it.
    pub fn build(self) -> Result<Step, Error> {
        block_on(self.build_async())
    }

    /// The async form of [`StepBuilder::build`].
    ///
    /// # Errors
    /// Fails as [`StepBuilder::build`] does.
    pub async fn build_async(self) -> Result<Step, Error> {
        let default_loss = CrossEntropy::default();
        let Lowered { problem, options, operands, is_soft, needs_loss } =
            self.lower(&default_loss)?;
        let context = self.gpu.current().await?;
        let prepared = Prepared::over_whole_batch(problem, options, context.limits);
        let prepared = prepared.map_err(|error| context.error(error))?;
        let (weights, row_upstream) = context
            .guarded(|| {
                prepared.compile(&context);
                context.probe();
                let LossCoefficients { weight, row_upstream, .. } = operands.coefficients;
                Ok((context.filled_values(weight)?, context.filled_values(row_upstream)?))
            })
            .await
            .map_err(|error| context.error(error))?;
        Ok(Step { context, prepared, weights, row_upstream, is_soft, needs_loss })
    }

    /// Checks the step and lowers it, with `default_loss` where no loss was set.
    pub(super) fn lower<'l>(&self, default_loss: &'l CrossEntropy) -> Result<Lowered<'l>, Error>
    where
        'g: 'l,
    {
        let &Self { gpu, operation, shape, dtype, .. } = self;
        shape.elements()?;
        if dtype == DType::F64 {
            return Err(Error::DType { dtype, adapter: gpu.name().to_owned() });
        }
        let op = operation.op();
        let mut operands =
            Operands { transform: draw_transform(op, self.transform)?, ..Operands::default() };
        match operation {
            Operation::TopK(k) => {
                check_k(k, shape.classes())?;
                operands.k = k;
            }
            Operation::Sample(sampling) => operands.draws = sampling.draws()?,
            _ if op.spec().operand == Operand::UpstreamGradient => {
                self.transform.without_cap("not set: the gradient of a cap is another step")?;
            }
            _ => {}
        }
        let loss = op.has_targets().then(|| self.loss.unwrap_or(default_loss));
        let is_soft = self.has_soft_targets && loss.is_some();
        let is_mean = loss.is_some_and(|loss| loss.reduction == Reduction::Mean);
        let reduces = loss.is_some_and(|loss| loss.reduction != Reduction::None);
        let needs_loss = reduces && op.has_losses();
        let strides = self.strides()?;
        let ignored = match loss {
            Some(loss) => self.lower_loss(loss, &mut operands)?,
            None => Vec::new(),
        };
        let dense = [shape.row_count(), shape.classes(), shape.inner().max(1)];
        let problem = KernelProblem {
            strides,
            // A backward without losses divides by the count of a mean, too.
            count: needs_loss || is_mean,
            sum: needs_loss,
            ..KernelProblem::lower(op, dtype, &operands, is_soft, dense)
        };
        let options = KernelOptions::new(dtype, &operands, is_soft, is_mean, &ignored);
        Ok(Lowered { problem, options, operands, is_soft, needs_loss })
    }

    /// Checks the options of a loss and enters them into `operands`. Returns the targets that are
    /// not counted.
    fn lower_loss<'l>(
        &self,
        loss: &'l CrossEntropy,
        operands: &mut Operands<'l>,
    ) -> Result<Vec<u32>, Error> {
        loss.check(self.shape)?;
        loss.check_in_step(self.has_soft_targets)?;
        // Targets have 32 bits; no target equals an index that does not fit.
        let fits = |&index: &i64| {
            i32::try_from(index).map(|index| index as u32).or_else(|_| u32::try_from(index))
        };
        let ignored: Vec<u32> = loss.ignored.iter().filter_map(|index| fits(index).ok()).collect();
        if ignored.len() > MOST_IGNORED {
            return Err(Error::IgnoredIndices { most: MOST_IGNORED, found: ignored.len() });
        }
        operands.transform = loss.transform(self.transform)?;
        operands.coefficients = loss.coefficients(self.shape.classes(), 1.0, 1);
        Ok(ignored)
    }

    fn strides(&self) -> Result<[u64; 2], Error> {
        let (shape, block) = (self.shape, self.shape.block());
        let strides = [self.row_stride.unwrap_or(block), self.output_row_stride.unwrap_or(block)];
        for stride in strides {
            let elements = shape
                .outer()
                .checked_mul(stride)
                .filter(|&elements| elements <= isize::MAX as usize / 8);
            if stride < block {
                return Err(Error::RowStride { stride, classes: block });
            }
            elements.ok_or(Error::ShapeTooLarge {
                rows: shape.row_count(),
                classes: shape.classes(),
            })?;
        }
        Ok(strides.map(|stride| stride as u64))
    }
}

/// A step that is checked and lowered: all that a plan depends on beside the limits of the device.
pub(super) struct Lowered<'l> {
    pub(super) problem: KernelProblem,
    pub(super) options: KernelOptions,
    operands: Operands<'l>,
    is_soft: bool,
    needs_loss: bool,
}

/// An operation prepared for a shape: its pipelines are compiled, its scratch is sized.
///
/// ```no_run
/// # fn engine(device: logits::wgpu::Device, queue: logits::wgpu::Queue, x: logits::wgpu::Buffer, t: logits::wgpu::Buffer,
/// #     gradient: logits::wgpu::Buffer, loss: logits::wgpu::Buffer) -> Result<(), logits::Error> {
/// use logits::{DType, Gpu, Operation, StepBuffers};
///
/// let gpu = Gpu::from_wgpu(&device, &queue)?;
/// let step = gpu.prepare(Operation::CrossEntropyGrad, [8192, 32_000], DType::F32).build()?;
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
    context: Arc<GpuContext>,
    prepared: Prepared,
    weights: Option<FilledBuffer>,
    /// The upstream gradients of rows that are an option of the loss.
    row_upstream: Option<FilledBuffer>,
    is_soft: bool,
    needs_loss: bool,
}

/// The buffers of a step, or parts of them. Each needs the usage `STORAGE`, and an offset that is a
/// multiple of 4.
///
/// All parts may lie in one buffer, like the tensors of a framework whose allocator hands out pages
/// of one buffer (CubeCL). A part that the step writes overlaps no other part; a result [in
/// place](Self::in_place) is the same part as the logits. Where a buffer holds a part that the step
/// writes, all parts in that buffer start at multiples of the device's
/// `min_storage_buffer_offset_alignment` and of 16. A part that is alone in its buffer starts at a
/// multiple of 4. Parts of 16-bit types are rounded up to whole words of 4 bytes.
///
/// Where one buffer holds both a part that is read and one that is written, the step binds every
/// part of every buffer as `read_write`, because wgpu refuses to read a buffer through a read-only
/// binding while another binding writes it. Then the rules on overlap and alignment hold for every
/// buffer with several parts, those that are only read too. The kernels for this are compiled by
/// the first [`Step::bind`] that needs them.
#[derive(Clone, Copy, Debug)]
pub struct StepBuffers<'b> {
    logits: BufferSlice<'b>,
    in_place: bool,
    targets: Option<BufferSlice<'b>>,
    upstream: Option<BufferSlice<'b>>,
    draw: Option<BufferSlice<'b>>,
    output: Option<BufferSlice<'b>>,
    rows: Option<BufferSlice<'b>>,
    loss: Option<BufferSlice<'b>>,
    scratch: Option<BufferSlice<'b>>,
}

impl<'b> StepBuffers<'b> {
    /// Logits, of the shape, the type and the layout that the step was prepared for.
    #[must_use]
    pub fn new(logits: BufferSlice<'b>) -> Self {
        let (targets, upstream, draw, output, rows, loss, scratch) =
            (None, None, None, None, None, None, None);
        Self { logits, in_place: false, targets, upstream, draw, output, rows, loss, scratch }
    }

    /// The incoming gradient. For a loss and for [`Operation::EntropyBackward`] it is optional: one
    /// f32 a row, which multiplies the gradient of that row (by 1 if not given). For a loss it
    /// takes the place of
    /// [`CrossEntropy::upstream_gradients`](crate::CrossEntropy::upstream_gradients). For
    /// [`Operation::SoftmaxBackward`] and [`Operation::LogSoftmaxBackward`] it is required: one
    /// value for each logit, of the type of the logits, without gaps.
    #[must_use]
    pub fn upstream(mut self, upstream: BufferSlice<'b>) -> Self {
        self.upstream = Some(upstream);
        self
    }

    /// The number of the draw: one `u32` that is added to
    /// [`Sampling::step`](crate::Sampling::step). Write it between runs, and one bound step draws
    /// anew in each. It is optional.
    #[must_use]
    pub fn draw(mut self, draw: BufferSlice<'b>) -> Self {
        self.draw = Some(draw);
        self
    }

    /// The targets of a loss: `u32` or `i32` `[rows]`, or probabilities in f32 if the step was
    /// prepared for them. A target that is neither a class nor an ignored index makes its row's
    /// results NaN, and [`Summary::first_invalid_row`] names it: the GPU cannot return an error.
    #[must_use]
    pub fn targets(mut self, targets: BufferSlice<'b>) -> Self {
        self.targets = Some(targets);
        self
    }

    /// Receives probabilities, log-probabilities or the gradient, in the type of the logits.
    #[must_use]
    pub fn output(mut self, output: BufferSlice<'b>) -> Self {
        (self.output, self.in_place) = (Some(output), false);
        self
    }

    /// Lets the result overwrite the logits.
    #[must_use]
    pub fn in_place(mut self) -> Self {
        (self.output, self.in_place) = (None, true);
        self
    }

    /// Receives the values of rows: log-sum-exps, entropies and weighted losses as f32
    /// `[rows]`, or
    /// [`Prediction`](crate::Prediction)s of 8 bytes (a `u32` class and its f32 probability)
    /// `[rows]`, for [`Operation::TopK`] `[rows, k]`. It is optional for a loss. For
    /// [`Operation::CrossEntropyBackward`] it is an input, the saved log-sum-exps; the rules for a
    /// written part apply to it all the same.
    #[must_use]
    pub fn rows(mut self, rows: BufferSlice<'b>) -> Self {
        self.rows = Some(rows);
        self
    }

    /// Receives the [`Summary`] of a loss, 32 bytes that each run overwrites. It is not needed by
    /// [`Operation::CrossEntropyBackward`] or with [`Reduction::None`], where only NaN shows an
    /// invalid target.
    #[must_use]
    pub fn loss(mut self, loss: BufferSlice<'b>) -> Self {
        self.loss = Some(loss);
        self
    }

    /// Scratch of [`Step::scratch_bytes`] bytes, at a multiple of 256 bytes. Steps that run one
    /// after the other may share it. If none is given, [`Step::bind`] allocates it.
    #[must_use]
    pub fn scratch(mut self, scratch: BufferSlice<'b>) -> Self {
        self.scratch = Some(scratch);
        self
    }
}

/// A step over buffers, to be recorded any number of times. It keeps the buffers alive.
#[derive(Debug)]
pub struct BoundStep(Bound);

impl BoundStep {
    /// Records the step as one compute pass. Nothing is allocated, submitted or waited for, beyond
    /// what wgpu keeps of any command.
    pub fn record(&self, encoder: &mut CommandEncoder) {
        self.0.record(encoder);
    }

    /// Records the step into `pass`. It sets the pipeline and bind group 0, and does not restore
    /// them.
    pub fn record_in(&self, pass: &mut ComputePass<'_>) {
        self.0.record_in(pass);
    }

    /// The number of dispatches that the step records.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        self.0.dispatches()
    }
}

impl Gpu {
    /// Describes a step: an operation over logits of a shape and type, to be recorded into command
    /// encoders.
    pub fn prepare(
        &self,
        operation: Operation,
        shape: impl Into<Shape>,
        dtype: DType,
    ) -> StepBuilder<'_> {
        StepBuilder {
            gpu: self,
            operation,
            shape: shape.into(),
            dtype,
            loss: None,
            has_soft_targets: false,
            row_stride: None,
            output_row_stride: None,
            transform: Transform::default(),
        }
    }
}

impl Step {
    /// The bytes of scratch that the step needs.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_sections().iter().sum()
    }

    /// Returns the bytes of each section of the scratch: the losses of the rows, which are summed
    /// even if the caller does not want them; the summary with the count of a mean, if the step has
    /// no losses; and the scratch of the passes.
    fn scratch_sections(&self) -> [u64; 3] {
        let KernelProblem { op, rows, count, sum, .. } = self.prepared.problem;
        let losses = if op.has_losses() { rows * 4 } else { 0 };
        let weighed = if count && !sum { size_of::<Summary>() as u64 } else { 0 };
        let aligned = |bytes: u64| bytes.next_multiple_of(Scratch::ALIGNMENT);
        [aligned(losses), aligned(weighed), self.prepared.scratch_bytes()]
    }

    /// Checks the buffers, makes the bind groups over them, and allocates scratch if none was
    /// given.
    ///
    /// # Errors
    /// [`Error::BufferMissing`], [`Error::BufferSize`], [`Error::BufferUsage`],
    /// [`Error::BufferOffset`] or [`Error::BufferOverlap`], naming the buffer; [`Error::Gpu`] for
    /// errors that only wgpu finds, such as a buffer of another device.
    pub fn bind(&self, buffers: &StepBuffers<'_>) -> Result<BoundStep, Error> {
        block_on(self.bind_async(buffers))
    }

    /// The async form of [`Step::bind`].
    ///
    /// # Errors
    /// Fails as [`Step::bind`] does.
    pub async fn bind_async(&self, buffers: &StepBuffers<'_>) -> Result<BoundStep, Error> {
        let (buffers, given_scratch, options) = self.check(buffers)?;
        let (context, scratch_bytes) = (&self.context, self.scratch_bytes());
        let prepared = Prepared { options, ..self.prepared };
        let bound = context
            .guarded(|| {
                let own;
                let scratch = match given_scratch {
                    Some(scratch) => scratch,
                    None => {
                        let usage = BufferUsages::STORAGE;
                        own = context.pool.take(&context.device, usage, scratch_bytes)?;
                        Part::whole(&own, scratch_bytes)
                    }
                };
                let [losses, weighed, passes] = scratch.sections(self.scratch_sections());
                let buffers = Buffers {
                    rows_out: buffers.rows_out.or(losses.non_empty()),
                    summary: buffers.summary.or(weighed.non_empty()),
                    ..buffers
                };
                let scratch = prepared.scratch(passes);
                prepared.bind(context, &prepared.plan.passes(), &buffers, scratch)
            })
            .await
            .map_err(|error| context.error(error))?;
        Ok(BoundStep(bound))
    }

    /// Checks the parts of a caller's buffers, each on its own and then against each other. Returns
    /// the buffers of the passes, the scratch if it was given, and the options of the kernels.
    fn check<'b>(
        &'b self,
        given: &StepBuffers<'b>,
    ) -> Result<(Buffers<'b>, Option<Part<'b>>, KernelOptions), Error> {
        let problem = &self.prepared.problem;
        let &KernelProblem { op, rows, classes, inner, strides, size, operand_bytes, .. } = problem;
        let alignment = u64::from(self.context.limits.offset_alignment);
        let mut parts = Parts { alignment, taken: Vec::new() };
        // Parts of 16-bit types are whole words.
        let bytes = |stride: u64| match rows / inner {
            0 => 0,
            outer => (((outer - 1) * stride + classes * inner) * size).next_multiple_of(4),
        };
        let writes = op.spec().writes_elements;
        let in_place = writes && given.in_place;
        let logits = parts.take("logits", given.logits, bytes(strides[0]), in_place)?;
        let (logits, elements) = match writes {
            false => (Some(logits), None),
            true if in_place => (None, Some(logits)),
            true => {
                let output = parts.required("output", given.output, bytes(strides[1]), true)?;
                (Some(logits), Some(output))
            }
        };

        let mut options = self.prepared.options;
        let mut row_upstream = self.row_upstream.as_ref().map(FilledBuffer::part);
        let targets = match (op.spec().operand, given.draw) {
            (Operand::Targets, _) => {
                let values = if self.is_soft { rows * classes } else { rows };
                Some(parts.required("targets", given.targets, values * 4, false)?)
            }
            (Operand::UpstreamGradient, _) => {
                let bytes = (rows * classes * operand_bytes).next_multiple_of(4);
                Some(parts.required("upstream", given.upstream, bytes, false)?)
            }
            (Operand::DrawCounter, Some(draw)) => {
                options = options.with_later_draws();
                Some(parts.take("draw", draw, 4, false)?)
            }
            (Operand::DrawCounter | Operand::None, _) => None,
        };

        if let (true, Some(upstream)) = (op.spec().row_upstream, given.upstream) {
            row_upstream = Some(parts.take("upstream", upstream, rows * 4, false)?);
            options = options.with_row_upstream();
        }

        let summary = match self.needs_loss {
            true => Some(parts.required("loss", given.loss, size_of::<Summary>() as u64, true)?),
            false => None,
        };
        let row_bytes = rows * problem.bytes_of_a_row();
        let rows_out = match given.rows {
            Some(slice) if row_bytes > 0 => Some(parts.take("rows", slice, row_bytes, true)?),
            None if !op.has_losses() && problem.bytes_of_a_row() > 0 => {
                return Err(Error::BufferMissing { what: "rows" });
            }
            _ => None,
        };
        let scratch = match given.scratch {
            None => None,
            Some(slice) if !slice.offset().is_multiple_of(Scratch::ALIGNMENT) => {
                let (offset, alignment) = (slice.offset(), Scratch::ALIGNMENT);
                return Err(Error::BufferOffset { what: "scratch", offset, alignment });
            }
            Some(slice) => Some(parts.take("scratch", slice, self.scratch_bytes(), true)?),
        };
        let buffers = Buffers {
            first_row: 0,
            logits,
            targets,
            row_upstream,
            weights: self.weights.as_ref().map(FilledBuffer::part),
            elements,
            rows_out,
            summary,
            share_a_buffer: parts.share_a_buffer()?,
        };
        Ok((buffers, scratch, options))
    }
}

/// A part of a step's buffers.
struct Taken<'b> {
    what: &'static str,
    part: Part<'b>,
    is_written: bool,
}

/// The parts of a step's buffers, each of which is large enough and has the usage that it needs.
struct Parts<'b> {
    alignment: u64,
    taken: Vec<Taken<'b>>,
}

impl<'b> Parts<'b> {
    fn required(
        &mut self,
        what: &'static str,
        slice: Option<BufferSlice<'b>>,
        needed: u64,
        is_written: bool,
    ) -> Result<Part<'b>, Error> {
        self.take(what, slice.ok_or(Error::BufferMissing { what })?, needed, is_written)
    }

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
        self.taken.push(Taken { what, part, is_written });
        Ok(part)
    }

    /// Checks the parts against each other, and returns whether a buffer has both a part that is
    /// read and a part that is written.
    fn share_a_buffer(&self) -> Result<bool, Error> {
        let taken = || self.taken.iter().filter(|taken| taken.part.bytes > 0);
        let shares = taken()
            .any(|taken| taken.is_written && self.beside(taken).any(|other| !other.is_written));
        for (nth, taken) in self.taken.iter().enumerate().filter(|(_, taken)| taken.part.bytes > 0)
        {
            // Where a buffer is shared every binding is `read_write`, and in a browser no two of
            // those may overlap.
            let is_bound_for_writing = shares || taken.is_written;
            if !self.beside(taken).any(|other| is_bound_for_writing || other.is_written) {
                continue;
            }
            let Taken { what, part, .. } = taken;
            let end = |part: &Part<'_>| part.offset + part.bytes;
            let earlier = self.taken[..nth].iter().map(|other| (other.what, other.part));
            for (other, before) in
                earlier.filter(|(_, before)| before.bytes > 0 && before.buffer == part.buffer)
            {
                if part.offset < end(&before) && before.offset < end(part) {
                    return Err(Error::BufferOverlap { what, other });
                }
            }
            if !part.offset.is_multiple_of(self.alignment) {
                return Err(Error::BufferOffset {
                    what,
                    offset: part.offset,
                    alignment: self.alignment,
                });
            }
        }
        Ok(shares)
    }

    /// Returns the other parts in the buffer of a part; parts of 0 bytes are not bound.
    fn beside<'p>(&'p self, taken: &'p Taken<'b>) -> impl Iterator<Item = &'p Taken<'b>> {
        self.taken.iter().filter(|other| {
            other.what != taken.what
                && other.part.bytes > 0
                && other.part.buffer == taken.part.buffer
        })
    }
}
