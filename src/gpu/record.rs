//! From a plan and buffers to recorded dispatches: the one way in which kernels are bound and run, whoever owns the
//! buffers.

use bytemuck::{Pod, Zeroable};
use wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindingResource, Buffer, BufferBinding, BufferSize, BufferUsages,
    ComputePass, ComputePipeline,
};

use super::context::Open;
use super::fault::Fault;
use super::kernels::Kernel;
use crate::job::{Op, RowTarget, Scaling};
use crate::plan::{Entry, Pass, Plan, Regime, Work};

/// How many targets that are not counted there may be.
pub(super) const MOST_IGNORED: usize = 16;

/// The uniform of `shaders/shared/bindings.wgsl`, padded to a multiple of 16 bytes.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Params {
    pub(super) rows: u32,
    pub(super) classes: u32,
    pub(super) segments: u32,
    pub(super) first_segment: u32,
    pub(super) pass_segments: u32,
    pub(super) logits_at: u32,
    pub(super) elements_at: u32,
    pub(super) targets_at: u32,
    pub(super) rows_out_at: u32,
    pub(super) first_group: u32,
    pub(super) first_row: u32,
    pub(super) groups: u32,
    pub(super) ignored_count: u32,
    pub(super) flags: u32,
    pub(super) factor: f32,
    pub(super) hit: f32,
    pub(super) smoothing: f32,
    pub(super) class_weight: f32,
    pub(super) z_loss: f32,
    pub(super) nan: u32,
    pub(super) negative_infinity: u32,
    pub(super) zero: u32,
    padding: [u32; 2],
    pub(super) ignored: [[u32; 4]; MOST_IGNORED / 4],
}

/// What the losses of a batch came to, as a step leaves it in a buffer; `bytemuck` casts its bytes.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Summary {
    /// The loss after the reduction, in nats: the first four bytes of a buffer of losses.
    pub loss: f32,
    /// Rows whose target was not the ignored index.
    pub counted_rows: u32,
    /// The first row whose target was neither a class nor ignored; `u32::MAX` where there was none.
    pub first_invalid_row: u32,
    pub(super) zero: u32,
    /// The sum of the rows' weighted losses, as a high and a low part.
    pub sum: [f32; 2],
    /// The sum of their weights, as a high and a low part: what a mean divides by.
    pub weight: [f32; 2],
}

/// Part of a buffer, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Part<'b> {
    pub(super) buffer: &'b Buffer,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl<'b> Part<'b> {
    pub(super) fn whole(buffer: &'b Buffer, bytes: u64) -> Self {
        Self { buffer, offset: 0, bytes }
    }

    /// The first `bytes` bytes, and the rest.
    pub(super) fn split(self, bytes: u64) -> (Self, Self) {
        (Self { bytes, ..self }, Self { offset: self.offset + bytes, bytes: self.bytes - bytes, ..self })
    }
}

/// The buffers of a batch. Without `logits` they are read where `elements` are written.
#[derive(Clone, Copy)]
pub(super) struct Buffers<'b> {
    pub(super) logits: Option<Part<'b>>,
    pub(super) targets: Option<Part<'b>>,
    pub(super) weights: Option<Part<'b>>,
    pub(super) elements: Option<Part<'b>>,
    pub(super) rows_out: Option<Part<'b>>,
    pub(super) summary: Option<Part<'b>>,
    pub(super) scratch: Scratch<'b>,
}

/// Memory that nobody looks at afterwards: the statistics that passes leave for each other, and something to be bound to
/// what a kernel has and does not use.
#[derive(Clone, Copy)]
pub(super) struct Scratch<'b> {
    pub(super) part: Part<'b>,
    pub(super) partial_bytes: u64,
}

impl<'b> Scratch<'b> {
    /// Offsets of bindings are multiples of at most this, in wgpu.
    pub(super) const ALIGNMENT: u64 = 256;
    const SPARE: u64 = 256;

    pub(super) fn bytes(partial_bytes: u64) -> u64 {
        partial_bytes.next_multiple_of(Self::ALIGNMENT) + 4 * Self::SPARE
    }

    fn partials(&self) -> Option<Part<'b>> {
        (self.partial_bytes > 0).then_some(Part { bytes: self.partial_bytes, ..self.part })
    }

    /// Writable bindings may not overlap, so there is one for each.
    fn spare(&self, nth: u64) -> Part<'b> {
        let offset = self.partial_bytes.next_multiple_of(Self::ALIGNMENT) + nth * Self::SPARE;
        Part { buffer: self.part.buffer, offset: self.part.offset + offset, bytes: Self::SPARE }
    }
}

/// The options of a loss, as kernels are told them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    factor: f32,
    hit: f32,
    smoothing: f32,
    class_weight: f32,
    z_loss: f32,
    flags: u32,
    ignored_count: u32,
    ignored: [[u32; 4]; MOST_IGNORED / 4],
}

