//! An operation over resident logits, bound once and timed repeatedly, beside a plain copy of the
//! logits.

use std::time::Duration;

use wgpu::{
    BindGroupDescriptor, BindGroupEntry, BindingResource, Buffer, BufferBinding, BufferDescriptor,
    BufferSize, BufferUsages, CommandEncoder, ComputePipeline, ComputePipelineDescriptor, Features,
    MapMode, QuerySet, QuerySetDescriptor, QueryType,
};

use super::adapter::is_software;
use super::context::GpuContext;
use super::failure::GpuError;
use super::interface::{DeviceInputs, DeviceOperands, Results};
use super::prepared::Bound;
use super::resident::DeviceArray;
use crate::ops::Op;
use crate::problem::operands::Operands;
use crate::problem::waiting::Instant;
use crate::problem::waiting::Reading;
use crate::{DType, Error, Traffic};

/// Bytes of all inputs together where runs rotate through them: more than any cache holds.
const COLD: u64 = 256 << 20;
/// The most sets of inputs.
const MOST_SETS: u64 = 64;

impl DeviceInputs {
    fn operands(&self) -> DeviceOperands<'_> {
        let Self { targets, upstream, log_sum_exps, .. } = self;
        DeviceOperands {
            targets: targets.as_ref(),
            upstream: upstream.as_ref(),
            log_sum_exps: log_sum_exps.as_ref(),
        }
    }
}

/// Everything that one run reads and writes.
struct Set {
    /// Also keeps the buffers that the dispatches read alive.
    inputs: DeviceInputs,
    copies: DeviceArray,
    /// Kept alive because the dispatches write them.
    _results: Results,
    bound: Vec<Bound>,
}

impl Set {
    /// Returns the buffer of each chunk of the logits, the buffer of its copy, and its bytes.
    fn chunks(&self) -> impl Iterator<Item = (&Buffer, &Buffer, u64)> {
        let DeviceArray { chunks, row_bytes, .. } = &self.inputs.logits;
        chunks.iter().zip(&self.copies.chunks).map(move |(from, to)| {
            let bytes = (from.rows.len() as u64 * row_bytes).next_multiple_of(4);
            (&from.memory.buffer, &to.memory.buffer, bytes)
        })
    }
}

pub(crate) struct Timing {
    sets: Vec<Set>,
    next: usize,
    traffic: Traffic,
    clock: Option<Clock>,
    /// None on a software adapter, which copies buffers faster than any shader.
    copier: Option<ComputePipeline>,
}

/// A shader that copies four units of 16 bytes a thread.
const COPY: &str = "
@group(0) @binding(0) var<storage, read> logits: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> copy: array<vec4<u32>>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let at = (group.y * groups.x + group.x) * 1024u + index;
    let last = arrayLength(&copy) - 1u;
    let places = min(vec4<u32>(at, at + 256u, at + 512u, at + 768u), vec4<u32>(last));
    let a = logits[places.x];
    let b = logits[places.y];
    let c = logits[places.z];
    let d = logits[places.w];
    copy[places.x] = a;
    copy[places.y] = b;
    copy[places.z] = c;
    copy[places.w] = d;
}
";
/// Bytes that a workgroup of `COPY` copies.
const COPY_BYTES: u64 = 1024 * 16;

/// Timestamps of the device itself.
struct Clock {
    queries: QuerySet,
    resolved: Buffer,
    read: Buffer,
    period: f32,
}

impl Timing {
    /// The number of copies of the inputs that runs rotate through, so that a run does not find its
    /// logits (`bytes` bytes) in a cache. At most [`MOST_SETS`]; 1 on a software adapter, where the
    /// CPU path does not rotate either.
    pub(crate) fn sets(inputs: &DeviceInputs, bytes: u64) -> u64 {
        let is_software = is_software(&inputs.logits.context.device.adapter_info());
        if is_software { 1 } else { COLD.div_ceil(bytes.max(1)).clamp(1, MOST_SETS) }
    }

    /// Binds an operation to each of `inputs`, which runs take in turn.
    pub(crate) async fn new(
        inputs: Vec<DeviceInputs>,
        op: Op,
        dtype: DType,
        operands: &Operands<'_>,
    ) -> Result<Self, Error> {
        let traffic = Traffic { needed: 0, moved: 0 };
        let mut timing = Self { sets: Vec::new(), next: 0, traffic, clock: None, copier: None };
        for inputs in inputs {
            let (logits, held) = (&inputs.logits, inputs.operands());
            let context = logits.context.clone();
            let results = logits.run(op, dtype, operands, held).await?;
            let copies = context.hold(logits.shape, logits.row_bytes, false, logits.keep).await?;
            let chunks = (0..logits.chunks.len())
                .map(|nth| logits.bind_chunk(nth, op, dtype, operands, held, &results));
            let chunks = context.guarded(|| chunks.collect::<Result<Vec<_>, _>>()).await;
            let mut bound = Vec::new();
            let mut traffic = Traffic { needed: 0, moved: 0 };
            for chunk in chunks.map_err(|error| context.error(error))? {
                bound.push(chunk.bound);
                traffic.needed += chunk.traffic.needed;
                traffic.moved += chunk.traffic.moved;
            }
            timing.traffic = traffic;
            if timing.sets.is_empty() {
                timing.clock = context.clock().await?;
                timing.copier = context.copier().await?;
            }
            timing.sets.push(Set { inputs, copies, _results: results, bound });
        }
        Ok(timing)
    }

    /// Whether the adapter is hardware, and not a CPU that acts as a GPU.
    pub(crate) fn is_hardware(&self) -> bool {
        self.copier.is_some()
    }

