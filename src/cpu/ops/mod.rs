//! The operations on up to 32 short rows or one long row at a time, each the counterpart of its
//! shader.
//!
//! [`RowTask::run_op`] runs the operation of a task on a group of rows; [`RowTask::select_classes`]
//! runs the two operations that take one row at a time, top-k and sampling. Each file has one
//! family of operations, written once over the trait [`Rows`].

mod backward;
mod cross_entropy;
mod entropy;
pub(super) mod log_sum_exp;
mod predict;
mod sample;
mod softmax;

use super::RowOperands;
use super::dispatch::{RowTask, Variant};
use super::rows::{LongRow, Rows, SHORT_ROW_CLASSES, ShortRows};
use super::scratch::Scratch;
use super::simd::{Exp, Isa};
use super::transform::LogitTransform;
use crate::ops::Op;
use crate::problem::dtype::ElementsMut;
use crate::problem::operands::RowsOut;
use crate::{Element, Prediction};

/// A loop of an operation over the classes of a group of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) enum ClassLoop {
    /// Sums the exponentials, and finds the maximum where it is wanted; `keeps` says that the
    /// exponentials are wanted again.
    ExponentialSum { keeps: bool },
    /// A plain sum, over the row and the operand.
    Sum,
    /// Finds the classes with the largest logits.
    Search,
    /// Draws a class.
    Draw,
    /// Computes exponentials, of short rows alone.
    Exponentials,
    /// Writes a value of each exponential; of the logits where those are not kept.
    Scale,
    /// Writes a value of each logit.
    Map,
}

/// The loops of an operation with its default options, over rows that are ordinary numbers.
pub(in crate::cpu) fn class_loops(op: Op) -> &'static [ClassLoop] {
    use ClassLoop::{Draw, ExponentialSum, Exponentials, Map, Scale, Search, Sum};
    match op {
        Op::Softmax | Op::CrossEntropyGrad => &[ExponentialSum { keeps: true }, Scale],
        Op::LogSoftmax => &[ExponentialSum { keeps: false }, Map],
        Op::LogSumExp | Op::CrossEntropy | Op::Predict => &[ExponentialSum { keeps: false }],
        Op::CrossEntropyBackward => &[Exponentials, Map],
        Op::Entropy => &[ExponentialSum { keeps: false }, Sum],
        Op::EntropyBackward => &[ExponentialSum { keeps: false }, Sum, Map],
        Op::SoftmaxBackward => &[Sum, Map],
        Op::LogSoftmaxBackward => &[Sum, Map],
        Op::TopK => &[Search, ExponentialSum { keeps: false }],
        Op::Sample => &[ExponentialSum { keeps: false }, Draw],
    }
}

impl RowTask<'_> {
    /// Runs the operation on `rows`, and writes their values to `rows_out` from `at` on.
    #[inline(never)]
    pub(super) fn run_op<R: Rows<N>, const N: usize>(
        &self,
        rows: &mut R,
        operands: &RowOperands<'_, R::W, N>,
        rows_out: &mut RowsOut<'_>,
        at: usize,
    ) {
        let isa = rows.isa();
        macro_rules! apart {
            ($value:expr) => {
                // Each operation is a function of its own, compiled for the same instruction set.
                isa.vectorize(
                    #[inline(always)]
                    || $value,
                )
            };
        }
        match self.op {
            Op::Softmax => apart!(softmax::rows(rows)),
            Op::LogSoftmax => apart!(softmax::log_rows(rows)),
            Op::CrossEntropy => write_values(
                rows_out,
                at,
                rows.count(),
                apart!(cross_entropy::rows(rows, operands)),
            ),
            Op::CrossEntropyGrad => write_values(
                rows_out,
                at,
                rows.count(),
                apart!(cross_entropy::gradient_rows(rows, operands)),
            ),
            Op::CrossEntropyBackward => apart!(cross_entropy::backward_rows(rows, operands)),
            // These read probabilities, which have no transform: nothing is compiled for others.
            Op::SoftmaxBackward if R::Y::IS_IDENTITY => apart!(backward::rows(rows, operands)),
            Op::LogSoftmaxBackward if R::Y::IS_IDENTITY => {
                apart!(backward::log_rows(rows, operands))
            }
            Op::LogSumExp => {
                write_values(rows_out, at, rows.count(), apart!(log_sum_exp::rows(rows)))
            }
            Op::Entropy => write_values(rows_out, at, rows.count(), apart!(entropy::rows(rows))),
            Op::EntropyBackward => apart!(entropy::backward_rows(rows, operands)),
            Op::Predict => {
                let predictions = apart!(predict::rows(rows));
                if let RowsOut::Predictions(out, _) = rows_out {
                    out[at..][..rows.count()].copy_from_slice(&predictions[..rows.count()]);
                }
            }
            op @ (Op::TopK | Op::Sample | Op::SoftmaxBackward | Op::LogSoftmaxBackward) => {
                debug_assert!(false, "{op:?} is not computed here");
            }
        }
    }

    /// Selects classes of one row: the `k` best ones, or one that is drawn. `x` is the row, `index`
    /// its place among the rows of the task, and `at` the place of its predictions in `rows_out`.
    #[inline(never)]
    pub(super) fn select_classes<I: Isa, Y: LogitTransform, W: Exp>(
        &self,
        Variant { isa, transform }: Variant<I, Y>,
        x: &[W],
        scratch: &mut Scratch<W>,
        index: usize,
        rows_out: &mut RowsOut<'_>,
        at: usize,
    ) {
        let RowsOut::Predictions(out, each) = rows_out else { return };
        let out: &mut [Prediction] = &mut out[at * *each..][..*each];
        let (draws, scale) = (&self.operands.draws, self.operands.transform.scale);
        let index = self.first_row + index;
        macro_rules! select {
            ($rows:expr) => {
                match (self.op, out) {
                    (Op::Sample, [out]) => *out = sample::row(&mut $rows, x, index, scale, draws),
                    (_, out) => predict::top_row(&mut $rows, x, out),
                }
            };
        }
        isa.vectorize(
            #[inline(always)]
            || {
                if x.len() <= SHORT_ROW_CLASSES {
                    let (classes, count, scratch) = (x.len(), 1, &mut scratch.short);
                    let (input, output) = (Some(x), None);
                    select!(ShortRows { isa, transform, classes, count, input, output, scratch })
                } else {
                    let input = Some(W::erase(x));
                    let (streams, output, scratch) = (false, None, &mut scratch.long);
                    let threads_share_rows = self.schedule.threads_share_rows;
                    select!(LongRow {
                        isa,
                        transform,
                        input,
                        output,
                        streams,
                        threads_share_rows,
                        scratch
                    })
                }
            },
        );
    }
}

/// Writes the values of `count` rows to `rows_out` from `at` on.
#[inline(always)]
fn write_values<W: Element, const N: usize>(
    rows_out: &mut RowsOut<'_>,
    at: usize,
    count: usize,
    values: [W; N],
) {
    let values = &values[..count];
    match rows_out {
        RowsOut::Values(ElementsMut::F32(out)) => {
            out[at..][..count]
                .iter_mut()
                .zip(values)
                .for_each(|(out, &value)| *out = value.into() as f32);
        }
        RowsOut::Values(ElementsMut::F64(out)) => {
            out[at..][..count].iter_mut().zip(values).for_each(|(out, &value)| *out = value.into());
        }
        RowsOut::Values(_) | RowsOut::None | RowsOut::Predictions(..) => {
            debug_assert!(false, "nowhere to write a value")
        }
    }
}
