//! Rows that lie across each other: blocks of planes, each a class. A few columns at a time are brought to where they are
//! computed, and back.

use std::marker::PhantomData;
use std::ops::Range;

use super::lines::Drain;
use super::rows::{Across, ROWS, SHORT, gather, scatter, turn};
use super::run::{HUGE, Part};
use super::simd::{Exp, Isa, LANES, Number, Real, at_level};
use super::transform::Kind;
use crate::Error;
use crate::problem::request::RowsOut;

/// Elements of the rows that are gathered from planes at a time, whole vectors of rows at least, unless they are huge.
const GATHERED: usize = 32 * 1024;

/// Some columns of a block of planes, each a class: `width` from `start` on in each of `classes` planes, which are `inner` elements apart. Every
/// column of a block belongs to one `Planes` at most, so threads may write columns of one block at the same time.
pub(super) struct Planes<'a, T> {
    start: *mut T,
    inner: usize,
    classes: usize,
    width: usize,
    block: PhantomData<&'a mut [T]>,
}

// SAFETY: `Planes::new` takes the only borrow of the block, and `split_at` gives each column to one of two values, so no element is reachable
// from two of them. Sending one is sending a `&mut [T]`, which needs `T: Send`.
unsafe impl<T: Send> Send for Planes<'_, T> {}

impl<'a, T> Planes<'a, T> {
    /// All columns of `block`, `inner` to a plane.
    pub(super) fn new(block: &'a mut [T], inner: usize) -> Self {
        let classes = block.len() / inner;
        Self { start: block.as_mut_ptr(), inner, classes, width: inner, block: PhantomData }
    }

    /// The first `columns`, and the rest.
    pub(super) fn split_at(self, columns: usize) -> (Self, Self) {
        let Self { start, inner, classes, width, block } = self;
        assert!(columns <= width);
        let rest = Self { start: start.wrapping_add(columns), inner, classes, width: width - columns, block };
        (Self { start, inner, classes, width: columns, block }, rest)
    }

    fn plane(&self, class: usize) -> &[T] {
        assert!(class < self.classes);
        // SAFETY: `start + class * inner` is in the plane of `class`, which exists, and `width` columns from there on are within that plane.
        // They belong to this value alone, and `&self` lends them for reading.
        unsafe { std::slice::from_raw_parts(self.start.wrapping_add(class * self.inner), self.width) }
    }

    fn plane_mut(&mut self, class: usize) -> &mut [T] {
        assert!(class < self.classes);
        // SAFETY: as in `plane`; `&mut self` lends them to one writer.
        unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(class * self.inner), self.width) }
    }
}

