//! Batches in host memory: uploaded, computed and read back in parts, two of them in flight, within a bound of device
//! memory.

use std::collections::VecDeque;
use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use wgpu::{Buffer, BufferUsages, BufferView, CommandEncoderDescriptor, ComputePassDescriptor, WriteOnly};

use super::context::{Gpu, Open};
use super::failure::Fault;
use super::staging::{Port, read_into};
use super::bind::{Buffers, Part, Scale, Scratch};
use super::wait::{Mapped};
use crate::problem::waiting::Waiting;
use crate::problem::dtype::{Elements, ElementsMut};
use crate::problem::error::try_vec;
use crate::problem::operation::Op;
use crate::problem::request::{Data, Job, RowsOut};
use crate::plan::{Batch, Limits, Plan, Unplannable, Work};
use crate::problem::limits::Settings;
use crate::{Error, Shape, cpu};

/// Parts that are on their way at the same time.
const IN_FLIGHT: usize = 2;
/// Copies of a part that the device's memory holds: the logits, which results overwrite, and both ways of staging.
const COPIES: u64 = 3;
/// Bytes beside the logits and its results that a row takes at most: its label and its gradient, and their staging.
const BESIDE: u64 = 2 * (4 + 4);
/// Parts are not made smaller than this only to have several in flight.
const SMALL_PART: u64 = 8 << 20;

/// An attempt that failed: so many of the first rows have their results, and the others' logits are intact.
pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) rows_done: usize,
}

/// A part on its way.
struct Flight {
    batch: Batch,
    /// Logits, and results over them.
    elements: Option<Port>,
    targets: Option<Port>,
    row_gradients: Option<Port>,
    rows_out: Option<Port>,
    params: Buffer,
    submission: wgpu::SubmissionIndex,
    mapped: Vec<Mapped>,
}

/// What the parts of a job have in common.
struct Stream<'s> {
    open: &'s Open,
    plan: Plan,
    work: Work,
    /// The job's row that the plan's first one is.
    first: usize,
    settings: Settings,
    waiting: Waiting,
    weights: Option<(Buffer, u64)>,
    scratch: Buffer,
    scale: Scale,
}

impl Gpu {
    /// Runs a job over memory of the host; what was done in another way than asked is told. With `whole`, logits of a job
    /// in place are intact after a failure, all of them.
    pub(crate) async fn run(
        &self,
        job: &mut Job<'_>,
        whole: bool,
        settings: Settings,
        waiting: Waiting,
    ) -> Result<Option<String>, Failed> {
        #[cfg(target_arch = "wasm32")]
        if waiting == Waiting::Here {
            return Err(Failed { error: crate::problem::waiting::must_not_wait(self.name()), rows_done: 0 });
        }
        let open = self.current().await.map_err(|error| Failed { error, rows_done: 0 })?;
        // Parts may have to be bound from before where they start.
        let work = work_of(job, job.rows(), job.shape.inner());
        let logits = work.classes * work.size;
        let bytes = work.rows * logits + Scratch::ALIGNMENT;
        let second = 2 * work.second * work.classes;
        let row_bytes = COPIES * logits + second + 2 * work.bytes_of_a_row() + BESIDE;
        let affordable = u128::from(settings.half()) * u128::from(logits) / u128::from(IN_FLIGHT as u64 * row_bytes);
        let affordable = u64::try_from(affordable).unwrap_or(u64::MAX);
        let affordable = affordable.max(Plan::LEAST_BINDING + Scratch::ALIGNMENT).min(open.limits.binding_bytes);
        let row = logits + Scratch::ALIGNMENT;
        // Never below a row for the sake of overlap: one that is cut must be uploaded twice.
        let small = SMALL_PART + Scratch::ALIGNMENT;
        // Where host and device share memory they share a cache too, and a small part is still in it when it is computed.
        let part = if open.maps_storage { small } else { small.max(bytes / 4) };
        let part = part.max(row).min(affordable);
        // A cut row is written piece by piece. After its first piece its logits are gone, and it cannot be computed again.
        if !is_in_place(job) || (!whole && open.lands_whole_rows(job, part)) {
            return open.in_parts(job, part, settings, waiting).await;
        }
        // Results of a single part are written when all is done, so nothing needs to be kept apart.
        if bytes <= affordable && open.plan(work, bytes).is_ok_and(|plan| plan.batches().nth(1).is_none()) {
            match open.stream(job, &mut 0, bytes, settings, waiting).await {
                Ok(()) => return Ok(None),
                Err(fault) if fault.out_of_memory => open.pool.clear(),
                Err(fault) => return Err(Failed { error: open.error(fault), rows_done: 0 }),
            }
        }
        keeping_logits(&open, job, part, settings, waiting).await.map_err(|error| Failed { error, rows_done: 0 })
    }
}

