//! A prepared operation: the one thing that host memory in chunks, resident data, and a caller's
//! command encoder bind their buffers to.
//!
//! [`Prepared::new`] lowers an operation: it plans the passes over the rows. [`Prepared::bind`]
//! turns passes and buffers into dispatches, each with its pipeline, its bind group and its
//! parameters. [`Bound::record`] puts them into a command encoder.

use std::ops::Range;

use bytemuck::cast_slice;
use wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindingResource, Buffer, BufferBinding,
    BufferSize, BufferUsages, CommandEncoder, ComputePass, ComputePassDescriptor, ComputePipeline,
};

use super::context::GpuContext;
use super::failure::GpuError;
use super::params::{KernelOptions, Params, Starts};
use super::pipelines::{BINDINGS, Kernel, STORAGE_BUFFERS};
use crate::plan::{Entry, KernelProblem, Limits, Pass, Plan, UNIT_BYTES};

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

    /// Returns consecutive sections of `bytes[0]`, `bytes[1]`, ... bytes.
    pub(super) fn sections<const N: usize>(self, bytes: [u64; N]) -> [Self; N] {
        let mut end = self.offset;
        bytes.map(|bytes| {
            let offset = end;
            end += bytes;
            Self { offset, bytes, ..self }
        })
    }

    /// Returns the part, if it has any bytes.
    pub(super) fn non_empty(self) -> Option<Self> {
        (self.bytes > 0).then_some(self)
    }
}

/// A buffer that holds values of the host.
#[derive(Clone, Debug)]
pub(super) struct FilledBuffer {
    pub(super) buffer: Buffer,
    bytes: u64,
}

impl FilledBuffer {
    pub(super) fn part(&self) -> Part<'_> {
        Part::whole(&self.buffer, self.bytes)
    }
}

/// The buffers of a batch. If `logits` is `None`, results overwrite the logits in `elements`.
#[derive(Clone, Copy)]
pub(super) struct Buffers<'b> {
    /// The row of the whole batch that is the first in these buffers.
    pub(super) first_row: usize,
    pub(super) logits: Option<Part<'b>>,
    /// The target classes, one a row; the operand of the shape of the logits; or the draw counter.
    pub(super) targets: Option<Part<'b>>,
    pub(super) row_upstream: Option<Part<'b>>,
    pub(super) weights: Option<Part<'b>>,
    pub(super) elements: Option<Part<'b>>,
    pub(super) rows_out: Option<Part<'b>>,
    pub(super) summary: Option<Part<'b>>,
    /// Whether one buffer holds both inputs and results. wgpu refuses a buffer that one dispatch
    /// reads through one binding and writes through another, unless both bindings are `read_write`.
    pub(super) share_a_buffer: bool,
}

/// Memory in use only while the passes run: the statistics that passes leave for each other, and
/// spare windows for the bindings that a kernel declares and does not use.
#[derive(Clone, Copy)]
pub(super) struct Scratch<'b> {
    part: Part<'b>,
    partial_bytes: u64,
}

impl<'b> Scratch<'b> {
    /// Offsets of bindings are multiples of at most this, in wgpu.
    pub(super) const ALIGNMENT: u64 = 256;
    const SPARE: u64 = 256;
    /// The number of spare windows: one for each storage buffer of a kernel.
    const SPARES: u64 = STORAGE_BUFFERS as u64;

    fn bytes(partial_bytes: u64) -> u64 {
        partial_bytes.next_multiple_of(Self::ALIGNMENT) + Self::SPARES * Self::SPARE
    }

    fn partials(&self) -> Option<Part<'b>> {
        Part { bytes: self.partial_bytes, ..self.part }.non_empty()
    }

    /// Returns a spare window. Writable bindings may not overlap, so each has its own.
    fn spare(&self, nth: u64) -> Part<'b> {
        let offset = self.partial_bytes.next_multiple_of(Self::ALIGNMENT) + nth * Self::SPARE;
        Part { buffer: self.part.buffer, offset: self.part.offset + offset, bytes: Self::SPARE }
    }
}

/// An operation lowered for a batch of rows: its passes, and the options of its kernels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) problem: KernelProblem,
    pub(super) options: KernelOptions,
}

