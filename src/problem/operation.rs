//! The operations by name; `ops/` says what each reads, writes and costs.

use crate::Sampling;

/// An operation with its options, those of a loss apart: what `Gpu::prepare` prepares.
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
    pub(crate) fn op(self) -> Op {
        match self {
            Self::Softmax => Op::Softmax,
            Self::LogSoftmax => Op::LogSoftmax,
            Self::LogSumExp => Op::LogSumExp,
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

/// Defines [`Op`] and the table of its variants, so that none can be missing there.
macro_rules! operations {
    ($($(#[$doc:meta])* $op:ident,)+) => {
        /// An operation without its options.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Op {
            $($(#[$doc])* $op,)+
        }

        impl Op {
            /// Every operation.
            pub(crate) const ALL: [Op; [$(Op::$op),+].len()] = [$(Op::$op),+];
        }
    };
}

operations! {
    Softmax,
    LogSoftmax,
    LogSumExp,
    Predict,
    /// The loss of each row.
    CrossEntropy,
    /// The loss of each row and its gradient.
    CrossEntropyGrad,
    /// The gradient alone, from log-sum-exps that a forward saved.
    CrossEntropyBackward,
    /// From probabilities and the gradient with respect to them.
    SoftmaxBackward,
    /// From log-probabilities and the gradient with respect to them.
    LogSoftmaxBackward,
    TopK,
    Sample,
}
