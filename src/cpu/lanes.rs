//! The inner loops, and nothing else: whoever brings SIMD replaces this file's bodies.
//!
//! Order is fixed by the length alone. Sixteen lanes take every sixteenth element; eight such rows make a block, added
//! as a tree in the row's own type, and blocks, then what rows are left, are added in f64. A segment's lanes are folded
//! before the next segment starts, so that segments of one huge row could be handed to several threads without changing a
//! bit.

use bytemuck::{cast_slice, cast_slice_mut};

use super::Stats;
use super::curve::About;
use super::real::Real;
use crate::curve::Curve;

const LANES: usize = 16;
const BLOCK: usize = 8 * LANES;
const SEGMENT_BLOCKS: usize = 128;

type Lane<W> = [W; LANES];

/// The largest logit in order; NaN where any is.
pub(super) fn max<W: Real, A: About<W>>(x: &[W], curve: &Curve) -> W {
    #[inline(always)]
    fn visit<W: Real, A: About<W>>(chunk: &Lane<W>, curve: &Curve, best: &mut Lane<W>, nan: &mut [bool; LANES]) {
        for ((best, nan), &x) in best.iter_mut().zip(nan).zip(chunk) {
            let x = A::in_order(curve, x);
            *best = if x > *best { x } else { *best };
            *nan |= !x.is_number();
        }
    }
    let (mut best, mut nan) = ([W::NEG_INFINITY; LANES], [false; LANES]);
    let (whole, rest) = x.split_at(x.len() / LANES * LANES);
    cast_slice::<W, Lane<W>>(whole).iter().for_each(|chunk| visit::<W, A>(chunk, curve, &mut best, &mut nan));
    let mut last = [A::in_order(curve, W::NEG_INFINITY); LANES];
    last[..rest.len()].copy_from_slice(rest);
    visit::<W, A>(&last, curve, &mut best, &mut nan);
    let larger = |a: W, &b: &W| if b > a { b } else { a };
    if nan.contains(&true) { W::NAN } else { best.iter().fold(W::NEG_INFINITY, larger) }
}

/// The row's statistics about its maximum, of which the softmax must have a value.
pub(super) fn stats<W: Real, A: About<W>>(x: &[W], curve: &Curve, about: A) -> Stats<A> {
    let mut sum = Sum::default();
    let (blocks, rest) = x.split_at(x.len() - x.len() % BLOCK);
    for block in cast_slice::<W, [Lane<W>; 8]>(blocks) {
        sum.add(*block, [LANES; 8], curve, about);
    }
    for row in rest.chunks(LANES) {
        sum.add([padded::<W, A>(row)], [row.len()], curve, about);
    }
    Stats { about, others: sum.others() }
}

/// Replaces the row by exp(x - max), and returns the same statistics as [`stats`].
pub(super) fn exponentials<W: Real, A: About<W>>(x: &mut [W], curve: &Curve, about: A) -> Stats<A> {
    let mut sum = Sum::default();
    let (blocks, rest) = x.split_at_mut(x.len() - x.len() % BLOCK);
    for block in cast_slice_mut::<W, [Lane<W>; 8]>(blocks) {
        *block = sum.add(*block, [LANES; 8], curve, about);
    }
    for row in rest.chunks_mut(LANES) {
        let [exponentials] = sum.add([padded::<W, A>(row)], [row.len()], curve, about);
        row.copy_from_slice(&exponentials[..row.len()]);
    }
    Stats { about, others: sum.others() }
}

/// The sum of a value of each element, in f64; sixteen lanes here too.
#[inline(always)]
pub(super) fn sum<W: Real>(x: &[W], mut value: impl FnMut(usize, W) -> f64) -> f64 {
    let mut sums = [0.0_f64; LANES];
    for (nth, row) in x.chunks(LANES).enumerate() {
        for (lane, (sum, &x)) in sums.iter_mut().zip(row).enumerate() {
            *sum += value(nth * LANES + lane, x);
        }
    }
    sums.iter().sum()
}

/// Replaces every element.
#[inline(always)]
pub(super) fn map<W: Real>(x: &mut [W], mut value: impl FnMut(usize, W) -> W) {
    x.iter_mut().enumerate().for_each(|(class, x)| *x = value(class, *x));
}

/// Multiplies the row by a factor.
pub(super) fn scale<W: Real>(x: &mut [W], factor: W) {
    x.iter_mut().for_each(|x| *x = x.times(factor));
}

/// What is missing of a plain row is -inf, whose exponential is 0; of others it is not looked at.
fn padded<W: Real, A: About<W>>(rest: &[W]) -> Lane<W> {
    let mut row = [if A::PLAIN { W::NEG_INFINITY } else { W::ZERO }; LANES];
    row[..rest.len()].copy_from_slice(rest);
    row
}

#[derive(Default)]
struct Sum {
    lanes: [f64; LANES],
    /// How often each lane met the maximum in this segment.
    tops: [u32; LANES],
    blocks: usize,
    folded: f64,
    folded_tops: u64,
}

impl Sum {
    /// The exponentials of some rows, of which so many elements are there; those that are not of the maximum are added.
    #[inline(always)]
    fn add<W: Real, A: About<W>, const ROWS: usize>(
        &mut self,
        x: [Lane<W>; ROWS],
        lengths: [usize; ROWS],
        curve: &Curve,
        about: A,
    ) -> [Lane<W>; ROWS] {
        let (mut exponentials, mut terms) = ([[W::ZERO; LANES]; ROWS], [[W::ZERO; LANES]; ROWS]);
        for (row, x) in x.iter().enumerate() {
            for (lane, &x) in x.iter().enumerate() {
                let e = about.exp(x);
                let top = A::in_order(curve, x) == about.max();
                self.tops[lane] += u32::from(top);
                terms[row][lane] = if top { W::ZERO } else { e };
                exponentials[row][lane] = e;
            }
            if !A::PLAIN {
                // What is not there counts for nothing.
                for lane in lengths[row]..LANES {
                    let top = A::in_order(curve, x[lane]) == about.max();
                    self.tops[lane] -= u32::from(top);
                    terms[row][lane] = W::ZERO;
                }
            }
        }
        let mut rows = ROWS;
        while rows > 1 {
            rows /= 2;
            for row in 0..rows {
                terms[row] = std::array::from_fn(|lane| terms[2 * row][lane].add(terms[2 * row + 1][lane]));
            }
        }
        for (sum, term) in self.lanes.iter_mut().zip(terms[0]) {
            *sum += term.into();
        }
        self.blocks += 1;
        if self.blocks == SEGMENT_BLOCKS {
            self.fold();
        }
        exponentials
    }

    fn fold(&mut self) {
        self.folded += self.lanes.iter().sum::<f64>();
        self.folded_tops += self.tops.iter().map(|&tops| u64::from(tops)).sum::<u64>();
        (self.lanes, self.tops, self.blocks) = ([0.0; LANES], [0; LANES], 0);
    }

    fn others(mut self) -> f64 {
        self.fold();
        self.folded + self.folded_tops.saturating_sub(1) as f64
    }
}
