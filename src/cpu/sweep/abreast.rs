//! Rows side by side: lanes hold the same class of sixteen rows, a tile of `[classes][16]`.
//!
//! Where a row's classes lie side by side in memory, a tile is made by perfect shuffles: sixteen rows of so many classes,
//! their first half interleaved with their second, four times over, have turned around. Where classes lie apart (`inner`
//! above 1) tiles are read as they are.

use super::{Rows, Stats};
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
        self.logits.resize((classes + 1) * LANES, W::ZERO);
        self.results.resize((classes + 1) * LANES, W::ZERO);
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

/// Up to sixteen rows, the results of which will stand in a second tile.
pub(in crate::cpu) struct Abreast<'a, I, K, W> {
    pub(in crate::cpu) isa: I,
    pub(in crate::cpu) kind: K,
    pub(in crate::cpu) count: usize,
    pub(in crate::cpu) logits: &'a [[W; LANES]],
    pub(in crate::cpu) results: &'a mut [[W; LANES]],
}

impl<I: Isa, K: Kind, W: Exp> Abreast<'_, I, K, W> {
    #[inline(always)]
    fn largest(&self) -> [W; LANES] {
        let Self { isa, kind, .. } = *self;
        let mut best = W::V::splat(isa, W::NEG_INFINITY);
        for x in self.logits {
            best = kind.in_order::<I, W>(isa, W::V::load(isa, x)).larger(best);
        }
        best.array()
    }

    #[inline(always)]
    fn reduced(&mut self) -> Stats<W> {
        let Self { isa, kind, .. } = *self;
        let max = self.largest();
        let anchors = Anchors::new(kind, max);
        let about = About::of_rows(isa, &anchors);
        let top = W::V::load(
            isa,
            &each(
                max,
                #[inline(always)]
                |max| kind.in_order_one(max),
            ),
        );
        let [top_terms] = kind.exp(isa, [top], &about);
        let (zero, one) = (W::V::splat(isa, W::ZERO), W::V::splat(isa, W::ONE));
        // No more than eight roundings of f32 in each.
        let (mut sums, mut count) = ([zero; 4], zero);
        macro_rules! add {
            ($sum:expr, $x:expr, $e:expr) => {
                let sum = $sum;
                sums[sum] = sums[sum] + $x.where_equal(top, zero, $e);
                count = count + $x.where_equal(top, one, zero);
            };
        }
        let (pairs, last) = self.logits.as_chunks::<2>();
        for (nth, pair) in pairs.iter().enumerate() {
            let x = [W::V::load(isa, &pair[0]), W::V::load(isa, &pair[1])];
            let e = kind.exp(isa, x, &about);
            self.results[2 * nth] = e[0].array();
            self.results[2 * nth + 1] = e[1].array();
            add!(2 * (nth % 2), x[0], e[0]);
            add!(2 * (nth % 2) + 1, x[1], e[1]);
        }
        if let [x] = last {
            let x = W::V::load(isa, x);
            let [e] = kind.exp(isa, [x], &about);
            self.results[2 * pairs.len()] = e.array();
            add!(2 * (pairs.len() % 2), x, e);
        }
        let sums = ((sums[0] + sums[1]) + (sums[2] + sums[3])).array();
        let (top_terms, count) = (top_terms.array(), count.array());
        let mut others = [0.0; LANES];
        for row in 0..LANES {
            others[row] = sums[row].into() + (count[row].into() - 1.0) * top_terms[row].into();
        }
        Stats::new(
            kind,
            max,
            anchors,
            each(
                top_terms,
                #[inline(always)]
                |term| term.into(),
            ),
            others,
        )
    }
}

impl<I: Isa, K: Kind, W: Exp> Rows for Abreast<'_, I, K, W> {
    type W = W;
    type K = K;

    fn kind(&self) -> K {
        self.kind
    }

    fn classes(&self) -> usize {
        self.logits.len()
    }

    fn count(&self) -> usize {
        self.count
    }

    #[inline(always)]
    fn get(&self, row: usize, class: usize) -> W {
        self.logits[class][row]
    }

    #[inline(always)]
    fn first(&self, row: usize, holds: impl Fn(W) -> bool) -> Option<usize> {
        self.logits.iter().position(|x| holds(x[row]))
    }

    #[inline(always)]
    fn place(&self, row: usize, logit: W) -> Option<usize> {
        self.first(row, |x| x == logit)
    }

    #[inline(never)]
    fn maxima(&self) -> [W; LANES] {
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

    fn terms(&self, stats: &Stats<W>, logits: &[W; LANES]) -> [f64; LANES] {
        stats.terms(self.isa, self.kind, logits)
    }

    #[inline(always)]
    fn sums(&self, value: impl Fn(usize, usize, W) -> f64 + Sync) -> [f64; LANES] {
        let mut sums = [0.0; LANES];
        for (class, x) in self.logits.iter().enumerate() {
            for (row, sum) in sums.iter_mut().enumerate().take(self.count) {
                *sum += value(row, class, x[row]);
            }
        }
        sums
    }

    #[inline(always)]
    fn scale(&mut self, _: &Stats<W>, factors: &[f64; LANES]) {
        let factors = W::V::load(
            self.isa,
            &each(
                *factors,
                #[inline(always)]
                |factor| W::of(factor),
            ),
        );
        for e in &mut *self.results {
            *e = (W::V::load(self.isa, e) * factors).array();
        }
    }

    #[inline(always)]
    fn map(&mut self, value: impl Fn(usize, usize, W) -> W + Sync) {
        for (class, (x, result)) in self.logits.iter().zip(&mut *self.results).enumerate() {
            for row in 0..self.count {
                result[row] = value(row, class, x[row]);
            }
        }
    }

    #[inline(always)]
    fn map_with(&mut self, _: &Stats<W>, value: impl Fn(usize, usize, W, W) -> W + Sync) {
        for (class, (x, result)) in self.logits.iter().zip(&mut *self.results).enumerate() {
            for row in 0..self.count {
                result[row] = value(row, class, x[row], result[row]);
            }
        }
    }

    #[inline(always)]
    fn set(&mut self, row: usize, class: usize, value: W) {
        self.results[class][row] = value;
    }
}
