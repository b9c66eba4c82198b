//! Computes strided rows: rows whose classes are `inner` elements apart, as where the classes are
//! not the last axis.
//!
//! A block has `inner` rows, and element `class * inner + row` is the logit of a class of a row. So
//! the logits of one class of neighbouring rows, a *class slice*, lie side by side. A few rows at a
//! time are gathered, computed, and scattered back:
//!
//! ```text
//! for each batch of neighbouring rows:
//!     gathered = transposed 16 x 16 squares;  run the operation;  transpose and scatter
//! ```

use std::marker::PhantomData;
use std::ops::Range;

use super::dispatch::{RowTask, Variant};
use super::groups::{Group, RowKernel};
use super::run::Schedule;
use super::simd::{Exp, Isa, LANES, Number, Real, Vector, at_level, each};
use super::transform::LogitTransform;
use crate::Error;
use crate::problem::operands::RowsOut;

/// About the number of elements that are gathered at a time. The rows are rounded up to whole
/// vectors, unless these have more than `GATHER_LIMIT` elements.
const GATHER_ELEMENTS: usize = 32 * 1024;
/// The largest number of elements that are gathered at a time, unless one row alone has more.
const GATHER_LIMIT: usize = 1 << 24;

/// Neighbouring rows of a block, for writing: `count` rows, each with `classes` elements that are
/// `inner` apart; `start` is the first element of the first row. Every row of a block belongs to
/// one `StridedRows` at most, so threads may write rows of one block at the same time.
pub(super) struct StridedRows<'a, T> {
    start: *mut T,
    inner: usize,
    classes: usize,
    count: usize,
    block: PhantomData<&'a mut [T]>,
}

// SAFETY: `StridedRows::new` takes the only borrow of the block, and `split_at` gives each row to
// one of two values, so no element is reachable from two of them. Sending one is sending a `&mut
// [T]`, which needs `T: Send`.
unsafe impl<T: Send> Send for StridedRows<'_, T> {}

impl<'a, T> StridedRows<'a, T> {
    /// Returns all `inner` rows of `block`.
    pub(super) fn new(block: &'a mut [T], inner: usize) -> Self {
        let classes = block.len() / inner;
        Self { start: block.as_mut_ptr(), inner, classes, count: inner, block: PhantomData }
    }

    /// Returns the first `rows` rows and the rest.
    pub(super) fn split_at(self, rows: usize) -> (Self, Self) {
        let Self { start, inner, classes, count, block } = self;
        assert!(rows <= count);
        let rest =
            Self { start: start.wrapping_add(rows), inner, classes, count: count - rows, block };
        (Self { start, inner, classes, count: rows, block }, rest)
    }

    /// Returns the elements of `class`, one for each row.
    fn class_slice(&self, class: usize) -> &[T] {
        assert!(class < self.classes);
        // SAFETY: `start + class * inner` is the element of that class of the first row, which
        // exists, and the `count` elements from there on are of the same class. They belong to this
        // value alone, and `&self` lends them for reading.
        unsafe {
            std::slice::from_raw_parts(self.start.wrapping_add(class * self.inner), self.count)
        }
    }

    fn class_slice_mut(&mut self, class: usize) -> &mut [T] {
        assert!(class < self.classes);
        // SAFETY: as in `class_slice`; `&mut self` lends them to one writer.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.wrapping_add(class * self.inner), self.count)
        }
    }
}

/// A block of strided rows.
pub(super) struct StridedBlock<'a, T> {
    /// The number of the block in the task.
    pub(super) outer: usize,
    /// The logits of the whole block; `None` where they are in `output`.
    pub(super) input: Option<&'a [T]>,
    /// The rows that are to be computed, for their results; `None` where the operation writes no
    /// elements.
    pub(super) output: Option<StridedRows<'a, T>>,
}

impl Schedule {
    /// Returns the number of rows in the first half of some rows of a block, or `None` if they are
    /// not halved.
    pub(super) fn half_of_block(self, rows: usize, classes: usize) -> Option<usize> {
        // Each half has whole cache lines of each class.
        (rows > LANES && rows * classes > self.grain).then(|| (rows / 2).next_multiple_of(LANES))
    }
}

/// Returns the number of the `rows` that are gathered at a time: as many as give whole cache lines
/// of each class, unless that is too much memory.
pub(super) fn gathered_rows(classes: usize, rows: usize) -> usize {
    let whole = (GATHER_ELEMENTS / classes).next_multiple_of(LANES);
    whole.max(LANES.min(GATHER_LIMIT / classes)).clamp(1, rows)
}