impl Part<'_> {
    /// The rows of a block that is planes, each a class: some of the columns.
    pub(super) fn columns<T: Number<Wide: Exp>, K: Kind>(
        self,
        kind: K,
        outer: usize,
        input: Option<&[T]>,
        planes: Option<Planes<'_, T>>,
        columns: Range<usize>,
        rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        #[cfg(feature = "parallel")]
        if columns.len() > LANES && columns.len() * self.shape.classes() > self.how.grain {
            // Whole cache lines to each.
            let half = (columns.len() / 2).next_multiple_of(LANES);
            let middle = columns.start + half;
            let (out_a, out_b) = rows_out.split_at(half);
            let (planes_a, planes_b) = planes.map(|planes| planes.split_at(half)).unzip();
            let (a, b) = rayon::join(
                || self.columns(kind, outer, input, planes_a, columns.start..middle, out_a),
                || self.columns(kind, outer, input, planes_b, middle..columns.end, out_b),
            );
            return a.and(b);
        }
        at_level!(self.how.level, isa => self.few_columns(isa, kind, outer, input, planes, columns, rows_out))
    }

    #[allow(clippy::too_many_arguments)] // the same as of `columns`, and the level
    #[inline(always)]
    fn few_columns<I: Isa, T: Number<Wide: Exp>, K: Kind>(
        mut self,
        isa: I,
        kind: K,
        outer: usize,
        input: Option<&[T]>,
        mut planes: Option<Planes<'_, T>>,
        columns: Range<usize>,
        mut rows_out: RowsOut<'_>,
    ) -> Result<(), Error> {
        let (classes, inner) = (self.shape.classes(), self.shape.inner());
        let is_short = classes <= SHORT && !self.op.spec().rereads_row;
        let abreast = if is_short {
            ROWS
        } else {
            // Whole cache lines, unless memory is short.
            let whole = (GATHERED / classes).next_multiple_of(LANES);
            whole.max(LANES.min(HUGE / classes)).clamp(1, columns.len())
        };
        let (mut source, group) = self.scratch(if is_short { 0 } else { abreast })?;
        let scratch = source.get();
        // The scratch holds fewer rows where memory is short.
        let abreast = if is_short { ROWS } else { scratch.rows.len() / classes };
        for start in columns.clone().step_by(abreast) {
            let width = abreast.min(columns.end - start);
            let (at, index) = (start - columns.start, outer * inner + start);
            let plane =
                |planes: &Option<Planes<'_, T>>, class: usize, from: usize, length: usize, to: &mut [_; LANES]| match (
                    input, planes,
                ) {
                    (Some(input), _) => gather(isa, &input[class * inner + start + from..][..length], to),
                    (None, Some(planes)) => gather(isa, &planes.plane(class)[at + from..][..length], to),
                    (None, None) => {}
                };
            if is_short {
                let [logits, _] = scratch.tiles.halves();
                for (half, tile) in logits.into_iter().enumerate() {
                    let there = width.saturating_sub(half * LANES).min(LANES);
                    if there == 0 {
                        continue;
                    }
                    for (class, to) in tile.as_chunks_mut().0.iter_mut().take(classes).enumerate() {
                        plane(&planes, class, half * LANES, there, to);
                    }
                }
                self.tile(isa, kind, scratch, Drain::default(), index, width, &mut rows_out, at);
                let Some(planes) = &mut planes else { continue };
                let [_, results] = scratch.tiles.halves();
                for (half, tile) in results.into_iter().enumerate() {
                    let there = width.saturating_sub(half * LANES).min(LANES);
                    for (class, from) in tile.as_chunks().0.iter().enumerate().take(classes) {
                        let to = &mut planes.plane_mut(class)[at..][..width];
                        scatter(isa, from, &mut to[width.min(half * LANES)..][..there]);
                    }
                }
                continue;
            }
            // Squares of sixteen classes and columns are turned around.
            let squares = |width: usize| {
                let columns = (0..width).step_by(LANES);
                columns.flat_map(move |column| (0..classes).step_by(LANES).map(move |class| (column, class)))
            };
            let mut square = [[T::Wide::ZERO; LANES]; LANES];
            let mut other = square;
            for (column, class) in squares(width) {
                let (across, down) = (LANES.min(width - column), LANES.min(classes - class));
                for (nth, to) in square.iter_mut().enumerate().take(down) {
                    plane(&planes, class + nth, column, across, to);
                }
                turn_square(isa, &mut square, &mut other);
                for (nth, from) in square.iter().enumerate().take(across) {
                    scratch.rows[(column + nth) * classes + class..][..down].copy_from_slice(&from[..down]);
                }
            }
            for (nth, x) in scratch.rows[..width * classes].chunks_mut(group * classes).enumerate() {
                let (row, count) = (nth * group, x.len() / classes);
                if self.op.spec().rereads_row {
                    for (each, x) in x.chunks_mut(classes).enumerate() {
                        self.look(isa, kind, x, &mut scratch.held, index + row + each, &mut rows_out, at + row + each);
                    }
                    continue;
                }
                let operands = self.operands(isa, index + row, count, &mut scratch.beside);
                let (input, output) = match self.op.spec().writes_elements {
                    true => (None, Some((x, classes))),
                    false => (Some((&*x, classes)), None),
                };
                let (streams, drain, is_shared, held) = (false, Drain::default(), false, &mut scratch.held);
                let mut rows = Across { isa, kind, classes, count, input, output, streams, drain, is_shared, held };
                self.operate(&mut rows, &operands, &mut rows_out, at + row);
            }
            let Some(planes) = &mut planes else { continue };
            for (column, class) in squares(width) {
                let (across, down) = (LANES.min(width - column), LANES.min(classes - class));
                for (nth, to) in square.iter_mut().enumerate().take(across) {
                    to[..down].copy_from_slice(&scratch.rows[(column + nth) * classes + class..][..down]);
                }
                turn_square(isa, &mut square, &mut other);
                for (nth, from) in square.iter().enumerate().take(down) {
                    scatter(isa, from, &mut planes.plane_mut(class + nth)[at + column..][..across]);
                }
            }
        }
        Ok(())
    }
}

/// Transposes `square`, with `other` as scratch. Not inlined: the way in and the way back share one copy.
#[inline(never)]
fn turn_square<I: Isa, W: Real>(isa: I, square: &mut [[W; LANES]; LANES], other: &mut [[W; LANES]; LANES]) {
    isa.vectorize(
        #[inline(always)]
        || turn(isa, square.as_flattened_mut(), other.as_flattened_mut(), LANES),
    );
}
