//! Data that stays on the device between calls.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::cast_slice;
use wgpu::{Buffer, BufferUsages, ComputePassDescriptor, MapMode};

use super::chunks::runs;
use super::context::{Gpu, GpuContext};
use super::failure::GpuError;
use super::interface::{DeviceOperands, Results};
use super::params::{KernelOptions, Summary};
use super::prepared::{Bound, Buffers, FilledBuffer, Part, Prepared};
use super::wait::{map, submitted};
use crate::ops::Op;
use crate::plan::{KernelProblem, Plan};
use crate::problem::dtype::Elements;
use crate::problem::error::try_vec;
use crate::problem::limits::CallLimits;
use crate::problem::operands::Operands;
use crate::{DType, Error, Shape, Traffic};

/// Bytes that go through staging at once.
const PIECE: u64 = 32 << 20;

/// Rows on the device, in as many buffers as needed.
#[derive(Clone, Debug)]
pub(crate) struct DeviceArray {
    pub(super) context: Arc<GpuContext>,
    pub(super) shape: Shape,
    pub(super) row_bytes: u64,
    /// Whether values belong to rows, in the order of the rows, and not to classes.
    of_rows: bool,
    /// Bytes of idle buffers that the pool may keep.
    pub(super) keep: u64,
    pub(super) chunks: Vec<Chunk>,
}

#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) rows: Range<usize>,
    pub(super) memory: Arc<PooledBuffer>,
}

/// A buffer that returns to the pool when its last handle is dropped. Submitted work may still use
/// it then: the next user's work comes later in the queue.
#[derive(Debug)]
pub(super) struct PooledBuffer {
    context: Arc<GpuContext>,
    pub(super) buffer: Buffer,
    /// Bytes of idle buffers that the pool may keep.
    keep: u64,
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        self.context.pool.give([self.buffer.clone()], self.keep);
    }
}

/// Targets on the device.
#[derive(Clone, Debug)]
pub(crate) struct DeviceTargets {
    /// Classes, one a row, or probabilities of the shape of the logits.
    targets: DeviceArray,
    row_upstream: Option<DeviceArray>,
    weights: Option<FilledBuffer>,
}

/// A function that appends the bytes of some rows.
type Bytes<'a> = &'a mut (dyn FnMut(Range<usize>, &mut Vec<u8>) + Send);

