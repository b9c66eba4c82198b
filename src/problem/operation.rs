//! The operations by name; `ops/` says what each reads, writes and costs.

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Softmax,
    LogSoftmax,
    LogSumExp,
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
    Predict,
    TopK,
    Sample,
}

#[cfg_attr(not(feature = "gpu"), allow(dead_code))] // the offload cost model walks them
impl Op {
    /// Every operation.
    pub(crate) const ALL: [Op; 11] = [
        Op::Softmax,
        Op::LogSoftmax,
        Op::LogSumExp,
        Op::Predict,
        Op::CrossEntropy,
        Op::CrossEntropyGrad,
        Op::CrossEntropyBackward,
        Op::SoftmaxBackward,
        Op::LogSoftmaxBackward,
        Op::TopK,
        Op::Sample,
    ];
}
