//! The results that the oracle expects of a batch, and the errors of a kernel.

use logits_check::operation;
use logits_check::oracle::{self, Expected, Labels, Row, Terms};

use crate::ops::Op;
use crate::{CrossEntropy, DType, Reduction};

const LEAST: f64 = f32::MIN_POSITIVE as f64;
const MOST: f64 = f32::MAX as f64;

/// A batch as a kernel gets it.
pub struct Batch {
    pub op: Op,
    pub dtype: DType,
    pub loss: CrossEntropy,
    /// The factor of the logits: the loss's scale times their own.
    pub scale: f64,
    pub rows: Vec<Vec<f64>>,
    pub kinds: Vec<&'static str>,
    /// None for a row that is not counted.
    pub targets: Vec<Option<usize>>,
    /// Probabilities that are targets, or the gradient that a backward starts from.
    pub elementwise: Option<Vec<Vec<f64>>>,
    /// Log-sum-exps that a backward starts from.
    pub known: Vec<f32>,
    /// Classes that the CPU draws.
    pub draws: Vec<u32>,
    pub k: usize,
}

/// The results of a kernel.
pub struct Found {
    pub elements: Vec<f64>,
    pub rows: Vec<u32>,
    /// The loss of the whole batch, if it was requested.
    pub total: Option<f32>,
}

/// The largest error of a quantity.
pub struct Worst {
    pub quantity: &'static str,
    pub bound: f64,
    pub error: f64,
}

#[derive(Default)]
pub struct Verdict {
    pub worst: Vec<Worst>,
    /// An example of each kind of row that is out of bounds, with the kind.
    pub failures: Vec<(&'static str, String)>,
}

impl Verdict {
    /// Notes `error`, that of one value in the units of the bound.
    fn note(
        &mut self,
        quantity: &'static str,
        bound: f64,
        error: f64,
        kind: &'static str,
        place: impl Fn() -> String,
    ) {
        let error = if error.is_nan() { f64::INFINITY } else { error };
        match self.worst.iter_mut().find(|worst| worst.quantity == quantity) {
            Some(worst) => worst.error = worst.error.max(error),
            None => self.worst.push(Worst { quantity, bound, error }),
        }
        let is_new = || {
            !self.failures.iter().any(|(known, text)| *known == kind && text.starts_with(quantity))
        };
        if error > bound && is_new() {
            self.failures.push((kind, format!("{quantity} of a row `{kind}`: {}", place())));
        }
    }
}

/// Returns the error of a value in units of `unit`. NaN must be NaN, and a value beyond f32 must be
/// at its end or infinite, with its sign.
fn error(got: f64, wanted: f64, unit: f64) -> f64 {
    let is_same = match wanted {
        _ if wanted.is_nan() => got.is_nan(),
        _ if wanted.abs() > MOST => {
            got.abs() >= MOST * (1.0 - 1e-6) && (got < 0.0) == (wanted < 0.0)
        }
        _ if got == wanted => true,
        _ => return (got - wanted).abs() / unit.max(LEAST),
    };
    if is_same { 0.0 } else { f64::INFINITY }
}

/// Returns the error relative to the value.
fn relative(got: f64, wanted: f64) -> f64 {
    if wanted.abs() < LEAST {
        return if got.abs() < 2.0 * LEAST { 0.0 } else { f64::INFINITY };
    }
    error(got, wanted, wanted.abs())
}

/// Returns the relative error of a sum of `terms` terms, each of which may be taken for 0 if it is
/// no normal number.
fn relative_of(terms: usize, got: f64, wanted: f64) -> f64 {
    let lost = terms as f64 * LEAST;
    if (got - wanted).abs() <= lost { 0.0 } else { relative(got, wanted) }
}

impl Batch {
    /// The logits of a row after their transform.
    fn seen(&self, x: &[f64]) -> Vec<f64> {
        let cap = self.loss.softcap.map(f64::from);
        x.iter().map(|&x| oracle::transformed(x, self.scale, cap).0).collect()
    }

    /// Log-sum-exps as f32, which a backward starts from.
    pub fn log_sum_exps(&self) -> Vec<f32> {
        self.rows.iter().map(|x| Row::new(&self.seen(x)).log_sum_exp() as f32).collect()
    }

    /// The softmax of each row, or its logarithm.
    pub fn outputs(&self, is_log: bool) -> Vec<Vec<f64>> {
        let of = |row: &Row<'_>, j: usize| {
            if is_log { row.log_probability(j) } else { row.log_probability(j).exp() }
        };
        let outputs = |y: Vec<f64>| {
            let row = Row::new(&y);
            (0..y.len()).map(|j| of(&row, j)).collect()
        };
        self.rows.iter().map(|x| outputs(self.seen(x))).collect()
    }

    /// The error that rounding a result to its type may add.
    fn rounding(&self, wanted: f64) -> f64 {
        match self.dtype {
            DType::F16 => (wanted.abs() / 2048.0).max(1.0 / f64::from(1 << 25)) * 1.001,
            DType::BF16 => wanted.abs() / 256.0 * 1.001,
            _ => 0.0,
        }
    }

