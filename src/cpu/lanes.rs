//! The inner loops, and nothing else: whoever brings SIMD replaces this file's bodies.
//!
//! Order is fixed by the length alone. Sixteen lanes take every sixteenth element; a block of eight such rows is added
//! as a tree in f32, blocks are added in f64, and a segment's lanes are folded before the next segment starts, so that
//! segments of one huge row could be handed to several threads without changing a bit.

use super::Stats;
use super::exp::{difference, exp_difference};

const LANES: usize = 16;
const BLOCK: usize = 8 * LANES;
const SEGMENT_BLOCKS: usize = 128;

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
    bytemuck::cast_slice(whole).iter().for_each(&mut visit);
    visit(&padded(rest));
    if nan.contains(&true) { f32::NAN } else { best.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a }) }
}

/// The row's statistics about its maximum, which must be finite.
pub(super) fn stats(x: &[f32], max: f32) -> Stats {
    let mut sum = Sum::default();
    for chunk in x.chunks(BLOCK) {
        let mut block = Block::load(chunk);
        sum.add(&mut block, chunk.len().div_ceil(LANES), max);
    }
    Stats { max, others: sum.others() }
}

/// Replaces the row by exp(x - max), and returns the same statistics as [`stats`].
pub(super) fn exponentials(x: &mut [f32], max: f32) -> Stats {
    let mut sum = Sum::default();
    for chunk in x.chunks_mut(BLOCK) {
        let mut block = Block::load(chunk);
        sum.add(&mut block, chunk.len().div_ceil(LANES), max);
        chunk.copy_from_slice(&block.0.as_flattened()[..chunk.len()]);
    }
    Stats { max, others: sum.others() }
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

fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut chunk = [f32::NEG_INFINITY; LANES];
    chunk[..rest.len()].copy_from_slice(rest);
    chunk
}

/// Up to [`BLOCK`] elements, the missing ones -inf, whose exponential is 0.
struct Block([[f32; LANES]; 8]);

impl Block {
    #[inline(always)]
    fn load(chunk: &[f32]) -> Self {
        let mut block = Block([[f32::NEG_INFINITY; LANES]; 8]);
        block.0.as_flattened_mut()[..chunk.len()].copy_from_slice(chunk);
        block
    }
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
    /// Turns the first `rows` rows of the block into exponentials, and adds those that are not of the maximum.
    #[inline(always)]
    fn add(&mut self, block: &mut Block, rows: usize, max: f32) {
        let mut terms = [[0.0_f32; LANES]; 8];
        for (row, terms) in block.0[..rows].iter_mut().zip(&mut terms) {
            for ((x, term), tops) in row.iter_mut().zip(terms).zip(&mut self.tops) {
                let e = exp_difference(*x, max);
                let top = *x == max;
                *tops += u32::from(top);
                *term = if top { 0.0 } else { e };
                *x = e;
            }
        }
        for (lane, sum) in self.lanes.iter_mut().enumerate() {
            let t = |row: usize| terms[row][lane];
            *sum += f64::from(((t(0) + t(1)) + (t(2) + t(3))) + ((t(4) + t(5)) + (t(6) + t(7))));
        }
        self.blocks += 1;
        if self.blocks == SEGMENT_BLOCKS {
            self.fold();
        }
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
