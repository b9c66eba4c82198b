//! One validated piece of work, as both paths take it: which operation, over which rows, into what.

use bytemuck::{Pod, Zeroable};

use crate::Shape;

/// The operations, as kernels know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Softmax,
    LogSoftmax,
    LogSumExp,
    CrossEntropy,
    CrossEntropyGrad,
    Predict,
}

impl Op {
    /// Whether the result is one value an element.
    pub(crate) fn writes_elements(self) -> bool {
        matches!(self, Self::Softmax | Self::LogSoftmax | Self::CrossEntropyGrad)
    }

    /// Whether it has targets.
    #[cfg(feature = "gpu")]
    pub(crate) fn has_targets(self) -> bool {
        matches!(self, Self::CrossEntropy | Self::CrossEntropyGrad)
    }
}

/// What is known of a row's target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RowTarget {
    /// The target, or [`RowTarget::IGNORED`].
    pub(crate) class: u32,
    /// The weight of its class.
    pub(crate) weight: f32,
}

impl RowTarget {
    pub(crate) const IGNORED: u32 = u32::MAX;

    pub(crate) fn is_ignored(self) -> bool {
        self.class == Self::IGNORED
    }
}

impl Default for RowTarget {
    fn default() -> Self {
        Self { class: Self::IGNORED, weight: 1.0 }
    }
}

/// What the rows of a batch have in common: the options of the loss, worked out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scaling<'a> {
    /// A weight for each class.
    pub(crate) weight: Option<&'a [f32]>,
    /// The sum of those, or the number of classes.
    pub(crate) class_weight: f64,
    /// What gradients are multiplied by; not finite for a mean over no weight.
    pub(crate) factor: f64,
    /// What the label of every class is: label smoothing, spread over the classes.
    pub(crate) smoothing: f64,
    /// What the target's own label is beside that.
    pub(crate) hit: f64,
    /// What the square of a row's log-sum-exp adds to its loss.
    pub(crate) z_loss: f64,
}

impl Scaling<'_> {
    /// Whether gradients of counted rows are NaN.
    #[cfg(feature = "gpu")]
    pub(crate) fn is_poisoned(&self) -> bool {
        !self.factor.is_finite()
    }
}

/// A row's decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Prediction {
    /// The class with the largest logit; of equal ones the lowest. As in PyTorch's `argmax` a NaN counts as largest.
    pub class: u32,
    /// Its probability under softmax; NaN where the row's softmax is.
    pub probability: f32,
}

/// Where the elements are read and written.
pub(crate) enum Data<'a> {
    /// Read only; the result is one value a row.
    Read { input: &'a [f32], stride: usize },
    /// Read here, written there, without gaps.
    Write { input: &'a [f32], stride: usize, output: &'a mut [f32] },
    /// Written where it was read.
    Over { data: &'a mut [f32], stride: usize },
}

/// One value a row.
pub(crate) enum RowsOut<'a> {
    None,
    Values(&'a mut [f32]),
    Predictions(&'a mut [Prediction]),
}

/// A validated piece of work. Splitting it by rows yields pieces that are themselves whole jobs.
pub(crate) struct Job<'a> {
    pub(crate) op: Op,
    pub(crate) shape: Shape,
    pub(crate) data: Data<'a>,
    /// One a row where the operation has targets, else empty.
    pub(crate) targets: &'a [RowTarget],
    pub(crate) scaling: Scaling<'a>,
    pub(crate) rows_out: RowsOut<'a>,
}

impl Job<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.shape.row_count()
    }

    #[cfg(any(feature = "gpu", feature = "parallel"))]
    pub(crate) fn classes(&self) -> usize {
        self.shape.classes()
    }
}

#[cfg(any(feature = "gpu", feature = "parallel"))]
impl<'a> Job<'a> {
    /// The first `rows` rows, or all if there are fewer, and the rest.
    pub(crate) fn split_at(self, rows: usize) -> (Job<'a>, Job<'a>) {
        let rows = rows.min(self.rows());
        let (classes, rest) = (self.classes(), Shape::rows(self.rows() - rows, self.classes()));
        // The last row need not reach to the end of its stride.
        let cut = |length: usize, stride: usize| length.min(rows.saturating_mul(stride));
        let (data, data_rest) = match self.data {
            Data::Read { input, stride } => {
                let (a, b) = input.split_at(cut(input.len(), stride));
                (Data::Read { input: a, stride }, Data::Read { input: b, stride })
            }
            Data::Write { input, stride, output } => {
                let (a, b) = input.split_at(cut(input.len(), stride));
                let (out_a, out_b) = output.split_at_mut(cut(output.len(), classes));
                (Data::Write { input: a, stride, output: out_a }, Data::Write { input: b, stride, output: out_b })
            }
            Data::Over { data, stride } => {
                let (a, b) = data.split_at_mut(cut(data.len(), stride));
                (Data::Over { data: a, stride }, Data::Over { data: b, stride })
            }
        };
        let (targets, targets_rest) = self.targets.split_at(rows.min(self.targets.len()));
        let (rows_out, rows_rest) = match self.rows_out {
            RowsOut::None => (RowsOut::None, RowsOut::None),
            RowsOut::Values(values) => {
                let (a, b) = values.split_at_mut(rows.min(values.len()));
                (RowsOut::Values(a), RowsOut::Values(b))
            }
            RowsOut::Predictions(values) => {
                let (a, b) = values.split_at_mut(rows.min(values.len()));
                (RowsOut::Predictions(a), RowsOut::Predictions(b))
            }
        };
        (
            Job { op: self.op, shape: Shape::rows(rows, classes), data, targets, scaling: self.scaling, rows_out },
            Job {
                op: self.op,
                shape: rest,
                data: data_rest,
                targets: targets_rest,
                scaling: self.scaling,
                rows_out: rows_rest,
            },
        )
    }
}

#[cfg(feature = "gpu")]
impl Job<'_> {
    /// The logits, and how far apart their rows start.
    pub(crate) fn input(&self) -> (&[f32], usize) {
        match &self.data {
            Data::Read { input, stride } | Data::Write { input, stride, .. } => (input, *stride),
            Data::Over { data, stride } => (data, *stride),
        }
    }

    /// The first elements of each row that a result goes to, and how far apart those are.
    pub(crate) fn output(&mut self) -> Option<(&mut [f32], usize)> {
        let classes = self.classes();
        match &mut self.data {
            Data::Read { .. } => None,
            Data::Write { output, .. } => Some((output, classes)),
            Data::Over { data, stride } => Some((data, *stride)),
        }
    }
}
