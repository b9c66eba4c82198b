//! From a plan and buffers to recorded dispatches: the one way in which kernels are bound and run, whoever owns the
//! buffers.

use bytemuck::{Pod, Zeroable};
use wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindingResource, Buffer, BufferBinding, BufferSize, BufferUsages,
    ComputePass, ComputePipeline,
};

use super::context::GpuContext;
use super::failure::GpuError;
use super::pipelines::{Fit, Kernel, Labels, TransformKind};
use crate::DType;
use crate::plan::{Access, Entry, KernelProblem, Kind, Pass, Plan, Strategy, UNIT_BYTES, WORKGROUP};
use crate::problem::operation::Op;
use crate::problem::request::{Operands, RowTarget};

/// How many targets that are not counted there may be.
pub(super) const MOST_IGNORED: usize = 16;

/// The uniform of `shaders/shared/bindings.wgsl`, whose size is a multiple of 16 bytes.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Params {
    pub(super) rows: u32,
    pub(super) classes: u32,
    pub(super) inner: u32,
    pub(super) logits_stride: u32,
    pub(super) elements_stride: u32,
    pub(super) segments: u32,
    pub(super) first_segment: u32,
    pub(super) pass_segments: u32,
    pub(super) logits_at: u32,
    pub(super) elements_at: u32,
    pub(super) targets_at: u32,
    pub(super) rows_out_at: u32,
    pub(super) gradients_at: u32,
    pub(super) first_group: u32,
    pub(super) first_row: u32,
    pub(super) groups: u32,
    pub(super) ignored_count: u32,
    pub(super) flags: u32,
    pub(super) factor: f32,
    pub(super) on_value: f32,
    pub(super) off_value: f32,
    pub(super) class_weight: f32,
    pub(super) z_loss: f32,
    pub(super) scale: f32,
    pub(super) scale_low: f32,
    pub(super) signed_scale: f32,
    pub(super) ratio: f32,
    pub(super) ratio_low: f32,
    pub(super) cap: f32,
    pub(super) cap_low: f32,
    pub(super) cap_limit: f32,
    pub(super) flip: u32,
    pub(super) draw_seed: [u32; 2],
    pub(super) draw_step: [u32; 2],
    pub(super) k: u32,
    pub(super) draw_top_k: u32,
    pub(super) draw_top_p: f32,
    pub(super) soft_rows: u32,
    pub(super) nan: u32,
    pub(super) negative_infinity: u32,
    pub(super) zero: u32,
    padding: u32,
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
    /// Which row of the whole batch is the first in here.
    pub(super) first_row: usize,
    pub(super) logits: Option<Part<'b>>,
    /// Classes, one a row, or what there is beside the logits of their shape.
    pub(super) targets: Option<Part<'b>>,
    pub(super) row_upstream: Option<Part<'b>>,
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

/// The options of an operation, as kernels are told them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// What does not depend on a pass; the rest is 0.
    params: Params,
    dtype: DType,
    labels: Labels,
    transform: TransformKind,
}

impl Scale {
    /// Flags of `shaders/shared/bindings.wgsl`.
    const WEIGHTED: u32 = 1;
    const MEAN: u32 = 2;
    const POISONED: u32 = 4;
    const ROW_GRADIENTS: u32 = 8;
    const LATER_DRAW: u32 = 16;
    /// Those that kernels are made for.
    const MADE_FOR: u32 = Self::WEIGHTED | Self::MEAN | Self::ROW_GRADIENTS;

    /// Of targets that the host has checked and weighed.
    pub(super) fn of_request(dtype: DType, operands: &Operands<'_>) -> Self {
        Self::new(dtype, operands, operands.soft_targets.is_some(), false, &[RowTarget::IGNORED])
    }

