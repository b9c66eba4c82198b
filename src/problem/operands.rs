//! The inputs of an operation beside the logits, and where its results go.

use bytemuck::{Pod, Zeroable};

use crate::DType;
use crate::problem::dtype::{Elements, ElementsMut};
use crate::problem::sampling::Draws;
use crate::problem::transform::Transform;

/// The target of a row, after validation.
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

/// The coefficients that all rows of a batch share. The options of a loss determine them; of an
/// operation without a loss `row_upstream` alone is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LossCoefficients<'a> {
    /// A weight for each class.
    pub(crate) weight: Option<&'a [f32]>,
    /// The sum of the class weights, or the number of classes where no weights are set.
    pub(crate) class_weight: f64,
    /// The factor of every gradient. It is not finite for a mean whose total weight is 0.
    pub(crate) factor: f64,
    /// The label of every class before the target's `on_value` is added: the label smoothing
    /// divided by the number of classes.
    pub(crate) off_value: f64,
    /// The value that is added to the label of the target class.
    pub(crate) on_value: f64,
    /// The factor of the squared log-sum-exp in the loss of a row.
    pub(crate) z_loss: f64,
    /// The exponent of 1 - p of the target in the loss of a row; 0 is off.
    pub(crate) focal_gamma: f64,
    /// One more factor for the gradient of each row, beside `factor`.
    pub(crate) row_upstream: Option<&'a [f32]>,
}

impl Default for LossCoefficients<'_> {
    /// The coefficients of the sum of plain losses.
    fn default() -> Self {
        let (weight, row_upstream) = (None, None);
        let (factor, on_value, off_value, class_weight) = (1.0, 1.0, 0.0, 0.0);
        let (z_loss, focal_gamma) = (0.0, 0.0);
        Self {
            weight,
            class_weight,
            factor,
            off_value,
            on_value,
            z_loss,
            focal_gamma,
            row_upstream,
        }
    }
}

impl LossCoefficients<'_> {
    /// Whether gradients of counted rows are NaN.
    pub(crate) fn has_nan_gradient(&self) -> bool {
        !self.factor.is_finite()
    }
}

/// A row's decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Prediction {
    /// The class: of the largest logit, where nothing else is said; of equal ones the lowest. As in
    /// PyTorch's `argmax` a NaN counts as largest. Under a soft cap, logits that the cap rounds to
    /// the same value keep their order.
    pub class: u32,
    /// Its probability under softmax; NaN where the row's softmax is.
    pub probability: f32,
}

/// Where the elements are read and written. Strides are those of blocks of `classes * inner`.
pub(crate) enum Data<'a> {
    /// Only read; the result is values of rows.
    Read { input: Elements<'a>, stride: usize },
    /// Read here, written there, without gaps.
    Write { input: Elements<'a>, stride: usize, output: ElementsMut<'a> },
    /// Written where it was read.
    Over { data: ElementsMut<'a>, stride: usize },
}

impl Data<'_> {
    /// The type of the logits.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Data::Read { input, .. } | Data::Write { input, .. } => input.dtype(),
            Data::Over { data, .. } => data.dtype(),
        }
    }
}

impl Data<'_> {
    /// Returns the logits, and the number of elements from the start of one block to the start of
    /// the next.
    pub(crate) fn input(&self) -> (Elements<'_>, usize) {
        match self {
            Data::Read { input, stride } | Data::Write { input, stride, .. } => (*input, *stride),
            Data::Over { data, stride } => (data.as_read(), *stride),
        }
    }
}

/// The destination of the values that an operation has for each row.
pub enum RowsOut<'a> {
    None,
    Values(ElementsMut<'a>),
    /// The number is that of the predictions of each row.
    Predictions(&'a mut [Prediction], usize),
}

impl<'a> RowsOut<'a> {
    /// Returns the destination of the first `rows` rows and that of the rest.
    pub(crate) fn split_at(self, rows: usize) -> (Self, Self) {
        match self {
            RowsOut::None => (RowsOut::None, RowsOut::None),
            RowsOut::Values(values) => {
                let (a, b) = values.split_at(rows);
                (RowsOut::Values(a), RowsOut::Values(b))
            }
            RowsOut::Predictions(values, each) => {
                let at = values.len().min(rows * each);
                let (a, b) = values.split_at_mut(at);
                (RowsOut::Predictions(a, each), RowsOut::Predictions(b, each))
            }
        }
    }
}

/// The inputs of an operation beside the logits. They belong to the whole batch that a request is a
/// part of, and have no gaps.
#[derive(Clone, Copy, Default)]
pub(crate) struct Operands<'a> {
    pub(crate) transform: Transform,
    pub(crate) coefficients: LossCoefficients<'a>,
    /// Targets that are classes, one a row; empty where there are none.
    pub(crate) targets: &'a [RowTarget],
    /// Targets that are probabilities, of the shape of the logits.
    pub(crate) soft_targets: Option<Elements<'a>>,
    /// The gradient that a backward starts from, of the shape of the logits.
    pub(crate) upstream_gradient: Option<Elements<'a>>,
    /// Log-sum-exps of the rows.
    pub(crate) log_sum_exps: Option<Elements<'a>>,
    /// How a sample is drawn.
    pub(crate) draws: Draws,
    /// How many classes `TopK` is to find.
    pub(crate) k: usize,
}

impl<'a> Operands<'a> {
    /// The operand that has the shape of the logits: no operation has two.
    pub(crate) fn elementwise(&self) -> Option<Elements<'a>> {
        self.soft_targets.or(self.upstream_gradient)
    }
}
