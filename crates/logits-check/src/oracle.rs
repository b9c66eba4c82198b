//! The oracle: softmax and cross-entropy in float64, straight from their definitions.

/// A row of logits, reduced in float64.
pub struct Row<'a, T = f64> {
    logits: &'a [T],
    max: f64,
    /// Sum of exp(x_j - max) over all classes but the first maximum.
    rest_of_sum: f64,
    first: usize,
}

impl<'a, T: Copy + Into<f64>> Row<'a, T> {
    /// Reduces a row of at least one class.
    pub fn new(logits: &'a [T]) -> Self {
        let at = |class: usize| -> f64 { logits[class].into() };
        // The class of PyTorch's argmax: the first NaN, else the first maximum.
        let first = (0..logits.len()).find(|&class| at(class).is_nan()).unwrap_or_else(|| {
            (0..logits.len()).fold(0, |best, class| if at(class) > at(best) { class } else { best })
        });
        let max = at(first);
        let mut row = Self { logits, max, rest_of_sum: 0.0, first };
        row.rest_of_sum = row.sum_without(first);
        row
    }

    fn at(&self, class: usize) -> f64 {
        self.logits[class].into()
    }

    /// Sum of exp(x_j - max) over all classes but one.
    fn sum_without(&self, class: usize) -> f64 {
        let terms = self.logits.iter().enumerate().filter(|&(j, _)| j != class);
        terms.map(|(_, &x)| (x.into() - self.max).exp()).sum()
    }

    /// Whether softmax has a value: no NaN, no `+inf`, and not `-inf` throughout.
    pub fn is_regular(&self) -> bool {
        self.max.is_finite()
    }

    fn or_nan(&self, value: f64) -> f64 {
        if self.is_regular() { value } else { f64::NAN }
    }

    /// The first NaN, else the first maximum.
    pub fn argmax(&self) -> usize {
        self.first
    }

    /// The largest logit, or NaN where one is NaN.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// log(sum of exp(x_j - max)), for a regular row.
    pub fn log_sum_above_max(&self) -> f64 {
        self.rest_of_sum.ln_1p()
    }

    /// log(sum of exp x_j)
    pub fn log_sum_exp(&self) -> f64 {
        if self.is_regular() { self.max + self.log_sum_above_max() } else { self.max }
    }

    /// log p_class
    pub fn log_probability(&self, class: usize) -> f64 {
        self.or_nan((self.at(class) - self.max) - self.log_sum_above_max())
    }

    /// p_class
    pub fn probability(&self, class: usize) -> f64 {
        self.or_nan((self.at(class) - self.max).exp() / (1.0 + self.rest_of_sum))
    }

    /// d(-log p_target) / d(x_class)
    pub fn gradient(&self, class: usize, target: usize) -> f64 {
        if class != target {
            return self.probability(class);
        }
        // 1 - p is the sum of the other probabilities, which is exact for p next to 1.
        let rest_of_sum =
            if target == self.first { self.rest_of_sum } else { self.sum_without(target) };
        self.or_nan(-rest_of_sum / (1.0 + self.rest_of_sum))
    }
}

/// The logit transform `y = c tanh(scale x / c)`, or `y = scale x` without a cap `c`, and dy/dx.
pub fn transformed(x: f64, scale: f64, softcap: Option<f64>) -> (f64, f64) {
    match softcap {
        None => (scale * x, scale),
        Some(cap) => {
            let u = scale * x / cap;
            (cap * u.tanh(), scale / u.cosh().powi(2))
        }
    }
}

/// A gradient, and the size that its error is relative to.
pub struct Gradient {
    /// d(loss)/d(x_class)
    pub value: f64,
    /// The size of the row's terms, which the crate's bounds are relative to.
    pub scale: f64,
    /// The size of the terms that add up to `value`.
    pub terms: f64,
}

/// The backward of softmax from the probabilities `p` and the gradient `g` with respect to them:
/// `p_j (g_j - sum_k g_k p_k)`, each relative to the largest `|g|`.
pub fn softmax_backward(p: &[f64], g: &[f64]) -> Vec<Gradient> {
    let sum: f64 = p.iter().zip(g).map(|(p, g)| p * g).sum();
    let whole: f64 = p.iter().zip(g).map(|(p, g)| (p * g).abs()).sum();
    let scale = g.iter().fold(0.0_f64, |most, g| most.max(g.abs()));
    let of = |(p, g): (&f64, &f64)| Gradient {
        value: p * (g - sum),
        scale,
        terms: p * (g.abs() + whole),
    };
    p.iter().zip(g).map(of).collect()
}