    /// Of targets that the device weighs itself where there is a mean, with those that are not counted.
    pub(super) fn new(
        dtype: DType,
        operands: &Operands<'_>,
        is_soft: bool,
        is_mean: bool,
        not_counted: &[u32],
    ) -> Self {
        let Operands { coefficients, transform, draws, k, .. } = operands;
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let mut ignored = [[0; 4]; MOST_IGNORED / 4];
        ignored.as_flattened_mut().iter_mut().zip(not_counted).for_each(|(ignored, &label)| *ignored = label);
        let pair = |value: f64| (value as f32, (value - f64::from(value as f32)) as f32);
        let (scale, scale_low) = pair(transform.scale.abs());
        let softcap = transform.softcap.unwrap_or(1.0);
        let (cap, cap_low) = pair(softcap);
        let (ratio, ratio_low) = pair(transform.scale.abs() / softcap);
        let params = Params {
            ignored_count: not_counted.len().min(MOST_IGNORED) as u32,
            flags: flag(coefficients.weight.is_some(), Self::WEIGHTED)
                | flag(is_mean, Self::MEAN)
                | flag(coefficients.has_nan_gradient(), Self::POISONED)
                | flag(coefficients.row_upstream.is_some(), Self::ROW_GRADIENTS),
            factor: if coefficients.has_nan_gradient() { 0.0 } else { coefficients.factor as f32 },
            on_value: coefficients.on_value as f32,
            off_value: coefficients.off_value as f32,
            class_weight: coefficients.class_weight as f32,
            z_loss: coefficients.z_loss as f32,
            scale,
            scale_low,
            signed_scale: transform.scale as f32,
            ratio,
            ratio_low,
            cap,
            cap_low,
            // The tanh of 40 is 1, and exp(-80) a number still.
            cap_limit: (40.0 / f64::from(ratio)).min(f64::from(f32::MAX)) as f32,
            flip: if transform.scale < 0.0 { 1 << 31 } else { 0 },
            k: *k as u32,
            draw_seed: draws.seed,
            draw_step: draws.step,
            draw_top_k: draws.top_k,
            draw_top_p: draws.top_p,
            nan: f32::NAN.to_bits(),
            negative_infinity: f32::NEG_INFINITY.to_bits(),
            ignored,
            ..Params::zeroed()
        };
        let labels = match is_soft {
            true => Labels::Soft,
            false if params.off_value > 0.0 => Labels::Smoothed,
            false => Labels::Classes,
        };
        let transform = match transform.softcap {
            Some(_) => TransformKind::Capped,
            None if transform.is_identity() => TransformKind::Plain,
            None => TransformKind::Scaled,
        };
        Self { params, dtype, labels, transform }
    }

    /// The parameters that are the same in every pass.
    pub(super) fn params(&self) -> Params {
        self.params
    }

    /// With gradients of rows that a buffer holds.
    pub(super) fn with_row_gradients(mut self) -> Self {
        self.params.flags |= Self::ROW_GRADIENTS;
        self
    }

    /// With draws as many steps on as a buffer says.
    pub(super) fn with_later_draws(mut self) -> Self {
        self.params.flags |= Self::LATER_DRAW;
        self
    }

    /// The kernel of an operation under these options, over elements that start where they do in what is bound.
    pub(super) fn kernel(
        &self,
        plan: &Plan,
        problem: &KernelProblem,
        pass: &Pass,
        in_place: bool,
        starts: Starts,
    ) -> Kernel {
        let &Self { params, dtype, labels, transform } = self;
        let op = problem.op;
        // The derivative of a backward's scale is a factor like any other.
        let transform = if op.spec().forward.is_some() { TransformKind::Plain } else { transform };
        let labels = if op.has_targets() { labels } else { Labels::Classes };
        let z_loss = op.has_targets() && params.z_loss > 0.0;
        let (strategy, access) = (plan.strategy, plan.access());
        let fit = starts.fit(problem, strategy, access, pass.rows.end - pass.rows.start);
        // One thread a row: what is left of its last unit is not even looked at.
        let classes =
            if strategy.kind == Kind::RegisterResident && strategy.lanes == 1 { problem.classes as u32 } else { 0 };
        Kernel {
            op,
            strategy,
            dtype,
            in_place,
            strided: problem.inner > 1,
            access,
            units: plan.units(pass.entry),
            stripe: plan.stripe(),
            fit,
            classes,
            segment: plan.segment_classes(),
            long_lanes: plan.long_lanes(),
            flags: if op.has_targets() { params.flags & Self::MADE_FOR } else { 0 },
            labels,
            z_loss,
            transform,
        }
    }
}

/// Where logits and elements start in what is bound, and whether that can be taken by units.
#[derive(Clone, Copy)]
pub(super) struct Starts {
    places: [u32; 2],
    is_wide: bool,
    /// Whether one value of a unit can be written without a word about the others.
    writes_parts: bool,
}

#[cfg(test)]
impl Starts {
    /// At units, words, and neither; where units can be bound, and where one cannot be written in parts.
    pub(super) fn of_each_kind() -> [Self; 4] {
        [(0, true, true), (2, true, false), (1, true, true), (1, false, true)].map(|(at, is_wide, writes_parts)| Self {
            places: [at, 0],
            is_wide,
            writes_parts,
        })
    }
}

