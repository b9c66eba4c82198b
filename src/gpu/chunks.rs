//! Batches in host memory: uploaded, computed and read back in parts, two of them in flight, within
//! a bound of device memory.

use std::collections::VecDeque;
use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use wgpu::{Buffer, BufferUsages, BufferView, CommandEncoderDescriptor, WriteOnly};

use super::context::{Gpu, GpuContext};
use super::failure::GpuError;
use super::interface::Failed;
use super::params::KernelOptions;
use super::prepared::{Buffers, FilledBuffer, Part, Prepared, Scratch};
use super::staging::{StagedArray, read_into};
use super::wait::Mapped;
use crate::ops::Op;
use crate::ops::Request;
use crate::plan::{Batch, KernelProblem, Limits, Plan, Unplannable};
use crate::problem::dtype::{Elements, ElementsMut};
use crate::problem::error::try_vec;
use crate::problem::limits::CallLimits;
use crate::problem::operands::{Data, RowTarget, RowsOut};
use crate::{Error, Shape, cpu};

/// Parts that are in flight at the same time.
const IN_FLIGHT: usize = 2;
/// Copies of a part in the device's memory: the logits, which results overwrite, and the staging
/// buffers of both directions.
const COPIES: u64 = 3;
/// The most bytes that a row takes in addition to its logits and results: its label and its
/// gradient, and their staging.
const ROW_OPERAND_BYTES: u64 = 2 * (4 + 4);
/// Parts are not made smaller than this only to have several in flight.
const SMALL_PART: u64 = 8 << 20;

/// A part in flight.
struct InFlight {
    batch: Batch,
    arrays: Arrays,
    params: Buffer,
    submission: wgpu::SubmissionIndex,
    mapped: Vec<Mapped>,
}

/// The arrays of a part that the host writes or reads; each is `None` where the operation has no
/// such array.
struct Arrays {
    /// Logits, and results over them.
    elements: Option<StagedArray>,
    targets: Option<StagedArray>,
    row_upstream: Option<StagedArray>,
    rows_out: Option<StagedArray>,
}

impl Arrays {
    fn iter(&self) -> impl Iterator<Item = &StagedArray> {
        let Self { elements, targets, row_upstream, rows_out } = self;
        [elements, targets, row_upstream, rows_out].into_iter().flatten()
    }

    fn into_buffers(self) -> impl Iterator<Item = Buffer> {
        let Self { elements, targets, row_upstream, rows_out } = self;
        [elements, targets, row_upstream, rows_out]
            .into_iter()
            .flatten()
            .flat_map(StagedArray::into_buffers)
    }
}

/// The state that all parts of a request share.
struct Stream<'s> {
    context: &'s GpuContext,
    prepared: Prepared,
    /// The row of the request at which the plan begins.
    first: usize,
    call: CallLimits,
    weights: Option<FilledBuffer>,
    scratch: Buffer,
}

impl Gpu {
    /// Runs a request over host memory. Returns the reason if memory was short and the parts were
    /// made smaller. With `whole`, all logits of a request in place are intact after a failure.
    pub(crate) async fn run(
        &self,
        request: &mut Request<'_>,
        whole: bool,
        call: CallLimits,
    ) -> Result<Option<String>, Failed> {
        #[cfg(target_arch = "wasm32")]
        if call.waiting == crate::problem::waiting::Waiting::Here {
            return Err(Failed {
                error: crate::problem::waiting::must_not_wait(self.name()),
                rows_done: 0,
            });
        }
        let context = self.current().await.map_err(|error| Failed { error, rows_done: 0 })?;
        let problem = kernel_problem(request, request.rows(), request.shape.inner());
        let PartBytes { whole: bytes, affordable, part } = context.part_bytes(&problem, call);
        // A cut row is written in pieces. Its first piece overwrites logits, so it cannot be
        // computed again.
        if !is_in_place(request) || (!whole && context.lands_whole_rows(request, part)) {
            return context.in_parts(request, part, call).await;
        }
        // The results of a single part are written when all is done, so they need no copy.
        if bytes <= affordable
            && context.plan(problem, bytes).is_ok_and(|plan| plan.batches().nth(1).is_none())
        {
            match context.stream(request, &mut 0, bytes, call).await {
                Ok(()) => return Ok(None),
                Err(error) if error.out_of_memory => context.pool.clear(),
                Err(error) => return Err(Failed { error: context.error(error), rows_done: 0 }),
            }
        }
        keeping_logits(&context, request, part, call)
            .await
            .map_err(|error| Failed { error, rows_done: 0 })
    }
}

