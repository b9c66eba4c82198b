//! The CPU path: the fallback, and the twin of every kernel in `shaders/`.
//!
//! `rows.rs`, with `columns.rs`, spreads rows over threads and brings them, whatever their type and layout, to where they are computed, up to
//! 32 at a time; `sweep/` has the passes over their classes, and `simd/` what those are made of; the files named
//! after operations say what is made of rows.

// Lanes and rows by their numbers are what compilers make vectors of.
#![allow(clippy::needless_range_loop)]

mod backward;
mod columns;
mod cross_entropy;
mod curve;
mod log_sum_exp;
mod predict;
mod rows;
mod sample;
mod scratch;
mod simd;
mod softmax;
mod stage;
mod sweep;
#[cfg(test)]
mod tests;
mod threads;

#[cfg(feature = "gpu")]
pub(crate) use log_sum_exp::exact as exact_log_sum_exp;
#[cfg(feature = "gpu")]
pub(crate) use rows::Ready;
pub(crate) use rows::run;
pub use simd::simd_level;
#[cfg(feature = "parallel")]
pub(crate) use threads::count as thread_count;
#[cfg(feature = "gpu")]
pub(crate) use threads::for_each;

use crate::curve::Curve;
use crate::job::{RowTarget, Scaling};
use sweep::ROWS;

/// What up to 32 rows are given beside their logits.
struct Given<'g, W> {
    curve: Curve,
    scaling: Scaling<'g>,
    targets: [RowTarget; ROWS],
    /// What the gradient of each is multiplied by.
    gradients: [f64; ROWS],
    log_sum_exps: [W; ROWS],
    classes: usize,
    /// Of the shape of the rows: targets that are probabilities, or the gradient that a backward starts from.
    beside: &'g [W],
}

impl<W: Copy> Given<'_, W> {
    fn has_beside(&self) -> bool {
        !self.beside.is_empty()
    }

    #[inline(always)]
    fn beside(&self, row: usize, class: usize) -> W {
        self.beside[row * self.classes + class]
    }
}
