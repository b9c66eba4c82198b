//! Computes the rows of a task, a group of up to 32 rows at a time, where a row's classes lie side
//! by side.
//!
//! ```text
//! for each group of rows:
//!     short rows (lanes across rows):
//!         transpose into tiles;  run the operation;  transpose back, and store
//!     other rows (lanes along the row):
//!         run the operation where they are
//! ```
//!
//! [`RowTask::contiguous_rows`] is that loop, and [`RowTask::short_rows`] its first branch.
//! Operations that read a row again to select classes (top-k and sampling) take rows one at a time
//! instead. The second half of this file collects the operands of a group. The operation itself
//! runs in `ops/mod.rs`.

use super::RowOperands;
use super::dispatch::{Buffers, RowTask, Variant};
use super::lines::{self, CACHE_LINE, LineBuffer, PendingLines};
use super::rows::{
    LanesAcrossRows, LanesAlongRow, ROWS, SHORT_ROW_CLASSES, transpose, transpose_back,
};
use super::run::Schedule;
use super::scratch::Scratch;
use super::simd::{Exp, Isa, LANES, Number, Real, Vector, prefetch};
use super::transform::LogitTransform;
use crate::Error;
use crate::ops::Op;
use crate::problem::dtype::Elements;
use crate::problem::operands::{self, RowsOut};

/// Rows of fewer classes go through a line buffer before they are written past the caches, so that
/// whole lines are written.
const BUFFERED_CLASSES: usize = 2048;
/// The largest number of elements of a group of rows, unless one row alone has more: they stay in a
/// core's second cache.
const GROUP_ELEMENTS: usize = 16384;

/// How rows are computed; the operation and the classes alone decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowKernel {
    /// Lanes across rows.
    AcrossRows,
    /// Lanes along the row.
    AlongRow,
    /// A row at a time, copied to memory of its own, in which classes are selected.
    Selection,
}

impl RowKernel {
    pub(super) fn of(op: Op, classes: usize) -> Self {
        if op.spec().rereads_row {
            Self::Selection
        } else if classes <= SHORT_ROW_CLASSES {
            Self::AcrossRows
        } else {
            Self::AlongRow
        }
    }
}

/// Returns the number of rows of a group: as many as have `GROUP_ELEMENTS` elements, but at least 1
/// and at most `ROWS`.
pub(super) fn rows_of_group(classes: usize) -> usize {
    if classes <= SHORT_ROW_CLASSES { ROWS } else { (GROUP_ELEMENTS / classes).clamp(1, ROWS) }
}

/// Rows that are computed together.
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// The first row, among those of the task.
    pub(super) first: usize,
    pub(super) count: usize,
    /// The place in `rows_out` of the value of the first row.
    pub(super) out_at: usize,
}