/// Runs a job in place by way of other memory, so that one which fails half-way has not touched the caller's logits.
async fn keeping_logits(
    open: &Open,
    job: &mut Job<'_>,
    part: u64,
    settings: Settings,
    waiting: Waiting,
) -> Result<Option<String>, Error> {
    let bytes = job.rows() * job.classes() * job.dtype().size();
    // Of a type that is aligned as the widest is.
    let mut staged: Vec<f64> = try_vec("the staged result", bytes.div_ceil(size_of::<f64>()))?;
    let staged = &mut cast_slice_mut(&mut staged)[..bytes];
    let output = match job.data.input().0 {
        Elements::F32(_) => ElementsMut::F32(cast_slice_mut(staged)),
        Elements::F16(_) => ElementsMut::F16(cast_slice_mut(staged)),
        Elements::BF16(_) => ElementsMut::BF16(cast_slice_mut(staged)),
        Elements::F64(_) => ElementsMut::F64(cast_slice_mut(staged)),
    };
    let (input, stride) = job.data.input();
    let mut apart = Job {
        op: job.op,
        shape: job.shape,
        data: Data::Write { input, stride, output },
        given: job.given,
        first_row: job.first_row,
        skip: job.skip,
        rows_out: RowsOut::None,
    };
    // Losses go to memory of ours and may be written twice.
    let mut losses: Vec<f32> = Vec::new();
    if let RowsOut::Values(values) = &job.rows_out {
        losses = try_vec("losses", values.len())?;
        apart.rows_out = RowsOut::Values(ElementsMut::F32(&mut losses));
    }
    let note = open.in_parts(&mut apart, part, settings, waiting).await.map_err(|failed| failed.error)?;
    if let RowsOut::Values(ElementsMut::F32(values)) = &mut job.rows_out {
        values.copy_from_slice(&losses);
    }
    let (shape, size) = (job.shape, job.dtype().size());
    let whole = 0..shape.row_count();
    if let Some((mut output, stride)) = job.output() {
        let mut from = 0;
        for (start, length) in runs(shape, stride, whole, 0..shape.classes()) {
            output.bytes(start, length).copy_from_slice(&staged[from * size..(from + length) * size]);
            from += length;
        }
    }
    Ok(note)
}

/// Whether results take the place of the logits.
fn is_in_place(job: &Job<'_>) -> bool {
    matches!(job.data, Data::Over { .. })
}

/// What a plan is to know of some rows of a job, in blocks of `inner`.
fn work_of(job: &Job<'_>, rows: usize, inner: usize) -> Work {
    let second = job.op.operand_bytes(job.dtype(), job.given.second.is_some());
    Work {
        size: job.dtype().size() as u64,
        second,
        heavy: job.given.is_heavy(job.op, second),
        predictions: job.given.k as u64,
        weighted: job.given.scaling.weight.is_some(),
        ..Work::dense(job.op, rows as u64, job.classes() as u64).in_blocks(inner as u64)
    }
}

impl Open {
    /// The plan for parts of about so many bytes.
    fn plan(&self, work: Work, part: u64) -> Result<Plan, Unplannable> {
        let part_bytes = part.max(Plan::LEAST_BINDING).min(self.limits.buffer_bytes);
        Plan::new(work, Limits { part_bytes, ..self.limits })
    }

    /// Whether no row is cut where parts have so many bytes; that is the same for all rows of a job.
    fn lands_whole_rows(&self, job: &Job<'_>, part: u64) -> bool {
        let work = work_of(job, job.rows(), job.shape.inner());
        self.plan(work, part).is_ok_and(|plan| !plan.cuts_rows())
    }

    /// Runs a job in parts of about so many bytes, or of less where memory is short. In place, every row that is not done keeps its
    /// logits, so there a part is never smaller than a row.
    async fn in_parts(
        &self,
        job: &mut Job<'_>,
        mut part: u64,
        settings: Settings,
        waiting: Waiting,
    ) -> Result<Option<String>, Failed> {
        let mut rows_done = 0;
        let mut note = None;
        loop {
            match self.stream(job, &mut rows_done, part, settings, waiting).await {
                Ok(()) => return Ok(note),
                Err(fault)
                    if fault.out_of_memory
                        && part / 2 > Plan::LEAST_BINDING
                        && (!is_in_place(job) || self.lands_whole_rows(job, part / 2)) =>
                {
                    part /= 2;
                    note = Some(format!("{}; finished in parts of {} KiB", fault.reason, part >> 10));
                    self.pool.clear();
                }
                Err(fault) => return Err(Failed { error: self.error(fault), rows_done }),
            }
        }
    }