impl Prepared {
    /// Plans the passes within `limits`.
    pub(super) fn new(
        problem: KernelProblem,
        options: KernelOptions,
        limits: Limits,
    ) -> Result<Self, GpuError> {
        let plan = Plan::new(problem, limits).map_err(|why| GpuError::new(why.to_string()))?;
        Ok(Self { plan, problem, options })
    }

    /// Plans passes over buffers that hold the whole batch.
    pub(super) fn over_whole_batch(
        problem: KernelProblem,
        options: KernelOptions,
        limits: Limits,
    ) -> Result<Self, GpuError> {
        let prepared = Self::new(problem, options, limits)?;
        prepared.plan.check_whole().map_err(|why| GpuError::new(why.to_string()))?;
        Ok(prepared)
    }

    /// Returns the operation over a part of the batch, which has blocks of `inner` rows and no
    /// gaps.
    pub(super) fn in_blocks(self, inner: u64) -> Self {
        Self { problem: self.problem.in_blocks(inner), ..self }
    }

    /// Returns the bytes of scratch that the passes need.
    pub(super) fn scratch_bytes(&self) -> u64 {
        Scratch::bytes(self.plan.partial_bytes())
    }

    /// Returns the scratch at the start of `part`, which has at least [`Self::scratch_bytes`].
    pub(super) fn scratch<'b>(&self, part: Part<'b>) -> Scratch<'b> {
        Scratch { part, partial_bytes: self.plan.partial_bytes() }
    }

    /// Compiles every pipeline, in both variants where there are two. Call within error scopes.
    pub(super) fn compile(&self, context: &GpuContext) {
        for in_place in [false, true] {
            if self.problem.op.spec().writes_elements || !in_place {
                let problem = if in_place { self.problem.in_place() } else { self.problem };
                for pass in self.plan.passes() {
                    let kernel = self.options.kernel(
                        &self.plan,
                        &problem,
                        &pass,
                        in_place,
                        context.starts(),
                    );
                    context.kernels.pipeline(&context.device, kernel, pass.entry);
                }
            }
        }
    }

    /// Binds passes of the plan to buffers, and uploads the parameters of the passes. Call within
    /// error scopes.
    ///
    /// ```text
    /// for each pass:
    ///     windows    = the range of each buffer that the pass touches, from an aligned offset on
    ///     parameters = options of the operation, shape of the pass, where values start in the windows
    ///     kernel     = the variant for the operation, the options, and how rows fall on 16-byte units
    ///     dispatch   = (pipeline of the kernel, bind group of the windows, workgroups of the pass)
    /// ```
    pub(super) fn bind(
        &self,
        context: &GpuContext,
        passes: &[Pass],
        buffers: &Buffers<'_>,
        scratch: Scratch<'_>,
    ) -> Result<Bound, GpuError> {
        let in_place = buffers.logits.is_none() && self.problem.op.spec().writes_elements;
        let problem = if in_place { self.problem.in_place() } else { self.problem };
        let prepared = Self { problem, ..*self };
        let bytes = passes.len() as u64 * GpuContext::SLOT;
        let params = context.pool.take(&context.device, GpuContext::PARAMS_USAGE, bytes)?;
        let mut contents = vec![0; bytes as usize];
        let dispatches = passes
            .iter()
            .zip(contents.chunks_exact_mut(GpuContext::SLOT as usize))
            .zip(0..)
            .map(|((pass, slot), nth)| {
                let params = (&params, nth * GpuContext::SLOT);
                let (windows, mut values, starts) =
                    prepared.place(context, pass, buffers, scratch, params);
                let kernel = self.options.kernel(&self.plan, &problem, pass, in_place, starts);
                let kernel = Kernel { read_write: buffers.share_a_buffer, ..kernel };
                values.first_row = values.first_row.wrapping_add(buffers.first_row as u32);
                slot[..size_of::<Params>()].copy_from_slice(bytemuck::bytes_of(&values));
                context.dispatch(pass, kernel, windows)
            })
            .collect();
        context.queue.write_buffer(&params, 0, &contents);
        Ok(Bound { dispatches, params })
    }

    /// Returns the bindings of one pass, its parameters, and where rows start in the bindings.
    fn place<'b>(
        &self,
        context: &GpuContext,
        pass: &Pass,
        buffers: &Buffers<'b>,
        scratch: Scratch<'b>,
        (params, slot): (&'b Buffer, u64),
    ) -> ([BufferBinding<'b>; BINDINGS.len()], Params, Starts) {
        let Self { plan, problem, options } = self;
        let unused = |part: Part<'b>| Place {
            binding: binding(part.buffer, part.offset, part.bytes),
            at: 0,
            is_wide: true,
        };
        // A read-only binding that the kernel does not use is bound to the parameters, which are
        // only read too. Where all bindings are `read_write`, it has a spare window of its own.
        let read = |part: Option<Part<'b>>, range: &Range<u64>, size: u64, nth: u64| match part {
            Some(part) if !range.is_empty() => context.window(part, range, size),
            _ if buffers.share_a_buffer => unused(scratch.spare(nth)),
            _ => unused(Part { buffer: params, offset: slot, bytes: GpuContext::SLOT }),
        };
        let written = |part: Option<Part<'b>>, range: &Range<u64>, size: u64, nth: u64| match part {
            Some(part) if !range.is_empty() => context.window(part, range, size),
            _ => unused(scratch.spare(nth)),
        };
        let everything = |part: Option<Part<'b>>| 0..part.map_or(0, |part| part.bytes);
        let row_bytes = problem.bytes_of_a_row();

        let [in_stride, out_stride] = problem.strides;
        let in_place = buffers.logits.is_none();
        let logits =
            read(buffers.logits, &pass.elements(problem.inner, in_stride), problem.size, 4);
        let elements =
            written(buffers.elements, &pass.elements(problem.inner, out_stride), problem.size, 0);
        let targets = match problem.operand_bytes {
            // The draw counter is the same for all rows.
            0 if problem.op.draws() => read(buffers.targets, &(0..1), 4, 5),
            0 => read(buffers.targets, &pass.rows, 4, 5),
            size => read(
                buffers.targets,
                &pass.elements(problem.inner, problem.classes * problem.inner),
                size,
                5,
            ),
        };
        let row_upstream = read(buffers.row_upstream, &pass.rows, 4, 6);
        let rows_out = written(buffers.rows_out, &pass.rows, row_bytes, 1);
        let weights = read(buffers.weights, &everything(buffers.weights), 1, 7);
        let partials = scratch.partials();
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
            row_upstream_at: row_upstream.at,
            first_group: Plan::first_group(pass),
            first_row: pass.rows.start as u32,
            groups: match pass.entry {
                Entry::TotalTargets if problem.operand_bytes > 0 => 0,
                Entry::TotalTargets | Entry::TotalLosses => plan.row_groups(),
                _ => 0,
            },
            soft_rows: if problem.operand_bytes > 0 { problem.rows as u32 } else { 0 },
            ..options.params()
        };
        let is_wide = logits.is_wide && elements.is_wide;
        let starts =
            Starts { places: [values.logits_at, elements.at], is_wide, ..context.starts() };
        let params = binding(params, slot, size_of::<Params>() as u64);
        let storage =
            [logits, targets, weights, elements, rows_out, partials, summary, row_upstream]
                .map(|place| place.binding);
        let [logits, targets, weights, elements, rows_out, partials, summary, row_upstream] =
            storage;
        (
            [params, logits, targets, weights, elements, rows_out, partials, summary, row_upstream],
            values,
            starts,
        )
    }
}

