//! Computes the rows of a task, up to 32 short rows or one long row at a time, where a row's
//! classes lie side by side.
//!
//! ```text
//! for each group of rows:
//!     short rows: run the operation where they are, or in a copy of rows of half types or with gaps
//!     one long row: run the operation where it is
//! ```
//!
//! [`RowTask::contiguous_rows`] is that loop. Operations that read a row again to select classes
//! (top-k and sampling) take copies of rows one at a time instead. [`RowTask::run_group`] makes the
//! rows of a group, also for `strided.rs`; the second half of this file collects their operands.
//! The operation itself runs in `ops/mod.rs`.

use super::RowOperands;
use super::dispatch::{Buffers, RowTask, Variant};
use super::rows::{LongRow, ROWS, SHORT_ROW_CLASSES, ShortRows};
use super::scratch::Scratch;
use super::simd::{Exp, Isa, Number, Real, load_all, store_all};
use super::transform::LogitTransform;
use crate::ops::Op;
use crate::problem::dtype::{Elements, ElementsMut};
use crate::problem::operands::{self, RowsOut};
use crate::{Element, Error};

/// Rows of fewer classes are written through the caches: too few of their lines are whole.
pub(super) const STREAMED_CLASSES: usize = 2048;

/// How rows are computed; the operation and the classes alone decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowKernel {
    /// Up to 32 short rows as one stream of elements.
    Short,
    /// One row, lanes along its classes.
    Long,
    /// A row at a time, copied to memory of its own, in which classes are selected.
    Selection,
}

impl RowKernel {
    pub(super) fn of(op: Op, classes: usize) -> Self {
        if op.spec().rereads_row {
            Self::Selection
        } else if classes <= SHORT_ROW_CLASSES {
            Self::Short
        } else {
            Self::Long
        }
    }

    /// Returns the number of rows that are computed together.
    pub(super) fn rows(self) -> usize {
        if self == Self::Short { ROWS } else { 1 }
    }
}