/// Runs a request in place through a copy of its results, so that a failure half-way leaves the
/// caller's logits intact.
async fn keeping_logits(
    context: &GpuContext,
    request: &mut Request<'_>,
    part: u64,
    call: CallLimits,
) -> Result<Option<String>, Error> {
    let bytes = request.rows() * request.classes() * request.dtype().size();
    // f64 has the alignment of the widest element type.
    let mut staged: Vec<f64> = try_vec("the staged result", bytes.div_ceil(size_of::<f64>()))?;
    let staged = &mut cast_slice_mut(&mut staged)[..bytes];
    let output = match request.data.input().0 {
        Elements::F32(_) => ElementsMut::F32(cast_slice_mut(staged)),
        Elements::F16(_) => ElementsMut::F16(cast_slice_mut(staged)),
        Elements::BF16(_) => ElementsMut::BF16(cast_slice_mut(staged)),
        Elements::F64(_) => ElementsMut::F64(cast_slice_mut(staged)),
    };
    let (input, stride) = request.data.input();
    let mut apart = Request {
        op: request.op,
        shape: request.shape,
        data: Data::Write { input, stride, output },
        operands: request.operands,
        first_row: request.first_row,
        skip: request.skip,
        rows_out: RowsOut::None,
    };
    // Losses are staged as well.
    let mut losses: Vec<f32> = Vec::new();
    if let RowsOut::Values(values) = &request.rows_out {
        losses = try_vec("losses", values.len())?;
        apart.rows_out = RowsOut::Values(ElementsMut::F32(&mut losses));
    }
    let note = context.in_parts(&mut apart, part, call).await.map_err(|failed| failed.error)?;
    if let RowsOut::Values(ElementsMut::F32(values)) = &mut request.rows_out {
        values.copy_from_slice(&losses);
    }
    let (shape, size) = (request.shape, request.dtype().size());
    let whole = 0..shape.row_count();
    if let Some((mut output, stride)) = request.output() {
        let mut from = 0;
        for (start, length) in runs(shape, stride, whole, 0..shape.classes()) {
            output
                .bytes(start, length)
                .copy_from_slice(&staged[from * size..(from + length) * size]);
            from += length;
        }
    }
    Ok(note)
}

/// Whether results take the place of the logits.
fn is_in_place(request: &Request<'_>) -> bool {
    matches!(request.data, Data::Over { .. })
}

/// The kernel problem of some rows of a request, in blocks of `inner`.
fn kernel_problem(request: &Request<'_>, rows: usize, inner: usize) -> KernelProblem {
    let Request { op, operands, .. } = request;
    let has_soft_targets = operands.soft_targets.is_some();
    KernelProblem::lower(
        *op,
        request.dtype(),
        operands,
        has_soft_targets,
        [rows, request.classes(), inner],
    )
}

/// Sizes in bytes of logits.
struct PartBytes {
    /// All logits of the request.
    whole: u64,
    /// The largest part that the memory of the call allows.
    affordable: u64,
    /// The size of a part.
    part: u64,
}

impl GpuContext {
    /// Returns the size of the parts of a request.
    fn part_bytes(&self, problem: &KernelProblem, call: CallLimits) -> PartBytes {
        // A binding may begin before its part, at an aligned offset.
        let logits = problem.classes * problem.size;
        let whole = problem.rows * logits + Scratch::ALIGNMENT;
        let operand_bytes = 2 * problem.operand_bytes * problem.classes;
        let row_bytes =
            COPIES * logits + operand_bytes + 2 * problem.bytes_of_a_row() + ROW_OPERAND_BYTES;
        let affordable =
            u128::from(call.half()) * u128::from(logits) / u128::from(IN_FLIGHT as u64 * row_bytes);
        let affordable = u64::try_from(affordable).unwrap_or(u64::MAX);
        let affordable =
            affordable.max(Plan::LEAST_BINDING + Scratch::ALIGNMENT).min(self.limits.binding_bytes);
        let row = logits + Scratch::ALIGNMENT;
        // Overlap is no reason to cut rows: a cut row must be uploaded twice.
        let small = SMALL_PART + Scratch::ALIGNMENT;
        // Where host and device share memory they share a cache too, and a small part is still in
        // it when it is computed.
        let part = if self.maps_storage { small } else { small.max(whole / 4) };
        PartBytes { whole, affordable, part: part.max(row).min(affordable) }
    }