impl Gpu {
    /// Uploads logits from blocks that are `stride` elements apart.
    pub(crate) async fn upload(
        &self,
        shape: Shape,
        (input, stride): (Elements<'_>, usize),
        call: CallLimits,
    ) -> Result<DeviceArray, Error> {
        let size = input.dtype().size();
        let mut rows_of = |rows: Range<usize>, bytes: &mut Vec<u8>| {
            for (start, length) in runs(shape, stride, rows, 0..shape.classes()) {
                bytes.extend_from_slice(input.bytes(start, length));
            }
        };
        self.hold_filled(shape, (shape.classes() * size) as u64, false, call, &mut rows_of).await
    }

    /// Takes device memory and fills it. A device that turns out to be lost is opened again, once.
    async fn hold_filled(
        &self,
        shape: Shape,
        row_bytes: u64,
        of_rows: bool,
        call: CallLimits,
        bytes: Bytes<'_>,
    ) -> Result<DeviceArray, Error> {
        let mut tries = 2;
        loop {
            let context = self.current().await?;
            let held = match context.hold(shape, row_bytes, of_rows, call.half()).await {
                Ok(held) => held.fill(call, bytes).await.map(|()| held),
                Err(error) => Err(error),
            };
            tries -= 1;
            if held.is_ok() || tries == 0 || context.lost().is_none() {
                return held;
            }
        }
    }

    /// Uploads the targets of a loss, its class weights and its upstream gradients, all validated
    /// on the host.
    pub(crate) async fn upload_targets(
        &self,
        shape: Shape,
        operands: &Operands<'_>,
        call: CallLimits,
    ) -> Result<DeviceTargets, Error> {
        let targets = match operands.soft_targets {
            None => {
                let mut classes_of = |rows: Range<usize>, bytes: &mut Vec<u8>| {
                    operands.targets[rows]
                        .iter()
                        .for_each(|target| bytes.extend_from_slice(&target.class.to_ne_bytes()));
                };
                self.hold_filled(shape, 4, true, call, &mut classes_of).await?
            }
            Some(values) => {
                let mut values_of = |rows: Range<usize>, bytes: &mut Vec<u8>| {
                    for (start, length) in runs(shape, shape.block(), rows, 0..shape.classes()) {
                        let values = (start..start + length).map(|place| values.at(place) as f32);
                        values.for_each(|value| bytes.extend_from_slice(&value.to_ne_bytes()));
                    }
                };
                self.hold_filled(shape, shape.classes() as u64 * 4, false, call, &mut values_of)
                    .await?
            }
        };
        let row_upstream = match operands.coefficients.row_upstream {
            Some(gradients) => {
                let mut gradients_of = |rows: Range<usize>, bytes: &mut Vec<u8>| {
                    bytes.extend_from_slice(cast_slice(&gradients[rows]))
                };
                Some(self.hold_filled(shape, 4, true, call, &mut gradients_of).await?)
            }
            None => None,
        };
        let (context, weight) = (&targets.context, operands.coefficients.weight);
        let weights = match weight {
            Some(_) => context
                .guarded(|| context.filled_values(weight))
                .await
                .map_err(|error| context.error(error))?,
            None => None,
        };
        Ok(DeviceTargets { targets, row_upstream, weights })
    }
}

impl GpuContext {
    /// Takes memory for rows of `row_bytes` bytes, in the chunks that every array of `shape` has.
    /// When it is given back, the pool keeps up to `keep` bytes of idle buffers.
    pub(super) async fn hold(
        self: &Arc<Self>,
        shape: Shape,
        row_bytes: u64,
        of_rows: bool,
        keep: u64,
    ) -> Result<DeviceArray, Error> {
        let (rows, classes, inner) = (shape.row_count(), shape.classes(), shape.inner());
        // All arrays of a shape have the same chunks, so the largest row of any of them must fit a
        // buffer and, where rows interleave (`inner > 1`), a binding.
        let limit = if inner > 1 {
            self.limits.binding_bytes.min(self.limits.buffer_bytes)
        } else {
            self.limits.buffer_bytes
        };
        let most =
            (limit - u64::from(self.limits.offset_alignment)) / (classes as u64 * 8).max(row_bytes);
        if most == 0 && rows > 0 {
            return Err(self.error(GpuError::new(format!(
                "a row of {classes} classes is beyond a buffer of {limit} bytes"
            ))));
        }
        let most = most.min(1 << 30);
        let take = || {
            let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
            let chunk = |rows: Range<u64>| {
                let bytes = ((rows.end - rows.start) * row_bytes).next_multiple_of(4);
                Ok((
                    rows.start as usize..rows.end as usize,
                    self.pool.take(&self.device, usage, bytes)?,
                ))
            };
            Plan::row_pieces(rows as u64, inner as u64, most)
                .map(chunk)
                .collect::<Result<Vec<_>, _>>()
        };
        let taken = match self.guarded(take).await {
            // Idle buffers of the pool may hold the missing memory: free them and try once more.
            Err(error) if error.out_of_memory => {
                self.pool.clear();
                self.guarded(take).await
            }
            taken => taken,
        };
        // Buffers become `PooledBuffer` only after the error scopes are clean: dropping a
        // `PooledBuffer` returns its buffer to the pool, where an invalid one must not get.
        let lend = |(rows, buffer)| Chunk {
            rows,
            memory: Arc::new(PooledBuffer { context: self.clone(), buffer, keep }),
        };
        let chunks = taken.map_err(|error| self.error(error))?.into_iter().map(lend).collect();
        Ok(DeviceArray { context: self.clone(), shape, row_bytes, of_rows, keep, chunks })
    }
}

/// A chunk with everything that its dispatches need.
pub(super) struct BoundChunk {
    pub(super) bound: Bound,
    scratch: Buffer,
    pub(super) traffic: Traffic,
}

impl DeviceArray {
    /// Returns how many rows interleave in a block of a chunk.
    fn inner(&self, chunk: &Chunk) -> usize {
        self.shape.inner().min(chunk.rows.len().max(1))
    }

