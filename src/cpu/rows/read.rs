//! Lanes along the row: reads rows, to reduce them to the maximum and the rest of the exponential
//! sum.
//!
//! ```text
//! max      = largest oriented logit                                // max_of_lanes
//! sum      = sum over j of exp(y_j - log_base) where y_j is not the maximum
//! rest_sum = sum + (count of the maximum - 1) * max_exp            // rest_sum
//! ```
//!
//! Every instance of the maximum is left out of the sum, and counted. Rows of one piece take each
//! step together; rows of several pieces are reduced one after the other (`reduced`).

use super::lanes_across_rows::fold_transposed;
use super::lanes_along_row::{Held, LanesAlongRow, Piece, are_held};
use super::{ROWS, Stats};
use crate::cpu::lines::{CACHE_LINE, PendingLines};
use crate::cpu::simd::{Exp, ExpBase, Isa, LANES, Number, Real, Vector, each, exp, prefetch};
use crate::cpu::threads;
use crate::cpu::transform::{ExpBaseLanes, LogitTransform, RowExpBases};

/// The number of vectors of a block. They are added as a tree, and the sums of blocks in f64.
const TREE: usize = 8;
/// The number of elements of a block.
pub(super) const BLOCK: usize = TREE * LANES;

impl<I: Isa, Y: LogitTransform, T: Number> LanesAlongRow<'_, I, Y, T>
where
    T::Wide: Exp,
{
    /// Reduces the piece `x`, and stores its exponentials in `held`, unless that is empty.
    #[inline(always)]
    fn piece(&self, x: &[T], held: &mut [T::Wide]) -> Piece<T::Wide> {
        let max = self.max(x);
        let base = self.transform.exp_base(max);
        let base_lanes = ExpBaseLanes::of_row(self.isa, &base);
        let [terms] = self.transform.exp(
            self.isa,
            [Vector::splat(self.isa, self.transform.orient_one(max))],
            [&base_lanes],
        );
        let max_exp = terms.array()[0].into();
        let rest_sum = self.rest_sum(
            x,
            &base_lanes,
            (max, max_exp),
            held,
            x.len(),
            &mut PendingLines::default(),
        );
        Piece { max, base, max_exp, rest_sum, ratio: 1.0 }
    }

    /// Returns the largest oriented logit, NaN left out.
    #[inline(always)]
    pub(super) fn max(&self, x: &[T]) -> T::Wide {
        self.max_of_lanes(x).largest()
    }

    #[inline(always)]
    fn max_of_lanes(&self, x: &[T]) -> <T::Wide as Real>::V<I> {
        let Self { isa, transform, .. } = *self;
        let mut best = [<T::Wide as Real>::V::splat(isa, T::Wide::NEG_INFINITY); 4];
        let (vectors, rest) = x.as_chunks::<LANES>();
        let (fours, singles) = vectors.as_chunks::<4>();
        // for each four vectors:  best[i] = max(best[i], oriented x[i])
        for four in fours {
            for (best, x) in best.iter_mut().zip(four) {
                *best = transform.orient::<I, T::Wide>(isa, T::load(isa, x)).larger(*best);
            }
        }
        for x in singles {
            best[0] = transform.orient::<I, T::Wide>(isa, T::load(isa, x)).larger(best[0]);
        }
        if let (false, Some(x)) = (rest.is_empty(), x.last_chunk()) {
            best[1] = transform.orient::<I, T::Wide>(isa, T::load(isa, x)).larger(best[1]);
        }
        best[0].larger(best[1]).larger(best[2].larger(best[3]))
    }

    /// Returns the sum of the exponentials of `x` without one instance of the largest. Stores all
    /// of them in `held`, unless that is empty; prefetches `ahead` elements ahead, and writes
    /// `pending` lines meanwhile. Not inlined, so that values that are constant over the piece stay
    /// in registers.
    #[inline(never)]
    fn rest_sum(
        &self,
        x: &[T],
        base_lanes: &ExpBaseLanes<T::Wide, I>,
        (max, max_exp): (T::Wide, f64),
        held: &mut [T::Wide],
        ahead: usize,
        pending: &mut PendingLines<'_>,
    ) -> f64 {
        self.isa.vectorize(
            #[inline(always)]
            || {
                let (blocks, _) = x.as_chunks::<BLOCK>();
                let whole = blocks.len() * BLOCK;
                let (sums, count) = if held.is_empty() {
                    self.block_sums(
                        blocks.iter().map(|block| (block, None)),
                        base_lanes,
                        max,
                        ahead,
                        pending,
                    )
                } else {
                    let (held, _) = held.as_chunks_mut::<LANES>();
                    let held = held.as_chunks_mut::<TREE>().0.iter_mut().map(Some);
                    self.block_sums(blocks.iter().zip(held), base_lanes, max, ahead, pending)
                };
                let (sum, times) = self.tail_sums(x, whole, base_lanes, max, held, ahead);
                (sums + sum.wide(self.isa)).total() + (f64::from(count + times) - 1.0) * max_exp
            },
        )
    }

    /// Returns the sums, in lanes, of whole blocks without the instances of the largest logit, and
    /// the number of these.
    #[inline(always)]
    #[allow(clippy::type_complexity)] // 128 exponentials are held as 8 vectors
    fn block_sums<'x>(
        &self,
        blocks: impl Iterator<Item = (&'x [T; BLOCK], Option<&'x mut [[T::Wide; LANES]; TREE]>)>,
        base_lanes: &ExpBaseLanes<T::Wide, I>,
        max: T::Wide,
        ahead: usize,
        pending: &mut PendingLines<'_>,
    ) -> (I::F64, u32) {
        let Self { isa, transform, .. } = *self;
        let zero = <T::Wide as Real>::V::splat(isa, T::Wide::ZERO);
        let max_logit = Vector::splat(isa, transform.orient_one(max));
        let (mut sums, mut count) = (I::F64::splat(isa, 0.0), 0);
        // for each block of 8 vectors:
        //     e = exp(y(x) - log_base);  held = e
        //     sums += tree sum of (x == max ? 0 : e), in f64;  count += x == max
        for (block, mut held) in blocks {
            let (pairs, _) = block.as_chunks::<{ 2 * LANES }>();
            let mut tree = [zero; TREE / 2];
            for (at, pair) in pairs.iter().enumerate() {
                let (pair, _) = pair.as_chunks::<LANES>();
                prefetch(pair[0].as_ptr().wrapping_add(ahead));
                if size_of::<[T; LANES]>() >= 64 {
                    prefetch(pair[1].as_ptr().wrapping_add(ahead));
                }
                let x = [T::load(isa, &pair[0]), T::load(isa, &pair[1])];
                let e = transform.exp(isa, x, [base_lanes; 2]);
                if let Some(held) = &mut held {
                    (held[2 * at], held[2 * at + 1]) = (e[0].array(), e[1].array());
                }
                tree[at] = x[0].where_equal(max_logit, zero, e[0])
                    + x[1].where_equal(max_logit, zero, e[1]);
                count += (x[0].equal(max_logit) | x[1].equal(max_logit) << LANES).count_ones();
            }
            sums = sums + ((tree[0] + tree[1]) + (tree[2] + tree[3])).wide(isa);
            pending.write_some(isa, size_of::<[T; BLOCK]>() / CACHE_LINE);
        }
        (sums, count)
    }

    /// Returns the sums, in lanes, of the elements of `x` from `start` on, fewer than a block,
    /// without the instances of the largest logit, and the number of these.
    #[inline(always)]
    fn tail_sums(
        &self,
        x: &[T],
        start: usize,
        base_lanes: &ExpBaseLanes<T::Wide, I>,
        max: T::Wide,
        held: &mut [T::Wide],
        ahead: usize,
    ) -> (<T::Wide as Real>::V<I>, u32) {
        let Self { isa, transform, .. } = *self;
        let holds = !held.is_empty();
        let all = |value| <T::Wide as Real>::V::splat(isa, value);
        let (zero, max_logit) = (all(T::Wide::ZERO), all(transform.orient_one(max)));
        let (mut sum, mut count) = (zero, 0);
        let (vectors, last) = x[start..].as_chunks::<LANES>();
        let (pairs, single) = vectors.as_chunks::<2>();
        // for each pair of vectors:  sum += x == max ? 0 : exp(y(x) - log_base);  count += x == max
        for (nth, pair) in pairs.iter().enumerate() {
            prefetch(pair[0].as_ptr().wrapping_add(ahead));
            prefetch(pair[1].as_ptr().wrapping_add(ahead));
            let x = [T::load(isa, &pair[0]), T::load(isa, &pair[1])];
            let e = transform.exp(isa, x, [base_lanes; 2]);
            if holds {
                let (held, _) =
                    held[start + nth * 2 * LANES..][..2 * LANES].as_chunks_mut::<LANES>();
                (held[0], held[1]) = (e[0].array(), e[1].array());
            }
            sum = sum
                + (x[0].where_equal(max_logit, zero, e[0])
                    + x[1].where_equal(max_logit, zero, e[1]));
            count += (x[0].equal(max_logit) | x[1].equal(max_logit) << LANES).count_ones();
        }
        if let [x] = single {
            prefetch(x.as_ptr().wrapping_add(ahead));
            let x = T::load(isa, x);
            let [e] = transform.exp(isa, [x], [base_lanes]);
            if holds {
                held[start + pairs.len() * 2 * LANES..][..LANES].copy_from_slice(&e.array());
            }
            sum = sum + x.where_equal(max_logit, zero, e);
            count += x.equal(max_logit).count_ones();
        }
        if let (false, Some(x)) = (last.is_empty(), x.last_chunk()) {
            // The last vector overlaps the one before it; elements that have been added already get
            // the weight 0.
            let x = T::load(isa, x);
            let weights = T::Wide::LAST[last.len()..].first_chunk().map_or(
                zero,
                #[inline(always)]
                |x| Vector::load(isa, x),
            );
            let [e] = transform.exp(isa, [x], [base_lanes]);
            if let (true, Some(held)) = (holds, held.last_chunk_mut()) {
                *held = e.array();
            }
            sum = sum + x.where_equal(max_logit, zero, e) * weights;
            count += (x.equal(max_logit) >> (LANES - last.len())).count_ones();
        }
        (sum, count)
    }

    /// Returns the first place of `logit` in `x`, which is whole blocks.
    #[inline(always)]
    pub(super) fn position(&self, x: &[T], logit: T::Wide) -> Option<usize> {
        let isa = self.isa;
        let wanted = Vector::splat(isa, logit);
        let (fours, _) = x.as_chunks::<{ 4 * LANES }>();
        // for each four vectors:  if any x == logit, look for the first of them
        for (nth, four) in fours.iter().enumerate() {
            let (vectors, _) = four.as_chunks::<LANES>();
            let mut any = 0;
            for x in vectors {
                any |= T::load(isa, x).equal(wanted);
            }
            if any > 0 {
                return Some(nth * 4 * LANES + four.iter().position(|x| x.widen() == logit)?);
            }
        }
        None
    }

    /// Returns the sum of `value` over piece `nth` of a row. Not inlined: both branches of
    /// `LanesAlongRow::sums` share one copy.
    #[inline(never)]
    pub(super) fn sum(
        &self,
        row: usize,
        nth: usize,
        value: &impl Fn(usize, usize, T::Wide) -> f64,
    ) -> f64 {
        self.isa.vectorize(
            #[inline(always)]
            || {
                let mut lanes = [0.0; LANES];
                let piece = self.cut().piece(nth);
                let start = piece.start;
                let (vectors, rest) = self.row(row)[piece].as_chunks::<LANES>();
                // for each vector:  lanes[lane] += value(row, class, x)
                for (at, x) in vectors.iter().enumerate() {
                    let class = start + at * LANES;
                    let x = T::load(self.isa, x).array();
                    for (lane, sum) in lanes.iter_mut().enumerate() {
                        *sum += value(row, class + lane, x[lane]);
                    }
                }
                let class = start + vectors.len() * LANES;
                for (lane, (sum, x)) in lanes.iter_mut().zip(rest).enumerate() {
                    *sum += value(row, class + lane, x.widen());
                }
                I::F64::load(self.isa, &lanes).total()
            },
        )
    }

    #[inline(always)]
    pub(super) fn largest(&self) -> [T::Wide; ROWS] {
        let mut maxima = [T::Wide::NEG_INFINITY; ROWS];
        if self.classes >= BLOCK {
            for row in 0..self.count {
                maxima[row] = self.max(self.row(row));
            }
            return maxima;
        }
        // The lanes of all rows are folded together, so that the steps of different rows overlap.
        let mut lanes = [[T::Wide::ZERO; LANES]; ROWS];
        for row in 0..self.count {
            lanes[row] = self.max_of_lanes(self.row(row)).array();
        }
        self.fold_lanes(
            &lanes,
            &mut maxima,
            #[inline(always)]
            |a, b| a.larger(b),
        );
        maxima
    }

    /// Folds the lanes of each row to one value.
    #[inline(always)]
    fn fold_lanes(
        &self,
        lanes: &[[T::Wide; LANES]; ROWS],
        results: &mut [T::Wide; ROWS],
        with: impl Fn(<T::Wide as Real>::V<I>, <T::Wide as Real>::V<I>) -> <T::Wide as Real>::V<I>,
    ) {
        for (half, (lanes, results)) in
            lanes.as_chunks::<LANES>().0.iter().zip(results.as_chunks_mut().0).enumerate()
        {
            if half * LANES < self.count {
                let lanes = each(
                    *lanes,
                    #[inline(always)]
                    |lanes| Vector::load(self.isa, &lanes),
                );
                *results = fold_transposed(lanes, &with).array();
            }
        }
    }

    #[inline(always)]
    pub(super) fn reduced(&mut self, hold: bool) -> Stats<T::Wide> {
        let (count, classes, cut) = (self.count, self.classes, self.cut());
        let per_row = cut.pieces;
        let Held { mut exponentials, mut pieces } = std::mem::take(self.held);
        let holds = hold && are_held(count * classes, self.threads_share_rows);
        // Where memory is short, exponentials are computed again.
        let holds = holds
            && exponentials
                .try_reserve_exact((count * classes).saturating_sub(exponentials.len()))
                .is_ok();
        exponentials.resize(if holds { count * classes } else { 0 }, T::Wide::ZERO);
        pieces.clear();
        pieces.resize(count * per_row, Piece::default());
        let mut max = [T::Wide::NEG_INFINITY; ROWS];
        let mut bases = RowExpBases::default();
        let (mut max_exps, mut rest_sums) = ([1.0; ROWS], [0.0; ROWS]);
        let (isa, mut pending) = (self.isa, std::mem::take(&mut self.pending));
        if per_row == 1 {
            // All rows take each step together, so that the steps of different rows overlap.
            max = self.largest();
            bases = RowExpBases::new(self.isa, self.transform, &max);
            let max_logits = each(
                max,
                #[inline(always)]
                |max| self.transform.orient_one(max),
            );
            let base_lanes = [
                ExpBaseLanes::of_rows(self.isa, &bases, 0),
                ExpBaseLanes::of_rows(self.isa, &bases, 1),
            ];
            let (halves, _) = max_logits.as_chunks();
            let max_logits =
                [Vector::load(self.isa, &halves[0]), Vector::load(self.isa, &halves[1])];
            let [a, b] = self.transform.exp(self.isa, max_logits, [&base_lanes[0], &base_lanes[1]]);
            for (to, from) in max_exps.iter_mut().zip([a.array(), b.array()].as_flattened()) {
                *to = (*from).into();
            }
            let (mut lanes, mut counts) = ([[T::Wide::ZERO; LANES]; ROWS], [0.0; ROWS]);
            for row in 0..count {
                let held =
                    if holds { &mut exponentials[row * classes..][..classes] } else { &mut [][..] };
                let (x, max, ahead) = (self.row(row), max[row], count * classes);
                if classes < BLOCK {
                    let base_lanes = ExpBaseLanes::of_row(self.isa, &bases.at(row));
                    let (sum, count) = self.tail_sums(x, 0, &base_lanes, max, held, ahead);
                    (lanes[row], counts[row]) = (sum.array(), f64::from(count));
                    pending.write_some(isa, classes * size_of::<T>() / CACHE_LINE);
                } else {
                    let base_lanes = ExpBaseLanes::of_row(self.isa, &bases.at(row));
                    rest_sums[row] = self.rest_sum(
                        x,
                        &base_lanes,
                        (max, max_exps[row]),
                        held,
                        ahead,
                        &mut pending,
                    );
                }
                pieces[row] = Piece { max, base: bases.at(row), ratio: 1.0, ..Piece::default() };
            }
            if classes < BLOCK {
                let mut sums = [T::Wide::ZERO; ROWS];
                // A sum is rounded in f32 no more than eight times in lanes, and five times here.
                self.fold_lanes(
                    &lanes,
                    &mut sums,
                    #[inline(always)]
                    |a, b| a + b,
                );
                for row in 0..ROWS {
                    rest_sums[row] = sums[row].into() + (counts[row] - 1.0) * max_exps[row];
                }
            }
        } else {
            for row in 0..count {
                let x = self.row(row);
                let pieces = &mut pieces[row * per_row..][..per_row];
                if self.threads_share_rows {
                    threads::for_each(pieces, &|nth, piece| {
                        *piece = isa.vectorize(
                            #[inline(always)]
                            || self.piece(&x[cut.piece(nth)], &mut []),
                        );
                    });
                } else {
                    for (nth, piece) in pieces.iter_mut().enumerate() {
                        let (x, start) = (&x[cut.piece(nth)], row * classes + cut.at(nth));
                        let held =
                            if holds { &mut exponentials[start..][..x.len()] } else { &mut [][..] };
                        *piece = self.piece(x, held);
                    }
                }
                let joined = join(pieces);
                (max[row], max_exps[row], rest_sums[row]) = (joined.0, joined.2, joined.3);
                bases.set(row, joined.1);
            }
        }
        self.pending = pending;
        *self.held = Held { exponentials, pieces };
        Stats::new(self.transform, max, bases, max_exps, rest_sums)
    }
}