impl Starts {
    fn fit(self, problem: &KernelProblem, strategy: Strategy, access: Access, rows: u64) -> Fit {
        let unit = UNIT_BYTES / problem.size;
        let at_multiples_of = |count: u64| {
            let mut starts = self.places.iter().map(|&place| u64::from(place));
            match access {
                // The rows of a workgroup together.
                Access::Staged { .. } => {
                    let group = u64::from(WORKGROUP / strategy.lanes) * problem.classes;
                    starts.all(|start| start.is_multiple_of(count)) && (group.is_multiple_of(count))
                }
                _ if problem.inner > 1 => false,
                _ => {
                    let strides = problem.strides.iter().all(|stride| rows <= 1 || stride.is_multiple_of(count));
                    starts.all(|start| start.is_multiple_of(count)) && strides
                }
            }
        };
        let aligned = at_multiples_of(unit);
        // The last word must not be shared with what follows either.
        let ends = if matches!(access, Access::Staged { .. }) { rows * problem.classes } else { problem.classes };
        let even = problem.size == 4 || (at_multiples_of(2) && ends.is_multiple_of(2));
        let is_held = strategy.kind == Kind::RegisterResident;
        // Where rows share units, workgroups do.
        let may_share = self.writes_parts || !problem.op.spec().writes_elements;
        Fit {
            wide: self.is_wide && even && problem.inner == 1 && (aligned || (!is_held && may_share)),
            aligned,
            whole: problem.classes.is_multiple_of(unit) && (is_held || aligned),
            even,
        }
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

/// Where in a binding a part starts, in its values.
struct Place<'b> {
    binding: BufferBinding<'b>,
    at: u32,
    /// Whether it ends with a unit.
    is_wide: bool,
}

impl GpuContext {
    /// Compiles every pipeline of a plan, in both variants where there are two. Call within error scopes.
    pub(super) fn compile(&self, plan: &Plan, problem: KernelProblem, scale: Scale) {
        for in_place in [false, true] {
            if problem.op.spec().writes_elements || !in_place {
                let problem = if in_place { problem.in_place() } else { problem };
                for pass in plan.passes() {
                    let kernel = scale.kernel(plan, &problem, &pass, in_place, self.starts());
                    self.kernels.pipeline(&self.device, kernel, pass.entry);
                }
            }
        }
    }

    /// At the start of buffers of any size.
    fn starts(&self) -> Starts {
        Starts { places: [0; 2], is_wide: true, writes_parts: self.writes_parts }
    }

    /// A lost device makes broken objects without a word; but a new buffer that is broken cannot be written to, which is an
    /// error. Call within error scopes.
    pub(super) fn probe(&self) {
        let (label, size, usage) = (Some("logits probe"), 4, BufferUsages::COPY_DST);
        let descriptor = wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false };
        self.queue.write_buffer(&self.device.create_buffer(&descriptor), 0, &[0; 4]);
    }