impl Scale {
    /// Flags of `shaders/shared/bindings.wgsl`.
    const WEIGHTED: u32 = 1;
    const MEAN: u32 = 2;
    const POISONED: u32 = 4;

    /// Of targets that the host has checked and weighed.
    pub(super) fn given(scaling: Scaling<'_>) -> Self {
        Self::new(scaling, false, &[RowTarget::IGNORED])
    }

    /// Of targets that the device weighs itself where there is a mean, with those that are not counted.
    pub(super) fn new(scaling: Scaling<'_>, is_mean: bool, not_counted: &[u32]) -> Self {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let mut ignored = [[0; 4]; MOST_IGNORED / 4];
        ignored.as_flattened_mut().iter_mut().zip(not_counted).for_each(|(ignored, &label)| *ignored = label);
        Self {
            factor: if scaling.is_poisoned() { 0.0 } else { scaling.factor as f32 },
            hit: scaling.hit as f32,
            smoothing: scaling.smoothing as f32,
            class_weight: scaling.class_weight as f32,
            z_loss: scaling.z_loss as f32,
            flags: flag(scaling.weight.is_some(), Self::WEIGHTED)
                | flag(is_mean, Self::MEAN)
                | flag(scaling.is_poisoned(), Self::POISONED),
            ignored_count: not_counted.len().min(MOST_IGNORED) as u32,
            ignored,
        }
    }

    /// The kernel of an operation under these options.
    fn kernel(&self, op: Op, regime: Regime, in_place: bool) -> Kernel {
        let (smoothing, z_loss) = (self.smoothing > 0.0, self.z_loss > 0.0);
        Kernel { op, regime, in_place, smoothing, z_loss }
    }
}

/// One dispatch with everything that it needs.
#[derive(Debug)]
pub(super) struct Dispatch {
    pipeline: ComputePipeline,
    group: BindGroup,
    groups: [u32; 3],
}

impl Dispatch {
    pub(super) fn record(&self, pass: &mut ComputePass<'_>) {
        let [x, y, z] = self.groups;
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Where in a binding a part starts, in elements of four bytes.
struct Place<'b> {
    binding: BufferBinding<'b>,
    at: u32,
}

impl Open {
    /// Compiles every pipeline of a plan, in both variants where there are two. Call within error scopes.
    pub(super) fn compile(&self, plan: &Plan, work: Work, scale: Scale) {
        for in_place in [false, true] {
            if work.op.writes_elements() || !in_place {
                for pass in plan.passes() {
                    let kernel = scale.kernel(work.op, plan.regime, in_place);
                    self.kernels.pipeline(&self.device, kernel, pass.entry);
                }
            }
        }
    }

    /// A lost device makes broken objects without a word; but a new buffer that is broken cannot be written to, which is an
    /// error. Call within error scopes.
    pub(super) fn probe(&self) {
        let (label, size, usage) = (Some("logits probe"), 4, BufferUsages::COPY_DST);
        let descriptor = wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false };
        self.queue.write_buffer(&self.device.create_buffer(&descriptor), 0, &[0; 4]);
    }

    /// A new buffer with these contents. Call within error scopes.
    pub(super) fn filled(&self, usage: BufferUsages, contents: &[u8]) -> Result<Buffer, Fault> {
        let buffer = self.pool.take(&self.device, usage | BufferUsages::COPY_DST, contents.len() as u64)?;
        self.queue.write_buffer(&buffer, 0, contents);
        Ok(buffer)
    }

    /// Usage of the buffer that holds the parameters of passes; it also stands in for read-only bindings.
    pub(super) const PARAMS_USAGE: BufferUsages =
        BufferUsages::UNIFORM.union(BufferUsages::STORAGE).union(BufferUsages::COPY_DST);
    /// Parameters of the passes of a batch are so far apart.
    const SLOT: u64 = 256;

    /// Bytes of the parameters of so many passes.
    pub(super) fn params_bytes(passes: usize) -> u64 {
        passes as u64 * Self::SLOT
    }