    /// The bytes that one run moves.
    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Runs the operation over the next input, and waits.
    pub(crate) fn operation(&mut self, timeout: Duration) -> Result<Reading, Error> {
        self.timed(timeout, |set, encoder| {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            set.bound.iter().for_each(|bound| bound.record_in(&mut pass));
        })
    }

    /// Copies the next input, and waits: by a copy of buffers, and on hardware by a shader too.
    /// Returns the faster of the two, because a driver may copy buffers at a fraction of the speed
    /// of its memory.
    pub(crate) fn copy(&mut self, timeout: Duration) -> Result<Reading, Error> {
        let by_buffers = self.timed(timeout, |set, encoder| {
            for (from, to, bytes) in set.chunks() {
                encoder.copy_buffer_to_buffer(from, 0, to, 0, bytes);
            }
        })?;
        let Some(copier) = self.copier.clone() else { return Ok(by_buffers) };
        let by_shader = self.timed(timeout, |set, encoder| {
            let GpuContext { device, limits, .. } = &*set.inputs.logits.context;
            // The most bytes of one binding, so that the next may start where it ends.
            let most =
                limits.binding_bytes - limits.binding_bytes % u64::from(limits.offset_alignment);
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&copier);
            for (from, to, bytes) in set.chunks() {
                for offset in (0..bytes).step_by(most as usize) {
                    let here = (bytes - offset).min(most);
                    let room = (from.size() - offset).min(to.size() - offset);
                    let size = BufferSize::new(here.next_multiple_of(16).min(room));
                    let entry = |binding, buffer| BindGroupEntry {
                        binding,
                        resource: BindingResource::Buffer(BufferBinding { buffer, offset, size }),
                    };
                    let group = device.create_bind_group(&BindGroupDescriptor {
                        label: Some("logits copy"),
                        layout: &copier.get_bind_group_layout(0),
                        entries: &[entry(0, from), entry(1, to)],
                    });
                    pass.set_bind_group(0, &group, &[]);
                    let groups = here.div_ceil(COPY_BYTES);
                    let across = groups.min(32_768);
                    pass.dispatch_workgroups(across as u32, groups.div_ceil(across) as u32, 1);
                }
            }
        })?;
        Ok(if by_shader.best() < by_buffers.best() { by_shader } else { by_buffers })
    }

    fn timed(
        &mut self,
        timeout: Duration,
        record: impl Fn(&Set, &mut CommandEncoder),
    ) -> Result<Reading, Error> {
        let set = &self.sets[self.next];
        let context = &set.inputs.logits.context;
        let mut encoder = context.device.create_command_encoder(&Default::default());
        if let Some(clock) = &self.clock {
            encoder.write_timestamp(&clock.queries, 0);
        }
        record(set, &mut encoder);
        if let Some(clock) = &self.clock {
            encoder.write_timestamp(&clock.queries, 1);
            encoder.resolve_query_set(&clock.queries, 0..2, &clock.resolved, 0);
            encoder.copy_buffer_to_buffer(&clock.resolved, 0, &clock.read, 0, 16);
        }
        let commands = encoder.finish();
        let wait = |of| context.poller.wait_here(of, timeout).map_err(|error| context.error(error));
        let start = Instant::now();
        wait(Some(context.queue.submit([commands])))?;
        let wall = start.elapsed();
        let mut device = None;
        if let Some(clock) = &self.clock {
            clock.read.map_async(MapMode::Read, .., |_| {});
            wait(None)?;
            let bytes = clock
                .read
                .get_mapped_range(..)
                .map_err(|error| context.error(GpuError::new(error.to_string())))?;
            let ticks: [u64; 2] = bytemuck::pod_read_unaligned(&bytes[..16]);
            drop(bytes);
            clock.read.unmap();
            let passed = ticks[1].saturating_sub(ticks[0]) as f64 * f64::from(clock.period);
            // A clock that stands still measures nothing.
            device = (passed > 0.0).then(|| Duration::from_nanos(passed as u64));
        }
        self.next = (self.next + 1) % self.sets.len();
        Ok(Reading { wall, device })
    }
}

impl GpuContext {
    async fn copier(&self) -> Result<Option<ComputePipeline>, Error> {
        if is_software(&self.device.adapter_info()) {
            return Ok(None);
        }
        let made = self.guarded(|| {
            let source = wgpu::ShaderSource::Wgsl(COPY.into());
            let label = Some("logits copy");
            let module =
                self.device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
            Ok(self.device.create_compute_pipeline(&ComputePipelineDescriptor {
                label,
                layout: None,
                module: &module,
                entry_point: Some("main"),
                compilation_options: Default::default(),
                cache: None,
            }))
        });
        made.await.map(Some).map_err(|error| self.error(error))
    }

    /// None where the adapter has no timestamps between the commands of an encoder.
    async fn clock(&self) -> Result<Option<Clock>, Error> {
        if !self.device.features().contains(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS) {
            return Ok(None);
        }
        let made = self.guarded(|| {
            let descriptor = QuerySetDescriptor {
                label: Some("logits clock"),
                ty: QueryType::Timestamp,
                count: 2,
            };
            let buffer = |usage| {
                let descriptor = BufferDescriptor {
                    label: Some("logits clock"),
                    size: 16,
                    usage,
                    mapped_at_creation: false,
                };
                self.device.create_buffer(&descriptor)
            };
            Ok(Clock {
                queries: self.device.create_query_set(&descriptor),
                resolved: buffer(BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
                read: buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST),
                period: self.queue.get_timestamp_period(),
            })
        });
        made.await.map(Some).map_err(|error| self.error(error))
    }
}
