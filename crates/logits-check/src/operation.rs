//! Runs any [`Operation`] on a device, and holds its results against the oracle. What differs from
//! operation to operation stands here alone: `logits bench` and [`conformance`](crate::conformance)
//! go through [`Operation::ALL`], and so does the test `every_operation` of `logits`.
//!
//! A new operation has a line in [`Takes::of`], one in [`run`], one in [`run_resident`] and one in
//! [`Judge::worst`]; what it starts from is in `started`. One that is forgotten has no results,
//! which are infinitely far off.

use std::cell::OnceCell;

use logits::{DType, Device, Element, Error, Logits, Operation, Prediction, Reduction, Sampling};
use logits::{Resident, ResidentLoss, Shape, Targets};

use crate::batch::place;
use crate::oracle::{self, Expected, Gradient, Labels, Row};
use crate::{Options, excess};

/// The inputs of an operation beside the logits, and its outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// Targets and the options of a loss.
    pub targets: bool,
    /// Logits under a cap.
    pub cap: bool,
    /// Logits among which are infinities and NaN.
    pub specials: bool,
    /// The gradient that it is handed.
    pub upstream: Upstream,
    /// The log-sum-exps of the rows: in a step they are in `StepBuffers::rows`.
    pub log_sum_exps: bool,
    /// Whether it gives a value for each logit.
    pub elements: bool,
    /// The values for each row.
    pub rows: PerRow,
}

/// The gradient with respect to the result of a forward, which an operation is handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// It is handed none.
    None,
    /// One value for each logit: `Inputs::upstream`.
    Elements,
    /// One f32 for each row: [`Inputs::row_upstream`].
    Rows,
}

/// The values that an operation has for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerRow {
    /// Nothing.
    None,
    /// A number, to which a host call may give more digits than a resident one.
    Number,
    /// Its loss; and the loss of the batch.
    Loss,
    /// This many predictions.
    Predictions(usize),
}

impl Takes {
    /// Returns what `operation` takes and gives.
    pub fn of(operation: Operation) -> Self {
        let plain = Self {
            targets: false,
            cap: true,
            specials: true,
            upstream: Upstream::None,
            log_sum_exps: false,
            elements: false,
            rows: PerRow::None,
        };
        let loss = Self { targets: true, specials: false, ..plain };
        match operation {
            Operation::Softmax | Operation::LogSoftmax => Self { elements: true, ..plain },
            Operation::LogSumExp | Operation::Entropy => Self { rows: PerRow::Number, ..plain },
            Operation::EntropyBackward => {
                Self { upstream: Upstream::Rows, elements: true, ..plain }
            }
            Operation::SoftmaxBackward | Operation::LogSoftmaxBackward => Self {
                cap: false,
                specials: false,
                upstream: Upstream::Elements,
                elements: true,
                ..plain
            },
            Operation::CrossEntropy => Self { rows: PerRow::Loss, ..loss },
            Operation::CrossEntropyGrad => Self { elements: true, rows: PerRow::Loss, ..loss },
            Operation::CrossEntropyBackward => Self { log_sum_exps: true, elements: true, ..loss },
            Operation::Predict => Self { rows: PerRow::Predictions(1), ..plain },
            Operation::TopK(k) => Self { rows: PerRow::Predictions(k), ..plain },
            Operation::Sample(_) => Self { cap: false, rows: PerRow::Predictions(1), ..plain },
            _ => plain,
        }
    }
}

/// An operation with the options that are its own.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// The operation.
    pub operation: Operation,
    /// The options of a draw in words; empty where they are the defaults or there are none.
    pub option: &'static str,
    /// The classes that a draw is from.
    pub kept: Kept,
}

/// The classes that a draw is from, which [`Sampling`] does not tell: the `top_k` largest, and of
/// these the most likely ones that together have the probability `top_p`.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// `Sampling::top_k`
    pub top_k: usize,
    /// `Sampling::top_p`
    pub top_p: f32,
}

impl Kept {
    /// A draw from all classes.
    pub const ALL: Self = Self { top_k: usize::MAX, top_p: 1.0 };