/// Rows that are computed together.
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// The first row, among those of the task.
    pub(super) first: usize,
    pub(super) count: usize,
    /// The place in `rows_out` of the value of the first row.
    pub(super) out_at: usize,
    /// Whether results are written past the caches.
    pub(super) streams: bool,
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
        let (classes, end) = (self.shape.classes(), self.shape.outer());
        let kernel = RowKernel::of(self.op, classes);
        let is_half = T::DTYPE != <T::Wide as Element>::DTYPE;
        let is_copied = match kernel {
            RowKernel::Selection => true,
            RowKernel::Short => !buffers.is_dense(classes) || is_half,
            RowKernel::Long => false,
        };
        let mut source = self.scratch(if is_copied { kernel.rows() } else { 0 })?;
        let scratch = source.get();
        // The scratch holds fewer rows where memory is short.
        let at_once = if is_copied { (scratch.rows.len() / classes).max(1) } else { kernel.rows() };
        let streams = self.schedule.streams && classes >= STREAMED_CLASSES;
        // Rows without gaps between them are copied at once.
        let chunk = if buffers.is_dense(classes) { at_once * classes } else { classes };
        for first in (self.skip..end).step_by(at_once) {
            let count = at_once.min(end - first);
            let group = Group { first, count, out_at: first, streams };
            if !is_copied {
                let rows = count * classes;
                let input = buffers.input.map(|(x, stride)| T::erase(&x[first * stride..][..rows]));
                let output = buffers.results(first, rows).map(T::erase_mut);
                self.run_group(variant, (input, output), scratch, group, &mut rows_out);
                continue;
            }
            let mut rows = std::mem::take(&mut scratch.rows);
            let copies = &mut rows[..count * classes];
            for (nth, to) in copies.chunks_mut(chunk).enumerate() {
                load_all(variant.isa, buffers.logits(first + nth, 0, to.len()), to);
            }
            if kernel == RowKernel::Selection {
                self.select_classes(variant, copies, scratch, first, &mut rows_out, first);
            } else {
                self.run_copies(variant, copies, scratch, group, &mut rows_out);
                for (nth, from) in copies.chunks(chunk).enumerate() {
                    let Some(to) = buffers.results(first + nth, from.len()) else { break };
                    store_all(variant.isa, from, to, false);
                }
            }
            scratch.rows = rows;
        }
        if streams {
            variant.isa.fence();
        }
        Ok(())
    }

    /// Runs the operation on copies of rows, in place where it writes elements.
    #[inline(always)]
    pub(super) fn run_copies<I: Isa, W: Exp, Y: LogitTransform>(
        &self,
        variant: Variant<I, Y>,
        copies: &mut [W],
        scratch: &mut Scratch<W>,
        group: Group,
        rows_out: &mut RowsOut<'_>,
    ) {
        let buffers = match self.op.spec().writes_elements {
            true => (None, Some(W::erase_mut(copies))),
            false => (Some(W::erase(copies)), None),
        };
        self.run_group(variant, buffers, scratch, group, rows_out);
    }

    /// Runs the operation on short rows without gaps between them, or on one long row.
    #[inline(never)]
    fn run_group<I: Isa, W: Exp, Y: LogitTransform>(
        &self,
        Variant { isa, transform }: Variant<I, Y>,
        (input, output): (Option<Elements<'_>>, Option<ElementsMut<'_>>),
        scratch: &mut Scratch<W>,
        group: Group,
        rows_out: &mut RowsOut<'_>,
    ) {
        let Group { first, count, out_at, streams } = group;
        let Scratch { short, long, elementwise, weights, .. } = scratch;
        let classes = self.shape.classes();
        if classes <= SHORT_ROW_CLASSES {
            let operands = self.operands::<I, _, ROWS>(isa, first, count, elementwise, weights);
            let input = input.and_then(W::of_elements);
            let output = output.and_then(W::of_elements_mut);
            let mut rows =
                ShortRows { isa, transform, classes, count, input, output, scratch: short };
            self.run_op(&mut rows, &operands, rows_out, out_at);
        } else {
            let operands = self.operands::<I, _, 1>(isa, first, count, elementwise, weights);
            let threads_share_rows = self.schedule.threads_share_rows;
            let mut rows = LongRow {
                isa,
                transform,
                input,
                output,
                streams,
                threads_share_rows,
                scratch: long,
            };
            self.run_op(&mut rows, &operands, rows_out, out_at);
        }
    }

    /// Returns the operands of the `count` rows from row `at` of the task on: targets, gradients,
    /// log-sum-exps, the weights of the classes, and the elementwise operand, which is copied into
    /// `elementwise` unless it can be used where it is.
    #[inline(always)]
    pub(super) fn operands<'s, I: Isa, W: Real, const N: usize>(
        &self,
        isa: I,
        at: usize,
        count: usize,
        elementwise: &'s mut [W],
        weights: &'s [W],
    ) -> RowOperands<'s, W, N>
    where
        'a: 's,
    {
        let operands::Operands { transform, coefficients, targets, log_sum_exps, .. } =
            self.operands;
        let first = self.first_row + at;
        let mut operands = RowOperands {
            transform,
            coefficients,
            targets: [Default::default(); N],
            row_upstream: [1.0; N],
            log_sum_exps: [W::ZERO; N],
            classes: self.shape.classes(),
            elementwise: &[],
            weights,
        };
        if let (Some(weight), true) = (coefficients.weight, weights.is_empty()) {
            operands.weights = W::of_elements(Elements::F32(weight)).unwrap_or_default();
        }
        if let Some(targets) = targets.get(first..first + count) {
            operands.targets[..count].copy_from_slice(targets);
        }
        if let Some(gradients) = coefficients.row_upstream {
            operands
                .row_upstream
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
        let elements = count * operands.classes;
        if elementwise.is_empty() {
            let values = W::of_elements(values).unwrap_or_default();
            operands.elementwise = &values[first * operands.classes..][..elements];
            return operands;
        }
        self.copy_rows(isa, values, first, &mut elementwise[..elements]);
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
                    $(Elements::$dtype(values) if inner == 1 => {
                        let from = &values[first * classes..];
                        rows.iter_mut().zip(from).for_each(|(to, &from)| *to = W::of(f64::from(from)));
                    }
                    Elements::$dtype(values) => {
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