    /// A new buffer with these contents. Call within error scopes.
    pub(super) fn filled(&self, usage: BufferUsages, contents: &[u8]) -> Result<Buffer, GpuError> {
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
        problem: KernelProblem,
        passes: &[Pass],
        scale: Scale,
        buffers: &Buffers<'_>,
        params: &Buffer,
    ) -> (Vec<Dispatch>, Vec<u8>) {
        let in_place = buffers.logits.is_none() && problem.op.spec().writes_elements;
        let problem = if in_place { problem.in_place() } else { problem };
        let mut contents = vec![0; Self::params_bytes(passes.len()) as usize];
        let dispatches = passes
            .iter()
            .zip(contents.chunks_exact_mut(Self::SLOT as usize))
            .zip(0..)
            .map(|((pass, slot), nth)| {
                let entries = self.place(plan, problem, pass, scale, buffers, (params, nth * Self::SLOT));
                let (entries, mut values, starts) = entries;
                let kernel = scale.kernel(plan, &problem, pass, in_place, starts);
                values.first_row = values.first_row.wrapping_add(buffers.first_row as u32);
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
        problem: KernelProblem,
        pass: &Pass,
        scale: Scale,
        buffers: &Buffers<'b>,
        (params, slot): (&'b Buffer, u64),
    ) -> ([BufferBinding<'b>; 9], Params, Starts) {
        let unused =
            |part: Part<'b>| Place { binding: binding(part.buffer, part.offset, part.bytes), at: 0, is_wide: true };
        let unread = || unused(Part { buffer: params, offset: slot, bytes: Self::SLOT });
        let read = |part: Option<Part<'b>>, range: &std::ops::Range<u64>, size: u64| match part {
            Some(part) if !range.is_empty() => self.window(part, range, size),
            _ => unread(),
        };
        let written = |part: Option<Part<'b>>, range: &std::ops::Range<u64>, size: u64, nth: u64| match part {
            Some(part) if !range.is_empty() => self.window(part, range, size),
            _ => unused(buffers.scratch.spare(nth)),
        };
        let everything = |part: Option<Part<'b>>| 0..part.map_or(0, |part| part.bytes);
        let row_bytes = problem.bytes_of_a_row();

        let [in_stride, out_stride] = problem.strides;
        let in_place = buffers.logits.is_none();
        let logits = read(buffers.logits, &pass.elements(problem.inner, in_stride), problem.size);
        let elements = written(buffers.elements, &pass.elements(problem.inner, out_stride), problem.size, 0);
        let targets = match problem.operand_bytes {
            // A counter, which is the same for all rows.
            0 if problem.op == Op::Sample => read(buffers.targets, &(0..1), 4),
            0 => read(buffers.targets, &pass.rows, 4),
            size => read(buffers.targets, &pass.elements(problem.inner, problem.classes * problem.inner), size),
        };
        let row_upstream = read(buffers.row_upstream, &pass.rows, 4);
        let rows_out = written(buffers.rows_out, &pass.rows, row_bytes, 1);
        let weights = read(buffers.weights, &everything(buffers.weights), 1);
        let partials = buffers.scratch.partials();
        let partials = written(partials, &everything(partials), 1, 2);
        let summary = written(buffers.summary, &everything(buffers.summary), 1, 3);

        let values = Params {
            rows: (pass.rows.end - pass.rows.start) as u32,
            classes: problem.classes as u32,
            inner: problem.inner as u32,
            logits_stride: in_stride as u32,
            elements_stride: out_stride as u32,
            segments: plan.segments(),
            first_segment: pass.segments.start,
            pass_segments: pass.segments.end - pass.segments.start,
            logits_at: if in_place { elements.at } else { logits.at },
            elements_at: elements.at,
            targets_at: targets.at,
            rows_out_at: rows_out.at,
            gradients_at: row_upstream.at,
            first_group: Plan::first_group(pass),
            first_row: pass.rows.start as u32,
            groups: match pass.entry {
                Entry::TotalTargets if problem.operand_bytes > 0 => 0,
                Entry::TotalTargets | Entry::TotalLosses => plan.row_groups(),
                _ => 0,
            },
            soft_rows: if problem.operand_bytes > 0 { problem.rows as u32 } else { 0 },
            ..scale.params
        };
        let is_wide = logits.is_wide && elements.is_wide;
        let starts = Starts { places: [values.logits_at, elements.at], is_wide, ..self.starts() };
        let params = binding(params, slot, size_of::<Params>() as u64);
        let storage =
            [logits, targets, weights, elements, rows_out, partials, summary, row_upstream].map(|place| place.binding);
        let [logits, targets, weights, elements, rows_out, partials, summary, row_upstream] = storage;
        ([params, logits, targets, weights, elements, rows_out, partials, summary, row_upstream], values, starts)
    }

    /// Binds a range of values of a part, as exactly as the alignment of offsets allows, in whole units where there are.
    fn window<'b>(&self, part: Part<'b>, range: &std::ops::Range<u64>, size: u64) -> Place<'b> {
        let start = part.offset + range.start * size;
        let aligned = start - start % u64::from(self.limits.offset_alignment);
        let bytes = part.offset + range.end * size - aligned;
        let units = bytes.next_multiple_of(UNIT_BYTES);
        let is_wide = aligned + units <= part.buffer.size() && units <= self.limits.binding_bytes;
        let bytes = if is_wide { units } else { bytes.next_multiple_of(4) };
        // What takes two words is counted in words.
        Place { binding: binding(part.buffer, aligned, bytes), at: ((start - aligned) / size.min(4)) as u32, is_wide }
    }
}

fn binding(buffer: &Buffer, offset: u64, bytes: u64) -> BufferBinding<'_> {
    BufferBinding { buffer, offset, size: BufferSize::new(bytes) }
}