    /// The options of the draw with this seed.
    pub fn sampling(self, seed: u64) -> Sampling {
        Sampling::new(seed).top_k(self.top_k).top_p(self.top_p)
    }
}

/// The variants of an operation that the suite runs on rows of `classes` classes.
pub fn variants(operation: Operation, classes: usize) -> Vec<Variant> {
    let of = |operation| Variant { operation, option: "", kept: Kept::ALL };
    match operation {
        Operation::TopK(_) => vec![of(Operation::TopK(classes.min(5)))],
        Operation::Sample(_) => [
            ("", 7, Kept::ALL),
            ("top_k", 8, Kept { top_k: 3, ..Kept::ALL }),
            ("top_p", 9, Kept { top_p: 0.8, ..Kept::ALL }),
        ]
        .map(|(option, seed, kept)| Variant {
            operation: Operation::Sample(kept.sampling(seed)),
            option,
            kept,
        })
        .into(),
        _ => vec![of(operation)],
    }
}

/// The target of a row, in float64.
pub enum Label {
    /// A class, or an ignored index.
    Class(i64),
    /// The probability of each class.
    Probabilities(Vec<f64>),
}

/// A batch with all that an operation may read.
#[derive(Clone, Copy)]
pub struct Inputs<'a, T> {
    /// The shape of `logits` and of `upstream`.
    pub shape: Shape,
    /// The logits, without gaps.
    pub logits: &'a [T],
    /// The temperature of operations without targets.
    pub temperature: f32,
    /// The options of a loss. Those of the logit transform are for every operation.
    pub options: &'a Options,
    /// The targets of a loss.
    pub targets: Targets<'a>,
    /// The target of each row, in float64.
    pub label: &'a dyn Fn(usize) -> Label,
    /// The gradient with respect to the result of the forward, which a backward starts from.
    pub upstream: &'a [T],
    /// The device that computes what a backward starts from and makes the draws that must be the
    /// same. `None`: the device itself starts a backward, and its draws need only be possible.
    pub reference: Option<&'a Device>,
}

impl<T: Element> Inputs<'_, T> {
    /// The elements of a row in an array of the shape of the logits.
    fn row(&self, values: &[T], row: usize) -> Vec<f64> {
        let classes = 0..self.shape.classes();
        classes.map(|class| values[place(self.shape, row, class)].into()).collect()
    }

    /// The gradient with respect to a result that has one value a row: that of its first class.
    pub fn row_upstream(&self) -> Vec<f32> {
        let first = |row| -> f64 { self.upstream[place(self.shape, row, 0)].into() };
        (0..self.shape.row_count()).map(|row| first(row) as f32).collect()
    }
}

/// The results of one run. What the operation does not produce is empty.
pub struct Results<T: Element> {
    /// The result of the forward that a backward started from.
    pub start: Vec<T>,
    /// The log-sum-exps that the backward of a loss started from.
    pub saved: Vec<T::Row>,
    /// A value for each logit.
    pub elements: Vec<T>,
    /// A value for each row.
    pub rows: Vec<T::Row>,
    /// The loss of the whole batch.
    pub loss: Option<f64>,
    /// One of each row, or `k` of each.
    pub predictions: Vec<Prediction>,
    /// The draws of `Inputs::reference`.
    pub drawn: Vec<Prediction>,
    /// Why the device did not do as planned, if it did not.
    pub fell_back: Option<String>,
}

impl<T: Element> Default for Results<T> {
    fn default() -> Self {
        Self {
            start: Vec::new(),
            saved: Vec::new(),
            elements: Vec::new(),
            rows: Vec::new(),
            loss: None,
            predictions: Vec::new(),
            drawn: Vec::new(),
            fell_back: None,
        }
    }
}

impl<T: Element> Results<T> {
    fn of_elements(out: logits::Output<Vec<T>>) -> Self {
        Self { elements: out.values, fell_back: out.fell_back, ..Self::default() }
    }

    fn of_rows(out: logits::Output<Vec<T::Row>>) -> Self {
        Self { rows: out.values, fell_back: out.fell_back, ..Self::default() }
    }