    /// Writes every row, a piece at a time, with at most two pieces in flight.
    async fn fill(&self, call: CallLimits, bytes: Bytes<'_>) -> Result<(), Error> {
        let context = &self.context;
        let mut contents = Vec::new();
        let mut before = None;
        for chunk in &self.chunks {
            let inner = self.inner(chunk);
            // A piece is whole blocks, because part of a block is not contiguous, and an even
            // number of rows, because a row of 16-bit values may end within a word.
            let at_once = (PIECE / self.row_bytes.max(1)).max(1) as usize;
            let at_once = if self.of_rows { at_once } else { (at_once / inner).max(1) * inner };
            let at_once = if at_once % 2 == 0 { at_once } else { 2 * at_once };
            for start in chunk.rows.clone().step_by(at_once) {
                contents.clear();
                bytes(start..chunk.rows.end.min(start + at_once), &mut contents);
                contents.resize(contents.len().next_multiple_of(4), 0);
                let offset = (start - chunk.rows.start) as u64 * self.row_bytes;
                let submission = context
                    .guarded(|| {
                        context.queue.write_buffer(&chunk.memory.buffer, offset, &contents);
                        let submission = context.queue.submit([]);
                        Ok((submission, submitted(&context.queue)))
                    })
                    .await
                    .map_err(|error| context.error(error))?;
                if let Some((before, done)) = before.replace(submission) {
                    let settled = context.poller.settle(Some(before), done, call);
                    settled.await.map_err(|error| context.error(error))?;
                }
            }
        }
        Ok(())
    }

    /// Reads some bytes of a chunk back.
    async fn read_bytes(
        &self,
        chunk: &Chunk,
        bytes: Range<u64>,
        call: CallLimits,
        into: &mut [u8],
    ) -> Result<(), Error> {
        let context = &self.context;
        let mut done = 0;
        for start in bytes.clone().step_by(PIECE as usize) {
            // Copies are of whole words.
            let (from, end) = (start - start % 4, bytes.end.min(start + PIECE));
            let length = (end - from).next_multiple_of(4);
            let staged = context.read_back(&chunk.memory.buffer, from, length, call).await;
            let staged = staged.map_err(|error| context.error(error))?;
            let view = staged.get_mapped_range(..length);
            let view = view.map_err(|error| context.error(GpuError::new(error.to_string())))?;
            let (skipped, count) = ((start - from) as usize, (end - start) as usize);
            into[done..done + count].copy_from_slice(&view[skipped..skipped + count]);
            done += count;
            drop(view);
            staged.unmap();
            context.pool.give([staged], call.half());
        }
        Ok(())
    }

