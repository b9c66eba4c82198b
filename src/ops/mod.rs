//! The operations: [`Operation`], which a caller names; [`Op`], the same without its options; and
//! one file for each family with the [`Spec`] of each operation, which says as plain data what it
//! reads, writes and costs. [`Request`] is one call of an operation, validated.
//!
//! A new operation is an [`Operation`], a line of the table `operations`, its `Spec`, its kernel in
//! `cpu/ops/` and its shader; "Add an operation" in `CONTRIBUTING.md` has the steps.

use std::fmt;

mod backward;
mod cross_entropy;
mod entropy;
mod log_sum_exp;
mod predict;
mod request;
mod sample;
mod softmax;
mod top_k;

use crate::Sampling;
use crate::problem::dtype::DType;
use crate::problem::operands::Operands;

pub(crate) use request::Request;
pub(crate) use sample::draw_transform;
pub(crate) use top_k::{MAX_K, check_k};

/// An operation with its options, those of a loss apart: the one that `Gpu::prepare` prepares.
///
/// It is displayed as its name, which `logits bench --ops` takes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// Probabilities, one an element: [`Device::softmax`](crate::Device::softmax).
    Softmax,
    /// Log-probabilities, one an element: [`Device::log_softmax`](crate::Device::log_softmax).
    LogSoftmax,
    /// One f32 a row: [`Device::log_sum_exp`](crate::Device::log_sum_exp). In a step the error
    /// within 0.5 of 0, where the terms of a log-sum-exp cancel, is 2e-7 absolute instead of 1e-6
    /// relative.
    LogSumExp,
    /// One f32 a row: [`Device::entropy`](crate::Device::entropy).
    Entropy,
    /// The gradient of the entropies; `StepBuffers::upstream` may have one factor a row:
    /// [`Device::entropy_backward`](crate::Device::entropy_backward).
    EntropyBackward,
    /// One [`Prediction`](crate::Prediction) a row: [`Device::predict`](crate::Device::predict).
    Predict,
    /// The given number of [`Prediction`](crate::Prediction)s a row:
    /// [`Device::top_k`](crate::Device::top_k).
    TopK(usize),
    /// One [`Prediction`](crate::Prediction) a row: [`Device::sample`](crate::Device::sample).
    Sample(Sampling),
    /// From probabilities in place of logits, and the gradient in `StepBuffers::upstream`:
    /// [`Device::softmax_backward`](crate::Device::softmax_backward).
    SoftmaxBackward,
    /// From log-probabilities in place of logits, and the gradient in `StepBuffers::upstream`:
    /// [`Device::log_softmax_backward`](crate::Device::log_softmax_backward).
    LogSoftmaxBackward,
    /// The loss alone: [`LossCall::loss`](crate::LossCall::loss).
    CrossEntropy,
    /// The loss and its gradient: [`LossCall::with_gradient`](crate::LossCall::with_gradient).
    CrossEntropyGrad,
    /// The gradient from log-sum-exps in `StepBuffers::rows`:
    /// [`Device::cross_entropy_backward`](crate::Device::cross_entropy_backward). Under a
    /// mean the step sums the weights of the targets itself, as the forward did.
    CrossEntropyBackward,
}

impl Operation {
    /// Every operation: top-k of one class, and a draw from the whole softmax.
    pub const ALL: &'static [Self] = &[
        Self::Softmax,
        Self::LogSoftmax,
        Self::LogSumExp,
        Self::Entropy,
        Self::EntropyBackward,
        Self::Predict,
        Self::TopK(1),
        Self::Sample(Sampling::new(0)),
        Self::SoftmaxBackward,
        Self::LogSoftmaxBackward,
        Self::CrossEntropy,
        Self::CrossEntropyGrad,
        Self::CrossEntropyBackward,
    ];

    pub(crate) fn op(self) -> Op {
        match self {
            Self::Softmax => Op::Softmax,
            Self::LogSoftmax => Op::LogSoftmax,
            Self::LogSumExp => Op::LogSumExp,
            Self::Entropy => Op::Entropy,
            Self::EntropyBackward => Op::EntropyBackward,
            Self::Predict => Op::Predict,
            Self::TopK(_) => Op::TopK,
            Self::Sample(_) => Op::Sample,
            Self::SoftmaxBackward => Op::SoftmaxBackward,
            Self::LogSoftmaxBackward => Op::LogSoftmaxBackward,
            Self::CrossEntropy => Op::CrossEntropy,
            Self::CrossEntropyGrad => Op::CrossEntropyGrad,
            Self::CrossEntropyBackward => Op::CrossEntropyBackward,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.op().spec().name)
    }
}