impl<'a> RowTask<'a> {
    /// Computes all rows of the task. Their classes lie side by side.
    #[inline(always)]
    pub(super) fn contiguous_rows<I: Isa, T: Number<Wide: Exp>, Y: LogitTransform>(
        mut self,
        variant: Variant<I, Y>,
        mut buffers: Buffers<'_, T>,
        mut rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        let Variant { isa, transform } = variant;
        let (classes, end) = (self.shape.classes(), self.shape.outer());
        let kernel = RowKernel::of(self.op, classes);
        let (mut source, group_rows) = self.scratch(usize::from(kernel == RowKernel::Selection))?;
        let scratch = source.get();
        if kernel == RowKernel::Selection {
            for at in self.skip..end {
                let row = &mut scratch.rows[..];
                row.iter_mut()
                    .zip(buffers.logits(at, 0, classes))
                    .for_each(|(to, x)| *to = x.widen());
                self.select_classes(variant, row, &mut scratch.held, at, &mut rows_out, at);
            }
            return Ok(());
        }
        let is_short = kernel == RowKernel::AcrossRows;
        // Longer rows are written past the caches without a line buffer: most of their lines are
        // whole.
        let line_buffers = if self.schedule.streams && classes < BUFFERED_CLASSES {
            lines::buffers(group_rows * classes)
        } else {
            None
        };
        let is_buffered = line_buffers.is_some();
        // Where there is no memory for a line buffer, these rows are written through the caches.
        self.schedule.streams &= is_buffered || classes >= BUFFERED_CLASSES;
        let first = self.skip;
        let buffered =
            buffers.output.take_if(|_| is_buffered).map(|(out, _)| &mut out[first * classes..]);
        let mut line_buffer = buffered
            .zip(line_buffers)
            .map(|(out, line_buffers)| LineBuffer::new(out, line_buffers));
        for at in (first..end).step_by(group_rows) {
            let count = group_rows.min(end - at);
            let (buffered, pending) = match &mut line_buffer {
                Some(line_buffer) => {
                    let (buffered, pending) = line_buffer.next_group(count * classes);
                    (Some(buffered), pending)
                }
                None => (None, PendingLines::default()),
            };
            let remaining_lines = if is_short {
                let group = Group { first: at, count, out_at: at };
                self.short_rows(
                    variant,
                    &mut buffers,
                    (buffered, pending),
                    scratch,
                    group,
                    &mut rows_out,
                )
            } else {
                let Buffers { input, output } = &mut buffers;
                let input = input.map(|(x, stride)| (&x[at * stride..], stride));
                let output = match buffered {
                    Some(buffered) => Some((buffered, classes)),
                    None => {
                        output.as_mut().map(|(out, stride)| (&mut out[at * *stride..], *stride))
                    }
                };
                let Schedule { streams, threads_share_rows, .. } = self.schedule;
                let (streams, held) = (streams && !is_buffered, &mut scratch.held);
                let mut rows = LanesAlongRow {
                    isa,
                    transform,
                    classes,
                    count,
                    input,
                    output,
                    streams,
                    pending,
                    threads_share_rows,
                    held,
                };
                let operands = self.operands(isa, at, count, &mut scratch.elementwise);
                self.run_op(&mut rows, &operands, &mut rows_out, at);
                rows.pending.remaining()
            };
            if let Some(line_buffer) = &mut line_buffer {
                line_buffer.advance(isa, remaining_lines, count * classes);
            }
        }
        match line_buffer {
            Some(line_buffer) => line_buffer.finish(isa),
            None if self.schedule.streams => isa.fence(),
            None => {}
        }
        Ok(())
    }