/// The window of a part, and `at`, the value of the window at which the part starts.
struct Place<'b> {
    binding: BufferBinding<'b>,
    at: u32,
    /// Whether the window ends with a whole 16-byte unit.
    is_wide: bool,
}

/// Passes bound to buffers, to be recorded any number of times. It keeps the buffers alive.
#[derive(Debug)]
pub(super) struct Bound {
    dispatches: Vec<Dispatch>,
    /// The parameters of the passes.
    pub(super) params: Buffer,
}

impl Bound {
    /// Records the dispatches as one compute pass.
    pub(super) fn record(&self, encoder: &mut CommandEncoder) {
        let descriptor = ComputePassDescriptor { label: Some("logits"), timestamp_writes: None };
        self.record_in(&mut encoder.begin_compute_pass(&descriptor));
    }

    /// Records the dispatches in a compute pass, whose pipeline and bind group 0 they set.
    pub(super) fn record_in(&self, pass: &mut ComputePass<'_>) {
        for Dispatch { pipeline, group, groups: [x, y, z] } in &self.dispatches {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(*x, *y, *z);
        }
    }

    /// The number of dispatches.
    pub(super) fn dispatches(&self) -> usize {
        self.dispatches.len()
    }
}

/// One dispatch with everything that it needs.
#[derive(Debug)]
struct Dispatch {
    pipeline: ComputePipeline,
    group: BindGroup,
    groups: [u32; 3],
}

