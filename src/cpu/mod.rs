//! The CPU path: the fallback, and the twin of every kernel in `shaders/`.
//!
//! `rows.rs` brings rows, whatever their type and layout, to where they are computed; `lanes.rs` has the inner loops; the
//! files named after operations say what is made of a row.

mod backward;
mod cross_entropy;
mod curve;
mod exp;
mod lanes;
mod log_sum_exp;
mod predict;
mod real;
mod rows;
mod sample;
mod softmax;

#[cfg(feature = "gpu")]
pub(crate) use log_sum_exp::exact as exact_log_sum_exp;
pub(crate) use rows::run;

use crate::job::RowTarget;
use curve::About;
use real::Real;

/// What one row is given beside its elements.
#[derive(Clone, Copy)]
struct Row<'r, W> {
    /// Its place in the whole batch.
    index: usize,
    target: RowTarget,
    /// Of its classes: targets that are probabilities, or the gradient that a backward starts from.
    second: Option<&'r [W]>,
    /// What its gradient is multiplied by.
    gradient: f64,
    log_sum_exp: W,
}

/// A row reduced: its maximum and the sum of the other exponentials relative to it.
///
/// `others` is the sum over j of exp(y_j - max) less one instance of the maximum, whose term is 1. Keeping the two
/// apart is what lets a confident row have a loss of 2e-9 instead of 0: log-sum-exp is `max + log1p(others)`.
#[derive(Clone, Copy)]
struct Stats<A> {
    about: A,
    others: f64,
}

impl<A> Stats<A> {
    /// Sum of all exponentials relative to the maximum.
    fn sum(self) -> f64 {
        1.0 + self.others
    }

    fn log_sum_exp<W: Real>(self) -> f64
    where
        A: About<W>,
    {
        self.about.top() + self.others.ln_1p()
    }

    /// 1 - p of a logit, from the sum of the others and so without cancellation. `term` is exp(logit - max).
    fn complement(self, is_top: bool, term: f64) -> f64
    where
        Self: Copy,
    {
        let others = if is_top { self.others } else { 1.0 + (self.others - term) };
        others / (1.0 + self.others)
    }
}
