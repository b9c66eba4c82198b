//! What a batch must come to, in float64 straight from the definitions, and how far off a kernel
//! is.

use crate::problem::operation::Op;
use crate::{CrossEntropy, DType, Reduction};

const LEAST: f64 = f32::MIN_POSITIVE as f64;
const MOST: f64 = f32::MAX as f64;

/// A batch as a kernel is given it.
pub struct Batch {
    pub op: Op,
    pub dtype: DType,
    pub loss: CrossEntropy,
    /// What logits are multiplied by, of the loss and by themselves.
    pub scale: f64,
    pub rows: Vec<Vec<f64>>,
    pub kinds: Vec<&'static str>,
    /// None where a row is not counted.
    pub targets: Vec<Option<usize>>,
    /// Probabilities that are targets, or the gradient that a backward starts from.
    pub elementwise: Option<Vec<Vec<f64>>>,
    /// Log-sum-exps that a backward starts from.
    pub known: Vec<f32>,
    /// Classes that the CPU draws.
    pub draws: Vec<u32>,
    pub k: usize,
}

/// What kernels made of it.
pub struct Found {
    pub elements: Vec<f64>,
    pub rows: Vec<u32>,
    /// The loss of the whole batch, where it was asked for.
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
    /// `error` is that of one value, in units that the bound is in.
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

/// How far off a value is, in units of `unit`: special values must be the same, what is no normal
/// f32 must be none.
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

/// The same relative to the value.
fn relative(got: f64, wanted: f64) -> f64 {
    if wanted.abs() < LEAST {
        return if got.abs() < 2.0 * LEAST { 0.0 } else { f64::INFINITY };
    }
    error(got, wanted, wanted.abs())
}

/// The same of a sum of so many terms, each of which may be taken for 0 where it is no normal
/// number.
fn relative_of(terms: usize, got: f64, wanted: f64) -> f64 {
    let lost = terms as f64 * LEAST;
    if (got - wanted).abs() <= lost { 0.0 } else { relative(got, wanted) }
}

/// A row after its logit transform.
struct Seen {
    y: Vec<f64>,
    slope: Vec<f64>,
    /// The largest y, and the log of the sum of exponentials from there.
    top: f64,
    log_sum: f64,
    /// Whether there is no softmax.
    is_bad: bool,
}

impl Seen {
    fn log_sum_exp(&self) -> f64 {
        self.top + self.log_sum
    }

    fn log_probability(&self, class: usize) -> f64 {
        if self.is_bad { f64::NAN } else { (self.y[class] - self.top) - self.log_sum }
    }
}

impl Batch {
    fn see(&self, x: &[f64]) -> Seen {
        let (y, slope): (Vec<f64>, Vec<f64>) = x
            .iter()
            .map(|&x| match self.loss.softcap.map(f64::from) {
                None => (self.scale * x, self.scale),
                Some(cap) => {
                    let u = self.scale * x / cap;
                    (cap * u.tanh(), self.scale / u.cosh().powi(2))
                }
            })
            .unzip();
        let has_nan = y.iter().any(|y| y.is_nan());
        let at = (0..y.len()).fold(0, |at, j| if y[j] > y[at] { j } else { at });
        let top = if has_nan { f64::NAN } else { y[at] };
        let others: f64 = (0..y.len()).filter(|&j| j != at).map(|j| (y[j] - top).exp()).sum();
        let is_bad = has_nan || top.is_infinite();
        Seen {
            slope,
            top,
            log_sum: if is_bad && !has_nan { 0.0 } else { others.ln_1p() },
            is_bad,
            y,
        }
    }

    /// Log-sum-exps as f32, which is what a backward is given.
    pub fn log_sum_exps(&self) -> Vec<f32> {
        self.rows.iter().map(|x| self.see(x).log_sum_exp() as f32).collect()
    }

    /// What the softmax or its logarithm is.
    pub fn outputs(&self, is_log: bool) -> Vec<Vec<f64>> {
        let of = |seen: &Seen, j: usize| {
            if is_log { seen.log_probability(j) } else { seen.log_probability(j).exp() }
        };
        self.rows
            .iter()
            .map(|x| self.see(x))
            .map(|seen| (0..seen.y.len()).map(|j| of(&seen, j)).collect())
            .collect()
    }

    /// What rounding a result to its type may do to it.
    fn rounding(&self, wanted: f64) -> f64 {
        match self.dtype {
            DType::F16 => (wanted.abs() / 2048.0).max(1.0 / f64::from(1 << 25)) * 1.001,
            DType::BF16 => wanted.abs() / 256.0 * 1.001,
            _ => 0.0,
        }
    }