/// Defines [`Op`] from the table of operations and their specs, so that none can be missing.
macro_rules! operations {
    ($($op:ident: $spec:path,)+) => {
        /// An operation without its options.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Op {
            $($op,)+
        }

        impl Op {
            /// Every operation.
            pub(crate) const ALL: [Op; [$(Op::$op),+].len()] = [$(Op::$op),+];

            /// Returns the specification of the operation.
            pub(crate) fn spec(self) -> &'static Spec {
                match self {
                    $(Op::$op => &$spec,)+
                }
            }
        }
    };
}

operations! {
    Softmax: softmax::SOFTMAX,
    LogSoftmax: softmax::LOG_SOFTMAX,
    LogSumExp: log_sum_exp::LOG_SUM_EXP,
    Entropy: entropy::ENTROPY,
    EntropyBackward: entropy::ENTROPY_BACKWARD,
    Predict: predict::PREDICT,
    CrossEntropy: cross_entropy::CROSS_ENTROPY,
    CrossEntropyGrad: cross_entropy::CROSS_ENTROPY_GRAD,
    CrossEntropyBackward: cross_entropy::CROSS_ENTROPY_BACKWARD,
    SoftmaxBackward: backward::SOFTMAX_BACKWARD,
    LogSoftmaxBackward: backward::LOG_SOFTMAX_BACKWARD,
    TopK: top_k::TOP_K,
    Sample: sample::SAMPLE,
}

/// The specification of an operation: the data that it reads and writes, and its cost.
pub(crate) struct Spec {
    /// Its name in `logits bench --ops` and in [`Crossover`](crate::Crossover).
    pub(crate) name: &'static str,
    /// Whether it writes one value for each logit.
    pub(crate) writes_elements: bool,
    pub(crate) row_output: RowOutput,
    pub(crate) operand: Operand,
    /// Whether the gradient of a row may be multiplied by a factor of the row.
    pub(crate) row_upstream: bool,
    /// Whether it writes logarithms of probabilities, or starts from them.
    pub(crate) is_log: bool,
    pub(crate) statistics: Statistics,
    /// Whether a row has sums beside that of its exponentials, relative to the same maximum: of
    /// labels where there are targets, else sums that its own shader makes from logits.
    pub(crate) side_sums: bool,
    /// Whether a row is read again, once its statistics are known, to select classes.
    pub(crate) rereads_row: bool,
    /// The operation whose result a backward starts from.
    pub(crate) forward: Option<Op>,
    /// The operation whose measured cost stands for this one's in the offload cost model.
    pub(crate) costs_like: Op,
    /// The WGSL of its last step.
    pub(crate) shader: &'static str,
}

/// The values that are written for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOutput {
    None,
    /// One value: a log-sum-exp, an entropy or a loss.
    Values,
    /// [`Prediction`](crate::Prediction)s.
    Predictions,
}

/// The data that is read beside the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    None,
    /// Classes, one a row, or probabilities of the shape of the logits.
    Targets,
    /// The gradient of the loss with respect to the forward's result.
    UpstreamGradient,
    /// The number of draws before this one, where a step is given it.
    DrawCounter,
}

