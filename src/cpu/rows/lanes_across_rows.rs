//! Lanes across rows: the lanes of a vector hold the same class of sixteen rows, a tile of
//! `[classes][16]`.
//!
//! Contiguous rows are transposed into tiles by perfect shuffles: interleaving the first half of
//! the elements with the second half, four times over, turns `[16][classes]` into `[classes][16]`
//! (two shuffles are done at once). Tiles of strided rows (`inner` above 1) are read as they are.
//! [`Tiles`] and these shuffles come first, then the passes over tiles, [`LanesAcrossRows`].

use super::{ROWS, Rows, Stats, split_factor};
use crate::Error;
use crate::cpu::lines::{CACHE_LINE, PendingLines};
use crate::cpu::simd::{Exp, Isa, LANES, Number, Real, Vector, each};
use crate::cpu::transform::{ExpBaseLanes, LogitTransform, RowExpBases};
use crate::problem::error::try_reserve;

/// The memory of a thread for the tiles of logits and of results.
#[derive(Default)]
pub(in crate::cpu) struct Tiles<W> {
    pub(in crate::cpu) logits: Vec<W>,
    pub(in crate::cpu) results: Vec<W>,
}

impl<W: Real> Tiles<W> {
    /// Returns the elements of two tiles. Shuffles may reach three vectors beyond the end of each.
    fn length(classes: usize) -> usize {
        if classes == 0 { 0 } else { 2 * (classes + 3) * LANES }
    }

    /// Makes room for tiles of rows of `classes` classes.
    pub(in crate::cpu) fn reserve(&mut self, classes: usize) -> Result<(), Error> {
        try_reserve("tiles of rows", &mut self.logits, Self::length(classes))?;
        try_reserve("tiles of rows", &mut self.results, Self::length(classes))
    }

    /// Sets the length for rows of `classes` classes; 0 for no tiles.
    pub(in crate::cpu) fn resize(&mut self, classes: usize) {
        self.logits.resize(Self::length(classes), W::ZERO);
        self.results.resize(Self::length(classes), W::ZERO);
    }

    /// Returns the two tiles of logits and the two tiles of results, each with room at its end.
    #[inline(always)]
    pub(in crate::cpu) fn halves(&mut self) -> [[&mut [W]; 2]; 2] {
        let middle = self.logits.len() / 2;
        let ((a, b), (c, d)) =
            (self.logits.split_at_mut(middle), self.results.split_at_mut(middle));
        [[a, b], [c, d]]
    }
}

/// Transposes `[16][classes]` in `a` into `[classes][16]`, in `a` again; `b` is scratch of the same
/// length.
#[inline(always)]
pub(in crate::cpu) fn transpose<I: Isa, W: Real>(isa: I, a: &mut [W], b: &mut [W], classes: usize) {
    interleave_twice(isa, a, b, classes);
    interleave_twice(isa, b, a, classes);
}

/// Folds the sixteen lanes of each of sixteen rows to one value, which is returned in the lane of
/// that row: the first half of the rows is interleaved with the second half and folded, four times.
#[inline(always)]
pub(in crate::cpu) fn fold_transposed<I: Isa, V: Vector<I>>(
    rows: [V; LANES],
    with: impl Fn(V, V) -> V,
) -> V {
    let mut rows = rows;
    for half in [8, 4, 2, 1] {
        for at in 0..half {
            let (low, high) = rows[at].interleave(rows[at + half]);
            rows[at] = with(low, high);
        }
    }
    rows[0]
}

