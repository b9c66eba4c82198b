//! The CPU path: the fallback, and the counterpart of every kernel in `shaders/`.
//!
//! A request goes through these files in turn:
//!
//! 1. `run.rs` splits it into tasks for the threads (`threads.rs`).
//! 2. `dispatch.rs` selects the code by type, logit transform (`transform.rs`), layout and
//!    instruction set (`simd/`).
//! 3. `groups.rs` takes contiguous rows, up to 32 short ones or one long one at a time;
//!    `strided.rs` gathers strided rows. Both compute in memory from `scratch.rs`.
//! 4. `ops/` runs the operation, one file for each family.
//! 5. `rows/` has the loops over the classes of the rows, which `ops/` uses.
//!
//! A request is halved into *tasks*, one for a thread at a time; a task is computed in *groups* of
//! up to 32 short rows or of one long row; a long row is computed in *pieces* of about 4,096
//! classes.
//!
//! `plan.rs` describes how these would compute a shape, and computes nothing.

// Compilers vectorize indexed loops over lanes and rows more reliably than iterators.
#![allow(clippy::needless_range_loop)]

mod dispatch;
mod groups;
mod ops;
mod plan;
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
pub(crate) use plan::plan;
pub(crate) use run::Ready;
pub(crate) use run::run;
pub use simd::simd_level;
#[cfg(feature = "parallel")]
pub(crate) use threads::count as thread_count;
pub(crate) use threads::for_each;

use crate::problem::operands::{LossCoefficients, RowTarget};
use crate::problem::transform::Transform;

/// The operands of up to `N` rows: all that an operation is given beside their logits.
struct RowOperands<'g, W, const N: usize> {
    transform: Transform,
    coefficients: LossCoefficients<'g>,
    targets: [RowTarget; N],
    /// The upstream gradient of the loss of each row; 1 where none was given.
    row_upstream: [f64; N],
    log_sum_exps: [W; N],
    classes: usize,
    /// The operand that has the shape of the rows, `[rows][classes]`: soft targets, or the upstream
    /// gradient of a backward. Empty where the operation has none. Short rows have room for a
    /// vector beyond them.
    elementwise: &'g [W],
    /// The weights of the classes, one row after the other for short rows. Empty where there are
    /// none.
    weights: &'g [W],
}

impl<W: Copy, const N: usize> RowOperands<'_, W, N> {
    fn has_elementwise(&self) -> bool {
        !self.elementwise.is_empty()
    }

    #[inline(always)]
    fn elementwise(&self, row: usize, class: usize) -> W {
        self.elementwise[row * self.classes + class]
    }
}