/// The result of the reduction of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Statistics {
    /// The row maximum and the sum of exponentials.
    Softmax,
    /// The sum of the upstream gradient, for softmax times the probabilities.
    GradientSum,
    /// Nothing: the row's log-sum-exp was saved by a forward.
    Saved,
}

impl Op {
    pub(crate) fn has_targets(self) -> bool {
        self.spec().operand == Operand::Targets
    }

    /// Whether it writes one value for each row.
    pub(crate) fn has_values(self) -> bool {
        self.spec().row_output == RowOutput::Values
    }

    /// Whether it writes the loss of each row.
    pub(crate) fn has_losses(self) -> bool {
        self.has_targets() && self.has_values()
    }

    /// Whether it reads the log-sum-exps of the rows, which a forward saved.
    pub(crate) fn reads_log_sum_exps(self) -> bool {
        self.spec().statistics == Statistics::Saved
    }

    /// Whether it draws classes.
    pub(crate) fn draws(self) -> bool {
        self.spec().operand == Operand::DrawCounter
    }

    /// Whether it writes predictions.
    pub(crate) fn predicts(self) -> bool {
        self.spec().row_output == RowOutput::Predictions
    }

    /// Whether much is done to each element: a logit transform, labels that are spread over the
    /// classes, or an operand of the shape of the logits with elements of `operand_bytes` bytes.
    pub(crate) fn is_heavy(self, operands: &Operands<'_>, operand_bytes: u64) -> bool {
        operand_bytes > 0
            || !operands.transform.is_identity()
            || (self.has_targets() && operands.coefficients.off_value > 0.0)
    }

    /// Bytes of an element of the operand that has the shape of the logits: soft targets are f32 on
    /// a GPU, an upstream gradient has the type of the logits. 0 where there is none.
    pub(crate) fn operand_bytes(self, dtype: DType, has_soft_targets: bool) -> u64 {
        match self.spec().operand {
            Operand::UpstreamGradient => dtype.size() as u64,
            Operand::Targets if has_soft_targets => 4,
            Operand::Targets | Operand::DrawCounter | Operand::None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Walks the table: names differ, and no entry contradicts another.
    #[test]
    fn the_table_of_operations_is_whole() {
        let names: HashSet<&str> = Op::ALL.iter().map(|op| op.spec().name).collect();
        assert_eq!(names.len(), Op::ALL.len(), "two operations with one name");
        let listed: HashSet<Op> = Operation::ALL.iter().map(|operation| operation.op()).collect();
        assert_eq!(listed.len(), Op::ALL.len(), "`Operation::ALL` lacks an operation");
        for op in Op::ALL {
            let spec = op.spec();
            // The cost model measures the operation whose cost stands for others, so that must be
            // its own.
            assert_eq!(spec.costs_like.spec().costs_like, spec.costs_like, "{}", spec.name);
            assert!(
                spec.writes_elements || spec.row_output != RowOutput::None,
                "{} writes nothing",
                spec.name
            );
            assert_eq!(
                spec.forward.is_some(),
                spec.operand == Operand::UpstreamGradient,
                "{}",
                spec.name
            );
            assert!(!spec.shader.is_empty(), "{}", spec.name);
            // A backward has the logarithms of its forward, and both write elements.
            let is_log = spec.forward.map_or(spec.is_log, |forward| forward.spec().is_log);
            assert_eq!(spec.is_log, is_log, "{}", spec.name);
            assert!(spec.writes_elements || !spec.is_log, "{}", spec.name);
            // An operation that draws a class predicts it.
            assert!(op.predicts() || !op.draws(), "{}", spec.name);
            // Operations with targets and without losses start from log-sum-exps.
            assert_eq!(
                op.reads_log_sum_exps(),
                op.has_targets() && !op.has_losses(),
                "{}",
                spec.name
            );
            assert_eq!(
                spec.statistics == Statistics::GradientSum,
                spec.operand == Operand::UpstreamGradient,
                "{}",
                spec.name
            );
        }
    }
}