impl GpuContext {
    fn dispatch(
        &self,
        pass: &Pass,
        kernel: Kernel,
        windows: [BufferBinding<'_>; BINDINGS.len()],
    ) -> Dispatch {
        let entry = |(binding, window)| BindGroupEntry {
            binding,
            resource: BindingResource::Buffer(window),
        };
        let group = self.device.create_bind_group(&BindGroupDescriptor {
            label: Some("logits"),
            layout: &self.kernels.bindings(&self.device, kernel.read_write),
            entries: &(0..).zip(windows).map(entry).collect::<Vec<_>>(),
        });
        let pipeline = self.kernels.pipeline(&self.device, kernel, pass.entry);
        Dispatch { pipeline, group, groups: pass.groups }
    }

    /// Returns the starts of rows that begin buffers of any size.
    fn starts(&self) -> Starts {
        Starts { places: [0; 2], is_wide: true, writes_parts: self.writes_parts }
    }

    /// Finds out whether the device is lost. A lost device creates invalid objects without an
    /// error, but a write to an invalid new buffer is one. Call within error scopes.
    pub(super) fn probe(&self) {
        let (label, size, usage) = (Some("logits probe"), 4, BufferUsages::COPY_DST);
        let descriptor = wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false };
        self.queue.write_buffer(&self.device.create_buffer(&descriptor), 0, &[0; 4]);
    }

    /// Returns a buffer with these contents. Call within error scopes.
    pub(super) fn filled(&self, usage: BufferUsages, contents: &[u8]) -> Result<Buffer, GpuError> {
        let buffer =
            self.pool.take(&self.device, usage | BufferUsages::COPY_DST, contents.len() as u64)?;
        self.queue.write_buffer(&buffer, 0, contents);
        Ok(buffer)
    }

    /// Returns a buffer with these values, if there are any. Call within error scopes.
    pub(super) fn filled_values(
        &self,
        values: Option<&[f32]>,
    ) -> Result<Option<FilledBuffer>, GpuError> {
        let Some(values) = values.filter(|values| !values.is_empty()) else { return Ok(None) };
        let buffer = self.filled(BufferUsages::STORAGE, cast_slice(values))?;
        Ok(Some(FilledBuffer { buffer, bytes: size_of_val(values) as u64 }))
    }

    /// Usage of the buffer that holds the parameters of passes; it also stands in for read-only
    /// bindings.
    pub(super) const PARAMS_USAGE: BufferUsages =
        BufferUsages::UNIFORM.union(BufferUsages::STORAGE).union(BufferUsages::COPY_DST);
    /// Bytes from the parameters of one pass to those of the next.
    const SLOT: u64 = 256;

    /// Binds `range` of a part, in values of `size` bytes: from the last aligned offset before it,
    /// and up to the end of a 16-byte unit where the buffer and the limits allow that.
    fn window<'b>(&self, part: Part<'b>, range: &Range<u64>, size: u64) -> Place<'b> {
        let start = part.offset + range.start * size;
        let aligned = start - start % u64::from(self.limits.offset_alignment);
        let bytes = part.offset + range.end * size - aligned;
        let units = bytes.next_multiple_of(UNIT_BYTES);
        let is_wide = aligned + units <= part.buffer.size() && units <= self.limits.binding_bytes;
        let bytes = if is_wide { units } else { bytes.next_multiple_of(4) };
        // Values of two words (predictions) are counted in words.
        Place {
            binding: binding(part.buffer, aligned, bytes),
            at: ((start - aligned) / size.min(4)) as u32,
            is_wide,
        }
    }
}

fn binding(buffer: &Buffer, offset: u64, bytes: u64) -> BufferBinding<'_> {
    BufferBinding { buffer, offset, size: BufferSize::new(bytes) }
}
