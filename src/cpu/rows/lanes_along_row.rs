//! Lanes along the row: the lanes of a vector hold neighbouring classes of one row.
//!
//! A row is cut into pieces that stay in a core's caches, each with its own exponent base. So the
//! reduction reads a row from memory once, however long it is, and prefetches the next piece
//! meanwhile. Pieces are joined in order:
//!
//! ```text
//! for each piece:  max, base, rest_sum = reduce(piece)                  // read.rs
//! row.max, row.base = those of the piece with the largest maximum
//! for each piece:  ratio = exp(piece.log_base - row.log_base)
//! row.rest_sum = sum over pieces of (rest_sum + max_exp unless it is row.max) * ratio
//! for each piece:  out = value(x, exp(y - piece.log_base) * ratio)      // write.rs
//! ```
//!
//! So the bits of a row depend neither on which thread takes which piece, nor on whether
//! exponentials were held from the first pass or computed again in the second.

use super::read::BLOCK;
use super::write::{PieceStart, splat_factors, two};
use super::{ROWS, Rows, Stats};
use crate::Error;
use crate::cpu::lines::PendingLines;
use crate::cpu::simd::{Exp, ExpBase, Isa, Number, Real, Vector, each};
use crate::cpu::threads;
use crate::cpu::transform::{ExpBaseLanes, LogitTransform};
use crate::problem::error::{try_reserve, try_vec};

/// The largest number of elements of a piece.
pub(super) const PIECE: usize = 4096;
/// The largest number of exponentials that are held from one pass to the next: they share a core's
/// second cache with the logits.
const HELD: usize = 1 << 17;

/// Whether the exponentials of a group of this many elements are held for the pass that writes.
#[inline(always)]
pub(in crate::cpu) fn are_held(elements: usize, threads_share_rows: bool) -> bool {
    !threads_share_rows && elements <= HELD
}

/// A part of a row, reduced.
#[derive(Clone, Copy, Default)]
pub(super) struct Piece<W> {
    pub(super) max: W,
    pub(super) base: ExpBase<W>,
    /// The exponential of the largest logit.
    pub(super) max_exp: f64,
    pub(super) rest_sum: f64,
    /// The base of the piece divided by the base of the row.
    pub(super) ratio: f64,
}

/// The cut of a row into pieces of about the same length, so that each is prefetched while the one
/// before it is computed.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    classes: usize,
    pub(super) pieces: usize,
}

impl Cut {
    /// Returns the class where piece `nth` starts, a multiple of `BLOCK`; for `nth` = `pieces`, the
    /// number of classes.
    #[inline(always)]
    pub(super) fn at(self, nth: usize) -> usize {
        let Self { classes, pieces } = self;
        if nth == pieces {
            return classes;
        }
        (classes / pieces * nth + nth.min(classes % pieces)) / BLOCK * BLOCK
    }

    #[inline(always)]
    pub(super) fn piece(self, nth: usize) -> std::ops::Range<usize> {
        self.at(nth)..self.at(nth + 1)
    }
}

/// Returns the number of pieces that a row of `classes` classes is cut into.
pub(in crate::cpu) fn pieces_of(classes: usize) -> usize {
    classes.div_ceil(PIECE).max(1)
}

/// The memory of a thread for the exponentials that are held for the second pass, and for pieces.
#[derive(Default)]
pub(in crate::cpu) struct Held<W> {
    pub(super) exponentials: Vec<W>,
    pub(super) pieces: Vec<Piece<W>>,
}

impl<W> Held<W> {
    /// Makes room for `pieces` pieces.
    pub(in crate::cpu) fn reserve(&mut self, pieces: usize) -> Result<(), Error> {
        try_reserve("pieces of rows", &mut self.pieces, pieces)
    }
}