/// Does two shuffles at once: interleaves the first quarter of `from` with the third, the second
/// with the fourth, and then the two results.
#[inline(always)]
fn interleave_twice<I: Isa, W: Real>(isa: I, from: &[W], to: &mut [W], classes: usize) {
    let quarter = classes * LANES / 4;
    // The last vector of a quarter may reach into the next quarter.
    let whole = quarter.next_multiple_of(LANES);
    let [a, b, c, d]: [&[[W; LANES]]; 4] =
        [0, 1, 2, 3].map(|nth| from[nth * quarter..][..whole].as_chunks().0);
    let (to, _) = to[..4 * whole].as_chunks_mut::<{ 4 * LANES }>();
    for (nth, to) in to.iter_mut().enumerate() {
        let load = |from: &[[W; LANES]]| W::V::load(isa, &from[nth]);
        let (low, high) = load(a).interleave(load(c));
        let (other_low, other_high) = load(b).interleave(load(d));
        let ((p, q), (r, s)) = (low.interleave(other_low), high.interleave(other_high));
        let (to, _) = to.as_chunks_mut();
        (to[0], to[1], to[2], to[3]) = (p.array(), q.array(), r.array(), s.array());
    }
}

/// Undoes [`transpose`].
#[inline(always)]
pub(in crate::cpu) fn transpose_back<I: Isa, W: Real>(
    isa: I,
    a: &mut [W],
    b: &mut [W],
    classes: usize,
) {
    deinterleave_twice(isa, a, b, classes);
    deinterleave_twice(isa, b, a, classes);
}

#[inline(always)]
fn deinterleave_twice<I: Isa, W: Real>(isa: I, from: &[W], to: &mut [W], classes: usize) {
    let quarter = classes * LANES / 4;
    let whole = quarter.next_multiple_of(LANES);
    let (from, _) = from[..4 * whole].as_chunks::<{ 4 * LANES }>();
    // The loop runs from the end, so that a vector that reaches into the next quarter is
    // overwritten by that quarter.
    for (nth, from) in from.iter().enumerate().rev() {
        let (from, _) = from.as_chunks();
        let load = |nth: usize| W::V::load(isa, &from[nth]);
        let ((even, odd), (other_even, other_odd)) =
            (load(0).deinterleave(load(1)), load(2).deinterleave(load(3)));
        let ((p, q), (r, s)) = (even.deinterleave(other_even), odd.deinterleave(other_odd));
        for (at, v) in [p, r, q, s].iter().enumerate() {
            to[at * quarter + nth * LANES..][..LANES].copy_from_slice(&v.array());
        }
    }
}

/// Converts the elements of `from`, at most sixteen, to the type that rows are computed in.
#[inline(always)]
pub(in crate::cpu) fn gather<I: Isa, T: Number>(isa: I, from: &[T], to: &mut [T::Wide; LANES]) {
    if let Some(from) = from.first_chunk() {
        *to = T::load(isa, from).array();
        return;
    }
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
}

/// Converts as many values of `from` back as `to` has elements, at most sixteen.
#[inline(always)]
pub(in crate::cpu) fn scatter<I: Isa, T: Number>(isa: I, from: &[T::Wide; LANES], to: &mut [T]) {
    let values = T::store(isa, Vector::load(isa, from));
    match to.first_chunk_mut() {
        Some(to) => *to = values,
        None => to.copy_from_slice(&values[..to.len()]),
    }
}

