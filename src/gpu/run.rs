//! Running a job: rows in chunks that fit the adapter, each uploaded, dispatched and read back.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable, cast_slice};
use wgpu::{BindGroup, BindingResource, Buffer, BufferBinding, BufferUsages, ComputePipeline, MapMode, PollType};

use super::Gpu;
use crate::error::try_vec;
use crate::job::{Data, Job, Op, RowsOut};
use crate::plan::Plan;
use crate::{Error, cpu};

/// How long a submission may take before the GPU counts as hung.
const PATIENCE: Duration = Duration::from_secs(300);

/// The uniform of `shaders/shared/bindings.wgsl`, padded to a multiple of 16 bytes.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    rows: u32,
    classes: u32,
    segments: u32,
    nan: u32,
    negative_infinity: u32,
    zero: u32,
    padding: [u32; 2],
}

/// The buffers of one chunk, and the commands over them.
struct Chunk {
    params: Buffer,
    logits: Buffer,
    targets: Option<Buffer>,
    elements: Option<Buffer>,
    rows_out: Option<Buffer>,
    partials: Option<Buffer>,
    spare_read: Buffer,
    spare_written: Buffer,
    group: BindGroup,
    dispatches: Vec<(ComputePipeline, [u32; 3])>,
    logits_bytes: u64,
    rows_bytes: u64,
}

/// A chunk that has run, its results mapped for reading.
struct Finished {
    chunk: Chunk,
    elements: Option<Buffer>,
    rows_out: Option<Buffer>,
}

impl Gpu {
    /// Runs a whole job. On an error the inputs, those of an in-place job too, are intact.
    pub(crate) fn run(&self, job: Job<'_>) -> Result<(), Error> {
        let plan = self.plan(&job)?;
        if plan.rows_per_chunk >= job.rows() {
            return self.run_chunk(&plan, job);
        }
        keeping_logits(job, |mut rest| {
            while rest.rows() > 0 {
                let (chunk, after) = rest.split_at(plan.rows_per_chunk);
                self.run_chunk(&plan, chunk)?;
                rest = after;
            }
            Ok(())
        })
    }

    /// Uploads one chunk for good, to be run there again and again.
    pub(crate) fn resident(self: &Gpu, job: Job<'_>) -> Result<Resident, Error> {
        let plan = self.plan(&job)?;
        let mut chunks = Vec::new();
        let mut rest = job;
        while rest.rows() > 0 {
            let (chunk, after) = rest.split_at(plan.rows_per_chunk);
            chunks.push(self.guarded(|| {
                let prepared = self.prepare(&plan, &chunk);
                self.upload(&prepared, &chunk);
                let copy = self.pool.take(
                    &self.device,
                    BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
                    prepared.logits_bytes,
                );
                Ok((prepared, copy))
            })?);
            rest = after;
        }
        Ok(Resident { device: self.device.clone(), queue: self.queue.clone(), name: self.name().to_owned(), chunks })
    }

    fn plan(&self, job: &Job<'_>) -> Result<Plan, Error> {
        Plan::new(job.shape, self.limits).map_err(|refused| {
            let (bytes, limit) = (refused.row_bytes, refused.limit);
            self.failed(format!("a row of {bytes} bytes is beyond the {limit} bytes that it can bind"))
        })
    }

    fn run_chunk(&self, plan: &Plan, job: Job<'_>) -> Result<(), Error> {
        // Nothing is written before the last error that wgpu could report has had its chance: an in-place job's logits
        // may still be wanted.
        let Finished { chunk, elements, rows_out } = self.guarded(|| self.compute(plan, &job))?;
        let view = |buffer: &Option<Buffer>, bytes: u64| {
            let view = buffer.as_ref().map(|buffer| buffer.get_mapped_range(..bytes)).transpose();
            view.map_err(|error| self.failed(error.to_string()))
        };
        let elements_view = view(&elements, chunk.logits_bytes)?;
        let rows_view = view(&rows_out, chunk.rows_bytes)?;
        write_back(job, elements_view.as_deref(), rows_view.as_deref());
        drop((elements_view, rows_view));

        for buffer in [elements, rows_out].into_iter().flatten() {
            buffer.unmap();
            self.pool.give([buffer]);
        }
        self.pool.give(chunk.into_buffers());
        Ok(())
    }

