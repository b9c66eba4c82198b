//! The options of the loss, and what they mean on the host: which rows count, with which scale, over what sum.

use crate::job::{RowTarget, Scaling};
use crate::logits::check_length;
use crate::{Error, Shape, Targets, error::try_vec};

/// How the losses of the rows become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Sum over the counted rows, divided by the sum of their targets' weights (their number, without weights).
    /// NaN over no counted rows, with a gradient of zero.
    #[default]
    Mean,
    /// Sum over the counted rows.
    Sum,
    /// Each row's loss by itself, in [`Loss::per_row`]; [`Loss::loss`] is then their sum, and so is what the gradient
    /// belongs to.
    None,
}

/// The cross-entropy of softmax, and its options; PyTorch's `cross_entropy` names and meaning.
///
/// With `lse = log(sum_j exp(x_j))`, a row with target t loses `sum_j q_j * (lse - x_j)`, where
/// `q_j = w_j * ((1 - e) * [j == t] + e / classes)` are its labels, of class weights `w` (1 if not set) and a label
/// smoothing `e` (0 if not set). For a reduction that gives that row the factor `s` its gradient is
/// `d loss / d x_j = s * (softmax(x)_j * sum_k q_k - q_j)`. A z-loss adds `z * lse^2`, and `2 z * lse * softmax(x)_j`.
///
/// ```
/// use logits::{CrossEntropy, Device, Logits, Reduction};
/// let loss = CrossEntropy::default().ignore_index(-1).reduction(Reduction::Sum);
/// let x = [2.0, 0.0, 0.0, /* next row */ 5.0, 1.0, 0.0];
/// let out = Device::cpu().cross_entropy(&loss, Logits::new(&x, [2, 3])?, &[0_i64, -1])?;
/// assert_eq!(out.counted_rows, 1);
/// assert!((out.loss - (1.0 + 2.0 * (-2.0_f64).exp()).ln()).abs() < 1e-7);
/// # Ok::<(), logits::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    pub(crate) reduction: Reduction,
    pub(crate) ignored: Vec<i64>,
    pub(crate) weight: Option<Vec<f32>>,
    pub(crate) label_smoothing: f32,
    pub(crate) z_loss: f32,
    pub(crate) upstream_gradient: f32,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        Self {
            reduction: Reduction::Mean,
            ignored: vec![-100],
            weight: None,
            label_smoothing: 0.0,
            z_loss: 0.0,
            upstream_gradient: 1.0,
        }
    }
}

impl CrossEntropy {
    /// How the rows' losses become one number; [`Reduction::Mean`] if not set.
    #[must_use]
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// The target that marks a row as not counted: loss 0, gradient 0, left out of the mean; -100 if not set.
    ///
    /// As in PyTorch, the gradient of such a row is NaN where its softmax is (a NaN or `+inf` logit, or all `-inf`).
    #[must_use]
    pub fn ignore_index(mut self, index: i64) -> Self {
        self.ignored = vec![index];
        self
    }

    /// As [`CrossEntropy::ignore_index`], any of several: padding of more than one kind. With none every row counts.
    #[must_use]
    pub fn ignore_indices(mut self, indices: impl Into<Vec<i64>>) -> Self {
        self.ignored = indices.into();
        self
    }

    /// One weight a class, applied to the rows that have it as target; finite and not negative.
    #[must_use]
    pub fn weight(mut self, weight: impl Into<Vec<f32>>) -> Self {
        self.weight = Some(weight.into());
        self
    }

    /// How much of each target is spread evenly over all classes, from 0 (the default) to 1 (Szegedy et al. 2016,
    /// arXiv:1512.00567). As in PyTorch each class's share is weighted by that class's weight, and a mean still divides by
    /// the weights of the targets alone. A logit of `-inf` then has an infinite loss whatever the target.
    #[must_use]
    pub fn label_smoothing(mut self, smoothing: f32) -> Self {
        self.label_smoothing = smoothing;
        self
    }

    /// How much the square of each counted row's log-sum-exp adds to the loss, which keeps logits from drifting (PaLM,
    /// arXiv:2204.02311, used 1e-4); not negative, 0 if not set. Under a mean it is divided by the number of counted rows,
    /// whatever they weigh; in [`Loss::per_row`] it is then scaled so that those still sum to the loss times the weight.
    #[must_use]
    pub fn z_loss(mut self, factor: f32) -> Self {
        self.z_loss = factor;
        self
    }

    /// What every gradient is multiplied by: the gradient of whatever is computed from this loss, or a loss scale.
    /// Finite; 1 if not set. It does not change the loss.
    #[must_use]
    pub fn upstream_gradient(mut self, factor: f32) -> Self {
        self.upstream_gradient = factor;
        self
    }