    /// Returns the number of parts in which a request over host memory goes through the device,
    /// where its results go to other memory.
    pub(super) fn parts(
        &self,
        problem: KernelProblem,
        call: CallLimits,
    ) -> Result<u64, Unplannable> {
        let part = self.part_bytes(&problem, call).part;
        Ok(self.plan(problem, part)?.batches().count() as u64)
    }

    /// The limits of a plan whose parts have about `part` bytes.
    fn limits_of_parts(&self, part: u64) -> Limits {
        let part_bytes = part.max(Plan::LEAST_BINDING).min(self.limits.buffer_bytes);
        Limits { part_bytes, ..self.limits }
    }

    /// The plan for parts of about `part` bytes.
    fn plan(&self, problem: KernelProblem, part: u64) -> Result<Plan, Unplannable> {
        Plan::new(problem, self.limits_of_parts(part))
    }

    /// Whether parts of `part` bytes hold whole rows; that is the same for all rows of a request.
    fn lands_whole_rows(&self, request: &Request<'_>, part: u64) -> bool {
        let problem = kernel_problem(request, request.rows(), request.shape.inner());
        self.plan(problem, part).is_ok_and(|plan| !plan.cuts_rows())
    }

    /// Runs a request in parts of about `part` bytes, or of fewer where memory is short. In place,
    /// no part is smaller than a row, so that every row that is not done keeps its logits.
    async fn in_parts(
        &self,
        request: &mut Request<'_>,
        mut part: u64,
        call: CallLimits,
    ) -> Result<Option<String>, Failed> {
        let mut rows_done = 0;
        let mut note = None;
        loop {
            match self.stream(request, &mut rows_done, part, call).await {
                Ok(()) => return Ok(note),
                Err(error)
                    if error.out_of_memory
                        && part / 2 > Plan::LEAST_BINDING
                        && (!is_in_place(request) || self.lands_whole_rows(request, part / 2)) =>
                {
                    part /= 2;
                    note =
                        Some(format!("{}; finished in parts of {} KiB", error.reason, part >> 10));
                    self.pool.clear();
                }
                Err(error) => return Err(Failed { error: self.error(error), rows_done }),
            }
        }
    }

    /// Runs the rows from `done` on in parts of about `part` bytes, and keeps `done` up to date.
    async fn stream(
        &self,
        request: &mut Request<'_>,
        done: &mut usize,
        part: u64,
        call: CallLimits,
    ) -> Result<(), GpuError> {
        let inner = request.shape.inner();
        while *done < request.rows() {
            // The rest of a block that an earlier attempt has begun is a narrower block of its own.
            let of_block = *done % inner;
            let (rows, inner) = if of_block == 0 {
                (request.rows() - *done, inner)
            } else {
                (inner - of_block, inner - of_block)
            };
            let problem = kernel_problem(request, rows, inner);
            self.stretch(request, problem, done, part, call).await?;
        }
        Ok(())
    }

    /// Runs the rows of one problem, from row `done` on, with two parts in flight.
    async fn stretch(
        &self,
        request: &mut Request<'_>,
        problem: KernelProblem,
        done: &mut usize,
        part: u64,
        call: CallLimits,
    ) -> Result<(), GpuError> {
        let end_of_all = *done + problem.rows as usize;
        let stream = Stream::new(self, request, problem, *done, part, call).await?;
        let mut batches = stream.prepared.plan.batches();
        let mut in_flight: VecDeque<InFlight> = VecDeque::new();
        let mut failed = None;
        loop {
            if failed.is_none()
                && in_flight.len() < IN_FLIGHT
                && let Some(batch) = batches.next()
            {
                match stream.launch(request, batch).await {
                    Ok(chunk) => in_flight.push_back(chunk),
                    // Parts in flight may still arrive.
                    Err(error) => failed = Some(error),
                }
                continue;
            }
            let Some(chunk) = in_flight.pop_front() else { break };
            let end = stream.first + chunk.batch.rows.end as usize;
            stream.land(chunk, request).await?;
            if !stream.prepared.plan.cuts_rows() {
                *done = end;
            }
        }
        let Stream { weights, scratch, .. } = stream;
        self.pool
            .give(weights.map(|weights| weights.buffer).into_iter().chain([scratch]), call.half());
        match failed {
            Some(error) => Err(error),
            None => {
                *done = end_of_all;
                Ok(())
            }
        }
    }
}

