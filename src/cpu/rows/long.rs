//! One long row: the lanes of a vector hold neighbouring classes.
//!
//! The row is cut into pieces that stay in a core's caches, each with an exponent base that its own
//! maximum decides on: mostly the fixed base. So the reduction reads a row from memory once,
//! however long it is. Pieces are joined in order:
//!
//! ```text
//! for each piece:  max, base, rest_sum = reduce(piece)                  // read.rs
//! row.max, row.base = those of the piece with the largest maximum
//! for each piece:  ratio = exp(piece.log_base - row.log_base)
//! row.rest_sum = sum over pieces of (rest_sum + max_exp unless it is row.max) * ratio
//! for each piece:  p = exp(y - piece.log_base) * (ratio * factor of the row);  out = value(x, p)
//!                                                                       // write.rs
//! ```
//!
//! So the bits of a row depend neither on which thread takes which piece, nor on whether
//! exponentials were kept from the first pass or computed again in the second.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Lanes, Place, Rows, SHORT_ROW_CLASSES, Stats, Wanted};
use crate::Error;
use crate::cpu::simd::{Exp, ExpBase, Isa, LANES, Vector};
use crate::cpu::threads;
use crate::cpu::transform::{ExpBaseLanes, LogitTransform, RowExpBases};
use crate::problem::dtype::{Elements, ElementsMut};
use crate::problem::error::try_reserve;

/// The number of vectors of a block. They are added as a tree, and the sums of blocks in f64.
pub(super) const TREE: usize = 8;
/// The number of elements of a block.
pub(super) const BLOCK: usize = TREE * LANES;
/// A piece has at least a block, which its last vector lies in.
const _: () = assert!(SHORT_ROW_CLASSES >= BLOCK);
/// About the largest number of elements of a piece.
const PIECE: usize = 4096;
/// The largest number of elements of a piece: [`Cut::at`] rounds its ends to whole blocks.
pub(super) const LONGEST_PIECE: usize = PIECE + BLOCK;
/// The largest number of exponentials that are kept from one pass to the next: they share a core's
/// second cache with the logits.
const KEPT: usize = 1 << 17;

/// Whether the exponentials of this many elements are kept for the pass that writes.
#[inline(always)]
pub(in crate::cpu) fn keeps_exponentials(elements: usize, threads_share_rows: bool) -> bool {
    !threads_share_rows && elements <= KEPT
}

/// A part of a row, reduced.
#[derive(Clone, Copy, Default)]
pub(super) struct Piece<W> {
    pub(super) max: W,
    /// The first class of the maximum, counted from the start of the piece, where it was asked for.
    pub(super) class: usize,
    pub(super) base: ExpBase<W>,
    /// The exponential of the largest logit.
    pub(super) max_exp: f64,
    pub(super) rest_sum: f64,
    /// The base of the piece divided by the base of the row.
    pub(super) ratio: f64,
}

/// The cut of a row into pieces of about the same length.
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
    pub(super) fn piece(self, nth: usize) -> Range<usize> {
        self.at(nth)..self.at(nth + 1)
    }
}

/// Returns the number of pieces that a row of `classes` classes is cut into.
pub(in crate::cpu) fn pieces_of(classes: usize) -> usize {
    classes.div_ceil(PIECE).max(1)
}

/// The memory of a thread for the exponentials that are kept for the second pass, and for pieces.
#[derive(Default)]
pub(in crate::cpu) struct LongScratch<W> {
    /// The exponentials of the row, or of the piece that is reduced; empty where memory is short or
    /// threads share the row.
    pub(super) exponentials: Vec<W>,
    /// Whether `exponentials` are those of the whole row.
    pub(super) keeps_row: bool,
    pub(super) pieces: Vec<Piece<W>>,
    /// The exponent base of the row.
    pub(super) base: ExpBase<W>,
    /// Whether the last piece had a base of its own. The next piece then begins with its maximum.
    pub(super) max_first: bool,
}

impl<W> LongScratch<W> {
    /// Makes room for `pieces` pieces.
    pub(in crate::cpu) fn reserve(&mut self, pieces: usize) -> Result<(), Error> {
        try_reserve("pieces of rows", &mut self.pieces, pieces)
    }
}

/// A row with its classes side by side, more than a block of them. Pieces of half types are
/// converted on the way ([`LongRow::with_piece`]).
pub(in crate::cpu) struct LongRow<'a, I, Y, W> {
    pub(in crate::cpu) isa: I,
    pub(in crate::cpu) transform: Y,
    /// The logits; `None` where they are in `output`.
    pub(in crate::cpu) input: Option<Elements<'a>>,
    /// The results; `None` where the operation writes no elements.
    pub(in crate::cpu) output: Option<ElementsMut<'a>>,
    /// Whether results are written past the caches.
    pub(in crate::cpu) streams: bool,
    /// Whether threads share the row, piece by piece.
    pub(in crate::cpu) threads_share_rows: bool,
    pub(in crate::cpu) scratch: &'a mut LongScratch<W>,
}

impl<I: Isa, Y: LogitTransform, W: Exp> LongRow<'_, I, Y, W> {
    #[inline(always)]
    pub(super) fn row(&self) -> Elements<'_> {
        match (self.input, &self.output) {
            (Some(x), _) => x,
            (None, Some(x)) => x.as_read(),
            (None, None) => Elements::F32(&[]),
        }
    }

    pub(super) fn cut(&self) -> Cut {
        let classes = self.row().len();
        Cut { classes, pieces: pieces_of(classes) }
    }

    /// Calls `work` with the logits of a piece, converted where they are of a half type.
    #[inline(always)]
    pub(super) fn with_piece<R>(&self, piece: Range<usize>, work: impl FnOnce(&[W]) -> R) -> R {
        match W::of_elements(self.row()) {
            Some(x) => work(&x[piece]),
            None => {
                let mut buffer = [const { MaybeUninit::uninit() }; LONGEST_PIECE];
                work(W::widen_halves(self.isa, self.row().range(piece), &mut buffer))
            }
        }
    }
}