    /// Reads some rows back, in the layout of the array; where rows interleave, whole blocks.
    pub(crate) async fn read<T: bytemuck::Pod + Default>(
        &self,
        rows: Range<usize>,
        call: CallLimits,
    ) -> Result<Vec<T>, Error> {
        let row_bytes = self.row_bytes as usize;
        let mut values: Vec<T> =
            try_vec("the rows read back", rows.len() * row_bytes / size_of::<T>())?;
        let into = bytemuck::cast_slice_mut::<T, u8>(&mut values);
        for chunk in &self.chunks {
            let wanted = rows.start.max(chunk.rows.start)..rows.end.min(chunk.rows.end);
            if wanted.is_empty() {
                continue;
            }
            let within = |row: usize| ((row - chunk.rows.start) * row_bytes) as u64;
            let range = within(wanted.start)..within(wanted.end);
            if self.of_rows || self.inner(chunk) == self.shape.inner() {
                let at = (wanted.start - rows.start) * row_bytes;
                let into = &mut into[at..at + wanted.len() * row_bytes];
                self.read_bytes(chunk, range, call, into).await?;
                continue;
            }
            // The chunk holds some columns of a block.
            let mut part: Vec<u8> = try_vec("the rows read back", wanted.len() * row_bytes)?;
            self.read_bytes(chunk, range, call, &mut part).await?;
            let (shape, size) = (self.shape, row_bytes / self.shape.classes());
            let first = rows.start * shape.classes();
            let mut at = 0;
            for (start, length) in runs(shape, shape.block(), wanted, 0..shape.classes()) {
                let place = (start - first) * size;
                into[place..place + length * size].copy_from_slice(&part[at..at + length * size]);
                at += length * size;
            }
        }
        Ok(values)
    }

    /// Runs an operation over these logits, in one submission and without waiting.
    pub(crate) async fn run(
        &self,
        op: Op,
        dtype: DType,
        operands: &Operands<'_>,
        held: DeviceOperands<'_>,
    ) -> Result<Results, Error> {
        let context = &self.context;
        let others = [held.targets.map(|held| &held.targets), held.upstream, held.log_sum_exps];
        if others.into_iter().flatten().any(|other| !Arc::ptr_eq(context, &other.context)) {
            return Err(Error::ResidentElsewhere);
        }
        let problem = self.problem(op, dtype, operands, 0, 1);
        let elements = if op.spec().writes_elements {
            Some(context.hold(self.shape, self.row_bytes, false, self.keep).await?)
        } else {
            None
        };
        let row_bytes = problem.bytes_of_a_row();
        let rows_out = match held.log_sum_exps {
            Some(_) => None,
            None if row_bytes > 0 => {
                Some(context.hold(self.shape, row_bytes, true, self.keep).await?)
            }
            None => None,
        };
        let summary = if problem.sum { Some(context.hold_summary(self.keep).await?) } else { None };
        let results = Results { elements, rows: rows_out, summary };
        let done = context
            .guarded(|| {
                let mut encoder = context.device.create_command_encoder(&Default::default());
                let mut aside = Vec::new();
                {
                    let descriptor =
                        ComputePassDescriptor { label: Some("logits"), timestamp_writes: None };
                    let mut pass = encoder.begin_compute_pass(&descriptor);
                    for nth in 0..self.chunks.len() {
                        let chunk = self.bind_chunk(nth, op, dtype, operands, held, &results)?;
                        chunk.bound.record_in(&mut pass);
                        aside.extend([chunk.scratch, chunk.bound.params]);
                    }
                }
                context.queue.submit([encoder.finish()]);
                Ok(aside)
            })
            .await;
        context.pool.give(done.map_err(|error| context.error(error))?, self.keep);
        Ok(results)
    }

    /// The kernel problem of `rows` rows, in blocks of `inner`.
    fn problem(
        &self,
        op: Op,
        dtype: DType,
        operands: &Operands<'_>,
        rows: usize,
        inner: usize,
    ) -> KernelProblem {
        let has_soft_targets = operands.soft_targets.is_some();
        let shape = [rows, self.shape.classes(), inner];
        let problem = KernelProblem::lower(op, dtype, operands, has_soft_targets, shape);
        // The sum is over blocks of rows of the whole batch, and a chunk need not begin with a
        // block.
        let sum = op.has_losses() && self.chunks.len() == 1;
        KernelProblem { sum, ..problem }
    }