    /// `got` as near to `wanted` as rounding to its type allows.
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
        let sums = self.op.has_targets().then(|| self.divisors());
        let mut total = 0.0;
        for (row, x) in self.rows.iter().enumerate() {
            let seen = self.see(x);
            match self.op {
                Op::Softmax | Op::LogSoftmax => self.judge_outputs(row, &seen, found, &mut verdict),
                Op::LogSumExp => {
                    let (got, wanted) =
                        (f32::from_bits(found.rows[row]).into(), seen.log_sum_exp());
                    // Within 0.5 of 0 the bound is absolute: 2e-7.
                    let error = if wanted.abs() < 0.5 {
                        error(got, wanted, 0.2)
                    } else {
                        relative(got, wanted)
                    };
                    verdict.note("log-sum-exp", 1e-6, error, self.kinds[row], || {
                        place(x, None, got, wanted)
                    });
                }
                Op::Predict | Op::TopK | Op::Sample => {
                    self.judge_predictions(row, &seen, found, &mut verdict)
                }
                Op::SoftmaxBackward | Op::LogSoftmaxBackward => {
                    self.judge_backward(row, found, &mut verdict)
                }
                Op::CrossEntropy | Op::CrossEntropyGrad | Op::CrossEntropyBackward => {
                    let divisors = sums.unwrap_or((1.0, 1.0));
                    total += self.judge_loss(row, &seen, divisors, found, &mut verdict);
                }
            }
        }
        if let (Some(got), Some((weight, _))) = (found.total, sums) {
            let wanted =
                if self.loss.reduction == Reduction::Mean { total / weight } else { total };
            let error = relative(got.into(), wanted);
            verdict.note("loss of the batch", 1e-6, error, "all", || {
                format!("{got:e}, where it is {wanted:e}")
            });
        }
        verdict
    }

    fn judge_outputs(&self, row: usize, seen: &Seen, found: &Found, verdict: &mut Verdict) {
        for j in 0..seen.y.len() {
            let wanted = seen.log_probability(j);
            let (quantity, bound, wanted) = match self.op {
                Op::LogSoftmax => ("log-probability", 1e-6, wanted),
                _ => ("probability", 2e-6, wanted.exp()),
            };
            let got = found.elements[row * seen.y.len() + j];
            let terms = if self.op == Op::LogSoftmax { seen.y.len() } else { 0 };
            let error = relative_of(terms, self.unrounded(got, wanted), wanted);
            verdict.note(quantity, bound, error, self.kinds[row], || {
                place(&self.rows[row], Some(j), got, wanted)
            });
        }
    }

    fn judge_predictions(&self, row: usize, seen: &Seen, found: &Found, verdict: &mut Verdict) {
        let (x, kind) = (&self.rows[row], self.kinds[row]);
        // NaN is largest, and a logit transform does not change the order but by its sign.
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
        for (nth, &in_order) in order.iter().enumerate().take(self.k) {
            let at = 2 * (row * self.k + nth);
            let class = found.rows[at] as usize;
            let wanted_class =
                if self.op == Op::Sample { self.draws[row] as usize } else { in_order };
            let is_right = if class == wanted_class { 0.0 } else { f64::INFINITY };
            verdict.note("class", 0.0, is_right, kind, || {
                format!("{class}, where it is {wanted_class}, of {x:?}")
            });
            let (got, wanted) = (
                f32::from_bits(found.rows[at + 1]).into(),
                seen.log_probability(wanted_class).exp(),
            );
            verdict.note("probability", 2e-6, relative(got, wanted), kind, || {
                place(x, Some(wanted_class), got, wanted)
            });
        }
    }

    fn judge_backward(&self, row: usize, found: &Found, verdict: &mut Verdict) {
        let Some(upstream) = &self.elementwise else { return };
        let (y, g) = (&self.rows[row], &upstream[row]);
        let is_log = self.op == Op::LogSoftmaxBackward;
        let sum: f64 = y.iter().zip(g).map(|(y, g)| if is_log { *g } else { y * g }).sum();
        let (most, whole) =
            g.iter().fold((0.0_f64, 0.0), |(most, whole), g| (most.max(g.abs()), whole + g.abs()));
        for j in 0..y.len() {
            let (wanted, unit) = match is_log {
                true => (g[j] - y[j].exp() * sum, most + y[j].exp() * whole),
                false => (y[j] * (g[j] - sum), most),
            };
            let got = found.elements[row * y.len() + j];
            let wanted = wanted * self.scale;
            let error = error(self.unrounded(got, wanted), wanted, unit * self.scale.abs());
            verdict.note("gradient", 1e-6, error, self.kinds[row], || {
                format!("{}, from {g:?}", place(y, Some(j), got, wanted))
            });
        }
    }

