//! Allocates the memory that rows are computed in, the scratch.
//!
//! Each task has its own. Where the system has no memory for it, tasks take turns with a reserve,
//! which was set aside before anything was written.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::dispatch::RowTask;
use super::rows::{LongScratch, ROWS, SHORT_ROW_CLASSES, ShortScratch, pieces_of};
use super::simd::{Exp, LANES};
use crate::ops::Request;
use crate::problem::error::try_reserve;
use crate::problem::operands;
use crate::{DType, Error, Shape};

/// The memory of a task.
#[derive(Default)]
pub(super) struct Scratch<W> {
    pub(super) long: LongScratch<W>,
    pub(super) short: ShortScratch<W>,
    /// Copies of rows: gathered from strided rows, of half types, with gaps between them, or rows
    /// that classes are selected from.
    pub(super) rows: Vec<W>,
    /// The elementwise operand (soft targets or the upstream gradient) of a group of rows; empty
    /// where it is used where it is.
    pub(super) elementwise: Vec<W>,
    /// The weights of the classes, once for each of sixteen short rows; empty where they are used
    /// where they are.
    pub(super) weights: Vec<W>,
}

/// The lengths of a [`Scratch`], in elements; `pieces` counts pieces of rows.
#[derive(Clone, Copy)]
struct Lengths {
    rows: usize,
    elementwise: usize,
    weights: usize,
    pieces: usize,
    /// The number of classes of short rows, else 0.
    short_classes: usize,
}

impl Lengths {
    /// Returns the lengths for a group of rows that are computed as `rows`, and for `gathered` rows
    /// that are gathered first.
    fn new(shape: Shape, operands: &operands::Operands<'_>, gathered: usize, rows: DType) -> Self {
        let classes = shape.classes();
        let is_short = classes <= SHORT_ROW_CLASSES;
        let elementwise = match operands.elementwise() {
            Some(_) if is_short => ROWS * classes + LANES,
            Some(values) if shape.inner() > 1 || values.dtype() != rows => classes,
            _ => 0,
        };
        let weights = match operands.coefficients.weight {
            Some(_) if is_short => LANES * classes,
            Some(_) if rows != DType::F32 => classes,
            _ => 0,
        };
        Self {
            rows: gathered.saturating_mul(classes),
            elementwise,
            weights,
            pieces: if is_short { 0 } else { pieces_of(classes) },
            short_classes: if is_short { classes } else { 0 },
        }
    }
}

impl<W: Exp> Scratch<W> {
    fn reserve(lengths: Lengths) -> Result<Self, Error> {
        let Lengths { rows, elementwise, weights, pieces, short_classes } = lengths;
        let mut scratch = Self::default();
        try_reserve("copies of rows", &mut scratch.rows, rows)?;
        try_reserve("copies of rows", &mut scratch.elementwise, elementwise)?;
        try_reserve("weights of rows", &mut scratch.weights, weights)?;
        scratch.long.reserve(pieces)?;
        scratch.short.reserve(short_classes)?;
        Ok(scratch)
    }

    /// Sets the lengths, and copies the weights of the classes; allocates nothing where
    /// [`Scratch::reserve`] was called with lengths as large.
    fn resize(&mut self, lengths: Lengths, weight: Option<&[f32]>) {
        self.rows.resize(lengths.rows, W::ZERO);
        self.elementwise.resize(lengths.elementwise, W::ZERO);
        self.weights.clear();
        let weights = weight.unwrap_or_default().iter().map(|&weight| W::of(f64::from(weight)));
        self.weights.extend(weights.cycle().take(lengths.weights));
        self.short.resize(lengths.short_classes);
    }
}

/// The scratch of one row, or of as many short rows as are computed together.
pub(crate) enum Reserve {
    Single(Mutex<Scratch<f32>>),
    Double(Mutex<Scratch<f64>>),
}

impl Reserve {
    pub(super) fn new(request: &Request<'_>) -> Result<Self, Error> {
        let Request { op, shape, operands, data, .. } = request;
        // A row is gathered, or copied: where there are gaps between rows, where it is of a half
        // type, or where its classes are selected.
        let gathered = usize::from(
            shape.inner() > 1 || op.spec().rereads_row || shape.classes() <= SHORT_ROW_CLASSES,
        );
        Ok(match data.dtype() {
            DType::F64 => {
                let lengths = Lengths::new(*shape, operands, gathered, DType::F64);
                Self::Double(Mutex::new(Scratch::reserve(lengths)?))
            }
            _ => {
                let lengths = Lengths::new(*shape, operands, gathered, DType::F32);
                Self::Single(Mutex::new(Scratch::reserve(lengths)?))
            }
        })
    }
}

/// The scratch of a task: its own, or the request's reserve while the task holds it.
#[allow(clippy::large_enum_variant)] // there is one of them for each task
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
    /// Takes memory for a group of rows, and for `gathered` rows that are gathered first.
    ///
    /// Where the system has no memory for that, at most one row is gathered. The memory is then the
    /// request's reserve, and threads no longer share a row of this task; a request without a
    /// reserve is one task, which allocates this smaller memory itself.
    pub(super) fn scratch<W: Exp>(&mut self, gathered: usize) -> Result<Source<'a, W>, Error> {
        let lengths = |gathered| Lengths::new(self.shape, &self.operands, gathered, W::DTYPE);
        let (least, lengths) = (lengths(gathered.min(1)), lengths(gathered));
        let weight = self.operands.coefficients.weight;
        if let Ok(mut scratch) = Scratch::reserve(lengths) {
            scratch.resize(lengths, weight);
            return Ok(Source::Own(scratch));
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
        source.get().resize(least, weight);
        Ok(source)
    }
}
