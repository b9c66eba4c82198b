//! Data that stays on the device between calls.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::cast_slice;
use wgpu::{Buffer, BufferUsages, ComputePassDescriptor, MapMode, PollType};

use super::context::{Gpu, Open};
use super::fault::Fault;
use super::record::{Buffers, Dispatch, Part, Scale, Scratch, Summary};
use super::wait::{Waiting, map};
use crate::error::try_vec;
use crate::job::{Op, RowTarget, Scaling};
use crate::plan::{Plan, Work};
use crate::settings::Settings;
use crate::{Error, Shape};

/// Bytes of a summary, in a buffer of several.
const SUMMARY_SLOT: u64 = 256;
/// Bytes that go through staging at once.
const PIECE: u64 = 32 << 20;

/// Rows on the device, in as many buffers as it takes.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    open: Arc<Open>,
    row_bytes: u64,
    chunks: Vec<Chunk>,
}

#[derive(Clone, Debug)]
struct Chunk {
    rows: Range<usize>,
    memory: Arc<Lent>,
}

/// A buffer of the pool, which has it back when the last handle is gone. Whoever takes it next comes later in the queue.
#[derive(Debug)]
struct Lent {
    open: Arc<Open>,
    buffer: Buffer,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.open.pool.give([self.buffer.clone()], Settings::default().half());
    }
}

/// Targets on the device, and what is known of them.
#[derive(Clone, Debug)]
pub(crate) struct HeldTargets {
    labels: Held,
    weights: Option<(Buffer, u64)>,
    scale: Scale,
}

/// What an operation leaves.
pub(crate) struct Results {
    pub(crate) elements: Option<Held>,
    pub(crate) rows: Option<Held>,
    pub(crate) summaries: Option<Held>,
}

/// A function from rows to bytes.
type Bytes<'a> = &'a mut (dyn FnMut(Range<usize>, &mut Vec<u8>) + Send);

impl Gpu {
    /// Logits, or anything else of four bytes an element, from rows `stride` apart.
    pub(crate) async fn upload(
        &self,
        shape: Shape,
        (input, stride): (&[f32], usize),
        settings: Settings,
        waiting: Waiting,
    ) -> Result<Held, Error> {
        let classes = shape.classes();
        let mut rows_of = |rows: Range<usize>, bytes: &mut Vec<u8>| {
            for row in rows {
                bytes.extend_from_slice(cast_slice(&input[row * stride..][..classes]));
            }
        };
        self.hold_filled(shape, classes as u64 * 4, settings, waiting, &mut rows_of).await
    }

    /// Memory with contents, on a device that is opened again should it turn out to be lost.
    async fn hold_filled(
        &self,
        shape: Shape,
        row_bytes: u64,
        settings: Settings,
        waiting: Waiting,
        bytes: Bytes<'_>,
    ) -> Result<Held, Error> {
        let mut tries = 2;
        loop {
            let open = self.current().await?;
            let held = match open.hold(shape.row_count(), shape.classes(), row_bytes).await {
                Ok(held) => held.fill(settings, waiting, bytes).await.map(|()| held),
                Err(error) => Err(error),
            };
            tries -= 1;
            if held.is_ok() || tries == 0 || open.lost().is_none() {
                return held;
            }
        }
    }

    pub(crate) async fn upload_targets(
        &self,
        shape: Shape,
        targets: &[RowTarget],
        scaling: Scaling<'_>,
        settings: Settings,
        waiting: Waiting,
    ) -> Result<HeldTargets, Error> {
        let mut labels_of = |rows: Range<usize>, bytes: &mut Vec<u8>| {
            targets[rows].iter().for_each(|target| bytes.extend_from_slice(&target.class.to_ne_bytes()));
        };
        let labels = self.hold_filled(shape, 4, settings, waiting, &mut labels_of).await?;
        let open = &labels.open;
        let weights = match scaling.weight {
            Some(weight) => {
                let filled = open.guarded(|| open.filled(BufferUsages::STORAGE, cast_slice(weight))).await;
                Some((filled.map_err(|fault| open.error(fault))?, size_of_val(weight) as u64))
            }
            None => None,
        };
        Ok(HeldTargets { labels, weights, scale: Scale::given(scaling) })
    }
}