    fn of_predictions(out: logits::Output<Vec<Prediction>>) -> Self {
        Self { predictions: out.values, fell_back: out.fell_back, ..Self::default() }
    }

    /// The same, with what the run started from.
    fn after(self, Self { start, saved, drawn, .. }: Self) -> Self {
        Self { start, saved, drawn, ..self }
    }
}

/// Returns, in the fields for it, what an operation starts from and the draws that must be the
/// same.
async fn started<T: Element>(
    device: &Device,
    operation: Operation,
    inputs: &Inputs<'_, T>,
) -> Result<Results<T>, Error> {
    let loss = &inputs.options.loss();
    let reference = inputs.reference.unwrap_or(device);
    let x = Logits::new(inputs.logits, inputs.shape)?;
    let seen = x.temperature(inputs.temperature)?.as_seen_by(loss)?;
    let mut started = Results::default();
    match operation {
        Operation::SoftmaxBackward => {
            started.start = reference.softmax(seen).to_vec_async().await?.values;
        }
        Operation::LogSoftmaxBackward => {
            started.start = reference.log_softmax(seen).to_vec_async().await?.values;
        }
        Operation::CrossEntropyBackward => {
            let seen = x.as_seen_by(loss)?;
            started.saved = reference.log_sum_exp(seen).to_vec_async().await?.values;
        }
        Operation::Sample(sampling) if inputs.reference.is_some() => {
            started.drawn = reference.sample(&sampling, seen).to_vec_async().await?.values;
        }
        _ => {}
    }
    Ok(started)
}

/// Runs an operation once.
///
/// # Errors
/// The errors of the operation, and of the forward that it starts from.
pub async fn run<T: Element>(
    device: &Device,
    operation: Operation,
    inputs: &Inputs<'_, T>,
) -> Result<Results<T>, Error> {
    let loss = &inputs.options.loss();
    let targets = inputs.targets;
    let started = started(device, operation, inputs).await?;
    let view = |values| Logits::new(values, inputs.shape);
    let seen_of = |values| view(values)?.temperature(inputs.temperature)?.as_seen_by(loss);
    let (x, seen) = (view(inputs.logits)?, seen_of(inputs.logits)?);
    let results = match operation {
        Operation::Softmax => Results::of_elements(device.softmax(seen).to_vec_async().await?),
        Operation::LogSoftmax => {
            Results::of_elements(device.log_softmax(seen).to_vec_async().await?)
        }
        Operation::LogSumExp => {
            let out = device.log_sum_exp(seen).to_vec_async().await?;
            Results::of_rows(out)
        }
        Operation::Entropy => {
            let out = device.entropy(seen).to_vec_async().await?;
            Results::of_rows(out)
        }
        Operation::EntropyBackward => {
            let factors = inputs.row_upstream();
            let call = device.entropy_backward(seen, &factors);
            Results::of_elements(call.to_vec_async().await?)
        }
        Operation::SoftmaxBackward => {
            let call = device.softmax_backward(seen_of(&started.start)?, inputs.upstream);
            Results::of_elements(call.to_vec_async().await?)
        }
        Operation::LogSoftmaxBackward => {
            let call = device.log_softmax_backward(seen_of(&started.start)?, inputs.upstream);
            Results::of_elements(call.to_vec_async().await?)
        }
        Operation::CrossEntropy => {
            let out = device.cross_entropy(loss, x, targets).loss_async().await?;
            let (loss, fell_back) = (Some(out.loss), out.fell_back);
            Results { rows: out.per_row, loss, fell_back, ..Results::default() }
        }
        Operation::CrossEntropyGrad => {
            let call = device.cross_entropy(loss, x, targets);
            let (out, elements) = call.with_gradient_vec_async().await?;
            let (loss, fell_back) = (Some(out.loss), out.fell_back);
            Results { rows: out.per_row, loss, elements, fell_back, ..Results::default() }
        }
        Operation::CrossEntropyBackward => {
            let call = device.cross_entropy_backward(loss, x, targets, &started.saved);
            Results::of_elements(call.to_vec_async().await?)
        }
        Operation::Predict => Results::of_predictions(device.predict(seen).to_vec_async().await?),
        Operation::TopK(k) => Results::of_predictions(device.top_k(seen, k).to_vec_async().await?),
        Operation::Sample(sampling) => {
            Results::of_predictions(device.sample(&sampling, seen).to_vec_async().await?)
        }
        _ => Results::default(),
    };
    Ok(results.after(started))
}