impl<I: Isa, Y: LogitTransform, W: Exp> Rows<1> for LongRow<'_, I, Y, W> {
    type I = I;
    type W = W;
    type Y = Y;

    fn isa(&self) -> I {
        self.isa
    }

    fn transform(&self) -> Y {
        self.transform
    }

    fn count(&self) -> usize {
        1
    }

    fn find_nan(&self, _: usize) -> Option<usize> {
        let cut = self.cut();
        (0..cut.pieces).find_map(|nth| {
            let class = self.with_piece(cut.piece(nth), |x| x.iter().position(|x| !x.is_number()));
            class.map(|class| cut.at(nth) + class)
        })
    }

    #[inline(never)]
    fn maxima(&self) -> [W; 1] {
        self.isa.vectorize(
            #[inline(always)]
            || {
                let (cut, mut max) = (self.cut(), W::NEG_INFINITY);
                for nth in 0..cut.pieces {
                    let of_piece = self.with_piece(
                        cut.piece(nth),
                        #[inline(always)]
                        |x| self.max(x),
                    );
                    max = if of_piece > max { of_piece } else { max };
                }
                [max]
            },
        )
    }

    #[inline(never)]
    fn reduce(&mut self, wanted: Wanted) -> Stats<W, 1> {
        self.isa.vectorize(
            #[inline(always)]
            || self.reduced(wanted),
        )
    }

    fn normalize(&mut self, log_sum_exps: &[W; 1]) -> [f64; 1] {
        let (bases, factors) = RowExpBases::of_log_sum_exps(self.transform, log_sum_exps);
        let piece = Piece { base: bases.at(0), ratio: 1.0, ..Piece::default() };
        self.scratch.keeps_row = false;
        self.scratch.pieces.clear();
        self.scratch.pieces.resize(self.cut().pieces, piece);
        factors
    }

    #[inline(always)]
    fn terms(&self, logits: &[W; 1]) -> [f64; 1] {
        let x = Vector::splat(self.isa, logits[0]);
        [self.terms_of_first(x).array()[0].into()]
    }

    #[inline(always)]
    fn terms_of_first(&self, logits: Lanes<Self, 1>) -> Lanes<Self, 1> {
        let bases = ExpBaseLanes::of_row(self.isa, &self.scratch.base);
        self.transform.exp::<I, W>(self.isa, logits, &bases)
    }

    #[inline(always)]
    fn sums<V: Vector<I>, const K: usize>(
        &self,
        values: impl Fn(Place<'_>, Lanes<Self, 1>) -> [V; K] + Sync,
    ) -> [[f64; 1]; K] {
        let cut = self.cut();
        let sum = |piece: Range<usize>| {
            let start = piece.start;
            self.with_piece(piece, |x| self.piece_sums(start, x, &values))
        };
        let mut sums = [[0.0]; K];
        // Where memory is short, threads do not share the row.
        let mut pieces = Vec::new();
        if self.threads_share_rows && try_reserve("sums", &mut pieces, cut.pieces).is_ok() {
            pieces.resize(cut.pieces, [0.0; K]);
            threads::for_each(&mut pieces, &|nth, of_piece| {
                *of_piece = sum(cut.piece(nth));
            });
            for of_piece in pieces {
                sums.iter_mut().zip(of_piece).for_each(|(sum, of_piece)| sum[0] += of_piece);
            }
            return sums;
        }
        for nth in 0..cut.pieces {
            let of_piece = sum(cut.piece(nth));
            sums.iter_mut().zip(of_piece).for_each(|(sum, of_piece)| sum[0] += of_piece);
        }
        sums
    }

    #[inline(never)]
    fn scale(&mut self, factors: &[f64; 1]) {
        self.isa.vectorize(
            #[inline(always)]
            || {
                self.write_scaled(
                    factors[0],
                    #[inline(always)]
                    |_, _, e| e,
                );
            },
        );
    }

    #[inline(always)]
    fn map(&mut self, value: impl Fn(Place<'_>, Lanes<Self, 1>) -> Lanes<Self, 1> + Sync) {
        let value = &value;
        self.write(
            #[inline(always)]
            |_, class| {
                #[inline(always)]
                move |at, x| value(at_class(class + at), x)
            },
        );
    }

    #[inline(always)]
    fn map_p(
        &mut self,
        factors: &[f64; 1],
        value: impl Fn(Place<'_>, Lanes<Self, 1>, Lanes<Self, 1>) -> Lanes<Self, 1> + Sync,
    ) {
        self.write_scaled(factors[0], value);
    }

    #[inline(always)]
    fn pick(&self, classes: &[usize; 1]) -> [W; 1] {
        [W::of(self.row().at(classes[0]))]
    }

    #[inline(always)]
    fn put(&mut self, classes: &[usize; 1], values: &[W; 1]) {
        let Some(output) = &mut self.output else { return };
        // Stores past the caches must be complete before this store to the same row.
        if self.streams {
            self.isa.fence();
        }
        output.set(classes[0], values[0].into());
    }
}

/// Returns the place of sixteen classes of the row, from `class` on.
#[inline(always)]
pub(super) fn at_class(class: usize) -> Place<'static> {
    Place { row: 0, rows: None, at: class, class_at: class }
}