    /// Binds passes of a plan, and says what must be in the first bytes of `params` when they run. Call within error
    /// scopes.
    pub(super) fn bind(
        &self,
        plan: &Plan,
        work: Work,
        passes: &[Pass],
        scale: Scale,
        buffers: &Buffers<'_>,
        params: &Buffer,
    ) -> (Vec<Dispatch>, Vec<u8>) {
        let in_place = buffers.logits.is_none() && work.op.writes_elements();
        let kernel = scale.kernel(work.op, plan.regime, in_place);
        let mut contents = vec![0; Self::params_bytes(passes.len()) as usize];
        let dispatches = passes
            .iter()
            .zip(contents.chunks_exact_mut(Self::SLOT as usize))
            .zip(0..)
            .map(|((pass, slot), nth)| {
                let entries = self.place(plan, work, pass, scale, buffers, (params, nth * Self::SLOT));
                let (entries, values) = entries;
                slot[..size_of::<Params>()].copy_from_slice(bytemuck::bytes_of(&values));
                let group = self.device.create_bind_group(&BindGroupDescriptor {
                    label: Some("logits"),
                    layout: &self.kernels.bindings,
                    entries: &entries
                        .into_iter()
                        .zip(0..)
                        .map(|(resource, binding)| BindGroupEntry {
                            binding,
                            resource: BindingResource::Buffer(resource),
                        })
                        .collect::<Vec<_>>(),
                });
                let pipeline = self.kernels.pipeline(&self.device, kernel, pass.entry);
                Dispatch { pipeline, group, groups: pass.groups }
            })
            .collect();
        (dispatches, contents)
    }

    /// The bindings of one pass, and its parameters.
    fn place<'b>(
        &self,
        plan: &Plan,
        work: Work,
        pass: &Pass,
        scale: Scale,
        buffers: &Buffers<'b>,
        (params, slot): (&'b Buffer, u64),
    ) -> ([BufferBinding<'b>; 8], Params) {
        let unused = |part: Part<'b>| Place { binding: binding(part.buffer, part.offset, part.bytes), at: 0 };
        let unread = || unused(Part { buffer: params, offset: slot, bytes: Self::SLOT });
        let read = |part: Option<Part<'b>>, range: &std::ops::Range<u64>, size: u64| match part {
            Some(part) if !range.is_empty() => self.window(part, range.start * size, range.end * size),
            _ => unread(),
        };
        let written = |part: Option<Part<'b>>, range: &std::ops::Range<u64>, size: u64, nth: u64| match part {
            Some(part) if !range.is_empty() => self.window(part, range.start * size, range.end * size),
            _ => unused(buffers.scratch.spare(nth)),
        };
        let everything = |part: Option<Part<'b>>| 0..part.map_or(0, |part| part.bytes);
        let row_bytes = if work.op == Op::Predict { 8 } else { 4 };

        let logits = read(buffers.logits, &pass.elements, 4);
        let elements = written(buffers.elements, &pass.elements, 4, 0);
        let targets = read(buffers.targets, &pass.rows, 4);
        let rows_out = written(buffers.rows_out, &pass.rows, row_bytes, 1);
        let weights = read(buffers.weights, &everything(buffers.weights), 1);
        let partials = buffers.scratch.partials();
        let partials = written(partials, &everything(partials), 1, 2);
        let summary = written(buffers.summary, &everything(buffers.summary), 1, 3);

        let in_place = buffers.logits.is_none();
        let values = Params {
            rows: (pass.rows.end - pass.rows.start) as u32,
            classes: work.classes as u32,
            segments: plan.segments(),
            first_segment: pass.segments.start,
            pass_segments: pass.segments.end - pass.segments.start,
            logits_at: if in_place { elements.at } else { logits.at },
            elements_at: elements.at,
            targets_at: targets.at,
            rows_out_at: rows_out.at,
            first_group: Plan::first_group(pass),
            first_row: pass.rows.start as u32,
            groups: if matches!(pass.entry, Entry::TotalTargets | Entry::TotalLosses) { plan.row_groups() } else { 0 },
            ignored_count: scale.ignored_count,
            flags: scale.flags,
            factor: scale.factor,
            hit: scale.hit,
            smoothing: scale.smoothing,
            class_weight: scale.class_weight,
            z_loss: scale.z_loss,
            nan: f32::NAN.to_bits(),
            negative_infinity: f32::NEG_INFINITY.to_bits(),
            zero: 0,
            padding: [0; 2],
            ignored: scale.ignored,
        };
        let params = binding(params, slot, size_of::<Params>() as u64);
        let storage = [logits, targets, weights, elements, rows_out, partials, summary].map(|place| place.binding);
        let [logits, targets, weights, elements, rows_out, partials, summary] = storage;
        ([params, logits, targets, weights, elements, rows_out, partials, summary], values)
    }

    /// Binds from `start` to `end` of a part, as exactly as the alignment of offsets allows.
    fn window<'b>(&self, part: Part<'b>, start: u64, end: u64) -> Place<'b> {
        let start = part.offset + start;
        let aligned = start - start % u64::from(self.limits.offset_alignment);
        let bytes = part.offset + end - aligned;
        Place { binding: binding(part.buffer, aligned, bytes), at: ((start - aligned) / 4) as u32 }
    }
}

fn binding(buffer: &Buffer, offset: u64, bytes: u64) -> BufferBinding<'_> {
    BufferBinding { buffer, offset, size: BufferSize::new(bytes) }
}