/// Runs an operation once on data that it uploads, and reads the results back. What the backward of
/// a softmax starts from is that of [`run`]; the log-sum-exps that the backward of a loss starts
/// from are those of the device itself, because rows are not uploaded.
///
/// # Errors
/// The errors of the operation, of the forward that it starts from, and of reading back.
pub async fn run_resident<T: Element>(
    device: &Device,
    operation: Operation,
    inputs: &Inputs<'_, T>,
) -> Result<Results<T>, Error> {
    let (loss, shape) = (&inputs.options.loss(), inputs.shape);
    let mut started = started(device, operation, inputs).await?;
    let upload = async |values| device.upload_async(Logits::new(values, shape)?).await;
    let seen_of = |x: &Resident<T>| x.temperature(inputs.temperature)?.as_seen_by(loss);
    let targets = async || device.upload_targets_async(loss, shape, inputs.targets).await;
    let x = upload(inputs.logits).await?;
    let seen = seen_of(&x)?;
    let results = match operation {
        Operation::Softmax => read_elements(&seen.softmax().run_async().await?).await?,
        Operation::LogSoftmax => read_elements(&seen.log_softmax().run_async().await?).await?,
        Operation::LogSumExp => {
            let rows = seen.log_sum_exp().run_async().await?.read_async().await?;
            Results { rows, ..Results::default() }
        }
        Operation::Entropy => {
            let rows = seen.entropy().run_async().await?.read_async().await?;
            Results { rows, ..Results::default() }
        }
        Operation::EntropyBackward => {
            let factors = inputs.row_upstream();
            read_elements(&seen.entropy_backward(&factors).run_async().await?).await?
        }
        Operation::SoftmaxBackward => {
            let (start, upstream) =
                (seen_of(&upload(&started.start).await?)?, upload(inputs.upstream).await?);
            read_elements(&start.softmax_backward(&upstream).run_async().await?).await?
        }
        Operation::LogSoftmaxBackward => {
            let (start, upstream) =
                (seen_of(&upload(&started.start).await?)?, upload(inputs.upstream).await?);
            read_elements(&start.log_softmax_backward(&upstream).run_async().await?).await?
        }
        Operation::CrossEntropy => {
            read_loss(&x.cross_entropy(&targets().await?).run_async().await?).await?
        }
        Operation::CrossEntropyGrad => {
            let targets = targets().await?;
            let (loss, gradient) = x.cross_entropy_with_gradient(&targets).run_async().await?;
            Results { elements: gradient.read_async().await?, ..read_loss(&loss).await? }
        }
        Operation::CrossEntropyBackward => {
            let saved = x.as_seen_by(loss)?.log_sum_exp().run_async().await?;
            started.saved = saved.read_async().await?;
            let targets = targets().await?;
            read_elements(&x.cross_entropy_backward(&targets, &saved).run_async().await?).await?
        }
        Operation::Predict => {
            let predictions = seen.predict().run_async().await?.read_async().await?;
            Results { predictions, ..Results::default() }
        }
        Operation::TopK(k) => {
            let predictions = seen.top_k(k).run_async().await?.read_async().await?;
            Results { predictions, ..Results::default() }
        }
        Operation::Sample(sampling) => {
            let predictions = seen.sample(&sampling).run_async().await?.read_async().await?;
            Results { predictions, ..Results::default() }
        }
        _ => Results::default(),
    };
    Ok(results.after(started))
}

async fn read_elements<T: Element>(values: &Resident<T>) -> Result<Results<T>, Error> {
    Ok(Results { elements: values.read_async().await?, ..Results::default() })
}