impl Open {
    /// Memory for rows of so many bytes, in the chunks that rows of so many classes come in.
    async fn hold(self: &Arc<Self>, rows: usize, classes: usize, row_bytes: u64) -> Result<Held, Error> {
        // The widest value that there is one of a row has 8 bytes.
        let most = self.limits.buffer_bytes / (classes as u64 * 4).max(8);
        if most == 0 && rows > 0 {
            let limit = self.limits.buffer_bytes;
            return Err(
                self.error(Fault::new(format!("a row of {classes} classes is beyond a buffer of {limit} bytes")))
            );
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(1 << 30);
        let held = self
            .guarded(|| {
                let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
                let chunk = |rows: Range<usize>| {
                    let bytes = rows.len() as u64 * row_bytes;
                    let buffer = self.pool.take(&self.device, usage, bytes)?;
                    Ok(Chunk { rows, memory: Arc::new(Lent { open: self.clone(), buffer }) })
                };
                let starts = (0..rows).step_by(most.max(1));
                starts.map(|start| chunk(start..rows.min(start.saturating_add(most)))).collect::<Result<Vec<_>, _>>()
            })
            .await;
        let chunks = held.map_err(|fault| self.error(fault))?;
        Ok(Held { open: self.clone(), row_bytes, chunks })
    }
}

impl Held {
    /// Writes every row, a piece at a time and no more than two on their way.
    async fn fill(&self, settings: Settings, waiting: Waiting, bytes: Bytes<'_>) -> Result<(), Error> {
        let open = &self.open;
        let rows_at_once = (PIECE / self.row_bytes.max(1)).max(1) as usize;
        let mut contents = Vec::new();
        let mut before = None;
        for chunk in &self.chunks {
            for start in chunk.rows.clone().step_by(rows_at_once) {
                contents.clear();
                bytes(start..chunk.rows.end.min(start + rows_at_once), &mut contents);
                let offset = (start - chunk.rows.start) as u64 * self.row_bytes;
                let submission = open
                    .guarded(|| {
                        open.queue.write_buffer(&chunk.memory.buffer, offset, &contents);
                        Ok(open.queue.submit([]))
                    })
                    .await
                    .map_err(|fault| open.error(fault))?;
                if let Some(before) = before.replace(submission) {
                    let settled = open.poller.settle(Some(before), Vec::new(), settings.patience, waiting);
                    settled.await.map_err(|fault| open.error(fault))?;
                }
            }
        }
        Ok(())
    }

    /// Reads some rows back.
    pub(crate) async fn read<T: bytemuck::Pod + Default>(
        &self,
        rows: Range<usize>,
        settings: Settings,
        waiting: Waiting,
    ) -> Result<Vec<T>, Error> {
        let (open, row_bytes) = (&self.open, self.row_bytes as usize);
        let mut values: Vec<T> = try_vec("the rows read back", rows.len() * row_bytes / size_of::<T>())?;
        let rows_at_once = (PIECE as usize / row_bytes.max(1)).max(1);
        for chunk in &self.chunks {
            let wanted = rows.start.max(chunk.rows.start)..rows.end.min(chunk.rows.end);
            for start in wanted.clone().step_by(rows_at_once) {
                let piece = start..wanted.end.min(start + rows_at_once);
                let bytes = (piece.len() * row_bytes) as u64;
                let offset = ((start - chunk.rows.start) * row_bytes) as u64;
                let staged = open.read_back(&chunk.memory.buffer, offset, bytes, settings, waiting).await;
                let staged = staged.map_err(|fault| open.error(fault))?;
                let into =
                    &mut bytemuck::cast_slice_mut(&mut values)[(start - rows.start) * row_bytes..][..bytes as usize];
                let view = staged.get_mapped_range(..bytes);
                into.copy_from_slice(&view.map_err(|error| open.error(Fault::new(error.to_string())))?);
                staged.unmap();
                open.pool.give([staged], settings.half());
            }
        }
        Ok(values)
    }

