//! A fast wrong answer is worth nothing: a few rows of every operation against float64, before it
//! is timed.

use logits_check::oracle::{self, Expected, Gradient, Labels, Terms};

use logits::{DType, Device, Element, Error, Logits, Operation, Prediction, Reduction};

use super::Options;
use super::inputs::Inputs;

/// The results of one run; a field that the operation does not produce is empty.
pub(super) struct Results<T> {
    /// What a backward started from.
    start: Vec<T>,
    elements: Vec<T>,
    rows: Vec<f32>,
    predictions: Vec<Prediction>,
}

/// Runs an operation once.
pub(super) fn compute<T: Element<Row = f32>>(
    device: &Device,
    timed: Operation,
    inputs: &Inputs<'_, T>,
) -> Result<Results<T>, Error> {
    // Of a mean over many rows a half type would keep few digits of the gradient.
    let loss = &inputs.loss.clone().reduction(Reduction::Sum);
    let (x, targets, upstream) = (inputs.x()?, inputs.targets(), &inputs.logits);
    let seen = x.as_seen_by(loss)?;
    let (mut start, mut elements, mut rows, mut predictions) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    match timed {
        Operation::Softmax => elements = device.softmax(seen).to_vec()?.values,
        Operation::LogSoftmax => elements = device.log_softmax(seen).to_vec()?.values,
        Operation::LogSumExp => rows = device.log_sum_exp(seen).to_vec()?.values,
        Operation::SoftmaxBackward => {
            start = device.softmax(seen).to_vec()?.values;
            let y = Logits::new(&start, inputs.shape)?.as_seen_by(loss)?;
            elements = device.softmax_backward(y, upstream).to_vec()?.values;
        }
        Operation::LogSoftmaxBackward => {
            start = device.log_softmax(seen).to_vec()?.values;
            let y = Logits::new(&start, inputs.shape)?.as_seen_by(loss)?;
            elements = device.log_softmax_backward(y, upstream).to_vec()?.values;
        }
        Operation::CrossEntropy => rows = device.cross_entropy(loss, x, targets).loss()?.per_row,
        Operation::CrossEntropyGrad => {
            let (loss, gradient) = device.cross_entropy(loss, x, targets).with_gradient_vec()?;
            (rows, elements) = (loss.per_row, gradient);
        }
        Operation::CrossEntropyBackward => {
            let log_sum_exps = device.log_sum_exp(seen).to_vec()?.values;
            elements =
                device.cross_entropy_backward(loss, x, targets, &log_sum_exps).to_vec()?.values;
        }
        Operation::Predict => predictions = device.predict(seen).to_vec()?.values,
        Operation::TopK(k) => predictions = device.top_k(seen, k).to_vec()?.values,
        Operation::Sample(sampling) => {
            predictions = device.sample(&sampling, seen).to_vec()?.values
        }
        // An operation that this command does not know: `agrees` rejects it.
        _ => {}
    }
    Ok(Results { start, elements, rows, predictions })
}

/// The first row that is wrong, of the first, the middle and the last.
pub(super) fn first_wrong<T: Element<Row = f32>>(
    device: &Device,
    timed: Operation,
    inputs: &Inputs<'_, T>,
) -> Result<Option<usize>, Error> {
    let results = compute(device, timed, inputs)?;
    let rows = inputs.shape[0];
    let is_wrong = |row: &usize| !Row::new(inputs, *row).agrees(timed, &results);
    Ok([0, rows / 2, rows - 1].into_iter().find(is_wrong))
}

/// The relative error that is allowed: more than the crate promises, and than log-sum-exps of 32
/// lose as f32.
const PRECISION: f64 = 4e-6;

/// Whether `found` is `wanted` but for rounding to `dtype`. `scale` is the size of the terms that
/// `wanted` is the sum of.
fn is_near(found: f64, wanted: f64, scale: f64, dtype: DType) -> bool {
    // A unit in the last place, and half of the smallest number that is not 0.
    let (unit, smallest) = match dtype {
        DType::F16 => (1e-3, 3e-8),
        DType::BF16 => (8e-3, 1e-38),
        _ => (0.0, 1e-38),
    };
    (found - wanted).abs() <= PRECISION * scale + unit * wanted.abs() + smallest
}