    /// Runs the rows from `done` on in parts of about `part` bytes, and keeps `done` up to date.
    async fn stream(
        &self,
        job: &mut Job<'_>,
        done: &mut usize,
        part: u64,
        settings: Settings,
        waiting: Waiting,
    ) -> Result<(), Fault> {
        let inner = job.shape.inner();
        while *done < job.rows() {
            // What an earlier attempt has left of a block is one of its own.
            let of_block = *done % inner;
            let (rows, inner) =
                if of_block == 0 { (job.rows() - *done, inner) } else { (inner - of_block, inner - of_block) };
            let work = work_of(job, rows, inner);
            self.stretch(job, work, done, part, settings, waiting).await?;
        }
        Ok(())
    }

    async fn stretch(
        &self,
        job: &mut Job<'_>,
        work: Work,
        done: &mut usize,
        part: u64,
        settings: Settings,
        waiting: Waiting,
    ) -> Result<(), Fault> {
        let end_of_all = *done + work.rows as usize;
        let stream = Stream::new(self, job, work, *done, part, settings, waiting).await?;
        let mut batches = stream.plan.batches();
        let mut flights: VecDeque<Flight> = VecDeque::new();
        let mut failed = None;
        loop {
            if failed.is_none()
                && flights.len() < IN_FLIGHT
                && let Some(batch) = batches.next()
            {
                match stream.launch(job, batch).await {
                    Ok(flight) => flights.push_back(flight),
                    // What is on its way may still arrive.
                    Err(fault) => failed = Some(fault),
                }
                continue;
            }
            let Some(flight) = flights.pop_front() else { break };
            let end = stream.first + flight.batch.rows.end as usize;
            stream.land(flight, job).await?;
            if !stream.plan.cuts_rows() {
                *done = end;
            }
        }
        let Stream { weights, scratch, .. } = stream;
        self.pool.give(weights.map(|(buffer, _)| buffer).into_iter().chain([scratch]), settings.half());
        match failed {
            Some(fault) => Err(fault),
            None => {
                *done = end_of_all;
                Ok(())
            }
        }
    }
}

impl<'s> Stream<'s> {
    async fn new(
        open: &'s Open,
        job: &Job<'_>,
        work: Work,
        first: usize,
        part: u64,
        settings: Settings,
        waiting: Waiting,
    ) -> Result<Self, Fault> {
        let plan = open.plan(work, part).map_err(|why| Fault::new(why.to_string()))?;
        let scale = Scale::given(job.dtype(), &job.given);
        let (weights, scratch) = open
            .guarded(|| {
                let weights = match job.given.scaling.weight {
                    Some(weight) => {
                        Some((open.filled(BufferUsages::STORAGE, cast_slice(weight))?, size_of_val(weight) as u64))
                    }
                    None => None,
                };
                let bytes = Scratch::bytes(plan.partial_bytes());
                Ok((weights, open.pool.take(&open.device, BufferUsages::STORAGE, bytes)?))
            })
            .await?;
        Ok(Self { open, plan, work, first, settings, waiting, weights, scratch, scale })
    }