    fn weight(&self, class: usize) -> f64 {
        self.loss.weight.as_ref().map_or(1.0, |weight| weight[class].into())
    }

    /// What a mean divides by, and what it multiplies a z-loss by.
    fn divisors(&self) -> (f64, f64) {
        let is_soft = self.elementwise.is_some();
        let counted: Vec<_> =
            self.targets.iter().filter(|target| is_soft || target.is_some()).collect();
        let weight = counted
            .iter()
            .map(|target| {
                target.map_or(1.0, |class| if is_soft { 1.0 } else { self.weight(class) })
            })
            .sum();
        match self.loss.reduction {
            Reduction::Mean => (weight, weight / counted.len() as f64),
            _ => (1.0, 1.0),
        }
    }

    /// Returns the loss that the row should have.
    fn judge_loss(
        &self,
        row: usize,
        seen: &Seen,
        divisors: (f64, f64),
        found: &Found,
        verdict: &mut Verdict,
    ) -> f64 {
        let (x, kind, classes) = (&self.rows[row], self.kinds[row], seen.y.len());
        let (off_value, z_loss) =
            (f64::from(self.loss.label_smoothing), f64::from(self.loss.z_loss) * divisors.1);
        let target = self.targets[row];
        let is_counted = self.elementwise.is_some() || target.is_some();
        let label = |j: usize| {
            let own = match &self.elementwise {
                Some(elementwise) => elementwise[row][j],
                None => f64::from(u8::from(target == Some(j))),
            };
            self.weight(j) * ((1.0 - off_value) * own + off_value / classes as f64)
        };
        let labels: Vec<f64> = (0..classes).map(label).collect();
        // What has no label takes no part, but where probabilities say so.
        let takes_part = |j: usize| labels[j] != 0.0 || self.elementwise.is_some();
        let log_sum_exp = seen.log_sum_exp();
        let terms =
            (0..classes).filter(|&j| takes_part(j)).map(|j| labels[j] * -seen.log_probability(j));
        let loss =
            if is_counted { terms.sum::<f64>() + z_loss * log_sum_exp * log_sum_exp } else { 0.0 };
        let is_known = self.op == Op::CrossEntropyBackward;
        if !is_known {
            let got = f32::from_bits(found.rows[row]).into();
            verdict.note("loss", 1e-6, relative_of(classes, got, loss), kind, || {
                format!("{}, target {target:?}", place(x, None, got, loss))
            });
        }
        if self.op == Op::CrossEntropy {
            return loss;
        }
        let operands = if is_known { self.known[row].into() } else { log_sum_exp };
        // A log-sum-exp that is no number is that of a row without a softmax.
        let is_bad = if is_known { !self.known[row].is_finite() } else { seen.is_bad };
        let factor = f64::from(self.loss.upstream_gradient) / divisors.0
            * self.loss.upstream_gradients.as_ref().map_or(1.0, |factors| f64::from(factors[row]));
        let sum: f64 = labels.iter().sum();
        let unit = (factor * (sum + (2.0 * z_loss * operands).abs()) * self.scale).abs();
        // A log-sum-exp as f32 is not enough to tell probabilities by where its last digit is more
        // than they differ by.
        let is_vague = is_known && self.scale.abs() != 1.0 && operands.abs() > 1e7;
        for (j, &label) in labels.iter().enumerate() {
            let log = if is_known { seen.y[j] - operands } else { seen.log_probability(j) };
            let wanted = match is_counted {
                _ if is_bad => f64::NAN,
                true => {
                    factor * (log.exp() * (sum + 2.0 * z_loss * operands) - label) * seen.slope[j]
                }
                false => 0.0,
            };
            let got = found.elements[row * classes + j];
            let error = match is_vague && is_counted && !is_bad {
                true => {
                    if got.is_nan() {
                        f64::INFINITY
                    } else {
                        0.0
                    }
                }
                false => error(self.unrounded(got, wanted), wanted, unit),
            };
            verdict.note("gradient", 1e-6, error, kind, || {
                format!("{}, target {target:?}, factor {factor:e}", place(x, Some(j), got, wanted))
            });
        }
        loss
    }
}

fn place(x: &[f64], class: Option<usize>, got: f64, wanted: f64) -> String {
    let few = &x[..x.len().min(20)];
    let class = class.map_or_else(String::new, |class| format!(" at {class}"));
    format!("{got:e}{class}, where it is {wanted:e}, of {few:?}")
}