/// A row of the inputs in float64.
struct Row<'i, T> {
    inputs: &'i Inputs<'i, T>,
    row: usize,
    /// The logits after their transform.
    y: Vec<f64>,
}

impl<'i, T: Element<Row = f32>> Row<'i, T> {
    fn new(inputs: &'i Inputs<'_, T>, row: usize) -> Self {
        let Options { logit_scale, softcap, .. } = inputs.options;
        let y = |x| oracle::transformed(x, f64::from(*logit_scale), softcap.map(f64::from)).0;
        let y = of_row(&inputs.logits, row, inputs.shape[1]).into_iter().map(y).collect();
        Self { inputs, row, y }
    }

    fn agrees(&self, timed: Operation, results: &Results<T>) -> bool {
        let (row, classes) = (self.row, self.y.len());
        let reduced = oracle::Row::new(&self.y);
        let of_row = |values: &[T]| of_row(values, row, classes);
        let elements = |wanted: &dyn Fn(usize) -> (f64, f64)| {
            of_row(&results.elements).into_iter().enumerate().all(|(class, found)| {
                let (wanted, scale) = wanted(class);
                is_near(found, wanted, scale, T::DTYPE)
            })
        };
        let value = |wanted: f64| {
            is_near(results.rows[row].into(), wanted, wanted.abs().max(1.0), DType::F32)
        };
        // The inputs have the logits as upstream gradients.
        let backward = |backward: fn(&[f64], &[f64]) -> Vec<Gradient>| {
            let wanted = backward(&of_row(&results.start), &of_row(&self.inputs.logits));
            let scale = f64::from(self.inputs.options.logit_scale);
            elements(&|class| (scale * wanted[class].value, scale.abs() * wanted[class].terms))
        };
        let expected = self.expected();
        let gradient =
            || elements(&|class| (expected.gradients[0][class], expected.terms[0][class]));
        match timed {
            Operation::Softmax => {
                elements(&|class| (reduced.probability(class), reduced.probability(class)))
            }
            Operation::LogSoftmax => elements(&|class| {
                let log = reduced.log_probability(class);
                (log, log.abs().max(1.0))
            }),
            Operation::LogSumExp => value(reduced.log_sum_exp()),
            Operation::SoftmaxBackward => backward(oracle::softmax_backward),
            Operation::LogSoftmaxBackward => backward(oracle::log_softmax_backward),
            Operation::CrossEntropy => value(expected.loss),
            Operation::CrossEntropyGrad => value(expected.loss) && gradient(),
            Operation::CrossEntropyBackward => gradient(),
            Operation::Predict => self.are_largest(&results.predictions[row..=row], &reduced),
            Operation::TopK(k) => self.are_largest(&results.predictions[row * k..][..k], &reduced),
            Operation::Sample(_) => self.may_be_drawn(&results.predictions[row], &reduced),
            // An operation that this command does not know has no reference values.
            _ => false,
        }
    }

    /// The loss of the row and its gradient.
    fn expected(&self) -> Expected {
        let Options { label_smoothing, z_loss, softcap, logit_scale, .. } = *self.inputs.options;
        let classes = 0..self.y.len();
        let weight: Vec<f64> = classes.clone().map(|class| self.inputs.weight(class)).collect();
        let target: Vec<f64> = classes.map(|class| self.inputs.target(self.row, class)).collect();
        let terms = Terms {
            ignored: &[],
            weight: Some(&weight),
            label_smoothing: label_smoothing.into(),
            z_loss: z_loss.into(),
            softcap: softcap.map(f64::from),
            logit_scale: logit_scale.into(),
            is_mean: false,
            upstream: 1.0,
            row_gradients: None,
            log_sum_exps: None,
        };
        let x = of_row(&self.inputs.logits, self.row, self.y.len());
        oracle::cross_entropy(&[x], &[Labels::Probabilities(&target)], &terms)
    }