impl<'s> Stream<'s> {
    async fn new(
        context: &'s GpuContext,
        request: &Request<'_>,
        problem: KernelProblem,
        first: usize,
        part: u64,
        call: CallLimits,
    ) -> Result<Self, GpuError> {
        let options = KernelOptions::of_request(request.dtype(), &request.operands);
        let prepared = Prepared::new(problem, options, context.limits_of_parts(part))?;
        let (weights, scratch) = context
            .guarded(|| {
                let weights = context.filled_values(request.operands.coefficients.weight)?;
                let scratch = context.pool.take(
                    &context.device,
                    BufferUsages::STORAGE,
                    prepared.scratch_bytes(),
                )?;
                Ok((weights, scratch))
            })
            .await?;
        Ok(Self { context, prepared, first, call, weights, scratch })
    }

    /// Submits a part:
    ///
    /// ```text
    /// take the arrays of the part from the pool, and wait until the host may write them
    /// write logits, targets, upstream gradients and saved log-sum-exps
    /// bind the prepared operation to the arrays
    /// submit: upload, passes, readback
    /// ```
    async fn launch(&self, request: &Request<'_>, batch: Batch) -> Result<InFlight, GpuError> {
        let Self { context, prepared, call, .. } = self;
        let (arrays, mapped) = context
            .guarded(|| {
                let arrays = self.arrays(request, &batch)?;
                let mapped = arrays.iter().filter_map(StagedArray::map_for_writing).collect();
                Ok((arrays, mapped))
            })
            .await?;
        context.poller.settle(None, mapped, *call).await?;

        let (params, submission, mapped) = context
            .guarded(|| {
                self.write_inputs(request, &batch, &arrays)?;
                let elements = arrays.elements.as_ref().map(StagedArray::part);
                let in_place = prepared.problem.op.spec().writes_elements;
                let buffers = Buffers {
                    first_row: self.rows_of_batch(request, &batch).start,
                    logits: elements.filter(|_| !in_place),
                    targets: arrays.targets.as_ref().map(StagedArray::part),
                    row_upstream: arrays.row_upstream.as_ref().map(StagedArray::part),
                    weights: self.weights.as_ref().map(FilledBuffer::part),
                    elements: elements.filter(|_| in_place),
                    rows_out: arrays.rows_out.as_ref().map(StagedArray::part),
                    summary: None,
                    share_a_buffer: false,
                };
                // A part has no gaps between blocks, and a part of one block is a narrower block.
                let scratch =
                    prepared.scratch(Part::whole(&self.scratch, prepared.scratch_bytes()));
                let prepared = prepared.in_blocks(batch.inner);
                let bound = prepared.bind(context, &batch.passes, &buffers, scratch)?;

                let mut encoder = context
                    .device
                    .create_command_encoder(&CommandEncoderDescriptor { label: Some("logits") });
                arrays.iter().for_each(|array| array.record_upload(&mut encoder));
                bound.record(&mut encoder);
                arrays.iter().for_each(|array| array.record_readback(&mut encoder));
                let submission = context.queue.submit([encoder.finish()]);
                let mapped = arrays.iter().filter_map(StagedArray::map_for_reading).collect();
                Ok((bound.params, submission, mapped))
            })
            .await?;
        Ok(InFlight { batch, arrays, params, submission, mapped })
    }

    /// The rows of a part, in the request.
    fn rows_of(&self, batch: &Batch) -> Range<usize> {
        self.first + batch.rows.start as usize..self.first + batch.rows.end as usize
    }

    /// The rows of a part, in the batch that the request is a part of.
    fn rows_of_batch(&self, request: &Request<'_>, batch: &Batch) -> Range<usize> {
        let Range { start, end } = self.rows_of(batch);
        request.first_row + start..request.first_row + end
    }

