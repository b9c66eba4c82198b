//! A loss whose options and targets are checked, the totals of its rows, and its results.

use crate::problem::dtype::Elements;
use crate::problem::operands::{LossCoefficients, Operands, RowTarget};
use crate::problem::sum::sum_of_rows;
use crate::problem::transform::Transform;
use crate::{CrossEntropy, Element, Error, Prediction, Reduction, Shape};

/// Options and targets after validation, with the data that the kernels need for each row.
pub(crate) struct CheckedLoss<'a> {
    pub(super) loss: &'a CrossEntropy,
    pub(super) shape: Shape,
    /// The class weights multiplied by `unit`, where that is not 1.
    pub(super) weight: Option<Vec<f32>>,
    /// Empty where the targets are probabilities, which are then in `soft_targets`. Their weights
    /// are multiplied by `unit`.
    pub(crate) rows: Vec<RowTarget>,
    pub(crate) soft_targets: Option<Elements<'a>>,
    pub(super) counted_rows: usize,
    /// The weights of the counted rows' targets together, multiplied by `unit`.
    pub(super) total_weight: f64,
    /// The power of two that weights, and so the losses of rows, are multiplied by.
    pub(super) unit: f64,
}

impl CheckedLoss<'_> {
    pub(crate) fn coefficients(&self) -> LossCoefficients<'_> {
        let coefficients =
            self.loss.coefficients(self.shape.classes(), self.total_weight, self.counted_rows);
        match &self.weight {
            Some(weight) => LossCoefficients {
                weight: Some(weight),
                class_weight: coefficients.class_weight * self.unit,
                ..coefficients
            },
            None => coefficients,
        }
    }

    /// Returns a copy of the options for later calls, with weights as [`LossCoefficients`] has
    /// them.
    pub(crate) fn kept_loss(&self) -> Result<CrossEntropy, Error> {
        self.loss.kept(self.unit)
    }

    /// Returns the operands of an operation on logits to which the transform `of_logits` has been
    /// applied.
    pub(crate) fn operands(&self, of_logits: Transform) -> Result<Operands<'_>, Error> {
        Ok(Operands {
            transform: self.loss.transform(of_logits)?,
            coefficients: self.coefficients(),
            targets: &self.rows,
            soft_targets: self.soft_targets,
            ..Operands::default()
        })
    }

    /// Returns the totals of rows whose weighted losses sum to `sum`.
    pub(crate) fn totals(&self, sum: f64) -> Totals {
        let (weight, counted_rows, unit) = (self.total_weight, self.counted_rows, self.unit);
        Totals { sum, weight, unit, rows: self.shape.row_count(), counted_rows }
    }

    /// Counts the rows whose target is among their `k` predictions in `top`.
    pub(crate) fn accuracy(
        &self,
        top: &[Prediction],
        k: usize,
        fell_back: Option<String>,
    ) -> Accuracy {
        let target = |row: usize| match self.soft_targets {
            None => self.rows[row].class,
            Some(values) => {
                let (inner, classes) = (self.shape.inner(), self.shape.classes());
                let start = row / inner * self.shape.block() + row % inner;
                let best = (0..classes).map(|class| values.at(start + class * inner)).enumerate();
                best.fold(
                    (0, f64::MIN),
                    |best, (class, q)| if q > best.1 { (class, q) } else { best },
                )
                .0 as u32
            }
        };
        // An ignored target is no class that could have been predicted.
        let hit = |(row, top): &(usize, &[Prediction])| {
            let target = target(*row);
            top.iter().any(|top| top.class == target)
        };
        let correct = top.chunks_exact(k).enumerate().filter(hit).count();
        Accuracy { correct, counted_rows: self.counted_rows, fell_back }
    }

    /// Reduces the weighted losses of the rows, which [`RowSum`](crate::RowSum) sums.
    pub(crate) fn reduce<S: Element>(
        &self,
        mut per_row: Vec<S>,
        fell_back: Option<String>,
    ) -> Loss<S> {
        let sum = sum_of_rows(&per_row);
        let totals = self.totals(sum);
        let (loss, perplexity) = totals.reduce(self.loss.reduction);
        totals.restore(&mut per_row);
        let (rows, counted_rows) = (totals.rows, totals.counted_rows);
        Loss { loss, rows, counted_rows, perplexity, per_row, fell_back }
    }
}

/// The sum of the losses of a batch, and what it is divided by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    /// The losses of the rows together, multiplied by `unit`.
    pub(crate) sum: f64,
    /// The total weight of the counted rows, multiplied by `unit`.
    pub(crate) weight: f64,
    /// The power of two that a mean's weights are multiplied by; 1 for other reductions.
    pub(crate) unit: f64,
    pub(crate) rows: usize,
    pub(crate) counted_rows: usize,
}

impl Totals {
    /// The loss, and the perplexity.
    pub(crate) fn reduce(&self, reduction: Reduction) -> (f64, f64) {
        let mean = if self.weight == 0.0 { f64::NAN } else { self.sum / self.weight };
        (if reduction == Reduction::Mean { mean } else { self.sum }, mean.exp())
    }

    /// Divides losses of rows by `unit`.
    pub(crate) fn restore<S: Element>(&self, per_row: &mut [S]) {
        if self.unit != 1.0 {
            S::erase_mut(per_row).scale(1.0 / self.unit);
        }
    }
}

/// The result of a loss.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Loss<S = f32> {
    /// The loss after the reduction, in nats.
    pub loss: f64,
    /// The number of rows of the batch.
    pub rows: usize,
    /// The number of rows whose target is not an ignored index.
    pub counted_rows: usize,
    /// The loss of each row before the reduction, in nats: times the weight of its target, with its
    /// z-loss, divided by nothing; 0 for an ignored row. Where the targets' weights sum to more
    /// than 2^64 under a mean, weights are scaled down while rows are computed, and losses that
    /// this makes subnormal lose digits. The `Vec` is empty where
    /// [`ResidentLoss::read`](crate::ResidentLoss::read) left the rows on the device.
    pub per_row: Vec<S>,
    /// `exp` of the mean loss over the counted rows, whatever the reduction is; NaN where no row
    /// counts. It is a perplexity only without label smoothing, class weights, a z-loss and
    /// `focal_gamma`.
    pub perplexity: f64,
    /// The reason why the CPU finished a call that a GPU was chosen for, or why the GPU did it in
    /// smaller chunks than planned; `None` where all went as planned.
    pub fell_back: Option<String>,
}

/// The number of rows whose target is among their `k` most likely classes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Accuracy {
    /// The number of counted rows whose target is among their `k` most likely classes.
    pub correct: usize,
    /// The number of rows whose target is not an ignored index.
    pub counted_rows: usize,
    /// The reason of a fallback, as [`Loss::fell_back`] has it.
    pub fell_back: Option<String>,
}

impl Accuracy {
    /// Returns `correct / counted_rows`, from 0 to 1; NaN where no row counts.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.counted_rows as f64
    }
}
