//! Rows side by side: lanes hold the same class of sixteen rows, a tile of `[classes][16]`.
//!
//! Where a row's classes lie side by side in memory, a tile is made by perfect shuffles: sixteen rows of so many classes,
//! their first half interleaved with their second, four times over, have turned around. Where classes lie apart (`inner`
//! above 1) tiles are read as they are.

use super::{ROWS, Rows, Stats};
use crate::cpu::curve::{About, Anchors, Kind};
use crate::cpu::simd::{Exp, Isa, LANES, Number, Real, Vector, each};

/// Memory of a thread for tiles on their way.
#[derive(Default)]
pub(in crate::cpu) struct Tiles<W> {
    pub(in crate::cpu) logits: Vec<W>,
    pub(in crate::cpu) results: Vec<W>,
}

impl<W: Real> Tiles<W> {
    /// For rows of so many classes. Shuffles of an odd number of classes reach over the end by half a vector.
    pub(in crate::cpu) fn resize(&mut self, classes: usize) {
        self.logits.resize(2 * (classes + 1) * LANES, W::ZERO);
        self.results.resize(2 * (classes + 1) * LANES, W::ZERO);
    }

    /// Both tiles, each with room at its end: the logits, and the results.
    #[inline(always)]
    pub(in crate::cpu) fn halves(&mut self) -> [[&mut [W]; 2]; 2] {
        let middle = self.logits.len() / 2;
        let ((a, b), (c, d)) = (self.logits.split_at_mut(middle), self.results.split_at_mut(middle));
        [[a, b], [c, d]]
    }
}

/// Turns `[16][classes]` in `a` into `[classes][16]`, which will be in `a` again; `b` is as long.
#[inline(always)]
pub(in crate::cpu) fn turn<I: Isa, W: Real>(isa: I, a: &mut [W], b: &mut [W], classes: usize) {
    let half = classes * LANES / 2;
    for _ in 0..2 {
        interleave(isa, a, b, half);
        interleave(isa, b, a, half);
    }
}

#[inline(always)]
fn interleave<I: Isa, W: Real>(isa: I, from: &[W], to: &mut [W], half: usize) {
    // Half a vector may be too much.
    let whole = half.next_multiple_of(LANES);
    let (first, second) = (from[..whole].as_chunks().0, from[half..][..whole].as_chunks().0);
    for ((a, b), to) in first.iter().zip(second).zip(to.as_chunks_mut::<{ 2 * LANES }>().0) {
        let (low, high) = W::V::load(isa, a).interleave(W::V::load(isa, b));
        let (to, _) = to.as_chunks_mut();
        (to[0], to[1]) = (low.array(), high.array());
    }
}

/// The opposite.
#[inline(always)]
pub(in crate::cpu) fn turn_back<I: Isa, W: Real>(isa: I, a: &mut [W], b: &mut [W], classes: usize) {
    let half = classes * LANES / 2;
    for _ in 0..2 {
        deinterleave(isa, a, b, half);
        deinterleave(isa, b, a, half);
    }
}

#[inline(always)]
fn deinterleave<I: Isa, W: Real>(isa: I, from: &[W], to: &mut [W], half: usize) {
    let whole = half.next_multiple_of(LANES);
    let (from, _) = from[..2 * whole].as_chunks::<{ 2 * LANES }>();
    for (nth, from) in from.iter().enumerate() {
        let (from, _) = from.as_chunks();
        let (even, _) = W::V::load(isa, &from[0]).deinterleave(W::V::load(isa, &from[1]));
        to[nth * LANES..][..LANES].copy_from_slice(&even.array());
    }
    // After the first half, which may have reached into the second.
    for (from, to) in from.iter().zip(to[half..][..whole].as_chunks_mut().0) {
        let (from, _) = from.as_chunks();
        let (_, odd) = W::V::load(isa, &from[0]).deinterleave(W::V::load(isa, &from[1]));
        *to = odd.array();
    }
}

/// Sixteen elements of another type, or what there are.
#[inline(always)]
pub(in crate::cpu) fn gather<I: Isa, T: Number>(isa: I, from: &[T], to: &mut [T::Wide; LANES]) {
    if let Some(from) = from.first_chunk() {
        *to = T::load(isa, from).array();
        return;
    }
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
}

/// The same back.
#[inline(always)]
pub(in crate::cpu) fn scatter<I: Isa, T: Number>(isa: I, from: &[T::Wide; LANES], to: &mut [T]) {
    let values = T::store(isa, Vector::load(isa, from));
    match to.first_chunk_mut() {
        Some(to) => *to = values,
        None => to.copy_from_slice(&values[..to.len()]),
    }
}