    /// Moves `got` towards `wanted` by as much as rounding to its type allows.
    fn unrounded(&self, got: f64, wanted: f64) -> f64 {
        let rounding = self.rounding(wanted);
        if got == wanted || (got - wanted).abs() <= rounding {
            wanted
        } else {
            got - (got - wanted).signum() * rounding
        }
    }

    pub fn judge(&self, found: &Found) -> Verdict {
        let mut verdict = Verdict::default();
        let expected = self.op.has_targets().then(|| self.expected());
        for (nth, x) in self.rows.iter().enumerate() {
            let y = self.seen(x);
            let row = Row::new(&y);
            match self.op {
                Op::Softmax | Op::LogSoftmax => self.judge_outputs(nth, &row, found, &mut verdict),
                Op::LogSumExp => {
                    let (got, wanted) = (f32::from_bits(found.rows[nth]).into(), row.log_sum_exp());
                    // Within 0.5 of 0 the bound is absolute: 2e-7.
                    let error = if wanted.abs() < 0.5 {
                        error(got, wanted, 0.2)
                    } else {
                        relative(got, wanted)
                    };
                    verdict.note("log-sum-exp", 1e-6, error, self.kinds[nth], || {
                        place(x, None, got, wanted)
                    });
                }
                Op::Entropy | Op::EntropyBackward => {
                    self.judge_entropy(nth, &row, found, &mut verdict)
                }
                Op::Predict | Op::TopK | Op::Sample => {
                    self.judge_predictions(nth, &row, found, &mut verdict)
                }
                Op::SoftmaxBackward | Op::LogSoftmaxBackward => {
                    self.judge_backward(nth, found, &mut verdict)
                }
                Op::CrossEntropy | Op::CrossEntropyGrad | Op::CrossEntropyBackward => {
                    let Some(expected) = &expected else { continue };
                    self.judge_loss(nth, expected, found, &mut verdict);
                }
            }
        }
        if let (Some(got), Some(Expected { loss: wanted, .. })) = (found.total, &expected) {
            let error = relative(got.into(), *wanted);
            verdict.note("loss of the batch", 1e-6, error, "all", || {
                format!("{got:e}, where it is {wanted:e}")
            });
        }
        verdict
    }

    fn judge_outputs(&self, nth: usize, row: &Row<'_>, found: &Found, verdict: &mut Verdict) {
        let (x, kind) = (&self.rows[nth], self.kinds[nth]);
        for j in 0..x.len() {
            let wanted = row.log_probability(j);
            let (quantity, bound, wanted) = match self.op {
                Op::LogSoftmax => ("log-probability", 1e-6, wanted),
                _ => ("probability", 2e-6, wanted.exp()),
            };
            let got = found.elements[nth * x.len() + j];
            let terms = if self.op == Op::LogSoftmax { x.len() } else { 0 };
            let error = relative_of(terms, self.unrounded(got, wanted), wanted);
            verdict.note(quantity, bound, error, kind, || place(x, Some(j), got, wanted));
        }
    }

    fn judge_predictions(&self, nth: usize, row: &Row<'_>, found: &Found, verdict: &mut Verdict) {
        let (x, kind) = (&self.rows[nth], self.kinds[nth]);
        // NaN is largest, and a logit transform changes the order only by its sign.
        let key = |j: usize| {
            if x[j].is_nan() {
                f64::INFINITY
            } else {
                x[j].clamp(-MOST * 2.0, MOST * 2.0) * self.scale.signum()
            }
        };
        let mut order: Vec<usize> = (0..x.len()).collect();
        // Zeros are equal.
        order
            .sort_by(|&a, &b| if key(a) == key(b) { a.cmp(&b) } else { key(b).total_cmp(&key(a)) });
        for (place_in_order, &in_order) in order.iter().enumerate().take(self.k) {
            let at = 2 * (nth * self.k + place_in_order);
            let class = found.rows[at] as usize;
            let wanted_class =
                if self.op == Op::Sample { self.draws[nth] as usize } else { in_order };
            let is_right = if class == wanted_class { 0.0 } else { f64::INFINITY };
            verdict.note("class", 0.0, is_right, kind, || {
                format!("{class}, where it is {wanted_class}, of {x:?}")
            });
            let (got, wanted) = (
                f32::from_bits(found.rows[at + 1]).into(),
                row.log_probability(wanted_class).exp(),
            );
            verdict.note("probability", 2e-6, relative(got, wanted), kind, || {
                place(x, Some(wanted_class), got, wanted)
            });
        }
    }