/// Up to 32 rows in two tiles of sixteen rows each; the results go to two other tiles.
pub(in crate::cpu) struct LanesAcrossRows<'a, I, Y, W> {
    pub(in crate::cpu) isa: I,
    pub(in crate::cpu) transform: Y,
    pub(in crate::cpu) count: usize,
    /// Two tiles `[classes][16]`; the second is unused where `count` is at most 16.
    pub(in crate::cpu) logits: [&'a [[W; LANES]]; 2],
    pub(in crate::cpu) results: [&'a mut [[W; LANES]]; 2],
    /// The lines of the group before this one, which are written during `reduce`.
    pub(in crate::cpu) pending: PendingLines<'a>,
}

impl<I: Isa, Y: LogitTransform, W: Exp> LanesAcrossRows<'_, I, Y, W> {
    #[inline(always)]
    fn load(&self, class: usize) -> [W::V<I>; 2] {
        [W::V::load(self.isa, &self.logits[0][class]), W::V::load(self.isa, &self.logits[1][class])]
    }

    #[inline(always)]
    fn largest(&self) -> [W; ROWS] {
        let Self { isa, transform, .. } = *self;
        let mut best = [W::V::splat(isa, W::NEG_INFINITY); 2];
        // for each class:  best = max(best, oriented x)
        for class in 0..self.classes() {
            let x = self.load(class);
            for half in 0..2 {
                best[half] = transform.orient::<I, W>(isa, x[half]).larger(best[half]);
            }
        }
        rows(best)
    }

    #[inline(always)]
    fn reduced(&mut self) -> Stats<W> {
        let Self { isa, transform, .. } = *self;
        let max = self.largest();
        let bases = RowExpBases::new(isa, transform, &max);
        let base_lanes =
            [ExpBaseLanes::of_rows(isa, &bases, 0), ExpBaseLanes::of_rows(isa, &bases, 1)];
        let base_lanes = [&base_lanes[0], &base_lanes[1]];
        let max_logits = each(
            max,
            #[inline(always)]
            |max| transform.orient_one(max),
        );
        let (halves, _) = max_logits.as_chunks();
        let max_logits = [W::V::load(isa, &halves[0]), W::V::load(isa, &halves[1])];
        let max_exps = transform.exp(isa, max_logits, base_lanes);
        let (zero, one) = (W::V::splat(isa, W::ZERO), W::V::splat(isa, W::ONE));
        // for each class:
        //     e = exp(y(x) - log_base);  result[class] = e
        //     sums[class % 4] += x == max ? 0 : e;  counts += x == max
        // rest_sum = sum of sums + (counts - 1) * max_exp
        // There are four sums so that none is rounded more than eight times in f32.
        let (mut sums, mut counts) = ([[zero; 2]; 4], [zero; 2]);
        for class in 0..self.classes() {
            let x = self.load(class);
            let e = transform.exp(isa, x, base_lanes);
            let mut sum = sums[0];
            for half in 0..2 {
                self.results[half][class] = e[half].array();
                sum[half] = sum[half] + x[half].where_equal(max_logits[half], zero, e[half]);
                counts[half] = counts[half] + x[half].where_equal(max_logits[half], one, zero);
            }
            sums = [sums[1], sums[2], sums[3], sum];
            self.pending.write_some(isa, size_of::<[W; ROWS]>() / CACHE_LINE);
        }
        let mut sum = [zero; 2];
        for half in 0..2 {
            sum[half] = (sums[0][half] + sums[1][half]) + (sums[2][half] + sums[3][half]);
        }
        let (sum, counts, terms) = (rows(sum), rows(counts), rows(max_exps));
        let (mut rest_sums, mut max_exps) = ([0.0; ROWS], [0.0; ROWS]);
        for row in 0..ROWS {
            max_exps[row] = terms[row].into();
            rest_sums[row] = sum[row].into() + (counts[row].into() - 1.0) * max_exps[row];
        }
        Stats::new(transform, max, bases, max_exps, rest_sums)
    }
}

/// Returns the values of two vectors, one for each row.
#[inline(always)]
fn rows<I: Isa, V: Vector<I>>(vectors: [V; 2]) -> [V::W; ROWS] {
    let mut rows = [V::W::ZERO; ROWS];
    let (halves, _) = rows.as_chunks_mut();
    (halves[0], halves[1]) = (vectors[0].array(), vectors[1].array());
    rows
}