    /// Whether two logits of the row are the same but for rounding: to a kernel they may be equal.
    fn is_as_large(&self, a: usize, b: usize) -> bool {
        let is_exact =
            self.inputs.options.softcap.is_none() && self.inputs.options.logit_scale == 1.0;
        let error = if is_exact { 0.0 } else { PRECISION * self.y[b].abs().max(1.0) };
        (self.y[a] - self.y[b]).abs() <= error
    }

    fn has_its_probability(&self, found: &Prediction, reduced: &oracle::Row<'_>) -> bool {
        let p = reduced.probability(found.class as usize);
        is_near(found.probability.into(), p, p, DType::F32)
    }

    /// Whether these are the largest, in order, of equal ones the lower class first.
    fn are_largest(&self, found: &[Prediction], reduced: &oracle::Row<'_>) -> bool {
        let mut order: Vec<usize> = (0..self.y.len()).collect();
        order.sort_by(|&a, &b| self.y[b].total_cmp(&self.y[a]).then(a.cmp(&b)));
        let is_next = |(nth, found): (usize, &Prediction)| {
            let (class, wanted) = (found.class as usize, order[nth]);
            class < self.y.len()
                && (class == wanted
                    || (self.y[class] != self.y[wanted] && self.is_as_large(class, wanted)))
                && self.has_its_probability(found, reduced)
        };
        let mut classes: Vec<u32> = found.iter().map(|found| found.class).collect();
        classes.sort_unstable();
        classes.dedup();
        classes.len() == found.len() && found.iter().enumerate().all(is_next)
    }

    /// Whether a class is among those that are drawn from.
    fn may_be_drawn(&self, found: &Prediction, reduced: &oracle::Row<'_>) -> bool {
        let class = found.class as usize;
        if class >= self.y.len() {
            return false;
        }
        let mut order: Vec<usize> = (0..self.y.len()).collect();
        order.sort_by(|&a, &b| self.y[b].total_cmp(&self.y[a]));
        let k = self.inputs.options.k.unwrap_or(usize::MAX).min(order.len());
        // With the last of k all that are as large.
        let kept = order.partition_point(|&other| {
            self.y[other] >= self.y[order[k - 1]] || self.is_as_large(other, order[k - 1])
        });
        let mass = |classes: &[usize]| {
            classes.iter().map(|&class| reduced.probability(class)).sum::<f64>()
        };
        let larger = order.partition_point(|&other| {
            self.y[other] > self.y[class] && !self.is_as_large(other, class)
        });
        let enough = f64::from(self.inputs.options.top_p) * mass(&order[..kept]);
        larger < kept
            && mass(&order[..larger]) <= enough + PRECISION
            && self.has_its_probability(found, reduced)
    }
}

/// A row of values of the type, in float64.
fn of_row<T: Copy + Into<f64>>(values: &[T], row: usize, classes: usize) -> Vec<f64> {
    values[row * classes..][..classes].iter().map(|&value| value.into()).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        options: Options,
    }

    /// Most elements of a long row are small: they count as much as the large ones.
    #[test]
    fn small_elements_that_are_lost_are_found() -> Result<(), Box<dyn std::error::Error>> {
        let options = Arguments::try_parse_from(["bench"])?.options;
        for classes in [1000, 32_000] {
            let inputs = Inputs::<f32>::new(&options, [1, classes], |x| x)?;
            for operation in [
                Operation::Softmax,
                Operation::SoftmaxBackward,
                Operation::LogSoftmaxBackward,
                Operation::CrossEntropyGrad,
            ] {
                let row = Row::new(&inputs, 0);
                let mut results = compute(&Device::cpu(), operation, &inputs)?;
                assert!(row.agrees(operation, &results), "{operation:?} of {classes} classes");
                let mut sizes: Vec<f32> = results.elements.iter().map(|x| x.abs()).collect();
                sizes.sort_by(f32::total_cmp);
                let small = sizes[classes / 2];
                results.elements.iter_mut().filter(|x| x.abs() < small).for_each(|x| *x = 0.0);
                assert!(!row.agrees(operation, &results), "{operation:?} of {classes} classes");
            }
        }
        Ok(())
    }
}
