//! The CPU path: the fallback, and the twin of every kernel in `shaders/`.
//!
//! `run.rs`, with `strided.rs`, spreads rows over threads and brings them, whatever their type and layout, to where they are computed, up to
//! 32 at a time; `rows/` has the passes over their classes, and `simd/` what those are made of; `ops/` has
//! a file for each operation.

// Lanes and rows by their numbers are what compilers make vectors of.
#![allow(clippy::needless_range_loop)]

mod lines;
mod ops;
mod rows;
mod run;
mod scratch;
mod simd;
mod strided;
#[cfg(test)]
mod tests;
mod threads;
mod transform;

pub(crate) use ops::log_sum_exp::exact as exact_log_sum_exp;
pub(crate) use run::Ready;
pub(crate) use run::run;
pub use simd::simd_level;
#[cfg(feature = "parallel")]
pub(crate) use threads::count as thread_count;
pub(crate) use threads::for_each;

use crate::problem::request::{LossCoefficients, RowTarget};
use crate::problem::transform::Transform;
use rows::ROWS;

/// What up to 32 rows are given beside their logits.
struct RowOperands<'g, W> {
    transform: Transform,
    coefficients: LossCoefficients<'g>,
    targets: [RowTarget; ROWS],
    /// What the gradient of each is multiplied by.
    gradients: [f64; ROWS],
    log_sum_exps: [W; ROWS],
    classes: usize,
    /// Of the shape of the rows: targets that are probabilities, or the gradient that a backward starts from.
    beside: &'g [W],
}

impl<W: Copy> RowOperands<'_, W> {
    fn has_beside(&self) -> bool {
        !self.beside.is_empty()
    }

    #[inline(always)]
    fn beside(&self, row: usize, class: usize) -> W {
        self.beside[row * self.classes + class]
    }
}
