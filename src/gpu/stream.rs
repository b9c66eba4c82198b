//! Batches in host memory: uploaded, computed and read back in parts, two of them in flight, within a bound of device
//! memory.

use std::collections::VecDeque;

use bytemuck::cast_slice;
use wgpu::{Buffer, BufferUsages, BufferView, CommandEncoderDescriptor, ComputePassDescriptor, WriteOnly};

use super::context::{Gpu, Open};
use super::fault::Fault;
use super::port::{Port, read_into};
use super::record::{Buffers, Part, Scale, Scratch};
use super::wait::{Mapped, Waiting};
use crate::error::try_vec;
use crate::job::{Data, Job, Op, RowsOut};
use crate::plan::{Batch, Limits, Plan, Work};
use crate::settings::Settings;
use crate::{Error, cpu};

/// Parts that are on their way at the same time.
const IN_FLIGHT: usize = 2;
/// Copies of a part that the device's memory holds: the logits, which results overwrite, and both ways of staging.
const COPIES: u64 = 3;
/// Bytes beside the logits that a row takes at most: its label, its results, and their staging.
const BESIDE: u64 = 2 * (4 + 8);
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
    labels: Option<Port>,
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
        let open = self.current().await.map_err(|error| Failed { error, rows_done: 0 })?;
        // Parts may have to be bound from before where they start.
        let bytes = (job.rows() * job.classes() * 4) as u64 + Scratch::ALIGNMENT;
        let logits = job.classes() as u64 * 4;
        let affordable = u128::from(settings.half()) * u128::from(logits)
            / u128::from(IN_FLIGHT as u64 * (COPIES * logits + BESIDE));
        let affordable = u64::try_from(affordable).unwrap_or(u64::MAX);
        let affordable = affordable.max(Plan::LEAST_BINDING + Scratch::ALIGNMENT).min(open.limits.binding_bytes);
        let row = logits + Scratch::ALIGNMENT;
        // Never below a row for the sake of overlap: one that is cut must be uploaded twice.
        let small = SMALL_PART + Scratch::ALIGNMENT;
        // Where host and device share memory they share a cache too, and a small part is still in it when it is computed.
        let part = if open.maps_storage { small } else { small.max(bytes / 4) };
        let part = part.max(row).min(affordable);
        let is_in_place = matches!(job.data, Data::Over { .. });
        if !is_in_place || (!whole && row <= affordable) {
            return open.in_parts(job, part, settings, waiting).await;
        }
        // Results of a single part are written when all is done, so nothing needs to be kept apart.
        if bytes <= affordable {
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
    let mut staged: Vec<f32> = try_vec("the staged result", job.rows() * job.classes())?;
    let (input, stride) = job.input();
    let mut apart = Job {
        op: job.op,
        shape: job.shape,
        data: Data::Write { input, stride, output: &mut staged },
        targets: job.targets,
        scaling: job.scaling,
        rows_out: RowsOut::None,
    };
    // Losses go to memory of ours and may be written twice.
    let mut losses: Vec<f32> = Vec::new();
    if let RowsOut::Values(values) = &job.rows_out {
        losses = try_vec("losses", values.len())?;
        apart.rows_out = RowsOut::Values(&mut losses);
    }
    let note = open.in_parts(&mut apart, part, settings, waiting).await.map_err(|failed| failed.error)?;
    if let RowsOut::Values(values) = &mut job.rows_out {
        values.copy_from_slice(&losses);
    }
    let classes = job.classes();
    if let Some((output, stride)) = job.output() {
        for (row, result) in output.chunks_mut(stride).zip(staged.chunks_exact(classes)) {
            row[..classes].copy_from_slice(result);
        }
    }
    Ok(note)
}

impl Open {
    /// Runs a job in parts of about so many bytes, or of less where memory is short.
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
                Err(fault) if fault.out_of_memory && part / 2 > Plan::LEAST_BINDING => {
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
        let stream = Stream::new(self, job, *done, part, settings, waiting).await?;
        let mut batches = stream.plan.batches();
        let mut flights: VecDeque<Flight> = VecDeque::new();
        let mut failed = None;
        loop {
            if failed.is_none() && flights.len() < IN_FLIGHT {
                if let Some(batch) = batches.next() {
                    match stream.launch(job, batch).await {
                        Ok(flight) => flights.push_back(flight),
                        // What is on its way may still arrive.
                        Err(fault) => failed = Some(fault),
                    }
                    continue;
                }
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
                *done = job.rows();
                Ok(())
            }
        }
    }
}