    /// Checks the options against the shape.
    pub(crate) fn check(&self, shape: Shape) -> Result<(), Error> {
        let (option, value) = ("upstream_gradient", self.upstream_gradient);
        if !value.is_finite() {
            return Err(Error::OptionValue { option, value, range: "finite" });
        }
        let (option, value) = ("label_smoothing", self.label_smoothing);
        if !(0.0..=1.0).contains(&value) {
            return Err(Error::OptionValue { option, value, range: "between 0 and 1" });
        }
        let (option, value) = ("z_loss", self.z_loss);
        if !value.is_finite() || value < 0.0 {
            return Err(Error::OptionValue { option, value, range: "finite and not negative" });
        }
        if let Some(weight) = &self.weight {
            check_length("weights", shape.classes(), weight.len())?;
            for (class, &value) in weight.iter().enumerate() {
                if !value.is_finite() || value < 0.0 {
                    return Err(Error::Weight { class, value });
                }
            }
        }
        Ok(())
    }

    /// What the options come to for so many counted rows of so much weight together; both are 1 where a device finds out.
    pub(crate) fn scaling(&self, classes: usize, total_weight: f64, counted_rows: usize) -> Scaling<'_> {
        let is_mean = self.reduction == Reduction::Mean;
        let divisor = if is_mean { total_weight } else { 1.0 };
        let z_loss = f64::from(self.z_loss) * if is_mean { total_weight / counted_rows.max(1) as f64 } else { 1.0 };
        let factor = f64::from(self.upstream_gradient) / divisor;
        let smoothing = f64::from(self.label_smoothing);
        let weight = self.weight.as_deref();
        let class_weight = weight.map_or(classes as f64, |weight| weight.iter().map(|&weight| f64::from(weight)).sum());
        Scaling { weight, class_weight, factor, smoothing: smoothing / classes as f64, hit: 1.0 - smoothing, z_loss }
    }

    /// Checks options and targets against the shape, and settles what each row is worth.
    pub(crate) fn prepare(&self, shape: Shape, targets: Targets<'_>) -> Result<Prepared<'_>, Error> {
        let (rows, classes) = (shape.row_count(), shape.classes());
        check_length("targets", rows, targets.len())?;
        self.check(shape)?;
        let weight = self.weight.as_deref();
        let mut prepared =
            Prepared { loss: self, classes, rows: try_vec("targets", rows)?, counted_rows: 0, total_weight: 0.0 };
        targets.for_each(|row, target| {
            if self.ignored.iter().any(|&index| i128::from(index) == target) {
                return Ok(());
            }
            let class = usize::try_from(target)
                .ok()
                .filter(|&class| class < classes)
                .ok_or_else(|| Error::TargetOutOfRange { row, target, classes, ignored: self.ignored.clone() })?;
            let weight = weight.map_or(1.0, |weight| weight[class]);
            prepared.counted_rows += 1;
            prepared.total_weight += f64::from(weight);
            // Shape::elements has seen that a class fits 32 bits.
            prepared.rows[row] = RowTarget { class: class as u32, weight };
            Ok(())
        })?;
        Ok(prepared)
    }
}

/// Options and targets after validation: what the kernels need of each row.
pub(crate) struct Prepared<'a> {
    loss: &'a CrossEntropy,
    classes: usize,
    pub(crate) rows: Vec<RowTarget>,
    counted_rows: usize,
    total_weight: f64,
}

impl Prepared<'_> {
    pub(crate) fn scaling(&self) -> Scaling<'_> {
        self.loss.scaling(self.classes, self.total_weight, self.counted_rows)
    }

    /// What the rows come to together, when their weighted losses come to `sum`.
    pub(crate) fn totals(&self, sum: f64) -> Totals {
        Totals { sum, weight: self.total_weight, rows: self.rows.len(), counted_rows: self.counted_rows }
    }

    /// Reduces the weighted losses of the rows, in float64 and in row order, so that CPU and GPU share every bit of this
    /// step.
    pub(crate) fn reduce(&self, per_row: Vec<f32>, fell_back: Option<String>) -> Loss {
        let sum = per_row.iter().fold(0.0, |sum, &loss| sum + f64::from(loss));
        let totals = self.totals(sum);
        let (loss, perplexity) = totals.reduce(self.loss.reduction);
        let (rows, counted_rows) = (totals.rows, totals.counted_rows);
        Loss { loss, rows, counted_rows, perplexity, per_row, fell_back }
    }
}

/// What the losses of a batch came to together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Totals {
    pub(crate) sum: f64,
    pub(crate) weight: f64,
    pub(crate) rows: usize,
    pub(crate) counted_rows: usize,
}

impl Totals {
    /// The loss, and the perplexity.
    pub(crate) fn reduce(&self, reduction: Reduction) -> (f64, f64) {
        let mean = if self.weight == 0.0 { f64::NAN } else { self.sum / self.weight };
        (if reduction == Reduction::Mean { mean } else { self.sum }, mean.exp())
    }
}

/// What a loss came to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Loss {
    /// The loss after the reduction, in nats.
    pub loss: f64,
    /// Rows given.
    pub rows: usize,
    /// Rows whose target was not the ignored index.
    pub counted_rows: usize,
    /// The weighted loss of each row, in nats; 0 for an ignored row.
    pub per_row: Vec<f32>,
    /// `exp` of the mean loss over the counted rows, whatever the reduction; NaN over none.
    pub perplexity: f64,
    /// Why the CPU finished what a GPU was chosen for, or why the GPU did it in smaller parts than planned; `None` where
    /// all went as planned.
    pub fell_back: Option<String>,
}