async fn read_loss<T: Element>(loss: &ResidentLoss<T::Row>) -> Result<Results<T>, Error> {
    let (rows, reduced) = (loss.per_row().read_async().await?, loss.read_async().await?.loss);
    Ok(Results { rows, loss: Some(reduced), ..Results::default() })
}

/// The entropy of the softmax of a row, and its gradient with respect to the transformed logits:
/// `-p_j (log p_j + H)`, 0 where p_j is 0.
pub fn entropy(row: &Row<'_>, classes: usize) -> (f64, Vec<f64>) {
    let (p, log) = (|class| row.probability(class), |class| row.log_probability(class));
    let times_p = |class, value: f64| if p(class) == 0.0 { 0.0 } else { p(class) * value };
    let entropy: f64 = (0..classes).map(|class| times_p(class, -log(class))).sum();
    (entropy, (0..classes).map(|class| times_p(class, -log(class) - entropy)).collect())
}

/// How far off results may be, but for the rounding of their type.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The error of a probability, relative to it.
    pub probability: f64,
    /// The error of a logarithm, a log-sum-exp or a loss, relative to it; and that of a gradient,
    /// relative to its terms. Entropies have three times this bound, their gradients twice.
    pub value: f64,
    /// A logarithm, log-sum-exp or loss that is nearer to 0 than this counts as of this size.
    pub least: f64,
    /// The error that is added to `value` for each unit of an f32 log-sum-exp that a gradient was
    /// computed from.
    pub saved: f64,
    /// Whether an element of a gradient is weighed by the terms that it is itself the sum of, in
    /// place of the scale of its row.
    pub by_element: bool,
    /// The difference, relative to them and to 1, of transformed logits that may be taken for each
    /// other.
    pub tie: f64,
}

impl Bounds {
    /// The bounds in the documentation of `logits`.
    pub const PROMISED: Self = Self {
        probability: 2e-6,
        value: 1e-6,
        least: 0.0,
        saved: f32::EPSILON as f64,
        by_element: false,
        tie: 0.0,
    };
}

/// Holds the results of operations on the same inputs against the oracle, in some of the rows.
pub struct Judge<'a, T> {
    inputs: &'a Inputs<'a, T>,
    bounds: Bounds,
    /// The rows, each with its logits after their transform.
    rows: Vec<(usize, Vec<f64>)>,
    /// The losses of `rows` and their gradients, which not every operation needs.
    expected: OnceCell<Expected>,
}

impl<'a, T: Element> Judge<'a, T> {
    /// Looks at `rows`. Where the reduction is a mean they must be all rows, for the gradient of
    /// each depends on how many there are.
    pub fn new(
        inputs: &'a Inputs<'a, T>,
        bounds: Bounds,
        rows: impl IntoIterator<Item = usize>,
    ) -> Self {
        let Options { logit_scale, softcap, .. } = *inputs.options;
        let (scale, cap) = (f64::from(logit_scale), softcap.map(f64::from));
        let temperature = f64::from(inputs.temperature);
        let y = |x: f64| oracle::transformed(x / temperature, scale, cap).0;
        let of_row = |row| (row, inputs.row(inputs.logits, row).into_iter().map(y).collect());
        let rows = rows.into_iter().map(of_row).collect();
        Self { inputs, bounds, rows, expected: OnceCell::new() }
    }

