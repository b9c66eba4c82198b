//! The CPU path: the fallback, and the twin of every kernel in `shaders/`.
//!
//! Rows are independent, so threads take halves of the batch until a half is small; no bit of a row depends on where
//! those cuts fall.

mod cross_entropy;
mod exp;
mod lanes;
mod log_sum_exp;
mod predict;
mod softmax;

#[cfg(feature = "gpu")]
pub(crate) use log_sum_exp::exact as exact_log_sum_exp;

use crate::job::{Data, Job, Op, RowTarget, RowsOut};

/// Work below this many elements stays on the calling thread: waking another costs some 10 microseconds, in which one
/// core does about this much.
#[cfg(feature = "parallel")]
const SMALL: usize = 16 * 1024;

/// Finishes a whole job, on the threads of the current rayon pool where the feature `parallel` is on.
pub(crate) fn run(job: Job<'_>) {
    #[cfg(feature = "parallel")]
    if job.rows() > 1 && job.rows() * job.classes() > SMALL {
        let half = job.rows() / 2;
        let (a, b) = job.split_at(half);
        rayon::join(|| run(a), || run(b));
        return;
    }
    run_here(job);
}

fn run_here(job: Job<'_>) {
    let Job { op, shape, data, targets, scaling, rows_out } = job;
    let target = |row: usize| targets.get(row).copied().unwrap_or_default();
    match (op, rows_out) {
        (Op::Softmax, _) => transform(data, shape.classes(), |_, x| softmax::row(x)),
        (Op::LogSoftmax, _) => transform(data, shape.classes(), |_, x| softmax::log_row(x)),
        (Op::CrossEntropyGrad, RowsOut::Values(out)) => transform(data, shape.classes(), |row, x| {
            out[row] = cross_entropy::gradient_row(x, target(row), &scaling);
        }),
        (Op::CrossEntropy, RowsOut::Values(out)) => {
            reduce(&data, shape.classes(), out, |row, x| cross_entropy::row(x, target(row), &scaling));
        }
        (Op::LogSumExp, RowsOut::Values(out)) => reduce(&data, shape.classes(), out, |_, x| log_sum_exp::row(x)),
        (Op::Predict, RowsOut::Predictions(out)) => reduce(&data, shape.classes(), out, |_, x| predict::row(x)),
        _ => debug_assert!(false, "{op:?} was given results of another operation"),
    }
}

/// Every row where it will be written, holding its logits.
fn transform(data: Data<'_>, classes: usize, mut row: impl FnMut(usize, &mut [f32])) {
    match data {
        Data::Over { data, stride } => {
            data.chunks_mut(stride).enumerate().for_each(|(at, x)| row(at, &mut x[..classes]));
        }
        Data::Write { input, stride, output } => {
            for (at, (x, out)) in input.chunks(stride).zip(output.chunks_exact_mut(classes)).enumerate() {
                out.copy_from_slice(&x[..classes]);
                row(at, out);
            }
        }
        Data::Read { .. } => debug_assert!(false, "an operation that writes was given nowhere to write"),
    }
}

/// Every row as it is, for one value.
fn reduce<T>(data: &Data<'_>, classes: usize, out: &mut [T], row: impl Fn(usize, &[f32]) -> T) {
    let (input, stride): (&[f32], usize) = match data {
        Data::Read { input, stride } | Data::Write { input, stride, .. } => (input, *stride),
        Data::Over { data, stride } => (data, *stride),
    };
    for (at, (x, out)) in input.chunks(stride).zip(out).enumerate() {
        *out = row(at, &x[..classes]);
    }
}

/// A row reduced: its maximum and the sum of the other exponentials relative to it.
///
/// `others` is the sum over j of exp(x_j - max) less one instance of the maximum, whose term is 1. Keeping the two
/// apart is what lets a confident row have a loss of 2e-9 instead of 0: log-sum-exp is `max + log1p(others)`.
#[derive(Clone, Copy)]
struct Stats {
    max: f32,
    others: f64,
}

impl Stats {
    /// Sum of all exponentials relative to the maximum.
    fn sum(self) -> f64 {
        1.0 + self.others
    }

    fn log_sum_exp(self) -> f64 {
        f64::from(self.max) + self.others.ln_1p()
    }

    /// 1 - p of a logit, from the sum of the others and so without cancellation. `term` is exp(logit - max).
    fn complement(self, logit: f32, term: f32) -> f64 {
        let others = if logit == self.max { self.others } else { 1.0 + (self.others - f64::from(term)) };
        others / self.sum()
    }
}

/// What the loss of an ignored row adds, and whether its gradient is NaN like its softmax.
fn ignored(target: RowTarget, max: f32) -> Option<f32> {
    target.is_ignored().then_some(if max.is_finite() { 0.0 } else { f32::NAN })
}