    /// Takes the arrays of a part from the pool. Call within error scopes.
    fn arrays(&self, request: &Request<'_>, batch: &Batch) -> Result<Arrays, GpuError> {
        let (problem, operands) = (&self.prepared.problem, &request.operands);
        let rows = batch.rows.end - batch.rows.start;
        let elements = (batch.classes.end - batch.classes.start) * rows;
        // Copies are of whole words; 16-bit types have two values in a word.
        let element_bytes = (elements * problem.size).next_multiple_of(4);
        let operand_bytes = (elements * problem.operand_bytes).next_multiple_of(4);
        let target_bytes = if operands.targets.is_empty() { operand_bytes } else { rows * 4 };
        let upstream_bytes =
            if operands.coefficients.row_upstream.is_some() { rows * 4 } else { 0 };
        let is_saved = operands.log_sum_exps.is_some() && element_bytes > 0;
        let value_bytes = if batch.writes_rows || is_saved { problem.bytes_of_a_row() } else { 0 };
        let array = |bytes: u64, is_written, is_read| match bytes {
            0 => Ok(None),
            bytes => StagedArray::new(self.context, bytes, is_written, is_read).map(Some),
        };
        Ok(Arrays {
            elements: array(element_bytes, true, batch.writes_elements)?,
            targets: array(target_bytes, true, false)?,
            row_upstream: array(upstream_bytes, true, false)?,
            rows_out: array(rows * value_bytes, is_saved, !is_saved)?,
        })
    }

    /// Writes the inputs of a part into its arrays, which are mapped. Call within error scopes.
    fn write_inputs(
        &self,
        request: &Request<'_>,
        batch: &Batch,
        arrays: &Arrays,
    ) -> Result<(), GpuError> {
        let operands = &request.operands;
        let classes = ranged(&batch.classes);
        let index = self.rows_of_batch(request, batch);
        if let Some(elements) = &arrays.elements {
            let (input, stride) = request.data.input();
            let size = self.prepared.problem.size as usize;
            elements.write(|mut view| {
                let mut at = 0;
                for (start, length) in
                    runs(request.shape, stride, self.rows_of(batch), classes.clone())
                {
                    view.slice(at..at + length * size).copy_from_slice(input.bytes(start, length));
                    at += length * size;
                }
            })?;
        }
        if let Some(targets) = &arrays.targets {
            targets.write(|view| match operands.elementwise() {
                None => put_classes(view, &operands.targets[index.clone()]),
                Some(values) => {
                    let shape = Shape::new(usize::MAX, request.classes(), request.shape.inner());
                    let places = runs(shape, shape.block(), index.clone(), classes);
                    // Targets are f32 on the device; an upstream gradient has the type of the
                    // logits.
                    let as_f32 = self.prepared.problem.op.has_targets();
                    put_values(view, values, places, as_f32);
                }
            })?;
        }
        if let (Some(array), Some(upstream)) =
            (&arrays.row_upstream, operands.coefficients.row_upstream)
        {
            array.write(|mut view| view.copy_from_slice(cast_slice(&upstream[index.clone()])))?;
        }
        if let (Some(array), Some(saved)) = (&arrays.rows_out, operands.log_sum_exps) {
            array.write(|mut view| put_f32(&mut view, 0, saved, index.start, index.len()))?;
        }
        Ok(())
    }

    /// Waits for a part, and writes its results to the outputs of the request.
    async fn land(&self, chunk: InFlight, request: &mut Request<'_>) -> Result<(), GpuError> {
        let Self { context, call, .. } = self;
        let InFlight { batch, arrays, params, submission, mapped } = chunk;
        context.poller.settle(Some(submission), mapped, *call).await?;
        // Nothing is written before wgpu has reported its errors: after one, the logits of a
        // request in place must be intact.
        let (elements, values) = context
            .guarded(|| {
                let elements = arrays.elements.as_ref().filter(|_| batch.writes_elements);
                let rows_out = arrays.rows_out.as_ref().filter(|array| array.is_read());
                Ok((
                    elements.map(StagedArray::view).transpose()?,
                    rows_out.map(StagedArray::view).transpose()?,
                ))
            })
            .await?;
        copy_out(request, self.first, &batch, elements, values);
        context.pool.give(arrays.into_buffers().chain([params]), call.half());
        Ok(())
    }
}