/// Joins the pieces of a row: returns its maximum with its exponent base and exponential, and the
/// rest of its exponential sum relative to that base.
///
/// ```text
/// ratio = exp(piece.log_base - log_base)
/// rest_sum = sum over pieces of (piece.rest_sum + piece.max_exp unless it is max's) * ratio
/// ```
fn join<W: Exp>(pieces: &mut [Piece<W>]) -> (W, ExpBase<W>, f64, f64) {
    let mut max_piece = 0;
    for nth in 1..pieces.len() {
        if pieces[nth].max > pieces[max_piece].max {
            max_piece = nth;
        }
    }
    let Piece { max, base, max_exp, .. } = pieces[max_piece];
    let mut rest_sum = 0.0;
    for (nth, piece) in pieces.iter_mut().enumerate() {
        // The exponentials of a piece of nothing but -inf are 0 relative to any base.
        let ratio =
            if piece.max_exp == 0.0 { 1.0 } else { exp(piece.base.log_base - base.log_base) };
        // The maximum of a piece is part of the rest of the sum, unless it is the maximum of the
        // row.
        let left_out = if nth == max_piece { 0.0 } else { piece.max_exp };
        rest_sum += (piece.rest_sum + left_out) * ratio;
        // The ratio is rounded, so that equal logits of two pieces have equal probabilities, but
        // not where it would become subnormal or 0.
        let rounded: f64 = W::of(ratio).into();
        piece.ratio = if rounded < W::MIN_NORMAL { ratio } else { rounded };
    }
    (max, base, max_exp, rest_sum)
}