    /// Everything up to the mapped results.
    fn compute(&self, plan: &Plan, job: &Job<'_>) -> Result<Finished, Error> {
        let chunk = self.prepare(plan, job);
        self.upload(&chunk, job);
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("logits") });
        chunk.record(&mut encoder);
        let mut back = |from: &Option<Buffer>, bytes: u64| {
            from.as_ref().map(|from| {
                let to = self.pool.take(&self.device, BufferUsages::MAP_READ | BufferUsages::COPY_DST, bytes);
                encoder.copy_buffer_to_buffer(from, 0, &to, 0, bytes);
                to
            })
        };
        let elements = back(&chunk.elements, chunk.logits_bytes);
        let rows_out = back(&chunk.rows_out, chunk.rows_bytes);
        let submission = self.queue.submit([encoder.finish()]);

        let (sender, receiver) = mpsc::channel();
        for (buffer, bytes) in [(&elements, chunk.logits_bytes), (&rows_out, chunk.rows_bytes)] {
            if let Some(buffer) = buffer {
                let sender = sender.clone();
                // Nobody listens any more once waiting has failed.
                buffer.map_async(MapMode::Read, ..bytes, move |result| drop(sender.send(result)));
            }
        }
        drop(sender);
        self.device
            .poll(PollType::Wait { submission_index: Some(submission), timeout: Some(PATIENCE) })
            .map_err(|error| self.failed(error.to_string()))?;
        for _ in elements.iter().chain(&rows_out) {
            match receiver.recv_timeout(PATIENCE) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.failed(error.to_string())),
                Err(_) => return Err(self.failed("results were never mapped")),
            }
        }
        Ok(Finished { chunk, elements, rows_out })
    }

    fn prepare(&self, plan: &Plan, job: &Job<'_>) -> Chunk {
        let rows = job.rows() as u32;
        let take = |usage, bytes| self.pool.take(&self.device, usage, bytes);
        let logits_bytes = (job.rows() * job.classes() * 4) as u64;
        let rows_bytes = match job.rows_out {
            RowsOut::None => 0,
            RowsOut::Values(_) => u64::from(rows) * 4,
            RowsOut::Predictions(_) => u64::from(rows) * 8,
        };
        let needed = |usage, bytes: u64| (bytes > 0).then(|| take(usage, bytes));
        let input = BufferUsages::STORAGE | BufferUsages::COPY_DST;
        let output = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
        let writes = !matches!(job.data, Data::Read { .. });

        let params = take(BufferUsages::UNIFORM | BufferUsages::COPY_DST, size_of::<Params>() as u64);
        let logits = take(input | BufferUsages::COPY_SRC, logits_bytes);
        let targets_bytes = size_of_val(job.targets) as u64;
        let targets = needed(input, targets_bytes);
        let elements = needed(output, if writes { logits_bytes } else { 0 });
        let rows_out = needed(output, rows_bytes);
        let partials = needed(BufferUsages::STORAGE, plan.partial_bytes(rows));
        // What a kernel does not use must be bound to something all the same; two writable ones may not overlap.
        let spare_read = take(input, 256);
        let spare_written = take(BufferUsages::STORAGE, 3 * 256);
        let group = {
            // Exactly what is needed: a pooled buffer may be larger than a binding may be.
            fn bound<'b>(
                buffer: Option<&'b Buffer>,
                bytes: u64,
                (spare, slot): (&'b Buffer, u64),
            ) -> BindingResource<'b> {
                let (buffer, offset, bytes) = match buffer {
                    Some(buffer) => (buffer, 0, bytes),
                    None => (spare, slot * 256, 256),
                };
                BindingResource::Buffer(BufferBinding { buffer, offset, size: wgpu::BufferSize::new(bytes) })
            }
            let entries = [
                bound(Some(&params), size_of::<Params>() as u64, (&spare_read, 0)),
                bound(Some(&logits), logits_bytes, (&spare_read, 0)),
                bound(targets.as_ref(), targets_bytes, (&spare_read, 0)),
                bound(elements.as_ref(), logits_bytes, (&spare_written, 0)),
                bound(rows_out.as_ref(), rows_bytes, (&spare_written, 1)),
                bound(partials.as_ref(), plan.partial_bytes(rows), (&spare_written, 2)),
            ];
            let entries: Vec<_> = entries
                .into_iter()
                .zip(0..)
                .map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource })
                .collect();
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("logits"),
                layout: &self.kernels.bindings,
                entries: &entries,
            })
        };
        let dispatches = plan
            .dispatches(job.op, rows)
            .into_iter()
            .map(|(entry, groups)| (self.kernels.pipeline(&self.device, job.op, plan.regime, entry), groups))
            .collect();

        let contents = Params {
            rows,
            classes: job.classes() as u32,
            segments: plan.regime.segments(),
            nan: f32::NAN.to_bits(),
            negative_infinity: f32::NEG_INFINITY.to_bits(),
            zero: 0,
            padding: [0; 2],
        };
        self.queue.write_buffer(&params, 0, bytemuck::bytes_of(&contents));
        Chunk {
            params,
            logits,
            targets,
            elements,
            rows_out,
            partials,
            spare_read,
            spare_written,
            group,
            dispatches,
            logits_bytes,
            rows_bytes,
        }
    }

    fn upload(&self, chunk: &Chunk, job: &Job<'_>) {
        let (input, stride): (&[f32], usize) = match &job.data {
            Data::Read { input, stride } | Data::Write { input, stride, .. } => (input, *stride),
            Data::Over { data, stride } => (data, *stride),
        };
        let classes = job.classes();
        if stride == classes {
            self.queue.write_buffer(&chunk.logits, 0, cast_slice(input));
        } else if let Some(mut view) = wgpu::BufferSize::new(chunk.logits_bytes)
            .and_then(|bytes| self.queue.write_buffer_with(&chunk.logits, 0, bytes))
        {
            // Rows are packed on the way. Without a view there is an error in the scope.
            for (row, x) in input.chunks(stride).enumerate() {
                let start = row * classes * 4;
                view.slice(start..start + classes * 4).copy_from_slice(cast_slice(&x[..classes]));
            }
        }
        if let Some(targets) = &chunk.targets {
            self.queue.write_buffer(targets, 0, cast_slice(job.targets));
        }
    }
}