    /// Computes a group of short rows in tiles, and writes the results to `buffered`, or else to
    /// `buffers`. Returns how many of the `pending` lines are left to be written.
    #[inline(always)]
    fn short_rows<I: Isa, T: Number<Wide: Exp>, Y: LogitTransform>(
        &self,
        variant: Variant<I, Y>,
        buffers: &mut Buffers<'_, T>,
        (mut buffered, pending): (Option<&mut [T]>, PendingLines<'_>),
        scratch: &mut Scratch<T::Wide>,
        group: Group,
        rows_out: &mut RowsOut<'_>,
    ) -> usize {
        let (isa, Group { first, count, .. }) = (variant.isa, group);
        let classes = self.shape.classes();
        let is_dense = buffers.is_dense(classes);
        let [logits, results] = scratch.tiles.halves();
        // tile[half] = transpose(logits of rows [16 * half, 16 * half + 16)), converted to f32 or
        // f64
        for (half, (logits, other)) in logits.into_iter().zip(results).enumerate() {
            let there = count.saturating_sub(half * LANES).min(LANES);
            // Rows without gaps between them are loaded as one run of elements.
            let run = if is_dense { there.max(1) } else { 1 };
            for row in (0..there).step_by(run) {
                let from = buffers.logits(first + half * LANES + row, 0, run * classes);
                // The rows of the group after the next one are prefetched.
                from.chunks(CACHE_LINE / size_of::<T>())
                    .for_each(|line| prefetch(line.as_ptr().wrapping_add(2 * ROWS * classes)));
                let (whole, rest) = from.as_chunks::<LANES>();
                let (to, last) = logits[row * classes..][..from.len()].as_chunks_mut::<LANES>();
                for (from, to) in whole.iter().zip(to) {
                    *to = T::load(isa, from).array();
                }
                rest.iter().zip(last).for_each(|(from, to)| *to = from.widen());
            }
            transpose(isa, logits, other, classes);
        }
        let remaining_lines = self.run_tiles(variant, scratch, pending, group, rows_out);
        if !self.op.spec().writes_elements {
            return remaining_lines;
        }
        let [logits, results] = scratch.tiles.halves();
        // results of rows [16 * half, 16 * half + 16) = transpose(tile[half]), converted to the
        // type of the logits
        for (half, (results, other)) in results.into_iter().zip(logits).enumerate() {
            let there = count.saturating_sub(half * LANES).min(LANES);
            transpose_back(isa, results, other, classes);
            let run = if is_dense { there.max(1) } else { 1 };
            for row in (0..there).step_by(run) {
                let start = half * LANES + row;
                let to = match &mut buffered {
                    Some(to) => &mut to[start * classes..][..run * classes],
                    None => buffers.results(first + start, run * classes).unwrap_or_default(),
                };
                let (whole, rest) = to.as_chunks_mut::<LANES>();
                let (from, last) = results[row * classes..][..run * classes].as_chunks::<LANES>();
                for (from, to) in from.iter().zip(whole) {
                    *to = T::store(isa, Vector::load(isa, from));
                }
                last.iter().zip(rest).for_each(|(from, to)| *to = T::narrow(*from));
            }
        }
        remaining_lines
    }

    /// Runs the operation on the tiles of a group. Returns how many of the `pending` lines are left
    /// to be written.
    #[inline(always)]
    pub(super) fn run_tiles<I: Isa, Y: LogitTransform, W: Exp>(
        &self,
        Variant { isa, transform }: Variant<I, Y>,
        scratch: &mut Scratch<W>,
        pending: PendingLines<'_>,
        Group { first, count, out_at }: Group,
        rows_out: &mut RowsOut<'_>,
    ) -> usize {
        let Scratch { tiles, elementwise, .. } = scratch;
        let operands = self.operands(isa, first, count, elementwise);
        let whole = self.shape.classes() * LANES;
        let [[a, b], [c, d]] = tiles.halves();
        let logits = [a[..whole].as_chunks().0, b[..whole].as_chunks().0];
        let results = [c[..whole].as_chunks_mut().0, d[..whole].as_chunks_mut().0];
        let mut rows = LanesAcrossRows { isa, transform, count, logits, results, pending };
        self.run_op(&mut rows, &operands, rows_out, out_at);
        rows.pending.remaining()
    }

    /// Returns the operands of the `count` rows from row `at` of the task on: targets, gradients,
    /// log-sum-exps, and the elementwise operand, which is copied into `elementwise`.
    #[inline(always)]
    pub(super) fn operands<'s, I: Isa, W: Real>(
        &self,
        isa: I,
        at: usize,
        count: usize,
        elementwise: &'s mut [W],
    ) -> RowOperands<'s, W>
    where
        'a: 's,
    {
        let operands::Operands { transform, coefficients, targets, log_sum_exps, .. } =
            self.operands;
        let first = self.first_row + at;
        let mut operands = RowOperands {
            transform,
            coefficients,
            targets: [Default::default(); ROWS],
            gradients: [1.0; ROWS],
            log_sum_exps: [W::ZERO; ROWS],
            classes: self.shape.classes(),
            elementwise: &[],
        };
        if let Some(targets) = targets.get(first..first + count) {
            operands.targets[..count].copy_from_slice(targets);
        }
        if let Some(gradients) = coefficients.row_upstream {
            operands
                .gradients
                .iter_mut()
                .zip(&gradients[first..])
                .for_each(|(to, &from)| *to = f64::from(from));
        }
        if let Some(values) = log_sum_exps {
            operands.log_sum_exps[..count]
                .iter_mut()
                .enumerate()
                .for_each(|(row, to)| *to = W::of(values.at(first + row)));
        }
        let Some(values) = self.operands.elementwise() else { return operands };
        let elementwise = &mut elementwise[..count * operands.classes];
        self.copy_rows(isa, values, first, elementwise);
        RowOperands { elementwise, ..operands }
    }

    /// Copies the rows of `values` from the row `first` of the batch on. Not inlined: all callers
    /// of [`RowTask::operands`] share one copy.
    #[inline(never)]
    fn copy_rows<I: Isa, W: Real>(
        &self,
        isa: I,
        values: Elements<'_>,
        first: usize,
        rows: &mut [W],
    ) {
        let (classes, inner, block) =
            (self.shape.classes(), self.shape.inner(), self.shape.block());
        macro_rules! copy {
            ($($dtype:ident),*) => {
                match values {
                    $(Elements::$dtype(values) => {
                        for (row, to) in rows.chunks_mut(classes).enumerate() {
                            let index = first + row;
                            let from = values[index / inner * block + index % inner..].iter().step_by(inner);
                            to.iter_mut().zip(from).for_each(|(to, &from)| *to = W::of(f64::from(from)));
                        }
                    })*
                }
            };
        }
        isa.vectorize(
            #[inline(always)]
            || copy!(F32, F16, BF16, F64),
        );
    }
}