impl<I: Isa, Y: LogitTransform, W: Exp> Rows for LanesAcrossRows<'_, I, Y, W> {
    type I = I;
    type W = W;
    type Y = Y;

    fn isa(&self) -> I {
        self.isa
    }

    fn transform(&self) -> Y {
        self.transform
    }

    fn classes(&self) -> usize {
        self.logits[0].len()
    }

    fn count(&self) -> usize {
        self.count
    }

    #[inline(always)]
    fn get(&self, row: usize, class: usize) -> W {
        self.logits[row / LANES][class][row % LANES]
    }

    #[inline(always)]
    fn find_where(&self, row: usize, holds: impl Fn(W) -> bool) -> Option<usize> {
        (0..self.classes()).find(|&class| holds(self.get(row, class)))
    }

    #[inline(always)]
    fn find(&self, row: usize, logit: W) -> Option<usize> {
        // The loop runs from the last class to the first and never ends early: processors could not
        // predict where.
        let first = |first, class| if self.get(row, class) == logit { class } else { first };
        let class = (0..self.classes()).rev().fold(usize::MAX, first);
        (class != usize::MAX).then_some(class)
    }

    #[inline(never)]
    fn maxima(&self) -> [W; ROWS] {
        self.isa.vectorize(
            #[inline(always)]
            || self.largest(),
        )
    }

    #[inline(never)]
    fn reduce(&mut self, _: bool) -> Stats<W> {
        self.isa.vectorize(
            #[inline(always)]
            || self.reduced(),
        )
    }

    fn terms(&self, stats: &Stats<W>, logits: &[W; ROWS]) -> [f64; ROWS] {
        stats.terms(self.isa, self.transform, logits)
    }

    #[inline(always)]
    fn sums(&self, value: impl Fn(usize, usize, W) -> f64 + Sync) -> [f64; ROWS] {
        let mut sums = [0.0; ROWS];
        for class in 0..self.classes() {
            for (row, sum) in sums.iter_mut().enumerate().take(self.count) {
                *sum += value(row, class, self.get(row, class));
            }
        }
        sums
    }

    #[inline(always)]
    fn scale(&mut self, _: &Stats<W>, factors: &[f64; ROWS]) {
        let (mut first, mut second) = ([W::ONE; ROWS], [W::ONE; ROWS]);
        for row in 0..ROWS {
            [first[row], second[row]] = split_factor(factors[row], 1.0);
        }
        for half in 0..2 {
            let load = |of: &[W; ROWS]| W::V::load(self.isa, &of.as_chunks().0[half]);
            let (first, second) = (load(&first), load(&second));
            // for each class:  result = e * first * second
            for e in &mut *self.results[half] {
                *e = (W::V::load(self.isa, e) * first * second).array();
            }
        }
    }

    #[inline(always)]
    fn map(&mut self, value: impl Fn(usize, usize, W) -> W + Sync) {
        for class in 0..self.classes() {
            for row in 0..self.count {
                self.results[row / LANES][class][row % LANES] =
                    value(row, class, self.get(row, class));
            }
        }
    }

    #[inline(always)]
    fn map_with(&mut self, _: &Stats<W>, value: impl Fn(usize, usize, W, W) -> W + Sync) {
        for class in 0..self.classes() {
            for row in 0..self.count {
                let e = self.results[row / LANES][class][row % LANES];
                self.results[row / LANES][class][row % LANES] =
                    value(row, class, self.get(row, class), e);
            }
        }
    }

    #[inline(always)]
    fn pick(&self, classes: &[usize; ROWS]) -> [W; ROWS] {
        let mut logits = [W::ZERO; ROWS];
        for (half, (logits, classes)) in logits
            .as_chunks_mut::<LANES>()
            .0
            .iter_mut()
            .zip(classes.as_chunks::<LANES>().0)
            .enumerate()
        {
            for lane in 0..LANES {
                logits[lane] = self.logits[half][classes[lane]][lane];
            }
        }
        logits
    }

    #[inline(always)]
    fn put(&mut self, classes: &[usize; ROWS], values: &[W; ROWS]) {
        for (results, (values, classes)) in self
            .results
            .iter_mut()
            .zip(values.as_chunks::<LANES>().0.iter().zip(classes.as_chunks::<LANES>().0))
        {
            for lane in 0..LANES {
                results[classes[lane]][lane] = values[lane];
            }
        }
    }
}