/// Returns the start and the length of each contiguous stretch of `classes` of `rows` in an array
/// whose blocks are `stride` apart, in the order in which a part holds them. `rows` are whole
/// blocks, or some columns of one.
pub(super) fn runs(
    shape: Shape,
    stride: usize,
    rows: Range<usize>,
    classes: Range<usize>,
) -> impl Iterator<Item = (usize, usize)> {
    let (inner, block) = (shape.inner(), shape.block());
    let (outer, column, width) = (rows.start / inner, rows.start % inner, rows.len());
    let (start, count, step, length) = if width < inner {
        (outer * stride + classes.start * inner + column, classes.len(), inner, width)
    } else if classes.len() < shape.classes() {
        // Only a single row is cut by classes.
        (outer * stride + classes.start * inner, width / inner, stride, classes.len() * inner)
    } else if stride == block {
        (outer * stride, 1, 0, width / inner * block)
    } else {
        (outer * stride, width / inner, stride, block)
    };
    (0..count).map(move |nth| (start + nth * step, length))
}

/// Writes the classes of targets.
fn put_classes(mut view: WriteOnly<'_, [u8]>, targets: &[RowTarget]) {
    for (nth, target) in targets.iter().enumerate() {
        view.slice(4 * nth..4 * nth + 4).copy_from_slice(&target.class.to_ne_bytes());
    }
}

/// Writes the values of `stretches`, as f32 or in their own type.
fn put_values(
    mut view: WriteOnly<'_, [u8]>,
    values: Elements<'_>,
    stretches: impl Iterator<Item = (usize, usize)>,
    as_f32: bool,
) {
    let size = if as_f32 { 4 } else { values.dtype().size() };
    let mut at = 0;
    for (start, length) in stretches {
        if as_f32 {
            put_f32(&mut view, at, values, start, length);
        } else {
            view.slice(at..at + size * length).copy_from_slice(values.bytes(start, length));
        }
        at += size * length;
    }
}

/// Writes `length` values from `start` on as f32, to byte `at` of `view`.
fn put_f32(
    view: &mut WriteOnly<'_, [u8]>,
    at: usize,
    values: Elements<'_>,
    start: usize,
    length: usize,
) {
    if let Elements::F32(values) = values {
        return view
            .slice(at..at + 4 * length)
            .copy_from_slice(cast_slice(&values[start..start + length]));
    }
    for nth in 0..length {
        let place = at + 4 * nth;
        view.slice(place..place + 4)
            .copy_from_slice(&(values.at(start + nth) as f32).to_ne_bytes());
    }
}

/// Copies the results of a part to the request, and drops the views.
fn copy_out(
    request: &mut Request<'_>,
    first: usize,
    batch: &Batch,
    elements: Option<BufferView>,
    values: Option<BufferView>,
) {
    let (rows, classes) = (ranged(&batch.rows), ranged(&batch.classes));
    let rows = first + rows.start..first + rows.end;
    if let Some(values) = values {
        match &mut request.rows_out {
            RowsOut::Values(ElementsMut::F32(out)) => read_into(&mut out[rows.clone()], &values),
            RowsOut::Predictions(out, each) => {
                read_into(&mut out[rows.start * *each..rows.end * *each], &values)
            }
            RowsOut::None | RowsOut::Values(_) => {}
        }
        recompute_near_zero(request, rows.clone());
    }
    let Some(elements) = elements else { return };
    let (shape, size) = (request.shape, request.dtype().size());
    let Some((mut output, stride)) = request.output() else { return };
    let mut at = 0;
    for (start, length) in runs(shape, stride, rows, classes) {
        output.bytes(start, length).copy_from_slice(&elements[at..at + length * size]);
        at += length * size;
    }
}

/// Recomputes in float64 the log-sum-exps within 0.5 of 0, where the row maximum and the logarithm
/// cancel.
fn recompute_near_zero(request: &mut Request<'_>, rows: Range<usize>) {
    let (Op::LogSumExp, RowsOut::Values(ElementsMut::F32(out))) =
        (request.op, &mut request.rows_out)
    else {
        return;
    };
    let (input, stride) = request.data.input();
    let (shape, transform, first) = (request.shape, request.operands.transform, rows.start);
    cpu::for_each(&mut out[rows], &|nth, value| {
        if value.abs() < 0.5 {
            let (at, mut row) = (first + nth, Vec::new());
            // One row is a column of width 1, whatever the layout.
            for (start, length) in runs(shape, stride, at..at + 1, 0..shape.classes()) {
                row.extend((start..start + length).map(|place| input.at(place) as f32));
            }
            *value = cpu::exact_log_sum_exp(&row, &transform);
        }
    });
}

fn ranged(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}