    /// Puts a part on its way.
    async fn launch(&self, job: &Job<'_>, batch: Batch) -> Result<Flight, Fault> {
        let Self { open, settings, waiting, .. } = *self;
        let here = self.first + batch.rows.start as usize..self.first + batch.rows.end as usize;
        let classes = ranged(&batch.classes);
        let rows = here.len();
        let elements_here = (classes.len() * rows) as u64;
        // Halves come in words.
        let element_bytes = (elements_here * self.work.size).next_multiple_of(4);
        let given = &job.given;
        let index = job.first_row + here.start..job.first_row + here.end;
        let saved = given.log_sum_exps.filter(|_| element_bytes > 0);
        let value_bytes = if batch.writes_rows || saved.is_some() { self.work.bytes_of_a_row() } else { 0 };
        let port = |bytes: u64, is_written, is_read| match bytes {
            0 => Ok(None),
            bytes => Port::new(open, bytes, is_written, is_read).map(Some),
        };
        let second_bytes = (elements_here * self.work.second).next_multiple_of(4);
        let target_bytes = if given.targets.is_empty() { second_bytes } else { rows as u64 * 4 };
        let gradient_bytes = if given.scaling.row_gradients.is_some() { rows as u64 * 4 } else { 0 };
        let (elements, targets, row_gradients, rows_out, params, mapped) = open
            .guarded(|| {
                let elements = port(element_bytes, true, batch.writes_elements)?;
                let targets = port(target_bytes, true, false)?;
                let row_gradients = port(gradient_bytes, true, false)?;
                let rows_out = port(rows as u64 * value_bytes, saved.is_some(), saved.is_none())?;
                let params = Open::params_bytes(batch.passes.len());
                let params = open.pool.take(&open.device, Open::PARAMS_USAGE, params)?;
                let written = elements.iter().chain(&targets).chain(&row_gradients).chain(&rows_out);
                let mapped = written.filter_map(Port::map_for_writing).collect();
                Ok((elements, targets, row_gradients, rows_out, params, mapped))
            })
            .await?;
        open.poller.settle(None, mapped, settings.patience, waiting).await?;

        let is_written = self.work.op.spec().writes_elements;
        let (submission, mapped) = open
            .guarded(|| {
                if let Some(elements) = &elements {
                    let (input, stride) = job.data.input();
                    let size = self.work.size as usize;
                    elements.write(|mut view| {
                        let mut at = 0;
                        for (start, length) in runs(job.shape, stride, here.clone(), classes.clone()) {
                            view.slice(at..at + length * size).copy_from_slice(input.bytes(start, length));
                            at += length * size;
                        }
                    })?;
                }
                if let Some(targets) = &targets {
                    targets.write(|mut view| match given.second {
                        None => {
                            for (slot, target) in given.targets[index.clone()].iter().enumerate() {
                                view.slice(4 * slot..4 * slot + 4).copy_from_slice(&target.class.to_ne_bytes());
                            }
                        }
                        Some(second) => {
                            let shape = Shape::new(usize::MAX, job.classes(), job.shape.inner());
                            let mut at = 0;
                            for (start, length) in runs(shape, shape.block(), index.clone(), classes.clone()) {
                                if !self.work.op.has_targets() {
                                    let size = self.work.second as usize;
                                    view.slice(at..at + size * length).copy_from_slice(second.bytes(start, length));
                                    at += size * length;
                                } else {
                                    put_f32(&mut view, at, second, start, length);
                                    at += 4 * length;
                                }
                            }
                        }
                    })?;
                }
                if let (Some(port), Some(gradients)) = (&row_gradients, given.scaling.row_gradients) {
                    port.write(|mut view| view.copy_from_slice(cast_slice(&gradients[index.clone()])))?;
                }
                if let (Some(port), Some(saved)) = (&rows_out, saved) {
                    port.write(|mut view| put_f32(&mut view, 0, saved, index.start, index.len()))?;
                }
                let part = elements.as_ref().map(Port::part);
                let (plan, partial_bytes) = (&self.plan, self.plan.partial_bytes());
                let bound = Buffers {
                    first_row: index.start,
                    logits: if is_written { None } else { part },
                    targets: targets.as_ref().map(Port::part),
                    row_gradients: row_gradients.as_ref().map(Port::part),
                    weights: self.weights.as_ref().map(|(buffer, bytes)| Part::whole(buffer, *bytes)),
                    elements: if is_written { part } else { None },
                    rows_out: rows_out.as_ref().map(Port::part),
                    summary: None,
                    scratch: Scratch { part: Part::whole(&self.scratch, Scratch::bytes(partial_bytes)), partial_bytes },
                };
                // A part has gaps no more, and of a block that is cut it has a narrower one.
                let work = self.work.in_blocks(batch.inner);
                let (dispatches, contents) = open.bind(plan, work, &batch.passes, self.scale, &bound, &params);
                open.queue.write_buffer(&params, 0, &contents);

                let mut encoder =
                    open.device.create_command_encoder(&CommandEncoderDescriptor { label: Some("logits") });
                let written = elements.iter().chain(&targets).chain(&row_gradients).chain(&rows_out);
                written.for_each(|port| port.record_upload(&mut encoder));
                {
                    let descriptor = ComputePassDescriptor { label: Some("logits"), timestamp_writes: None };
                    let mut pass = encoder.begin_compute_pass(&descriptor);
                    dispatches.iter().for_each(|dispatch| dispatch.record(&mut pass));
                }
                elements.iter().chain(&rows_out).for_each(|port| port.record_readback(&mut encoder));
                let submission = open.queue.submit([encoder.finish()]);
                let mapped = elements.iter().chain(&rows_out).filter_map(Port::map_for_reading).collect();
                Ok((submission, mapped))
            })
            .await?;
        Ok(Flight { batch, elements, targets, row_gradients, rows_out, params, submission, mapped })
    }