/// The backward of log-softmax from the log-probabilities `l` and the gradient `g` with respect to
/// them: `g_j - exp(l_j) sum_k g_k`, relative to the largest `|g|` and `exp(l_j) sum_k |g_k|`.
pub fn log_softmax_backward(l: &[f64], g: &[f64]) -> Vec<Gradient> {
    let sum: f64 = g.iter().sum();
    let most = g.iter().fold(0.0_f64, |most, g| most.max(g.abs()));
    let whole: f64 = g.iter().map(|g| g.abs()).sum();
    let of = |(l, g): (&f64, &f64)| {
        let p = l.exp();
        Gradient { value: g - p * sum, scale: most + p * whole, terms: g.abs() + p * whole }
    };
    l.iter().zip(g).map(of).collect()
}

/// The target of a row.
#[derive(Clone, Copy)]
pub enum Labels<'a> {
    /// A class, or an ignored index.
    Class(i64),
    /// The probability of each class.
    Probabilities(&'a [f64]),
}

/// The options of a loss.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// Targets that do not count.
    pub ignored: &'a [i64],
    /// The weight of each class; `None` is 1 for all.
    pub weight: Option<&'a [f64]>,
    /// The part of each label that is spread over all classes.
    pub label_smoothing: f64,
    /// The factor of the squared log-sum-exp.
    pub z_loss: f64,
    /// The exponent of the factor `1 - p` of the target in the loss of a row whose target is a
    /// class; 0 is off.
    pub focal_gamma: f64,
    /// `y = c tanh(scale x / c)` in place of `y = scale x`.
    pub softcap: Option<f64>,
    /// The factor of all logits.
    pub logit_scale: f64,
    /// Whether the loss is a mean over the weight of the counted rows, and not their sum.
    pub is_mean: bool,
    /// The factor of all gradients.
    pub upstream: f64,
    /// The factor of each row's gradient; `None` is 1 for all.
    pub row_gradients: Option<&'a [f64]>,
    /// The saved log-sum-exp of each row, from which gradients are computed; `None` if there is
    /// none.
    pub log_sum_exps: Option<&'a [f64]>,
}

impl Default for Terms<'_> {
    /// The sum of plain losses.
    fn default() -> Self {
        Self {
            ignored: &[],
            weight: None,
            label_smoothing: 0.0,
            z_loss: 0.0,
            focal_gamma: 0.0,
            softcap: None,
            logit_scale: 1.0,
            is_mean: false,
            upstream: 1.0,
            row_gradients: None,
            log_sum_exps: None,
        }
    }
}

/// The expected results of a batch.
pub struct Expected {
    /// The sum or the mean.
    pub loss: f64,
    /// The loss of each row.
    pub per_row: Vec<f64>,
    /// d loss / d x of each row.
    pub gradients: Vec<Vec<f64>>,
    /// The size that errors of each row's gradient are relative to.
    pub scale: Vec<f64>,
    /// The size of the terms of each element of `gradients`.
    pub terms: Vec<Vec<f64>>,
}

