//! Computes strided rows: rows whose classes are `inner` elements apart, as where the classes are
//! not the last axis.
//!
//! A block has `inner` rows, and element `class * inner + row` is the logit of a class of a row. So
//! the logits of one class of neighbouring rows, a *class slice*, lie side by side. A few rows at a
//! time are gathered, computed, and scattered back:
//!
//! ```text
//! for each batch of neighbouring rows:
//!     short rows:
//!         tile[class] = 16 elements of the class slice;  run the operation;  scatter the tile
//!     other rows:
//!         gathered = transposed 16 x 16 squares;  run the operation;  transpose and scatter
//! ```

use std::marker::PhantomData;
use std::ops::Range;

use super::dispatch::{RowTask, Variant};
use super::groups::{Group, RowKernel};
use super::lines::PendingLines;
use super::rows::{LanesAlongRow, ROWS, gather, scatter, transpose};
use super::run::Schedule;
use super::simd::{Exp, Isa, LANES, Number, Real, at_level};
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
        let Variant { isa, transform } = variant;
        let StridedBlock { outer, input, mut output } = block;
        let (classes, inner) = (self.shape.classes(), self.shape.inner());
        let is_short = RowKernel::of(self.op, classes) == RowKernel::AcrossRows;
        let batch_rows = if is_short { ROWS } else { gathered_rows(classes, rows.len()) };
        let (mut source, group_rows) = self.scratch(if is_short { 0 } else { batch_rows })?;
        let scratch = source.get();
        // The scratch holds fewer rows where memory is short.
        let batch_rows = if is_short { ROWS } else { scratch.rows.len() / classes };
        for start in rows.clone().step_by(batch_rows) {
            let count = batch_rows.min(rows.end - start);
            let (at, index) = (start - rows.start, outer * inner + start);
            // Gathers the logits of `class` of `length` rows, from row `from` of the batch on.
            let gather_class = |output: &Option<StridedRows<'_, T>>,
                                class: usize,
                                from: usize,
                                length: usize,
                                to: &mut [_; LANES]| {
                match (input, output) {
                    (Some(input), _) => {
                        gather(isa, &input[class * inner + start + from..][..length], to)
                    }
                    (None, Some(output)) => {
                        gather(isa, &output.class_slice(class)[at + from..][..length], to)
                    }
                    (None, None) => {}
                }
            };
            if is_short {
                let [logits, _] = scratch.tiles.halves();
                // tile[half][class][lane] = logit of the class of row 16 * half + lane
                for (half, tile) in logits.into_iter().enumerate() {
                    let there = count.saturating_sub(half * LANES).min(LANES);
                    if there == 0 {
                        continue;
                    }
                    for (class, to) in tile.as_chunks_mut().0.iter_mut().take(classes).enumerate() {
                        gather_class(&output, class, half * LANES, there, to);
                    }
                }
                let group = Group { first: index, count, out_at: at };
                self.run_tiles(variant, scratch, PendingLines::default(), group, &mut rows_out);
                let Some(output) = &mut output else { continue };
                let [_, results] = scratch.tiles.halves();
                // result of the class of row 16 * half + lane = tile[half][class][lane]
                for (half, tile) in results.into_iter().enumerate() {
                    let there = count.saturating_sub(half * LANES).min(LANES);
                    for (class, from) in tile.as_chunks().0.iter().enumerate().take(classes) {
                        let to = &mut output.class_slice_mut(class)[at..][..count];
                        scatter(isa, from, &mut to[count.min(half * LANES)..][..there]);
                    }
                }
                continue;
            }
            // The squares of 16 rows and 16 classes, by their first row and class.
            let squares = |count: usize| {
                let rows = (0..count).step_by(LANES);
                rows.flat_map(move |row| (0..classes).step_by(LANES).map(move |class| (row, class)))
            };
            let mut square = [[T::Wide::ZERO; LANES]; LANES];
            let mut other = square;
            // for each square: gathered[row + j][class + i] = logit of class + i of row + j
            for (row, class) in squares(count) {
                let (square_rows, square_classes) =
                    (LANES.min(count - row), LANES.min(classes - class));
                for (nth, to) in square.iter_mut().enumerate().take(square_classes) {
                    gather_class(&output, class + nth, row, square_rows, to);
                }
                transpose_square(isa, &mut square, &mut other);
                for (nth, from) in square.iter().enumerate().take(square_rows) {
                    scratch.rows[(row + nth) * classes + class..][..square_classes]
                        .copy_from_slice(&from[..square_classes]);
                }
            }
            for (nth, x) in
                scratch.rows[..count * classes].chunks_mut(group_rows * classes).enumerate()
            {
                let (row, count) = (nth * group_rows, x.len() / classes);
                if self.op.spec().rereads_row {
                    for (each, x) in x.chunks_mut(classes).enumerate() {
                        let row = row + each;
                        self.select_classes(
                            variant,
                            x,
                            &mut scratch.held,
                            index + row,
                            &mut rows_out,
                            at + row,
                        );
                    }
                    continue;
                }
                let operands = self.operands(isa, index + row, count, &mut scratch.elementwise);
                let (input, output) = match self.op.spec().writes_elements {
                    true => (None, Some((x, classes))),
                    false => (Some((&*x, classes)), None),
                };
                let mut rows = LanesAlongRow {
                    isa,
                    transform,
                    classes,
                    count,
                    input,
                    output,
                    streams: false,
                    pending: PendingLines::default(),
                    threads_share_rows: false,
                    held: &mut scratch.held,
                };
                self.run_op(&mut rows, &operands, &mut rows_out, at + row);
            }
            let Some(output) = &mut output else { continue };
            // for each square: result of class + i of row + j = gathered[row + j][class + i]
            for (row, class) in squares(count) {
                let (square_rows, square_classes) =
                    (LANES.min(count - row), LANES.min(classes - class));
                for (nth, to) in square.iter_mut().enumerate().take(square_rows) {
                    to[..square_classes].copy_from_slice(
                        &scratch.rows[(row + nth) * classes + class..][..square_classes],
                    );
                }
                transpose_square(isa, &mut square, &mut other);
                for (nth, from) in square.iter().enumerate().take(square_classes) {
                    scatter(
                        isa,
                        from,
                        &mut output.class_slice_mut(class + nth)[at + row..][..square_rows],
                    );
                }
            }
        }
        Ok(())
    }
}

/// Transposes `square`, with `other` as scratch. Not inlined: gathering and scattering share one
/// copy.
#[inline(never)]
fn transpose_square<I: Isa, W: Real>(
    isa: I,
    square: &mut [[W; LANES]; LANES],
    other: &mut [[W; LANES]; LANES],
) {
    isa.vectorize(
        #[inline(always)]
        || transpose(isa, square.as_flattened_mut(), other.as_flattened_mut(), LANES),
    );
}