    /// The entropy of a row, or its gradient with an upstream gradient of 1.
    fn judge_entropy(&self, nth: usize, row: &Row<'_>, found: &Found, verdict: &mut Verdict) {
        let (x, kind) = (&self.rows[nth], self.kinds[nth]);
        let (entropy, gradient) = operation::entropy(row, x.len());
        if self.op == Op::Entropy {
            let got = f32::from_bits(found.rows[nth]).into();
            let error = relative_of(100 * x.len(), got, entropy);
            verdict.note("entropy", 3e-6, error, kind, || place(x, None, got, entropy));
            return;
        }
        let unit = self.scale.abs() * (x.len() as f64).ln().max(1.0);
        for j in 0..x.len() {
            let cap = self.loss.softcap.map(f64::from);
            let slope = oracle::transformed(x[j], self.scale, cap).1;
            let wanted = gradient[j] * slope;
            let got = found.elements[nth * x.len() + j];
            let error = error(self.unrounded(got, wanted), wanted, unit);
            verdict.note("gradient", 2e-6, error, kind, || place(x, Some(j), got, wanted));
        }
    }

    fn judge_backward(&self, row: usize, found: &Found, verdict: &mut Verdict) {
        let Some(upstream) = &self.elementwise else { return };
        let (y, g) = (&self.rows[row], &upstream[row]);
        let wanted = match self.op {
            Op::LogSoftmaxBackward => oracle::log_softmax_backward(y, g),
            _ => oracle::softmax_backward(y, g),
        };
        for (j, oracle::Gradient { value: wanted, scale: unit, .. }) in
            wanted.into_iter().enumerate()
        {
            let got = found.elements[row * y.len() + j];
            let wanted = wanted * self.scale;
            let error = error(self.unrounded(got, wanted), wanted, unit * self.scale.abs());
            verdict.note("gradient", 1e-6, error, self.kinds[row], || {
                format!("{}, from {g:?}", place(y, Some(j), got, wanted))
            });
        }
    }

    /// The losses and gradients that the oracle expects.
    fn expected(&self) -> Expected {
        const IGNORED: i64 = -1;
        let wide = |values: &[f32]| values.iter().map(|&value| value.into()).collect::<Vec<f64>>();
        let labels: Vec<Labels<'_>> = match &self.elementwise {
            Some(rows) => rows.iter().map(|row| Labels::Probabilities(row)).collect(),
            None => {
                let class = |target: &Option<usize>| target.map_or(IGNORED, |class| class as i64);
                self.targets.iter().map(|target| Labels::Class(class(target))).collect()
            }
        };
        let weight = self.loss.weight.as_deref().map(wide);
        let row_gradients = self.loss.upstream_gradients.as_deref().map(wide);
        let log_sum_exps = (self.op == Op::CrossEntropyBackward).then(|| wide(&self.known));
        let terms = Terms {
            ignored: &[IGNORED],
            weight: weight.as_deref(),
            label_smoothing: self.loss.label_smoothing.into(),
            z_loss: self.loss.z_loss.into(),
            focal_gamma: self.loss.focal_gamma.into(),
            softcap: self.loss.softcap.map(f64::from),
            logit_scale: self.scale,
            is_mean: self.loss.reduction == Reduction::Mean,
            upstream: self.loss.upstream_gradient.into(),
            row_gradients: row_gradients.as_deref(),
            log_sum_exps: log_sum_exps.as_deref(),
        };
        oracle::cross_entropy(&self.rows, &labels, &terms)
    }

    fn judge_loss(&self, nth: usize, expected: &Expected, found: &Found, verdict: &mut Verdict) {
        let (x, kind, target) = (&self.rows[nth], self.kinds[nth], self.targets[nth]);
        let classes = x.len();
        let is_known = self.op == Op::CrossEntropyBackward;
        if !is_known {
            let (got, wanted) = (f32::from_bits(found.rows[nth]).into(), expected.per_row[nth]);
            verdict.note("loss", 1e-6, relative_of(classes, got, wanted), kind, || {
                format!("{}, target {target:?}", place(x, None, got, wanted))
            });
        }
        if self.op == Op::CrossEntropy {
            return;
        }
        // A log-sum-exp in f32 is too coarse for probabilities if its last digit is larger than
        // their differences.
        let is_counted = target.is_some() || self.elementwise.is_some();
        let is_vague =
            is_counted && is_known && self.scale.abs() != 1.0 && self.known[nth].abs() > 1e7;
        // Under a cap the exact slope of a large logit may be less than any f32.
        let unit = expected.scale[nth].max(1e-20 * self.scale.abs());
        for (j, &wanted) in expected.gradients[nth].iter().enumerate() {
            let got = found.elements[nth * classes + j];
            let error = match is_vague && !wanted.is_nan() && !got.is_nan() {
                true => 0.0,
                false => error(self.unrounded(got, wanted), wanted, unit),
            };
            verdict.note("gradient", 1e-6, error, kind, || {
                format!("{}, target {target:?}", place(x, Some(j), got, wanted))
            });
        }
    }
}

fn place(x: &[f64], class: Option<usize>, got: f64, wanted: f64) -> String {
    let few = &x[..x.len().min(20)];
    let class = class.map_or_else(String::new, |class| format!(" at {class}"));
    format!("{got:e}{class}, where it is {wanted:e}, of {few:?}")
}
