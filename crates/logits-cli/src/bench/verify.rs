//! A fast wrong answer is worth nothing: a few rows of every operation against float64, before it
//! is timed.

use logits::{DType, Device, Element, Error, Logits, Operation, Prediction, Reduction};

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

/// A number in float64, and how large the terms are that it is the sum of: errors are relative to
/// those.
struct Exact(f64, f64);

impl Exact {
    /// Whether that is what was found, but for the rounding to a type.
    fn is(&self, found: f64, dtype: DType) -> bool {
        let &Self(wanted, terms) = self;
        // A unit in the last place, and half of the smallest number that is not 0.
        let (unit, smallest) = match dtype {
            DType::F16 => (1e-3, 3e-8),
            DType::BF16 => (8e-3, 1e-38),
            _ => (0.0, 1e-38),
        };
        (found - wanted).abs() <= PRECISION * terms + unit * wanted.abs() + smallest
    }
}

/// Some more than what the crate promises, and than log-sum-exps of 32 lose as f32.
const PRECISION: f64 = 4e-6;

/// A row in float64, from the definitions.
struct Row<'i, T> {
    inputs: &'i Inputs<'i, T>,
    row: usize,
    /// The logits as they are seen, and their slopes by what they were.
    y: Vec<f64>,
    slopes: Vec<f64>,
    log_sum_exp: f64,
}

impl<'i, T: Element<Row = f32>> Row<'i, T> {
    fn new(inputs: &'i Inputs<'_, T>, row: usize) -> Self {
        let options = inputs.options;
        let scale = f64::from(options.logit_scale);
        let seen = |&x: &T| {
            let x = scale * x.into();
            match options.softcap.map(f64::from) {
                Some(cap) => (cap * (x / cap).tanh(), scale * (x / cap).cosh().powi(-2)),
                None => (x, scale),
            }
        };
        let classes = inputs.shape[1];
        let (y, slopes): (Vec<f64>, Vec<f64>) =
            inputs.logits[row * classes..][..classes].iter().map(seen).unzip();
        let max = y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum_exp = max + y.iter().map(|y| (y - max).exp()).sum::<f64>().ln();
        Self { inputs, row, y, slopes, log_sum_exp }
    }

    fn probability(&self, class: usize) -> f64 {
        (self.y[class] - self.log_sum_exp).exp()
    }

    /// A class's label: its target, smoothed and weighted.
    fn label(&self, class: usize) -> f64 {
        let smoothing = f64::from(self.inputs.options.label_smoothing);
        let share = (1.0 - smoothing) * self.inputs.target(self.row, class)
            + smoothing / self.y.len() as f64;
        self.inputs.weight(class) * share
    }

    fn agrees(&self, timed: Operation, results: &Results<T>) -> bool {
        let (row, classes) = (self.row, self.y.len());
        let elements = |exact: &dyn Fn(usize) -> Exact| {
            let found = results.elements[row * classes..][..classes].iter().enumerate();
            found.into_iter().all(|(class, &found)| exact(class).is(found.into(), T::DTYPE))
        };
        let value = |exact: Exact| exact.is(results.rows[row].into(), DType::F32);
        match timed {
            Operation::Softmax => elements(&|class| {
                let p = self.probability(class);
                Exact(p, p)
            }),
            Operation::LogSoftmax => elements(&|class| {
                let log = self.y[class] - self.log_sum_exp;
                Exact(log, log.abs().max(1.0))
            }),
            Operation::LogSumExp => value(Exact(self.log_sum_exp, self.log_sum_exp.abs().max(1.0))),
            Operation::SoftmaxBackward | Operation::LogSoftmaxBackward => {
                elements(&self.backward(&results.start, timed == Operation::SoftmaxBackward))
            }
            Operation::CrossEntropy => value(self.loss()),
            Operation::CrossEntropyGrad => value(self.loss()) && elements(&self.gradient()),
            Operation::CrossEntropyBackward => elements(&self.gradient()),
            Operation::Predict => self.are_largest(&results.predictions[row..=row]),
            Operation::TopK(k) => self.are_largest(&results.predictions[row * k..][..k]),
            Operation::Sample(_) => self.may_be_drawn(&results.predictions[row]),
            // An operation that this command does not know has no reference values.
            _ => false,
        }
    }

