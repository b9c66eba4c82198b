//! One long row: reads it, to reduce it to the maximum and the rest of the exponential sum.
//!
//! ```text
//! for each vector of a piece:  e = exp(y - log_base);  sum += e;  max = max(max, oriented x)
//! if max has another base:     once more, relative to that base
//! max_exp  = exp(y(max) - log_base)
//! rest_sum = sum - max_exp, or, where that is less than max_exp, the sum of all e but max_exp
//! ```
//!
//! `LongRow::piece` does this. The difference is enough where only the whole sum is wanted. A piece
//! after one with a base of its own begins with its maximum instead, and has the same bits.

use super::long::{
    BLOCK, LONGEST_PIECE, LongRow, LongScratch, Piece, TREE, at_class, keeps_exponentials,
};
use super::{Place, Stats, Wanted};
use crate::cpu::simd::{Exp, ExpBase, Isa, LANES, Real, Vector, exp};
use crate::cpu::threads;
use crate::cpu::transform::{ExpBaseLanes, LogitTransform};

impl<I: Isa, Y: LogitTransform, W: Exp> LongRow<'_, I, Y, W> {
    /// Reduces the piece `x`, and stores its exponentials in `exponentials`, unless that is empty.
    /// `max_first` says that the maximum is found first, and on return whether this piece had a
    /// base of its own. Not inlined: pieces of all types of logits share one copy.
    #[inline(never)]
    fn piece(
        &self,
        x: &[W],
        exponentials: &mut [W],
        wanted: Wanted,
        max_first: &mut bool,
    ) -> Piece<W> {
        let (isa, transform) = (self.isa, self.transform);
        isa.vectorize(
            #[inline(always)]
            || {
                let (mut sum, max) = match *max_first {
                    true => (0.0, self.max(x)),
                    false => self.exponential_sum(x, &W::FIXED_BASE, exponentials),
                };
                let base = transform.exp_base(isa, max);
                let is_fixed = base == W::FIXED_BASE;
                if *max_first || !is_fixed {
                    (sum, _) = self.exponential_sum(x, &base, exponentials);
                }
                *max_first = !is_fixed;
                let bases = ExpBaseLanes::of_row(isa, &base);
                let max_logit = Vector::splat(isa, transform.orient_one(max));
                let max_term = transform.exp::<I, W>(isa, max_logit, &bases);
                let max_exp: f64 = max_term.array()[0].into();
                let mut rest_sum = sum - max_exp;
                if wanted != Wanted::Sum && rest_sum < max_exp {
                    // The maximum has more than half of the sum, so it occurs once.
                    rest_sum = self.sum_without(x, &base, exponentials, max_term);
                }
                let class = if wanted == Wanted::Class { self.position(x, max_logit) } else { 0 };
                Piece { max, class, base, max_exp, rest_sum, ratio: 1.0 }
            },
        )
    }

    /// Returns the sum of the exponentials of `x`, and the largest oriented logit, NaN left out.
    /// Stores the exponentials in `exponentials`, unless that is empty. Not inlined, so that values
    /// that are constant over the piece stay in registers.
    #[inline(never)]
    fn exponential_sum(&self, x: &[W], base: &ExpBase<W>, exponentials: &mut [W]) -> (f64, W) {
        let (isa, transform) = (self.isa, self.transform);
        isa.vectorize(
            #[inline(always)]
            || {
                let bases = ExpBaseLanes::of_row(isa, base);
                if exponentials.is_empty() {
                    self.summed::<false>(
                        x,
                        &mut [],
                        #[inline(always)]
                        |x, _| transform.exp::<I, W>(isa, x, &bases),
                    )
                } else {
                    self.summed::<true>(
                        x,
                        exponentials,
                        #[inline(always)]
                        |x, _| transform.exp::<I, W>(isa, x, &bases),
                    )
                }
            },
        )
    }

    /// Returns the sum of the exponentials that differ from `left_out`: of `exponentials`, or
    /// computed again where that is empty.
    #[inline(never)]
    fn sum_without(
        &self,
        x: &[W],
        base: &ExpBase<W>,
        exponentials: &[W],
        left_out: W::V<I>,
    ) -> f64 {
        let (isa, transform) = (self.isa, self.transform);
        isa.vectorize(
            #[inline(always)]
            || {
                let zero = W::V::splat(isa, W::ZERO);
                let bases = ExpBaseLanes::of_row(isa, base);
                if exponentials.is_empty() {
                    let (sum, _) = self.summed::<false>(
                        x,
                        &mut [],
                        #[inline(always)]
                        |x, _| {
                            let e = transform.exp::<I, W>(isa, x, &bases);
                            e.where_equal(left_out, zero, e)
                        },
                    );
                    return sum;
                }
                let (sum, _) = self.summed::<false>(
                    x,
                    &mut [],
                    #[inline(always)]
                    |_, at| {
                        let e: W::V<I> = at_class(at).of_element(isa, exponentials);
                        e.where_equal(left_out, zero, e)
                    },
                );
                sum
            },
        )
    }

    /// Returns the sum of `term` over the vectors of `x`, and the largest oriented logit, NaN left
    /// out; `term` gets the logits and the place of the first. `KEEPS` stores the terms in
    /// `exponentials`.
    #[inline(always)]
    fn summed<const KEEPS: bool>(
        &self,
        x: &[W],
        exponentials: &mut [W],
        term: impl Fn(W::V<I>, usize) -> W::V<I>,
    ) -> (f64, W) {
        let (isa, transform) = (self.isa, self.transform);
        let all = |value| W::V::splat(isa, value);
        let zero = all(W::ZERO);
        let mut best = [all(W::NEG_INFINITY); 2];
        let mut sums = I::F64::splat(isa, 0.0);
        let (blocks, tail) = x.as_chunks::<BLOCK>();
        let mut kept = exponentials.as_chunks_mut::<BLOCK>().0.iter_mut();
        // for each block of 8 vectors:
        //     e = exp(y(x) - log_base);  exponentials = e;  max = max(max, oriented x)
        //     sums += tree sum of e, in f64
        for (nth, block) in blocks.iter().enumerate() {
            let (block, _) = block.as_chunks::<LANES>();
            let mut kept = if KEEPS { kept.next() } else { None };
            // Unrolled, so that the terms stay in registers.
            macro_rules! term {
                ($at:literal) => {{
                    let x: W::V<I> = Vector::load(isa, &block[$at]);
                    let e = term(x, nth * BLOCK + $at * LANES);
                    best[$at % 2] = transform.orient::<I, W>(isa, x).larger(best[$at % 2]);
                    if let Some(kept) = &mut kept {
                        kept.as_chunks_mut::<LANES>().0[$at] = e.array();
                    }
                    e
                }};
            }
            let (a, b) = (term!(0) + term!(1), term!(2) + term!(3));
            let (c, d) = (term!(4) + term!(5), term!(6) + term!(7));
            sums = sums + ((a + b) + (c + d)).wide(isa);
        }
        // for each vector of the rest:  e, exponentials and max as above;  sum += e
        let (mut sum, start) = (zero, blocks.len() * BLOCK);
        let (vectors, last) = tail.as_chunks::<LANES>();
        for (nth, x) in vectors.iter().enumerate() {
            let start = start + nth * LANES;
            let x: W::V<I> = Vector::load(isa, x);
            let e = term(x, start);
            sum = sum + e;
            best[0] = transform.orient::<I, W>(isa, x).larger(best[0]);
            if KEEPS {
                exponentials[start..][..LANES].copy_from_slice(&e.array());
            }
        }
        if let (false, Some(end)) = (last.is_empty(), x.last_chunk::<LANES>()) {
            // The last vector overlaps the one before it; elements that have been added are left
            // out.
            let start = x.len() - LANES;
            let x: W::V<I> = Vector::load(isa, end);
            let e = term(x, start);
            sum = sum + zero.first_lanes(isa, LANES - last.len(), e);
            best[1] = transform.orient::<I, W>(isa, x).larger(best[1]);
            if KEEPS {
                exponentials[start..][..LANES].copy_from_slice(&e.array());
            }
        }
        ((sums + sum.wide(isa)).total(), best[0].larger(best[1]).largest())
    }

    /// Returns the largest oriented logit, NaN left out.
    #[inline(always)]
    pub(super) fn max(&self, x: &[W]) -> W {
        let (isa, transform) = (self.isa, self.transform);
        let mut best = [W::V::splat(isa, W::NEG_INFINITY); 4];
        let (vectors, rest) = x.as_chunks::<LANES>();
        let (fours, singles) = vectors.as_chunks::<4>();
        // for each four vectors:  best[i] = max(best[i], oriented x[i])
        for four in fours {
            for (best, x) in best.iter_mut().zip(four) {
                *best = transform.orient::<I, W>(isa, Vector::load(isa, x)).larger(*best);
            }
        }
        // for each vector of the rest:  best[0] = max(best[0], oriented x)
        for x in singles {
            best[0] = transform.orient::<I, W>(isa, Vector::load(isa, x)).larger(best[0]);
        }
        if let (false, Some(x)) = (rest.is_empty(), x.last_chunk()) {
            best[1] = transform.orient::<I, W>(isa, Vector::load(isa, x)).larger(best[1]);
        }
        best[0].larger(best[1]).larger(best[2].larger(best[3])).largest()
    }

    /// Returns the place of the first `logit` in `x`, or 0 where there is none.
    #[inline(always)]
    fn position(&self, x: &[W], logit: W::V<I>) -> usize {
        let isa = self.isa;
        // for each four vectors:  if any x equals the logit, find the first of them
        for (nth, four) in x.chunks(4 * LANES).enumerate() {
            let (vectors, rest) = four.as_chunks::<LANES>();
            let mut any = u32::from(!rest.is_empty());
            for x in vectors {
                any |= W::V::load(isa, x).equal(logit);
            }
            if any > 0 {
                let wanted = logit.array()[0];
                if let Some(at) = four.iter().position(|&x| x == wanted) {
                    return nth * 4 * LANES + at;
                }
            }
        }
        0
    }

    /// Returns the sums of `K` values over the classes of a piece, of which `start` is the first
    /// and `x` the logits. Not inlined: both branches of `LongRow::sums` share one copy.
    #[inline(never)]
    pub(super) fn piece_sums<V: Vector<I>, const K: usize>(
        &self,
        start: usize,
        x: &[W],
        values: &impl Fn(Place<'_>, W::V<I>) -> [V; K],
    ) -> [f64; K] {
        let isa = self.isa;
        isa.vectorize(
            #[inline(always)]
            || {
                let zero = V::splat(isa, V::W::ZERO);
                let mut sums = [I::F64::splat(isa, 0.0); K];
                let mut start = start;
                let (vectors, rest) = x.as_chunks::<LANES>();
                // for each block of 8 vectors:
                //     lanes = sum of values(place, x);  sums += lanes, in f64
                for block in vectors.chunks(TREE) {
                    let mut lanes = [zero; K];
                    for x in block {
                        let found = values(at_class(start), Vector::load(isa, x));
                        for (lanes, found) in lanes.iter_mut().zip(found) {
                            *lanes = *lanes + found;
                        }
                        start += LANES;
                    }
                    for (sums, lanes) in sums.iter_mut().zip(lanes) {
                        *sums = *sums + lanes.wide(isa);
                    }
                }
                if let (false, Some(end)) = (rest.is_empty(), x.last_chunk::<LANES>()) {
                    let at = at_class(start + rest.len() - LANES);
                    for (sums, found) in sums.iter_mut().zip(values(at, Vector::load(isa, end))) {
                        let found = zero.first_lanes(isa, LANES - rest.len(), found);
                        *sums = *sums + found.wide(isa);
                    }
                }
                let mut totals = [0.0; K];
                for (total, sums) in totals.iter_mut().zip(sums) {
                    *total = sums.total();
                }
                totals
            },
        )
    }

    #[inline(always)]
    pub(super) fn reduced(&mut self, wanted: Wanted) -> Stats<W, 1> {
        let (cut, classes) = (self.cut(), self.row().len());
        let keeps = matches!(wanted, Wanted::Sum | Wanted::Rest { keeps: true })
            && keeps_exponentials(classes, self.threads_share_rows);
        let LongScratch { mut exponentials, mut pieces, mut max_first, .. } =
            std::mem::take(self.scratch);
        // A thread that has the row to itself keeps the exponentials of a piece in any case: those
        // of a confident row are added again. Elsewhere they are computed again, and so they are
        // where memory is short.
        let length = match (keeps, self.threads_share_rows) {
            (true, _) => classes,
            (false, false) => classes.min(LONGEST_PIECE),
            (false, true) => 0,
        };
        let missing = length.saturating_sub(exponentials.len());
        let length = if exponentials.try_reserve_exact(missing).is_ok() { length } else { 0 };
        exponentials.resize(length, W::ZERO);
        pieces.clear();
        pieces.resize(cut.pieces, Piece::default());
        if self.threads_share_rows {
            threads::for_each(&mut pieces, &|nth, piece| {
                *piece =
                    self.with_piece(cut.piece(nth), |x| self.piece(x, &mut [], wanted, &mut false));
            });
        } else {
            for (nth, piece) in pieces.iter_mut().enumerate() {
                let piece_of_row = cut.piece(nth);
                let start = if keeps { cut.at(nth) } else { 0 };
                let kept = match length {
                    0 => &mut [][..],
                    _ => &mut exponentials[start..][..piece_of_row.len()],
                };
                *piece =
                    self.with_piece(piece_of_row, |x| self.piece(x, kept, wanted, &mut max_first));
            }
        }
        let (largest, rest_sum) = join(&mut pieces);
        let Piece { max, class, base, max_exp, .. } = pieces[largest];
        let keeps_row = keeps && length > 0;
        *self.scratch = LongScratch { exponentials, keeps_row, pieces, base, max_first };
        let mut stats = Stats::new(self.transform, [max], [max_exp], [rest_sum]);
        stats.classes = [cut.at(largest) + class];
        stats
    }
}