impl<'s> Stream<'s> {
    async fn new(
        open: &'s Open,
        job: &Job<'_>,
        first: usize,
        part: u64,
        settings: Settings,
        waiting: Waiting,
    ) -> Result<Self, Fault> {
        let rows = (job.rows() - first) as u64;
        let (classes, weighted) = (job.classes() as u64, job.scaling.weight.is_some());
        let work = Work { op: job.op, rows, classes, weighted, count: false, sum: false };
        let part_bytes = part.max(Plan::LEAST_BINDING).min(open.limits.buffer_bytes);
        let plan = Plan::new(work, Limits { part_bytes, ..open.limits }).map_err(|why| Fault::new(why.to_string()))?;
        let scale = Scale::given(job.scaling);
        let (weights, scratch) = open
            .guarded(|| {
                let weights = match job.scaling.weight {
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
        let rows = (batch.rows.end - batch.rows.start) as usize;
        let element_bytes = (batch.classes.end - batch.classes.start) * rows as u64 * 4;
        let value_bytes = match job.rows_out {
            RowsOut::Predictions(_) => 8,
            RowsOut::Values(_) if batch.writes_rows => 4,
            RowsOut::Values(_) | RowsOut::None => 0,
        };
        let port = |bytes: u64, is_written, is_read| match bytes {
            0 => Ok(None),
            bytes => Port::new(open, bytes, is_written, is_read).map(Some),
        };
        let (elements, labels, rows_out, params, mapped) = open
            .guarded(|| {
                let elements = port(element_bytes, true, batch.writes_elements)?;
                let labels = port(if job.targets.is_empty() { 0 } else { rows as u64 * 4 }, true, false)?;
                let rows_out = port(rows as u64 * value_bytes, false, true)?;
                let params = Open::params_bytes(batch.passes.len());
                let params = open.pool.take(&open.device, Open::PARAMS_USAGE, params)?;
                let mapped = elements.iter().chain(&labels).filter_map(Port::map_for_writing).collect();
                Ok((elements, labels, rows_out, params, mapped))
            })
            .await?;
        open.poller.settle(None, mapped, settings.patience, waiting).await?;

        let targets = &job.targets[(self.first + batch.rows.start as usize).min(job.targets.len())..];
        let is_written = self.work.op.writes_elements();
        let (submission, mapped) = open
            .guarded(|| {
                if let Some(elements) = &elements {
                    elements.write(|view| copy_in(job, self.first, &batch, view))?;
                }
                if let Some(labels) = &labels {
                    labels.write(|mut view| {
                        for (nth, target) in targets.iter().take(rows).enumerate() {
                            view.slice(4 * nth..4 * nth + 4).copy_from_slice(&target.class.to_ne_bytes());
                        }
                    })?;
                }
                let part = elements.as_ref().map(Port::part);
                let (plan, partial_bytes) = (&self.plan, self.plan.partial_bytes());
                let bound = Buffers {
                    logits: if is_written { None } else { part },
                    targets: labels.as_ref().map(Port::part),
                    weights: self.weights.as_ref().map(|(buffer, bytes)| Part::whole(buffer, *bytes)),
                    elements: if is_written { part } else { None },
                    rows_out: rows_out.as_ref().map(Port::part),
                    summary: None,
                    scratch: Scratch { part: Part::whole(&self.scratch, Scratch::bytes(partial_bytes)), partial_bytes },
                };
                let (dispatches, contents) = open.bind(plan, self.work, &batch.passes, self.scale, &bound, &params);
                open.queue.write_buffer(&params, 0, &contents);

                let mut encoder =
                    open.device.create_command_encoder(&CommandEncoderDescriptor { label: Some("logits") });
                elements.iter().chain(&labels).for_each(|port| port.record_upload(&mut encoder));
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
        Ok(Flight { batch, elements, labels, rows_out, params, submission, mapped })
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
                Ok((elements.map(Port::view).transpose()?, flight.rows_out.as_ref().map(Port::view).transpose()?))
            })
            .await?;
        copy_out(job, self.first, &flight.batch, elements, values);

        let Flight { elements, labels, rows_out, params, .. } = flight;
        let ports = [elements, labels, rows_out].into_iter().flatten();
        open.pool.give(ports.flat_map(Port::into_buffers).chain([params]), settings.half());
        Ok(())
    }
}

/// The logits of a part, row after row.
fn copy_in(job: &Job<'_>, first: usize, batch: &Batch, mut view: WriteOnly<'_, [u8]>) {
    let (input, stride) = job.input();
    let (rows, classes) = (ranged(&batch.rows), ranged(&batch.classes));
    if classes.len() == stride {
        let start = (first + rows.start) * stride;
        view.copy_from_slice(cast_slice(&input[start..start + rows.len() * stride]));
        return;
    }
    let bytes = classes.len() * 4;
    for (nth, row) in rows.enumerate() {
        let start = (first + row) * stride + classes.start;
        view.slice(nth * bytes..(nth + 1) * bytes).copy_from_slice(cast_slice(&input[start..start + classes.len()]));
    }
}

/// The results of a part. The views are gone afterwards.
fn copy_out(job: &mut Job<'_>, first: usize, batch: &Batch, elements: Option<BufferView>, values: Option<BufferView>) {
    let (rows, classes) = (ranged(&batch.rows), ranged(&batch.classes));
    let rows = first + rows.start..first + rows.end;
    if let Some(values) = values {
        match &mut job.rows_out {
            RowsOut::None => {}
            RowsOut::Values(out) => read_into(&mut out[rows.clone()], &values),
            RowsOut::Predictions(out) => read_into(&mut out[rows.clone()], &values),
        }
        sharpen(job, rows.clone());
    }
    let Some(elements) = elements else { return };
    let Some((output, stride)) = job.output() else { return };
    if classes.len() == stride {
        read_into(&mut output[rows.start * stride..rows.end * stride], &elements);
        return;
    }
    for (row, result) in rows.zip(elements.chunks_exact(classes.len() * 4)) {
        let start = row * stride + classes.start;
        read_into(&mut output[start..start + classes.len()], result);
    }
}

/// Next to 0 the two terms of a log-sum-exp cancel, and f32 pairs are no longer enough.
fn sharpen(job: &mut Job<'_>, rows: std::ops::Range<usize>) {
    let classes = job.classes();
    if let (Op::LogSumExp, Data::Read { input, stride }, RowsOut::Values(out)) = (job.op, &job.data, &mut job.rows_out)
    {
        for row in rows.filter(|&row| out[row].abs() < 0.5).collect::<Vec<_>>() {
            out[row] = cpu::exact_log_sum_exp(&input[row * stride..][..classes]);
        }
    }
}

fn ranged(range: &std::ops::Range<u64>) -> std::ops::Range<usize> {
    range.start as usize..range.end as usize
}