    fn loss(&self) -> Exact {
        let of_labels: f64 = (0..self.y.len())
            .map(|class| self.label(class) * (self.log_sum_exp - self.y[class]))
            .sum();
        let loss = of_labels + f64::from(self.inputs.options.z_loss) * self.log_sum_exp.powi(2);
        Exact(loss, loss.abs().max(1.0))
    }

    fn gradient(&self) -> impl Fn(usize) -> Exact {
        let labels: f64 = (0..self.y.len()).map(|class| self.label(class)).sum();
        let pull = labels + 2.0 * f64::from(self.inputs.options.z_loss) * self.log_sum_exp;
        move |class| {
            let (slope, push, label) =
                (self.slopes[class], self.probability(class) * pull, self.label(class));
            Exact(slope * (push - label), slope.abs() * (push.abs() + label))
        }
    }

    /// From probabilities or log-probabilities that were rounded to the type, and with the logits
    /// as the gradient.
    fn backward(&self, start: &[T], of_probabilities: bool) -> impl Fn(usize) -> Exact {
        let classes = self.y.len();
        let of = |values: &[T]| -> Vec<f64> {
            values[self.row * classes..][..classes].iter().map(|&value| value.into()).collect()
        };
        let (y, upstream) = (of(start), of(&self.inputs.logits));
        let scale = f64::from(self.inputs.options.logit_scale);
        let terms = upstream.iter().zip(&y).map(|(g, y)| if of_probabilities { g * y } else { *g });
        let (sum, size) =
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        move |class| {
            let (y, g) = (y[class], upstream[class]);
            match of_probabilities {
                true => Exact(scale * y * (g - sum), scale.abs() * y * (g.abs() + size)),
                false => {
                    Exact(scale * (g - y.exp() * sum), scale.abs() * (g.abs() + y.exp() * size))
                }
            }
        }
    }

    /// Whether two logits of the row are the same but for rounding: to a kernel they may be equal.
    fn is_as_large(&self, a: usize, b: usize) -> bool {
        let is_exact =
            self.inputs.options.softcap.is_none() && self.inputs.options.logit_scale == 1.0;
        let error = if is_exact { 0.0 } else { PRECISION * self.y[b].abs().max(1.0) };
        (self.y[a] - self.y[b]).abs() <= error
    }

    fn has_its_probability(&self, found: &Prediction) -> bool {
        let p = self.probability(found.class as usize);
        Exact(p, p).is(found.probability.into(), DType::F32)
    }

    /// Whether these are the largest, in order, of equal ones the lower class first.
    fn are_largest(&self, found: &[Prediction]) -> bool {
        let mut order: Vec<usize> = (0..self.y.len()).collect();
        order.sort_by(|&a, &b| self.y[b].total_cmp(&self.y[a]).then(a.cmp(&b)));
        let is_next = |(nth, found): (usize, &Prediction)| {
            let (class, wanted) = (found.class as usize, order[nth]);
            class < self.y.len()
                && (class == wanted
                    || (self.y[class] != self.y[wanted] && self.is_as_large(class, wanted)))
                && self.has_its_probability(found)
        };
        let mut classes: Vec<u32> = found.iter().map(|found| found.class).collect();
        classes.sort_unstable();
        classes.dedup();
        classes.len() == found.len() && found.iter().enumerate().all(is_next)
    }

    /// Whether a class is among those that are drawn from.
    fn may_be_drawn(&self, found: &Prediction) -> bool {
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
        let mass =
            |classes: &[usize]| classes.iter().map(|&class| self.probability(class)).sum::<f64>();
        let larger = order.partition_point(|&other| {
            self.y[other] > self.y[class] && !self.is_as_large(other, class)
        });
        let enough = f64::from(self.inputs.options.top_p) * mass(&order[..kept]);
        larger < kept
            && mass(&order[..larger]) <= enough + PRECISION
            && self.has_its_probability(found)
    }
}