    /// The worst error of the results, in units of its bound: at most 1 is within it. Infinite for
    /// an operation that is not known here.
    pub fn worst(&self, variant: &Variant, results: &Results<T>) -> f64 {
        match variant.operation {
            Operation::Softmax => self.elements(results, |row, class| {
                let p = row.probability(class);
                (p, self.bounds.probability * p)
            }),
            Operation::LogSoftmax => self.elements(results, |row, class| {
                let log = row.log_probability(class);
                (log, self.bound(log))
            }),
            Operation::LogSumExp => worst(self.rows.iter().map(|(row, y)| {
                let reduced = Row::new(y);
                let wanted = reduced.log_sum_exp();
                // Where there is no softmax, the battery of `logits check` knows whether it is NaN
                // or an infinity.
                if reduced.is_regular() {
                    excess(results.rows[*row], wanted, self.bound(wanted))
                } else {
                    0.0
                }
            })),
            Operation::Entropy => worst(self.rows.iter().map(|(row, y)| {
                let wanted = entropy(&Row::new(y), y.len()).0;
                excess(results.rows[*row], wanted, 3.0 * self.bound(wanted))
            })),
            Operation::EntropyBackward => self.entropy_gradients(results),
            Operation::SoftmaxBackward => self.backward(results, oracle::softmax_backward),
            Operation::LogSoftmaxBackward => self.backward(results, oracle::log_softmax_backward),
            Operation::CrossEntropy => self.losses(results),
            Operation::CrossEntropyGrad => worst([self.losses(results), self.gradients(results)]),
            Operation::CrossEntropyBackward => self.gradients(results),
            Operation::Predict => self.largest(results, 1),
            Operation::TopK(k) => self.largest(results, k),
            Operation::Sample(_) => self.draws(results, variant.kept),
            _ => f64::INFINITY,
        }
    }

    /// The bound of a logarithm, log-sum-exp or loss.
    fn bound(&self, wanted: f64) -> f64 {
        self.bounds.value * wanted.abs().max(self.bounds.least)
    }