    /// Waits for a part, and writes its results to where the job wants them.
    async fn land(&self, mut flight: Flight, job: &mut Job<'_>) -> Result<(), Fault> {
        let Self { open, settings, waiting, .. } = *self;
        let mapped = std::mem::take(&mut flight.mapped);
        open.poller.settle(Some(flight.submission.clone()), mapped, settings.patience, waiting).await?;
        // Nothing is written before the last error that wgpu could report has had its chance: an in-place job's logits
        // may still be wanted.
        let (elements, values) = open
            .guarded(|| {
                let elements = flight.elements.as_ref().filter(|_| flight.batch.writes_elements);
                let rows_out = flight.rows_out.as_ref().filter(|port| port.is_read());
                Ok((elements.map(Port::view).transpose()?, rows_out.map(Port::view).transpose()?))
            })
            .await?;
        copy_out(job, self.first, &flight.batch, elements, values);

        let Flight { elements, targets, row_gradients, rows_out, params, .. } = flight;
        let ports = [elements, targets, row_gradients, rows_out].into_iter().flatten();
        open.pool.give(ports.flat_map(Port::into_buffers).chain([params]), settings.half());
        Ok(())
    }
}

/// Where some classes of some rows are in an array whose blocks are so far apart, as stretches without gaps, in the order in
/// which a part holds them: rows are whole blocks, or some columns of one.
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
        // Only ever of a single row.
        (outer * stride + classes.start * inner, width / inner, stride, classes.len() * inner)
    } else if stride == block {
        (outer * stride, 1, 0, width / inner * block)
    } else {
        (outer * stride, width / inner, stride, block)
    };
    (0..count).map(move |nth| (start + nth * step, length))
}

/// Writes values as f32.
fn put_f32(view: &mut WriteOnly<'_, [u8]>, at: usize, values: Elements<'_>, start: usize, length: usize) {
    if let Elements::F32(values) = values {
        return view.slice(at..at + 4 * length).copy_from_slice(cast_slice(&values[start..start + length]));
    }
    for nth in 0..length {
        let place = at + 4 * nth;
        view.slice(place..place + 4).copy_from_slice(&(values.at(start + nth) as f32).to_ne_bytes());
    }
}

/// The results of a part. The views are gone afterwards.
fn copy_out(job: &mut Job<'_>, first: usize, batch: &Batch, elements: Option<BufferView>, values: Option<BufferView>) {
    let (rows, classes) = (ranged(&batch.rows), ranged(&batch.classes));
    let rows = first + rows.start..first + rows.end;
    if let Some(values) = values {
        match &mut job.rows_out {
            RowsOut::Values(ElementsMut::F32(out)) => read_into(&mut out[rows.clone()], &values),
            RowsOut::Predictions(out, each) => read_into(&mut out[rows.start * *each..rows.end * *each], &values),
            RowsOut::None | RowsOut::Values(_) => {}
        }
        sharpen(job, rows.clone());
    }
    let Some(elements) = elements else { return };
    let (shape, size) = (job.shape, job.dtype().size());
    let Some((mut output, stride)) = job.output() else { return };
    let mut at = 0;
    for (start, length) in runs(shape, stride, rows, classes) {
        output.bytes(start, length).copy_from_slice(&elements[at..at + length * size]);
        at += length * size;
    }
}

/// Next to 0 the two terms of a log-sum-exp cancel, and f32 pairs are no longer enough.
fn sharpen(job: &mut Job<'_>, rows: Range<usize>) {
    let (Op::LogSumExp, RowsOut::Values(ElementsMut::F32(out))) = (job.op, &mut job.rows_out) else { return };
    let (input, stride) = job.data.input();
    let (shape, curve, first) = (job.shape, job.given.curve, rows.start);
    cpu::for_each(&mut out[rows], &|nth, value| {
        if value.abs() < 0.5 {
            let (at, mut row) = (first + nth, Vec::new());
            // Rows are cut into columns of one here, whatever their layout.
            for (start, length) in runs(shape, stride, at..at + 1, 0..shape.classes()) {
                row.extend((start..start + length).map(|place| input.at(place) as f32));
            }
            *value = cpu::exact_log_sum_exp(&row, &curve);
        }
    });
}

fn ranged(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}