/// Up to 32 rows, the results of which will stand in other tiles. Two tiles follow each other, of sixteen rows each.
pub(in crate::cpu) struct Abreast<'a, I, K, W> {
    pub(in crate::cpu) isa: I,
    pub(in crate::cpu) kind: K,
    pub(in crate::cpu) count: usize,
    pub(in crate::cpu) logits: [&'a [[W; LANES]]; 2],
    pub(in crate::cpu) results: [&'a mut [[W; LANES]]; 2],
}

impl<I: Isa, K: Kind, W: Exp> Abreast<'_, I, K, W> {
    #[inline(always)]
    fn load(&self, class: usize) -> [W::V<I>; 2] {
        [W::V::load(self.isa, &self.logits[0][class]), W::V::load(self.isa, &self.logits[1][class])]
    }

    #[inline(always)]
    fn largest(&self) -> [W; ROWS] {
        let Self { isa, kind, .. } = *self;
        let mut best = [W::V::splat(isa, W::NEG_INFINITY); 2];
        for class in 0..self.classes() {
            let x = self.load(class);
            for half in 0..2 {
                best[half] = kind.in_order::<I, W>(isa, x[half]).larger(best[half]);
            }
        }
        rows(best)
    }

    #[inline(always)]
    fn reduced(&mut self) -> Stats<W> {
        let Self { isa, kind, .. } = *self;
        let max = self.largest();
        let anchors = Anchors::new(kind, max);
        let about = [About::of_rows(isa, &anchors, 0), About::of_rows(isa, &anchors, 1)];
        let about = [&about[0], &about[1]];
        let tops = each(
            max,
            #[inline(always)]
            |max| kind.in_order_one(max),
        );
        let (halves, _) = tops.as_chunks();
        let tops = [W::V::load(isa, &halves[0]), W::V::load(isa, &halves[1])];
        let top_terms = kind.exp(isa, tops, about);
        let (zero, one) = (W::V::splat(isa, W::ZERO), W::V::splat(isa, W::ONE));
        // No more than eight roundings of f32 in each.
        let (mut sums, mut counts) = ([[zero; 2]; 4], [zero; 2]);
        for class in 0..self.classes() {
            let x = self.load(class);
            let e = kind.exp(isa, x, about);
            let mut sum = sums[0];
            for half in 0..2 {
                self.results[half][class] = e[half].array();
                sum[half] = sum[half] + x[half].where_equal(tops[half], zero, e[half]);
                counts[half] = counts[half] + x[half].where_equal(tops[half], one, zero);
            }
            sums = [sums[1], sums[2], sums[3], sum];
        }
        let mut sum = [zero; 2];
        for half in 0..2 {
            sum[half] = (sums[0][half] + sums[1][half]) + (sums[2][half] + sums[3][half]);
        }
        let (sum, counts, terms) = (rows(sum), rows(counts), rows(top_terms));
        let (mut others, mut top_terms) = ([0.0; ROWS], [0.0; ROWS]);
        for row in 0..ROWS {
            top_terms[row] = terms[row].into();
            others[row] = sum[row].into() + (counts[row].into() - 1.0) * top_terms[row];
        }
        Stats::new(kind, max, anchors, top_terms, others)
    }
}

/// Two vectors of rows.
#[inline(always)]
fn rows<I: Isa, V: Vector<I>>(vectors: [V; 2]) -> [V::W; ROWS] {
    let mut rows = [V::W::ZERO; ROWS];
    let (halves, _) = rows.as_chunks_mut();
    (halves[0], halves[1]) = (vectors[0].array(), vectors[1].array());
    rows
}

impl<I: Isa, K: Kind, W: Exp> Rows for Abreast<'_, I, K, W> {
    type W = W;
    type K = K;

    fn kind(&self) -> K {
        self.kind
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
    fn first(&self, row: usize, holds: impl Fn(W) -> bool) -> Option<usize> {
        (0..self.classes()).find(|&class| holds(self.get(row, class)))
    }

    #[inline(always)]
    fn place(&self, row: usize, logit: W) -> Option<usize> {
        self.first(row, |x| x == logit)
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
        stats.terms(self.isa, self.kind, logits)
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
        let factors = each(
            *factors,
            #[inline(always)]
            |factor| W::of(factor),
        );
        for (factors, results) in factors.as_chunks().0.iter().zip(&mut self.results) {
            let factors = W::V::load(self.isa, factors);
            for e in &mut **results {
                *e = (W::V::load(self.isa, e) * factors).array();
            }
        }
    }

    #[inline(always)]
    fn map(&mut self, value: impl Fn(usize, usize, W) -> W + Sync) {
        for class in 0..self.classes() {
            for row in 0..self.count {
                self.results[row / LANES][class][row % LANES] = value(row, class, self.get(row, class));
            }
        }
    }

    #[inline(always)]
    fn map_with(&mut self, _: &Stats<W>, value: impl Fn(usize, usize, W, W) -> W + Sync) {
        for class in 0..self.classes() {
            for row in 0..self.count {
                let e = self.results[row / LANES][class][row % LANES];
                self.results[row / LANES][class][row % LANES] = value(row, class, self.get(row, class), e);
            }
        }
    }

    #[inline(always)]
    fn set(&mut self, row: usize, class: usize, value: W) {
        self.results[row / LANES][class][row % LANES] = value;
    }
}