    /// `wanted` returns the value of a class and its bound.
    fn elements(
        &self,
        results: &Results<T>,
        wanted: impl Fn(&Row<'_>, usize) -> (f64, f64),
    ) -> f64 {
        worst(self.rows.iter().flat_map(|(row, y)| {
            let (reduced, wanted) = (Row::new(y), &wanted);
            (0..y.len()).map(move |class| {
                let (wanted, bound) = wanted(&reduced, class);
                excess(results.elements[place(self.inputs.shape, *row, class)], wanted, bound)
            })
        }))
    }

    /// `definition` is the oracle's backward of a row from the results of its forward and the
    /// upstream gradient.
    fn backward(
        &self,
        results: &Results<T>,
        definition: fn(&[f64], &[f64]) -> Vec<Gradient>,
    ) -> f64 {
        let Inputs { shape, temperature, options, upstream, .. } = *self.inputs;
        let slope = f64::from(options.logit_scale) / f64::from(temperature);
        worst(self.rows.iter().flat_map(|&(row, _)| {
            let start = self.inputs.row(&results.start, row);
            let wanted = definition(&start, &self.inputs.row(upstream, row));
            wanted.into_iter().enumerate().map(move |(class, Gradient { value, scale, terms })| {
                let size = if self.bounds.by_element { terms } else { scale };
                let bound = self.bounds.value * (slope * size).abs();
                excess(results.elements[place(shape, row, class)], slope * value, bound)
            })
        }))
    }

    /// The gradients of the entropies, within a bound relative to the upstream gradient times the
    /// largest entropy there is.
    fn entropy_gradients(&self, results: &Results<T>) -> f64 {
        let Inputs { shape, temperature, options, logits, .. } = *self.inputs;
        let (scale, cap) = (f64::from(options.logit_scale), options.softcap.map(f64::from));
        let temperature = f64::from(temperature);
        let factors = self.inputs.row_upstream();
        worst(self.rows.iter().flat_map(|(row, y)| {
            let factor = f64::from(factors[*row]);
            let gradient = entropy(&Row::new(y), y.len()).1;
            let size = factor * f64::max(1.0, (y.len() as f64).ln());
            let x = self.inputs.row(logits, *row).into_iter();
            x.zip(gradient).enumerate().map(move |(class, (x, wanted))| {
                let slope = oracle::transformed(x / temperature, scale, cap).1 / temperature;
                // Under a cap no slope is steeper than that of 0.
                let bound = 2.0 * self.bounds.value * (size * scale / temperature).abs();
                let found = results.elements[place(shape, *row, class)];
                excess(found, factor * wanted * slope, bound)
            })
        }))
    }

    /// The losses of the rows and their gradients.
    fn expected(&self) -> &Expected {
        self.expected.get_or_init(|| {
            let labels: Vec<Label> =
                self.rows.iter().map(|(row, _)| (self.inputs.label)(*row)).collect();
            let labels: Vec<Labels<'_>> = labels
                .iter()
                .map(|label| match label {
                    Label::Class(class) => Labels::Class(*class),
                    Label::Probabilities(q) => Labels::Probabilities(q),
                })
                .collect();
            let x = |(row, _): &(usize, _)| self.inputs.row(self.inputs.logits, *row);
            let rows: Vec<Vec<f64>> = self.rows.iter().map(x).collect();
            let options = self.inputs.options.clone();
            let of_rows =
                |factors: Vec<f32>| self.rows.iter().map(|(row, _)| factors[*row]).collect();
            let row_gradients = options.row_gradients.map(of_rows);
            Options { row_gradients, ..options }.expected(&rows, &labels)
        })
    }

    fn losses(&self, results: &Results<T>) -> f64 {
        let expected = self.expected();
        let of_rows = worst(
            self.rows
                .iter()
                .zip(&expected.per_row)
                .map(|((row, _), &wanted)| excess(results.rows[*row], wanted, self.bound(wanted))),
        );
        let is_reduced = self.inputs.options.reduction != Reduction::None;
        if !is_reduced || self.rows.len() != self.inputs.shape.row_count() {
            return of_rows;
        }
        let of_all = |found| excess(found, expected.loss, self.bound(expected.loss));
        worst([of_rows, results.loss.map_or(f64::INFINITY, of_all)])
    }

    fn gradients(&self, results: &Results<T>) -> f64 {
        let Expected { gradients, scale, terms, .. } = self.expected();
        let saved_error = if T::DTYPE == DType::F64 { 0.0 } else { self.bounds.saved };
        worst(self.rows.iter().enumerate().flat_map(|(nth, (row, _))| {
            let saved: f64 = results.saved.get(*row).map_or(0.0, |&saved| saved.into());
            let relative = self.bounds.value + saved.abs() * saved_error;
            gradients[nth].iter().enumerate().map(move |(class, &wanted)| {
                let size = if self.bounds.by_element { terms[nth][class] } else { scale[nth] };
                let found = results.elements[place(self.inputs.shape, *row, class)];
                excess(found, wanted, relative * size)
            })
        }))
    }

    /// Whether two logits of a row may be taken for each other: to a kernel they may be equal.
    fn is_as_large(&self, a: f64, b: f64) -> bool {
        let Inputs { temperature, options, .. } = self.inputs;
        let is_exact =
            options.softcap.is_none() && options.logit_scale == 1.0 && *temperature == 1.0;
        let error = if is_exact { 0.0 } else { self.bounds.tie * b.abs().max(1.0) };
        (a - b).abs() <= error
    }

    fn of_probability(&self, found: &Prediction, reduced: &Row<'_>) -> f64 {
        let p = reduced.probability(found.class as usize);
        excess(found.probability, p, self.bounds.probability * p)
    }

    /// Whether these are the `k` largest of each row, in order, of equal ones the lower class
    /// first; and how far off their probabilities are.
    fn largest(&self, results: &Results<T>, k: usize) -> f64 {
        worst(self.rows.iter().map(|(row, y)| {
            let (found, reduced) = (&results.predictions[row * k..][..k], Row::new(y));
            if !reduced.is_regular() {
                return 0.0;
            }
            let order = order(y);
            let is_right = |(nth, found): (usize, &Prediction)| {
                let (class, wanted) = (found.class as usize, order[nth]);
                class < y.len()
                    && (class == wanted
                        || (y[class] != y[wanted] && self.is_as_large(y[class], y[wanted])))
            };
            let mut classes: Vec<u32> = found.iter().map(|found| found.class).collect();
            classes.sort_unstable();
            classes.dedup();
            if classes.len() != k || !found.iter().enumerate().all(is_right) {
                return f64::INFINITY;
            }
            worst(found.iter().map(|found| self.of_probability(found, &reduced)))
        }))
    }

    /// Whether each draw is of a class that is drawn from, and the draw of the reference where
    /// there is one; and how far off its probability is.
    fn draws(&self, results: &Results<T>, kept: Kept) -> f64 {
        worst(self.rows.iter().map(|(row, y)| {
            let (found, reduced) = (&results.predictions[*row], Row::new(y));
            let is_same = self.inputs.reference.is_none_or(|_| {
                results.drawn.get(*row).is_some_and(|drawn| drawn.class == found.class)
            });
            if !is_same || found.class as usize >= y.len() {
                f64::INFINITY
            } else if !reduced.is_regular() {
                0.0
            } else if self.may_be_drawn(found.class as usize, kept, y, &reduced) {
                self.of_probability(found, &reduced)
            } else {
                f64::INFINITY
            }
        }))
    }

    fn may_be_drawn(
        &self,
        class: usize,
        Kept { top_k, top_p }: Kept,
        y: &[f64],
        reduced: &Row<'_>,
    ) -> bool {
        let order = order(y);
        let last = y[order[top_k.min(order.len()) - 1]];
        // With the last of k all that are as large.
        let kept =
            order.partition_point(|&other| y[other] >= last || self.is_as_large(y[other], last));
        let mass = |classes: &[usize]| {
            classes.iter().map(|&class| reduced.probability(class)).sum::<f64>()
        };
        let larger = order
            .partition_point(|&other| y[other] > y[class] && !self.is_as_large(y[other], y[class]));
        let enough = f64::from(top_p) * mass(&order[..kept]);
        larger < kept && mass(&order[..larger]) <= enough + self.bounds.probability
    }
}

/// The classes of a regular row, largest first, of equal ones the lower first.
fn order(y: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..y.len()).collect();
    // 0 and -0 are equal. The sort keeps equal classes in their order.
    order.sort_by(|&a, &b| y[b].partial_cmp(&y[a]).unwrap_or(std::cmp::Ordering::Equal));
    order
}

