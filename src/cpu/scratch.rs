//! Allocates the memory that rows are computed in, the scratch.
//!
//! Each task has its own. Where the system has no memory for it, tasks take turns with a reserve,
//! which was set aside before anything was written.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::dispatch::RowTask;
use super::groups::rows_of_group;
use super::rows::{Held, ROWS, SHORT_ROW_CLASSES, Tiles, pieces_of};
use super::simd::Real;
use crate::ops::Op;
use crate::ops::Request;
use crate::problem::error::try_reserve;
use crate::problem::operands;
use crate::{DType, Error, Shape};

/// The memory of a task.
#[derive(Default)]
pub(super) struct Scratch<W> {
    pub(super) held: Held<W>,
    pub(super) tiles: Tiles<W>,
    /// Rows that were gathered from strided rows, or that classes are selected from.
    pub(super) rows: Vec<W>,
    /// The elementwise operand (soft targets or the upstream gradient) of a group of rows.
    pub(super) elementwise: Vec<W>,
}

/// The lengths of a [`Scratch`], in elements; `pieces` counts pieces of rows.
#[derive(Clone, Copy)]
struct Lengths {
    rows: usize,
    elementwise: usize,
    pieces: usize,
    /// The number of classes where rows are computed in tiles, else 0.
    tile_classes: usize,
}

impl Lengths {
    /// Returns the lengths for a group of `at_once` rows, and for `gathered` rows that are gathered
    /// first.
    fn new(
        op: Op,
        shape: Shape,
        operands: &operands::Operands<'_>,
        gathered: usize,
        at_once: usize,
    ) -> Self {
        let classes = shape.classes();
        let is_short = classes <= SHORT_ROW_CLASSES;
        let at_once = if op.spec().rereads_row { 1 } else { at_once };
        Self {
            rows: gathered.saturating_mul(classes),
            elementwise: if operands.elementwise().is_some() { at_once * classes } else { 0 },
            pieces: if is_short { 0 } else { at_once * pieces_of(classes) },
            tile_classes: if is_short { classes } else { 0 },
        }
    }
}

/// Returns the least number of rows of a group.
fn least_group(shape: Shape) -> usize {
    if shape.classes() <= SHORT_ROW_CLASSES { ROWS } else { 1 }
}

impl<W: Real> Scratch<W> {
    fn reserve(lengths: Lengths) -> Result<Self, Error> {
        let Lengths { rows, elementwise, pieces, tile_classes } = lengths;
        let mut scratch = Self::default();
        try_reserve("rows on their way", &mut scratch.rows, rows)?;
        try_reserve("rows on their way", &mut scratch.elementwise, elementwise)?;
        scratch.held.reserve(pieces)?;
        scratch.tiles.reserve(tile_classes)?;
        Ok(scratch)
    }

    /// Sets the lengths; allocates nothing where [`Scratch::reserve`] was called with lengths as
    /// large.
    fn resize(&mut self, lengths: Lengths) {
        self.rows.resize(lengths.rows, W::ZERO);
        self.elementwise.resize(lengths.elementwise, W::ZERO);
        self.tiles.resize(lengths.tile_classes);
    }
}

/// The scratch of one row, or of as many short rows as are computed together.
pub(crate) enum Reserve {
    Single(Mutex<Scratch<f32>>),
    Double(Mutex<Scratch<f64>>),
}

impl Reserve {
    pub(super) fn new(request: &Request<'_>) -> Result<Self, Error> {
        let gathered = usize::from(request.shape.inner() > 1 || request.op.spec().rereads_row);
        let lengths = Lengths::new(
            request.op,
            request.shape,
            &request.operands,
            gathered,
            least_group(request.shape),
        );
        Ok(match request.data.dtype() {
            DType::F64 => Self::Double(Mutex::new(Scratch::reserve(lengths)?)),
            _ => Self::Single(Mutex::new(Scratch::reserve(lengths)?)),
        })
    }
}

/// The scratch of a task: its own, or the request's reserve while the task holds it.
pub(super) enum Source<'r, W> {
    Own(Scratch<W>),
    Reserve(MutexGuard<'r, Scratch<W>>),
}

impl<W> Source<'_, W> {
    pub(super) fn get(&mut self) -> &mut Scratch<W> {
        match self {
            Self::Own(scratch) => scratch,
            Self::Reserve(scratch) => scratch,
        }
    }
}

impl<'a> RowTask<'a> {
    /// Takes memory for a group of rows, and for `gathered` rows that are gathered first. Returns
    /// it with the number of rows that a group may have.
    ///
    /// Where the system has no memory for that, the group is the smallest possible, and at most one
    /// row is gathered. The memory is then the request's reserve, and threads no longer share a row
    /// of this task; a request without a reserve is one task, which allocates this smaller memory
    /// itself.
    pub(super) fn scratch<W: Real>(
        &mut self,
        gathered: usize,
    ) -> Result<(Source<'a, W>, usize), Error> {
        let (group, least_group) = (rows_of_group(self.shape.classes()), least_group(self.shape));
        let lengths = |gathered, at_once| {
            Lengths::new(self.op, self.shape, &self.operands, gathered, at_once)
        };
        let least = lengths(gathered.min(1), least_group);
        let lengths = lengths(gathered, group.min(self.shape.row_count()));
        if let Ok(mut scratch) = Scratch::reserve(lengths) {
            scratch.resize(lengths);
            return Ok((Source::Own(scratch), group));
        }
        let mut source = match self.reserve.and_then(W::reserve) {
            // A task that holds the reserve must not wait for other threads, which may be waiting
            // for the reserve.
            Some(reserve) => {
                self.schedule.threads_share_rows = false;
                Source::Reserve(reserve.lock().unwrap_or_else(PoisonError::into_inner))
            }
            None => Source::Own(Scratch::reserve(least)?),
        };
        source.get().resize(least);
        Ok((source, least_group))
    }
}
