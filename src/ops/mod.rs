//! The operations: one file for each family, with the [`Spec`] of each operation, which says as
//! plain data what it reads, writes and costs.
//!
//! A new operation is a variant of [`Op`], its `Spec`, its kernel in `cpu/ops/` and its shader;
//! "Reading the code" in `README.md` has the rest.

mod backward;
mod cross_entropy;
mod log_sum_exp;
mod predict;
mod sample;
mod softmax;
mod top_k;

use crate::problem::dtype::DType;
use crate::problem::operation::Op;

pub(crate) use sample::draw_transform;
pub(crate) use top_k::{MAX_K, check_k};

/// What an operation reads, writes and costs.
pub(crate) struct Spec {
    /// Its name in `logits bench --ops` and in [`Crossover`](crate::Crossover).
    pub(crate) name: &'static str,
    /// Whether it writes one value for each logit.
    pub(crate) writes_elements: bool,
    pub(crate) row_output: RowOutput,
    pub(crate) operand: Operand,
    /// Whether it writes logarithms of probabilities, or starts from them.
    pub(crate) is_log: bool,
    pub(crate) statistics: Statistics,
    /// Whether a row is read again, once its statistics are known, to select classes.
    pub(crate) rereads_row: bool,
    /// The operation whose result a backward starts from.
    pub(crate) forward: Option<Op>,
    /// The operation whose measured cost stands for this one's in the offload cost model.
    pub(crate) costs_like: Op,
    /// The WGSL of its last step.
    pub(crate) shader: &'static str,
}

/// What is written for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOutput {
    None,
    /// One value: a log-sum-exp or a loss.
    Values,
    /// [`Prediction`](crate::Prediction)s.
    Predictions,
}

/// What is read beside the logits.
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

/// What a row is reduced to.
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
    /// What the operation reads, writes and costs.
    pub(crate) fn spec(self) -> &'static Spec {
        match self {
            Self::Softmax => &softmax::SOFTMAX,
            Self::LogSoftmax => &softmax::LOG_SOFTMAX,
            Self::LogSumExp => &log_sum_exp::LOG_SUM_EXP,
            Self::CrossEntropy => &cross_entropy::CROSS_ENTROPY,
            Self::CrossEntropyGrad => &cross_entropy::CROSS_ENTROPY_GRAD,
            Self::CrossEntropyBackward => &cross_entropy::CROSS_ENTROPY_BACKWARD,
            Self::SoftmaxBackward => &backward::SOFTMAX_BACKWARD,
            Self::LogSoftmaxBackward => &backward::LOG_SOFTMAX_BACKWARD,
            Self::Predict => &predict::PREDICT,
            Self::TopK => &top_k::TOP_K,
            Self::Sample => &sample::SAMPLE,
        }
    }

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
            // What draws a class predicts it.
            assert!(op.predicts() || !op.draws(), "{}", spec.name);
            // Of the operations with targets, those without losses start from log-sum-exps.
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