    /// Runs an operation over these logits, in one submission and without waiting.
    pub(crate) async fn run(&self, op: Op, classes: usize, targets: Option<&HeldTargets>) -> Result<Results, Error> {
        let open = &self.open;
        if targets.is_some_and(|targets| !Arc::ptr_eq(open, &targets.labels.open)) {
            return Err(Error::ResidentElsewhere);
        }
        let rows = self.chunks.last().map_or(0, |chunk| chunk.rows.end);
        let elements =
            if op.writes_elements() { Some(open.hold(rows, classes, classes as u64 * 4).await?) } else { None };
        let rows_out = match op {
            Op::Softmax | Op::LogSoftmax => None,
            Op::Predict => Some(open.hold(rows, classes, 8).await?),
            _ => Some(open.hold(rows, classes, 4).await?),
        };
        let summaries = match targets {
            Some(_) => Some(open.summaries(self.chunks.len()).await?),
            None => None,
        };
        let results = Results { elements, rows: rows_out, summaries };
        let done = open
            .guarded(|| {
                let mut encoder = open.device.create_command_encoder(&Default::default());
                let mut aside = Vec::new();
                {
                    let descriptor = ComputePassDescriptor { label: Some("logits"), timestamp_writes: None };
                    let mut pass = encoder.begin_compute_pass(&descriptor);
                    for nth in 0..self.chunks.len() {
                        let (dispatches, buffers) = self.bind_chunk(nth, op, classes, targets, &results)?;
                        dispatches.iter().for_each(|dispatch| dispatch.record(&mut pass));
                        aside.extend(buffers);
                    }
                }
                open.queue.submit([encoder.finish()]);
                Ok(aside)
            })
            .await;
        open.pool.give(done.map_err(|fault| open.error(fault))?, Settings::default().half());
        Ok(results)
    }

    /// The dispatches over a chunk, and the buffers beside those of the results.
    fn bind_chunk(
        &self,
        nth: usize,
        op: Op,
        classes: usize,
        targets: Option<&HeldTargets>,
        results: &Results,
    ) -> Result<(Vec<Dispatch>, [Buffer; 2]), Fault> {
        let open = &self.open;
        let rows = self.chunks[nth].rows.len() as u64;
        let sum = targets.is_some();
        let weighted = targets.is_some_and(|targets| targets.weights.is_some());
        let work = Work { op, rows, classes: classes as u64, weighted, count: false, sum };
        let plan = Plan::new(work, open.limits).map_err(|why| Fault::new(why.to_string()))?;
        let passes = plan.passes();
        let partial_bytes = plan.partial_bytes();
        let scratch = open.pool.take(&open.device, BufferUsages::STORAGE, Scratch::bytes(partial_bytes))?;
        let params = open.pool.take(&open.device, Open::PARAMS_USAGE, Open::params_bytes(passes.len()))?;
        fn part(held: &Held, nth: usize) -> Part<'_> {
            let Chunk { rows, memory } = &held.chunks[nth];
            Part::whole(&memory.buffer, rows.len() as u64 * held.row_bytes)
        }
        let bound = Buffers {
            logits: Some(part(self, nth)),
            targets: targets.map(|targets| part(&targets.labels, nth)),
            weights: targets
                .and_then(|targets| targets.weights.as_ref())
                .map(|(buffer, bytes)| Part::whole(buffer, *bytes)),
            elements: results.elements.as_ref().map(|held| part(held, nth)),
            rows_out: results.rows.as_ref().map(|held| part(held, nth)),
            summary: results.summaries.as_ref().map(|held| Part {
                buffer: &held.chunks[0].memory.buffer,
                offset: nth as u64 * SUMMARY_SLOT,
                bytes: size_of::<Summary>() as u64,
            }),
            scratch: Scratch { part: Part::whole(&scratch, Scratch::bytes(partial_bytes)), partial_bytes },
        };
        let scale = targets.map_or(Scale::given(Scaling::default()), |targets| targets.scale);
        let (dispatches, contents) = open.bind(&plan, work, &passes, scale, &bound, &params);
        open.queue.write_buffer(&params, 0, &contents);
        Ok((dispatches, [scratch, params]))
    }