/// Runs `work` so that an in-place job whose work fails half-way has still not touched the caller's logits.
fn keeping_logits(job: Job<'_>, work: impl FnOnce(Job<'_>) -> Result<(), Error>) -> Result<(), Error> {
    let (rows, classes) = (job.rows(), job.classes());
    let Job { op, shape, data, targets, rows_out } = job;
    let Data::Over { data, stride } = data else {
        return work(Job { op, shape, data, targets, rows_out });
    };
    let mut staged: Vec<f32> = try_vec("the staged result", rows * classes)?;
    work(Job { op, shape, data: Data::Write { input: data, stride, output: &mut staged }, targets, rows_out })?;
    for (row, result) in data.chunks_mut(stride).zip(staged.chunks_exact(classes)) {
        row[..classes].copy_from_slice(result);
    }
    Ok(())
}

impl Chunk {
    fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass =
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("logits"), timestamp_writes: None });
        for (pipeline, [x, y, z]) in &self.dispatches {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &self.group, &[]);
            pass.dispatch_workgroups(*x, *y, *z);
        }
    }

    fn into_buffers(self) -> impl Iterator<Item = Buffer> {
        [Some(self.params), Some(self.logits), self.targets, self.elements, self.rows_out, self.partials]
            .into_iter()
            .chain([Some(self.spare_read), Some(self.spare_written)])
            .flatten()
    }
}

fn write_back(job: Job<'_>, elements: Option<&[u8]>, rows: Option<&[u8]>) {
    let Job { op, shape, data, rows_out, .. } = job;
    let classes = shape.classes();
    match rows_out {
        RowsOut::None => {}
        RowsOut::Values(out) => {
            bytemuck::cast_slice_mut(out).copy_from_slice(rows.unwrap_or_default());
            if let (Op::LogSumExp, Data::Read { input, stride }) = (op, &data) {
                // Next to 0 the two terms of a log-sum-exp cancel, and f32 pairs are no longer enough.
                for (value, x) in out.iter_mut().zip(input.chunks(*stride)).filter(|(value, _)| value.abs() < 0.5) {
                    *value = cpu::exact_log_sum_exp(&x[..classes]);
                }
            }
        }
        RowsOut::Predictions(out) => bytemuck::cast_slice_mut(out).copy_from_slice(rows.unwrap_or_default()),
    }
    let elements = elements.unwrap_or_default();
    match data {
        Data::Read { .. } => {}
        Data::Write { output, .. } => bytemuck::cast_slice_mut(output).copy_from_slice(elements),
        Data::Over { data, stride } => {
            for (row, result) in data.chunks_mut(stride).zip(elements.chunks_exact(classes * 4)) {
                bytemuck::cast_slice_mut(&mut row[..classes]).copy_from_slice(result);
            }
        }
    }
}

/// Chunks that stay on the GPU, each with room for a copy of its logits.
pub(crate) struct Resident {
    device: wgpu::Device,
    queue: wgpu::Queue,
    name: String,
    chunks: Vec<(Chunk, Buffer)>,
}

impl Resident {
    /// Runs the operation over all chunks, and waits.
    pub(crate) fn operation(&self) -> Result<Duration, Error> {
        self.timed(|chunk, _, encoder| chunk.record(encoder))
    }

    /// Copies the logits of all chunks, and waits.
    pub(crate) fn copy(&self) -> Result<Duration, Error> {
        self.timed(|chunk, copy, encoder| encoder.copy_buffer_to_buffer(&chunk.logits, 0, copy, 0, chunk.logits_bytes))
    }

    fn timed(&self, record: impl Fn(&Chunk, &Buffer, &mut wgpu::CommandEncoder)) -> Result<Duration, Error> {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        for (chunk, copy) in &self.chunks {
            record(chunk, copy, &mut encoder);
        }
        let commands = encoder.finish();
        let start = Instant::now();
        let submission = self.queue.submit([commands]);
        self.device
            .poll(PollType::Wait { submission_index: Some(submission), timeout: Some(PATIENCE) })
            .map_err(|error| Error::Gpu { adapter: self.name.clone(), reason: error.to_string() })?;
        Ok(start.elapsed())
    }
}