/// Up to 32 rows, each with its classes side by side.
pub(in crate::cpu) struct LanesAlongRow<'a, I, Y, T: Number> {
    pub(in crate::cpu) isa: I,
    pub(in crate::cpu) transform: Y,
    pub(in crate::cpu) classes: usize,
    pub(in crate::cpu) count: usize,
    /// The logits, and the elements from the start of one row to the next; `None` where the logits
    /// are in `output`.
    pub(in crate::cpu) input: Option<(&'a [T], usize)>,
    /// The results, and the elements from the start of one row to the next; `None` where the
    /// operation writes no elements.
    pub(in crate::cpu) output: Option<(&'a mut [T], usize)>,
    /// Whether results are written past the caches.
    pub(in crate::cpu) streams: bool,
    /// The lines of the group before this one, which are written during `reduce`.
    pub(in crate::cpu) pending: PendingLines<'a>,
    /// Whether threads share each row, piece by piece.
    pub(in crate::cpu) threads_share_rows: bool,
    pub(in crate::cpu) held: &'a mut Held<T::Wide>,
}

impl<I: Isa, Y: LogitTransform, T: Number> LanesAlongRow<'_, I, Y, T>
where
    T::Wide: Exp,
{
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &[T] {
        let (x, stride) = match (&self.input, &self.output) {
            (Some((x, stride)), _) => (*x, *stride),
            (None, Some((x, stride))) => (&**x, *stride),
            (None, None) => (&[][..], 0),
        };
        &x[row * stride..][..self.classes]
    }

    pub(super) fn cut(&self) -> Cut {
        Cut { classes: self.classes, pieces: pieces_of(self.classes) }
    }

    /// Returns whether the exponentials of all rows are held.
    pub(super) fn is_held(&self) -> bool {
        self.held.exponentials.len() == self.count * self.classes
    }
}

impl<I: Isa, Y: LogitTransform, T: Number> Rows for LanesAlongRow<'_, I, Y, T>
where
    T::Wide: Exp,
{
    type I = I;
    type W = T::Wide;
    type Y = Y;

    fn isa(&self) -> I {
        self.isa
    }

    fn transform(&self) -> Y {
        self.transform
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn count(&self) -> usize {
        self.count
    }

    #[inline(always)]
    fn get(&self, row: usize, class: usize) -> T::Wide {
        self.row(row)[class].widen()
    }

    #[inline(always)]
    fn find_where(&self, row: usize, holds: impl Fn(T::Wide) -> bool) -> Option<usize> {
        self.row(row).iter().position(|x| holds(x.widen()))
    }

    #[inline(always)]
    fn find(&self, row: usize, logit: T::Wide) -> Option<usize> {
        let x = self.row(row);
        let (whole, rest) = x.split_at(x.len() - x.len() % BLOCK);
        self.position(whole, logit)
            .or_else(|| Some(whole.len() + rest.iter().position(|x| x.widen() == logit)?))
    }

    #[inline(never)]
    fn maxima(&self) -> [T::Wide; ROWS] {
        self.isa.vectorize(
            #[inline(always)]
            || self.largest(),
        )
    }

    #[inline(never)]
    fn reduce(&mut self, hold: bool) -> Stats<T::Wide> {
        self.isa.vectorize(
            #[inline(always)]
            || self.reduced(hold),
        )
    }

    fn terms(&self, stats: &Stats<T::Wide>, logits: &[T::Wide; ROWS]) -> [f64; ROWS] {
        stats.terms(self.isa, self.transform, logits)
    }

    #[inline(always)]
    fn sums(&self, value: impl Fn(usize, usize, T::Wide) -> f64 + Sync) -> [f64; ROWS] {
        let mut sums = [0.0; ROWS];
        for (row, sum) in sums.iter_mut().enumerate().take(self.count) {
            // Where memory is short, threads do not share the row.
            if let (true, Ok(mut pieces)) =
                (self.threads_share_rows, try_vec("sums of pieces", self.cut().pieces))
            {
                threads::for_each(&mut pieces, &|nth, sum| *sum = self.sum(row, nth, &value));
                *sum = pieces.iter().sum();
                continue;
            }
            for nth in 0..self.cut().pieces {
                *sum += self.sum(row, nth, &value);
            }
        }
        sums
    }

    #[inline(never)]
    fn scale(&mut self, _: &Stats<T::Wide>, factors: &[f64; ROWS]) {
        self.isa.vectorize(
            #[inline(always)]
            || self.scaled(factors),
        );
    }

    #[inline(always)]
    fn map(&mut self, value: impl Fn(usize, usize, T::Wide) -> T::Wide + Sync) {
        let (isa, value) = (self.isa, &value);
        self.write(
            #[inline(always)]
            |PieceStart { row, class, .. }| {
                #[inline(always)]
                move |at, x| {
                    let mut out = each(
                        x,
                        #[inline(always)]
                        |x| x.array(),
                    );
                    for (lane, out) in out.as_flattened_mut().iter_mut().enumerate() {
                        *out = value(row, class + at + lane, *out);
                    }
                    each(
                        out,
                        #[inline(always)]
                        |out| Vector::load(isa, &out),
                    )
                }
            },
        );
    }

    #[inline(always)]
    fn map_with(
        &mut self,
        _: &Stats<T::Wide>,
        value: impl Fn(usize, usize, T::Wide, T::Wide) -> T::Wide + Sync,
    ) {
        let (isa, transform, classes, per_row, is_held) =
            (self.isa, self.transform, self.classes, self.cut().pieces, self.is_held());
        let (held, value) = (std::mem::take(self.held), &value);
        let Held { exponentials, pieces } = &held;
        self.write(
            #[inline(always)]
            |PieceStart { row, class, piece }| {
                let piece = &pieces[row * per_row + piece];
                let ratios = splat_factors::<I, T::Wide>(isa, 1.0, piece.ratio);
                let base_lanes = ExpBaseLanes::of_row(isa, &piece.base);
                let held = if is_held { &exponentials[row * classes + class..] } else { &[] };
                #[inline(always)]
                move |at, x| {
                    let e = if is_held {
                        two::<I, T::Wide>(isa, &held[at..])
                    } else {
                        transform.exp(isa, x, [&base_lanes; 2])
                    };
                    let e = each(
                        e,
                        #[inline(always)]
                        |e| (e * ratios[0] * ratios[1]).array(),
                    );
                    let mut out = each(
                        x,
                        #[inline(always)]
                        |x| x.array(),
                    );
                    for (lane, (out, &e)) in
                        out.as_flattened_mut().iter_mut().zip(e.as_flattened()).enumerate()
                    {
                        *out = value(row, class + at + lane, *out, e);
                    }
                    each(
                        out,
                        #[inline(always)]
                        |out| Vector::load(isa, &out),
                    )
                }
            },
        );
        *self.held = held;
    }

    #[inline(always)]
    fn pick(&self, classes: &[usize; ROWS]) -> [T::Wide; ROWS] {
        let mut logits = [T::Wide::ZERO; ROWS];
        for (row, (logit, &class)) in logits.iter_mut().zip(classes).enumerate().take(self.count) {
            *logit = self.get(row, class);
        }
        logits
    }

    #[inline(always)]
    fn put(&mut self, classes: &[usize; ROWS], values: &[T::Wide; ROWS]) {
        let Some((output, stride)) = &mut self.output else { return };
        // Stores past the caches must be complete before this store to the same row. Threads that
        // share a row have fenced already.
        if self.streams && !self.threads_share_rows {
            self.isa.fence();
        }
        for (row, (&value, &class)) in values.iter().zip(classes).enumerate().take(self.count) {
            output[row * *stride + class] = T::narrow(value);
        }
    }
}