/// Cross-entropy and its gradient, row by row.
pub fn cross_entropy(rows: &[Vec<f64>], labels: &[Labels<'_>], terms: &Terms<'_>) -> Expected {
    let weight = |class: usize| terms.weight.map_or(1.0, |weight| weight[class]);
    let is_counted = |label: &Labels<'_>| match label {
        Labels::Class(class) => !terms.ignored.contains(class),
        Labels::Probabilities(_) => true,
    };
    let counted = labels.iter().filter(|label| is_counted(label)).count() as f64;
    let total: f64 = labels
        .iter()
        .filter(|label| is_counted(label))
        .map(|label| if let Labels::Class(class) = label { weight(*class as usize) } else { 1.0 })
        .sum();
    // A mean over a total weight of 0 is NaN, as in PyTorch, also where soft targets have a loss.
    let divisor = match terms.is_mean {
        true if total == 0.0 => f64::NAN,
        true => total,
        false => 1.0,
    };
    let z_loss = terms.z_loss * if terms.is_mean { total / counted } else { 1.0 };
    let (smoothing, scale) = (terms.label_smoothing, terms.logit_scale);

    let mut result = Expected {
        loss: 0.0,
        per_row: Vec::new(),
        gradients: Vec::new(),
        scale: Vec::new(),
        terms: Vec::new(),
    };
    for (nth, (x, label)) in rows.iter().zip(labels).enumerate() {
        let classes = x.len();
        let (y, slope): (Vec<f64>, Vec<f64>) =
            x.iter().map(|&x| transformed(x, scale, terms.softcap)).unzip();
        let row = Row::new(&y);
        let saved = terms.log_sum_exps.map(|saved| saved[nth]);
        if !is_counted(label) {
            // PyTorch multiplies the softmax of an ignored row by 0.
            let has_softmax = saved.map_or(row.is_regular(), f64::is_finite);
            result.per_row.push(0.0);
            result.gradients.push(vec![if has_softmax { 0.0 } else { f64::NAN }; classes]);
            result.scale.push(1.0);
            result.terms.push(vec![1.0; classes]);
            continue;
        }
        let log_sum_exp = row.log_sum_exp();
        let q: Vec<f64> = (0..classes)
            .map(|j| {
                let own = match label {
                    Labels::Class(class) => f64::from(u8::from(*class == j as i64)),
                    Labels::Probabilities(q) => q[j],
                };
                weight(j) * ((1.0 - smoothing) * own + smoothing / classes as f64)
            })
            .collect();
        // Without smoothing, classes other than the target have no term, so that their logits may
        // be -inf. Every other label of 0 has one: PyTorch has `0 * inf` there, which is NaN.
        let has_term = |j: usize| match label {
            Labels::Class(class) => smoothing > 0.0 || *class == j as i64,
            Labels::Probabilities(_) => true,
        };
        let mut loss: f64 =
            (0..classes).filter(|&j| has_term(j)).map(|j| q[j] * -row.log_probability(j)).sum();
        // With u = 1 - p and l = -log p of the target, u^gamma is a factor of the loss, and
        // u^gamma + gamma u^(gamma - 1) p l one of its gradient.
        let mut focal_slope = 1.0;
        if let (true, Labels::Class(class)) = (terms.focal_gamma > 0.0, label) {
            let (class, gamma) = (*class as usize, terms.focal_gamma);
            let log_p = saved.map_or(row.log_probability(class), |saved| y[class] - saved);
            let u = saved.map_or(-row.gradient(class, class), |_| -log_p.exp_m1());
            loss *= u.powf(gamma);
            let p_times_l = if log_p == f64::NEG_INFINITY { 0.0 } else { log_p.exp() * -log_p };
            let rest = if u == 0.0 { 0.0 } else { gamma * u.powf(gamma - 1.0) * p_times_l };
            focal_slope = u.powf(gamma) + rest;
        }
        // Bounds are relative to the labels that a focal loss has not made small.
        let label_scale = q.iter().sum::<f64>() * (1.0 + terms.focal_gamma);
        let q: Vec<f64> = q.into_iter().map(|q| q * focal_slope).collect();
        loss += z_loss * log_sum_exp * log_sum_exp;
        let factor =
            terms.upstream / divisor * terms.row_gradients.map_or(1.0, |factors| factors[nth]);
        let label_sum: f64 = q.iter().sum();
        let log_sum_exp = saved.unwrap_or(log_sum_exp);
        let multiple = label_sum + 2.0 * z_loss * log_sum_exp;
        let p = |j: usize| match saved {
            Some(saved) if saved.is_finite() => (y[j] - saved).exp(),
            Some(_) => f64::NAN,
            None => row.probability(j),
        };
        let gradient = |j: usize| factor * (p(j) * multiple - q[j]) * slope[j];
        let terms_of = |j: usize| (factor * ((p(j) * multiple).abs() + q[j]) * slope[j]).abs();
        result.gradients.push((0..classes).map(gradient).collect());
        result.terms.push((0..classes).map(terms_of).collect());
        let steepest = slope.iter().fold(0.0_f64, |a, &b| a.max(b.abs()));
        result
            .scale
            .push((factor * (label_scale + (2.0 * z_loss * log_sum_exp).abs()) * steepest).abs());
        result.loss += loss;
        result.per_row.push(loss);
    }
    if terms.is_mean {
        result.loss /= divisor;
    }
    result
}
