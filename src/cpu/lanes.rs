//! The inner loops, and nothing else: whoever brings SIMD replaces this file's bodies.
//!
//! Order is fixed by the length alone. Sixteen lanes take every sixteenth element; eight such rows make a block, added
//! as a tree in f32, and blocks, then what rows are left, are added in f64. A segment's lanes are folded before the next
//! segment starts, so that segments of one huge row could be handed to several threads without changing a bit.

use bytemuck::{cast_slice, cast_slice_mut};

use super::Stats;
use super::exp::{difference, exp_difference};
use crate::job::Scaling;

const LANES: usize = 16;
const BLOCK: usize = 8 * LANES;
const SEGMENT_BLOCKS: usize = 128;

type Row = [f32; LANES];
type Block = [Row; 8];

/// The largest value; NaN where any is.
pub(super) fn max(x: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let mut visit = |chunk: &[f32; LANES]| {
        for ((best, nan), &x) in best.iter_mut().zip(&mut nan).zip(chunk) {
            *best = if x > *best { x } else { *best };
            *nan |= x.is_nan();
        }
    };
    let (whole, rest) = x.split_at(x.len() / LANES * LANES);
    cast_slice::<f32, Row>(whole).iter().for_each(&mut visit);
    visit(&padded(rest));
    if nan.contains(&true) { f32::NAN } else { best.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a }) }
}

/// The row's statistics about its maximum, which must be finite.
pub(super) fn stats(x: &[f32], max: f32) -> Stats {
    let mut sum = Sum::default();
    let (blocks, rest) = x.split_at(x.len() - x.len() % BLOCK);
    for block in cast_slice::<f32, Block>(blocks) {
        sum.add(*block, max);
    }
    for row in rest.chunks(LANES) {
        sum.add([padded(row)], max);
    }
    Stats { max, others: sum.others() }
}

/// Replaces the row by exp(x - max), and returns the same statistics as [`stats`].
pub(super) fn exponentials(x: &mut [f32], max: f32) -> Stats {
    let mut sum = Sum::default();
    let (blocks, rest) = x.split_at_mut(x.len() - x.len() % BLOCK);
    for block in cast_slice_mut::<f32, Block>(blocks) {
        *block = sum.add(*block, max);
    }
    for row in rest.chunks_mut(LANES) {
        let [exponentials] = sum.add([padded(row)], max);
        row.copy_from_slice(&exponentials[..row.len()]);
    }
    Stats { max, others: sum.others() }
}

/// The weighted sum of max - x, where labels are smoothed; else 0. Sixteen lanes here too, in an order fixed by the
/// length alone.
pub(super) fn below(x: &[f32], max: f32, scaling: &Scaling<'_>) -> f64 {
    if scaling.smoothing == 0.0 {
        return 0.0;
    }
    let mut sums = [0.0_f64; LANES];
    for (nth, row) in x.chunks(LANES).enumerate() {
        let weights = scaling.weight.map(|weight| &weight[nth * LANES..]);
        for (lane, (sum, &x)) in sums.iter_mut().zip(row).enumerate() {
            let weight = weights.map_or(1.0, |weights| f64::from(weights[lane]));
            *sum += weight * (f64::from(max) - f64::from(x));
        }
    }
    sums.iter().sum()
}

/// Takes its share, times the weight of its class, from every element.
pub(super) fn lower(x: &mut [f32], share: f64, weight: Option<&[f32]>) {
    match weight {
        None => x.iter_mut().for_each(|x| *x -= share as f32),
        Some(weight) => x.iter_mut().zip(weight).for_each(|(x, &weight)| *x -= (share * f64::from(weight)) as f32),
    }
}

/// Multiplies the row by a factor.
pub(super) fn scale(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

/// Replaces the row by (x - max) - log_sum.
pub(super) fn logarithms(x: &mut [f32], max: f32, log_sum: f32) {
    for x in x {
        let (d, lost) = difference(*x, max);
        *x = (d - log_sum) + lost;
    }
}

/// What is missing of a row is -inf, whose exponential is 0.
fn padded(rest: &[f32]) -> Row {
    let mut row = [f32::NEG_INFINITY; LANES];
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
    /// The exponentials of some rows; those that are not of the maximum are added.
    #[inline(always)]
    fn add<const ROWS: usize>(&mut self, x: [Row; ROWS], max: f32) -> [Row; ROWS] {
        let (mut exponentials, mut terms) = ([[0.0; LANES]; ROWS], [[0.0; LANES]; ROWS]);
        for (row, x) in x.iter().enumerate() {
            for (lane, &x) in x.iter().enumerate() {
                let e = exp_difference(x, max);
                let top = x == max;
                self.tops[lane] += u32::from(top);
                terms[row][lane] = if top { 0.0 } else { e };
                exponentials[row][lane] = e;
            }
        }
        let mut rows = ROWS;
        while rows > 1 {
            rows /= 2;
            for row in 0..rows {
                terms[row] = std::array::from_fn(|lane| terms[2 * row][lane] + terms[2 * row + 1][lane]);
            }
        }
        for (sum, term) in self.lanes.iter_mut().zip(terms[0]) {
            *sum += f64::from(term);
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