    /// Adds up summaries.
    pub(crate) async fn sum(&self, settings: Settings, waiting: Waiting) -> Result<f64, Error> {
        let rows = self.chunks.last().map_or(0, |chunk| chunk.rows.end);
        let bytes: Vec<u8> = self.read(0..rows, settings, waiting).await?;
        let sums = bytes.chunks_exact(SUMMARY_SLOT as usize).map(|slot| {
            let summary: Summary = bytemuck::pod_read_unaligned(&slot[..size_of::<Summary>()]);
            f64::from(summary.sum[0]) + f64::from(summary.sum[1])
        });
        Ok(sums.fold(0.0, |a, b| a + b))
    }
}

impl Open {
    async fn summaries(self: &Arc<Self>, count: usize) -> Result<Held, Error> {
        self.hold(count, 1, SUMMARY_SLOT).await
    }

    /// Copies part of a buffer to one that is mapped for reading.
    async fn read_back(
        &self,
        from: &Buffer,
        offset: u64,
        bytes: u64,
        settings: Settings,
        waiting: Waiting,
    ) -> Result<Buffer, Fault> {
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
        self.poller.settle(Some(submission), vec![mapped], settings.patience, waiting).await?;
        Ok(staged)
    }
}

/// An operation over resident logits, bound once, to be timed again and again beside a plain copy of the logits.
pub(crate) struct Timing {
    logits: Held,
    copies: Held,
    /// Kept alive, for they are what the dispatches write.
    _results: Results,
    dispatches: Vec<Dispatch>,
}

impl Timing {
    pub(crate) async fn new(
        logits: Held,
        op: Op,
        classes: usize,
        targets: Option<&HeldTargets>,
    ) -> Result<Self, Error> {
        let open = logits.open.clone();
        let rows = logits.chunks.last().map_or(0, |chunk| chunk.rows.end);
        let results = logits.run(op, classes, targets).await?;
        let copies = open.hold(rows, classes, logits.row_bytes).await?;
        let bound = (0..logits.chunks.len()).map(|nth| logits.bind_chunk(nth, op, classes, targets, &results));
        let dispatches = open.guarded(|| bound.collect::<Result<Vec<_>, _>>()).await;
        let dispatches =
            dispatches.map_err(|fault| open.error(fault))?.into_iter().flat_map(|(bound, _)| bound).collect();
        Ok(Self { logits, copies, _results: results, dispatches })
    }

    /// Runs the operation, and waits.
    pub(crate) fn operation(&self, patience: Duration) -> Result<Duration, Error> {
        self.timed(patience, |encoder| {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            self.dispatches.iter().for_each(|dispatch| dispatch.record(&mut pass));
        })
    }

    /// Copies the logits, and waits.
    pub(crate) fn copy(&self, patience: Duration) -> Result<Duration, Error> {
        self.timed(patience, |encoder| {
            for (from, to) in self.logits.chunks.iter().zip(&self.copies.chunks) {
                let bytes = from.rows.len() as u64 * self.logits.row_bytes;
                encoder.copy_buffer_to_buffer(&from.memory.buffer, 0, &to.memory.buffer, 0, bytes);
            }
        })
    }

    fn timed(&self, patience: Duration, record: impl Fn(&mut wgpu::CommandEncoder)) -> Result<Duration, Error> {
        let open = &self.logits.open;
        let mut encoder = open.device.create_command_encoder(&Default::default());
        record(&mut encoder);
        let commands = encoder.finish();
        let start = Instant::now();
        let submission_index = Some(open.queue.submit([commands]));
        open.device
            .poll(PollType::Wait { submission_index, timeout: Some(patience) })
            .map_err(|error| open.error(Fault::new(error.to_string())))?;
        Ok(start.elapsed())
    }
}