    /// Binds an operation to a chunk. Call within error scopes.
    pub(super) fn bind_chunk(
        &self,
        nth: usize,
        op: Op,
        dtype: DType,
        operands: &Operands<'_>,
        held: DeviceOperands<'_>,
        results: &Results,
    ) -> Result<BoundChunk, GpuError> {
        let context = &self.context;
        let chunk = &self.chunks[nth];
        let problem = self.problem(op, dtype, operands, chunk.rows.len(), self.inner(chunk));
        let options = KernelOptions::of_request(dtype, operands);
        let prepared = Prepared::over_whole_batch(problem, options, context.limits)?;
        let scratch =
            context.pool.take(&context.device, BufferUsages::STORAGE, prepared.scratch_bytes())?;
        fn part(held: &DeviceArray, nth: usize) -> Part<'_> {
            let Chunk { rows, memory } = &held.chunks[nth];
            Part::whole(&memory.buffer, (rows.len() as u64 * held.row_bytes).next_multiple_of(4))
        }
        let targets = held.targets.map(|held| &held.targets);
        // Targets hold the upstream gradients of their loss; those of another operation come with
        // the call.
        let factors = operands.coefficients.row_upstream.filter(|_| targets.is_none());
        let factors = context.filled_values(factors.map(|factors| &factors[chunk.rows.clone()]))?;
        let buffers = Buffers {
            first_row: chunk.rows.start,
            logits: Some(part(self, nth)),
            targets: targets.or(held.upstream).map(|held| part(held, nth)),
            row_upstream: held
                .targets
                .and_then(|targets| targets.row_upstream.as_ref())
                .map(|gradients| part(gradients, nth))
                .or(factors.as_ref().map(FilledBuffer::part)),
            weights: held
                .targets
                .and_then(|targets| targets.weights.as_ref())
                .map(FilledBuffer::part),
            elements: results.elements.as_ref().map(|held| part(held, nth)),
            rows_out: results.rows.as_ref().or(held.log_sum_exps).map(|held| part(held, nth)),
            summary: results.summary.as_ref().map(|held| part(held, 0)),
            share_a_buffer: false,
        };
        let passes = prepared.plan.passes();
        let part = Part::whole(&scratch, prepared.scratch_bytes());
        let bound = prepared.bind(context, &passes, &buffers, prepared.scratch(part))?;
        let traffic = prepared.plan.traffic(!operands.transform.is_identity());
        Ok(BoundChunk { bound, scratch, traffic })
    }

    /// Reads the sum of a summary.
    pub(crate) async fn sum(&self, call: CallLimits) -> Result<f64, Error> {
        let bytes: Vec<u8> = self.read(0..1, call).await?;
        let summary: Summary = bytemuck::pod_read_unaligned(&bytes);
        Ok(f64::from(summary.sum[0]) + f64::from(summary.sum[1]))
    }
}

impl GpuContext {
    async fn hold_summary(self: &Arc<Self>, keep: u64) -> Result<DeviceArray, Error> {
        self.hold(Shape::rows(1, 1), size_of::<Summary>() as u64, true, keep).await
    }

    /// Copies part of a buffer to one that is mapped for reading.
    async fn read_back(
        &self,
        from: &Buffer,
        offset: u64,
        bytes: u64,
        call: CallLimits,
    ) -> Result<Buffer, GpuError> {
        let (staged, submission, mapped) = self
            .guarded(|| {
                let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
                let staged = self.pool.take(&self.device, usage, bytes)?;
                let mut encoder = self.device.create_command_encoder(&Default::default());
                encoder.copy_buffer_to_buffer(from, offset, &staged, 0, bytes);
                let submission = self.queue.submit([encoder.finish()]);
                let mapped = map(&staged, MapMode::Read, bytes);
                Ok((staged, submission, mapped))
            })
            .await?;
        self.poller.settle(Some(submission), vec![mapped], call).await?;
        Ok(staged)
    }
}