/// The largest error; infinite where one is NaN.
fn worst(errors: impl IntoIterator<Item = f64>) -> f64 {
    errors.into_iter().fold(
        0.0,
        |worst, error| {
            if error.is_nan() { f64::INFINITY } else { worst.max(error) }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, noise};

    /// Each operation has results that are right, and none of its values may be another.
    #[test]
    fn every_operation_is_known_and_errors_are_found() -> Result<(), Error> {
        let (shape, device, options) = (Shape::new(4, 30, 2), Device::cpu(), Options::default());
        let batch = Batch::new(shape, |row, class| 5.0 * noise(row, class) as f32);
        let classes: Vec<i64> = (0..8).collect();
        let inputs = Inputs {
            shape,
            logits: &batch.values,
            temperature: 1.0,
            options: &options,
            targets: Targets::from(&classes),
            label: &|row| Label::Class(classes[row]),
            upstream: &batch.values,
            reference: Some(&device),
        };
        let judge = Judge::new(&inputs, Bounds::PROMISED, 0..8);
        for variant in Operation::ALL.iter().flat_map(|&operation| variants(operation, 30)) {
            let run = || pollster::block_on(run(&device, variant.operation, &inputs));
            let is_right = |results: &Results<f32>| judge.worst(&variant, results) <= 1.0;
            assert!(is_right(&run()?), "{variant:?}");
            let resident = run_resident(&device, variant.operation, &inputs);
            assert!(is_right(&pollster::block_on(resident)?), "{variant:?}, resident");
            let spoil: [fn(&mut Results<f32>) -> bool; 4] = [
                |results| results.elements.get_mut(77).map(|x| *x += 1e-4).is_some(),
                |results| results.rows.get_mut(7).map(|x| *x *= 1.00001).is_some(),
                |results| results.loss.as_mut().map(|x| *x *= 1.00001).is_some(),
                |results| {
                    results.predictions.get_mut(7).map(|x| x.probability *= 1.00001).is_some()
                },
            ];
            for (nth, spoil) in spoil.into_iter().enumerate() {
                let mut results = run()?;
                if spoil(&mut results) {
                    assert!(!is_right(&results), "{variant:?}, {nth}");
                }
            }
        }
        Ok(())
    }
}