impl RowTask<'_> {
    /// Computes the rows `rows` of a block, on several threads where they are many.
    pub(super) fn strided_rows<T: Number<Wide: Exp>, Y: LogitTransform>(
        self,
        transform: Y,
        block: StridedBlock<'_, T>,
        rows: Range<usize>,
        rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        #[cfg(feature = "parallel")]
        if let Some(half) = self.schedule.half_of_block(rows.len(), self.shape.classes()) {
            let StridedBlock { outer, input, output } = block;
            let middle = rows.start + half;
            let (out_a, out_b) = rows_out.split_at(half);
            let (output_a, output_b) = output.map(|output| output.split_at(half)).unzip();
            let block_a = StridedBlock { outer, input, output: output_a };
            let block_b = StridedBlock { outer, input, output: output_b };
            let (a, b) = rayon::join(
                || self.strided_rows(transform, block_a, rows.start..middle, out_a),
                || self.strided_rows(transform, block_b, middle..rows.end, out_b),
            );
            return a.and(b);
        }
        at_level!(
            self.schedule.level,
            isa => self.few_strided_rows(Variant { isa, transform }, block, rows, rows_out)
        )
    }

    /// Computes the rows `rows` of a block on this thread.
    #[inline(always)]
    fn few_strided_rows<I: Isa, T: Number<Wide: Exp>, Y: LogitTransform>(
        mut self,
        variant: Variant<I, Y>,
        block: StridedBlock<'_, T>,
        rows: Range<usize>,
        mut rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        let isa = variant.isa;
        let StridedBlock { outer, input, mut output } = block;
        let (classes, inner) = (self.shape.classes(), self.shape.inner());
        let kernel = RowKernel::of(self.op, classes);
        let mut source = self.scratch(gathered_rows(classes, rows.len()))?;
        let scratch = source.get();
        let mut gathered = std::mem::take(&mut scratch.rows);
        // The scratch holds fewer rows where memory is short.
        let batch_rows = gathered.len() / classes;
        for start in rows.clone().step_by(batch_rows) {
            let count = batch_rows.min(rows.end - start);
            let (at, index) = (start - rows.start, outer * inner + start);
            // The squares of 16 rows and 16 classes, by their first row and class.
            let squares = || {
                let rows = (0..count).step_by(LANES);
                rows.flat_map(move |row| (0..classes).step_by(LANES).map(move |class| (row, class)))
            };
            let mut square = [[T::Wide::ZERO; LANES]; LANES];
            // for each square: gathered[row + j][class + i] = logit of class + i of row + j
            for (row, class) in squares() {
                let (square_rows, square_classes) =
                    (LANES.min(count - row), LANES.min(classes - class));
                for (nth, to) in square.iter_mut().enumerate().take(square_classes) {
                    let from = match (input, &output) {
                        (Some(input), _) => &input[(class + nth) * inner + start..],
                        (None, Some(output)) => &output.class_slice(class + nth)[at..],
                        (None, None) => continue,
                    };
                    gather(isa, &from[row..][..square_rows], to);
                }
                transpose_square(isa, &mut square);
                for (nth, from) in square.iter().enumerate().take(square_rows) {
                    gathered[(row + nth) * classes + class..][..square_classes]
                        .copy_from_slice(&from[..square_classes]);
                }
            }
            let at_once = kernel.rows();
            for (nth, x) in gathered[..count * classes].chunks_mut(at_once * classes).enumerate() {
                let (row, count) = (nth * at_once, x.len() / classes);
                let (first, out_at) = (index + row, at + row);
                if kernel == RowKernel::Selection {
                    self.select_classes(variant, x, scratch, first, &mut rows_out, out_at);
                } else {
                    let group = Group { first, count, out_at, streams: false };
                    self.run_copies(variant, x, scratch, group, &mut rows_out);
                }
            }
            let Some(output) = &mut output else { continue };
            // for each square: result of class + i of row + j = gathered[row + j][class + i]
            for (row, class) in squares() {
                let (square_rows, square_classes) =
                    (LANES.min(count - row), LANES.min(classes - class));
                for (nth, to) in square.iter_mut().enumerate().take(square_rows) {
                    to[..square_classes].copy_from_slice(
                        &gathered[(row + nth) * classes + class..][..square_classes],
                    );
                }
                transpose_square(isa, &mut square);
                for (nth, from) in square.iter().enumerate().take(square_classes) {
                    scatter(
                        isa,
                        from,
                        &mut output.class_slice_mut(class + nth)[at + row..][..square_rows],
                    );
                }
            }
        }
        scratch.rows = gathered;
        Ok(())
    }
}

/// Converts the elements of `from`, at most sixteen, to the type that rows are computed in.
#[inline(always)]
fn gather<I: Isa, T: Number>(isa: I, from: &[T], to: &mut [T::Wide; LANES]) {
    if let Some(from) = from.first_chunk() {
        *to = T::load(isa, from).array();
        return;
    }
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
}

/// Converts as many values of `from` back as `to` has elements, at most sixteen.
#[inline(always)]
fn scatter<I: Isa, T: Number>(isa: I, from: &[T::Wide; LANES], to: &mut [T]) {
    let values = T::store(isa, Vector::load(isa, from));
    match to.first_chunk_mut() {
        Some(to) => *to = values,
        None => to.copy_from_slice(&values[..to.len()]),
    }
}

/// Transposes `square`. Not inlined: gathering and scattering share one copy.
#[inline(never)]
fn transpose_square<I: Isa, W: Real>(isa: I, square: &mut [[W; LANES]; LANES]) {
    isa.vectorize(
        #[inline(always)]
        || {
            let mut rows: [W::V<I>; LANES] = each(
                *square,
                #[inline(always)]
                |row| Vector::load(isa, &row),
            );
            transpose(&mut rows);
            *square = each(
                rows,
                #[inline(always)]
                |row| row.array(),
            );
        },
    );
}

/// Transposes sixteen rows of sixteen elements: interleaving the first half of the rows with the
/// second half, four times over.
#[inline(always)]
fn transpose<I: Isa, V: Vector<I>>(rows: &mut [V; LANES]) {
    for _ in 0..LANES.ilog2() {
        let from = *rows;
        for at in 0..LANES / 2 {
            (rows[2 * at], rows[2 * at + 1]) = from[at].interleave(from[at + LANES / 2]);
        }
    }
}
