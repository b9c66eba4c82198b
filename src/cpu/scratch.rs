//! Memory that rows are computed in. Each part of a job has its own; where the system gives none, the parts take turns with a reserve
//! that was set aside before anything was written.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::rows::{How, Part};
use super::simd::Real;
use super::sweep::{Held, ROWS, SHORT, Tiles, pieces_of};
use crate::error::try_reserve;
use crate::job::Job;
use crate::{DType, Error};

/// The memory of a part of a job.
#[derive(Default)]
pub(super) struct Scratch<W> {
    pub(super) held: Held<W>,
    pub(super) tiles: Tiles<W>,
    /// Rows that are gathered from planes, or looked through again.
    pub(super) rows: Vec<W>,
    /// Soft targets or upstream gradients of the rows that are computed together.
    pub(super) beside: Vec<W>,
}

/// How much of it, in elements.
#[derive(Clone, Copy)]
struct Lengths {
    rows: usize,
    beside: usize,
    pieces: usize,
    /// The classes of rows that are computed in tiles, else 0.
    tile_classes: usize,
}

impl<W: Real> Scratch<W> {
    fn reserve(lengths: Lengths) -> Result<Self, Error> {
        let Lengths { rows, beside, pieces, tile_classes } = lengths;
        let mut scratch = Self::default();
        try_reserve("rows on their way", &mut scratch.rows, rows)?;
        try_reserve("rows on their way", &mut scratch.beside, beside)?;
        scratch.held.reserve(pieces)?;
        scratch.tiles.reserve(tile_classes)?;
        Ok(scratch)
    }

    /// Allocates nothing where [`Scratch::reserve`] was called with lengths as large.
    fn resize(&mut self, lengths: Lengths) {
        self.rows.resize(lengths.rows, W::ZERO);
        self.beside.resize(lengths.beside, W::ZERO);
        self.tiles.resize(lengths.tile_classes);
    }
}

/// The scratch of one row, or of as many short rows as are computed together.
pub(crate) enum Reserve {
    Single(Mutex<Scratch<f32>>),
    Double(Mutex<Scratch<f64>>),
}

impl Reserve {
    pub(super) fn new(job: &Job<'_>, how: How) -> Result<Self, Error> {
        let part = Part { op: job.op, shape: job.shape, given: job.given, first_row: 0, skip: 0, how, reserve: None };
        let gathered = usize::from(part.shape.inner() > 1 || part.looks_again());
        let lengths = part.lengths(gathered, part.least());
        Ok(match job.data.dtype() {
            DType::F64 => Self::Double(Mutex::new(Scratch::reserve(lengths)?)),
            _ => Self::Single(Mutex::new(Scratch::reserve(lengths)?)),
        })
    }
}

/// The scratch that a part has got.
pub(super) enum Memory<'r, W> {
    Own(Scratch<W>),
    Reserve(MutexGuard<'r, Scratch<W>>),
}

impl<W> Deref for Memory<'_, W> {
    type Target = Scratch<W>;

    fn deref(&self) -> &Scratch<W> {
        match self {
            Self::Own(scratch) => scratch,
            Self::Reserve(scratch) => scratch,
        }
    }
}

impl<W> DerefMut for Memory<'_, W> {
    fn deref_mut(&mut self) -> &mut Scratch<W> {
        match self {
            Self::Own(scratch) => scratch,
            Self::Reserve(scratch) => scratch,
        }
    }
}

impl<'a> Part<'a> {
    /// How few rows may be computed together.
    fn least(&self) -> usize {
        if self.shape.classes() <= SHORT { ROWS } else { 1 }
    }

    /// What `at_once` rows that are computed together need, and `gathered` rows that are brought together before.
    fn lengths(&self, gathered: usize, at_once: usize) -> Lengths {
        let classes = self.shape.classes();
        let is_short = classes <= SHORT;
        let at_once = if self.looks_again() { 1 } else { at_once };
        Lengths {
            rows: gathered.saturating_mul(classes),
            beside: if self.given.second.is_some() { at_once * classes } else { 0 },
            pieces: if is_short { 0 } else { at_once * pieces_of(classes) },
            tile_classes: if is_short { classes } else { 0 },
        }
    }

    /// Memory for rows that are computed together, `gathered` of which are brought together before. Returns how many may be computed together,
    /// too. Where memory is short they are one, and so are the gathered ones (but for short rows); the part then no longer shares its rows
    /// among threads.
    pub(super) fn scratch<W: Real>(&mut self, gathered: usize) -> Result<(Memory<'a, W>, usize), Error> {
        let group = self.group();
        let lengths = self.lengths(gathered, group.min(self.shape.row_count()));
        if let Ok(mut scratch) = Scratch::reserve(lengths) {
            scratch.resize(lengths);
            return Ok((Memory::Own(scratch), group));
        }
        let least = self.lengths(gathered.min(1), self.least());
        let mut memory = match self.reserve.and_then(W::reserve) {
            // Whoever holds the reserve waits for no other part: it starts no work on other threads, which may be waiting for the reserve.
            Some(reserve) => {
                self.how.is_shared = false;
                Memory::Reserve(reserve.lock().unwrap_or_else(PoisonError::into_inner))
            }
            None => Memory::Own(Scratch::reserve(least)?),
        };
        memory.resize(least);
        Ok((memory, self.least()))
    }
}