/// Joins the pieces of a row: returns the first piece with the maximum, and the rest of the
/// exponential sum relative to its base.
///
/// ```text
/// ratio = exp(piece.log_base - log_base)
/// rest_sum = sum over pieces of (piece.rest_sum + piece.max_exp unless it is max's) * ratio
/// ```
fn join<W: Exp>(pieces: &mut [Piece<W>]) -> (usize, f64) {
    if let [piece] = pieces {
        return (0, piece.rest_sum);
    }
    let mut largest = 0;
    for nth in 1..pieces.len() {
        if pieces[nth].max > pieces[largest].max {
            largest = nth;
        }
    }
    let base = pieces[largest].base;
    let mut rest_sum = 0.0;
    for (nth, piece) in pieces.iter_mut().enumerate() {
        // The exponentials of a piece of nothing but -inf are 0 relative to any base.
        let ratio = if piece.max_exp == 0.0 { 1.0 } else { exp(piece.base.log_ratio(&base)) };
        // The maximum of a piece is part of the rest of the sum, unless it is the maximum of the
        // row.
        let left_out = if nth == largest { 0.0 } else { piece.max_exp };
        rest_sum += (piece.rest_sum + left_out) * ratio;
        // Bases of f32 rows that are not far are powers of two apart. Rounding the ratio makes it
        // that power again, so that equal logits of two pieces have equal probabilities. A ratio
        // that would become subnormal or 0 stays as it is.
        let rounded: f64 = W::of(ratio).into();
        piece.ratio = if rounded < W::MIN_NORMAL { ratio } else { rounded };
    }
    (largest, rest_sum)
}
