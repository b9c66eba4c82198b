//! The loss in float64, straight from its definition, sharing no code with the crate.

use logits::{CrossEntropy, Reduction};

/// A choice of options.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub ignored: Vec<i64>,
    pub weight: Option<Vec<f32>>,
    pub label_smoothing: f32,
    pub z_loss: f32,
    pub softcap: Option<f32>,
    pub logit_scale: f32,
    pub reduction: Reduction,
    pub upstream: f32,
    pub row_gradients: Option<Vec<f32>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ignored: vec![-100],
            weight: None,
            label_smoothing: 0.0,
            z_loss: 0.0,
            softcap: None,
            logit_scale: 1.0,
            reduction: Reduction::Sum,
            upstream: 1.0,
            row_gradients: None,
        }
    }
}

impl Options {
    /// Describes the options in one line, without the values of weights and row gradients.
    pub fn brief(&self) -> String {
        let Self { ignored, label_smoothing, z_loss, softcap, logit_scale, reduction, upstream, .. } = self;
        let (weighted, by_rows) = (self.weight.is_some(), self.row_gradients.is_some());
        format!(
            "ignored {ignored:?}, weighted {weighted}, smoothing {label_smoothing}, z {z_loss}, cap {softcap:?}, \
             scale {logit_scale}, {reduction:?}, upstream {upstream}, by rows {by_rows}"
        )
    }

    pub fn loss(&self) -> CrossEntropy {
        let mut loss = CrossEntropy::default()
            .reduction(self.reduction)
            .ignore_indices(self.ignored.clone())
            .label_smoothing(self.label_smoothing)
            .z_loss(self.z_loss)
            .logit_scale(self.logit_scale)
            .upstream_gradient(self.upstream);
        if let Some(cap) = self.softcap {
            loss = loss.softcap(cap);
        }
        if let Some(weight) = &self.weight {
            loss = loss.weight(weight.clone());
        }
        if let Some(factors) = &self.row_gradients {
            loss = loss.upstream_gradients(factors.clone());
        }
        loss
    }
}

/// The target of a row.
#[derive(Clone, Copy)]
pub enum Labels<'a> {
    Class(i64),
    Probabilities(&'a [f64]),
}

/// The expected results of a batch. `scale[row]` is the size that errors of the row's gradient are relative to.
pub struct Expected {
    pub loss: f64,
    pub per_row: Vec<f64>,
    pub gradients: Vec<Vec<f64>>,
    pub scale: Vec<f64>,
}

/// Rows one by one, with their labels.
pub fn expected(rows: &[Vec<f64>], labels: &[Labels<'_>], options: &Options) -> Expected {
    let weight = |class: usize| options.weight.as_ref().map_or(1.0, |weight| f64::from(weight[class]));
    let is_counted = |label: &Labels<'_>| match label {
        Labels::Class(class) => !options.ignored.contains(class),
        Labels::Probabilities(_) => true,
    };
    let counted = labels.iter().filter(|label| is_counted(label)).count() as f64;
    let total: f64 = labels
        .iter()
        .filter(|label| is_counted(label))
        .map(|label| if let Labels::Class(class) = label { weight(*class as usize) } else { 1.0 })
        .sum();
    let is_mean = options.reduction == Reduction::Mean;
    // A mean over a total weight of 0 is NaN, as in PyTorch, also where soft targets have a loss.
    let divisor = match is_mean {
        true if total == 0.0 => f64::NAN,
        true => total,
        false => 1.0,
    };
    let z_loss = f64::from(options.z_loss) * if is_mean { total / counted } else { 1.0 };
    let (smoothing, scale) = (f64::from(options.label_smoothing), f64::from(options.logit_scale));

    let mut result = Expected { loss: 0.0, per_row: Vec::new(), gradients: Vec::new(), scale: Vec::new() };
    for (row, (x, label)) in rows.iter().zip(labels).enumerate() {
        let classes = x.len();
        if !is_counted(label) {
            result.per_row.push(0.0);
            result.gradients.push(vec![0.0; classes]);
            result.scale.push(1.0);
            continue;
        }
        let (y, slope): (Vec<f64>, Vec<f64>) = x
            .iter()
            .map(|&x| match options.softcap.map(f64::from) {
                None => (scale * x, scale),
                Some(cap) => {
                    let u = scale * x / cap;
                    (cap * u.tanh(), scale / u.cosh().powi(2))
                }
            })
            .unzip();
        let top = (0..classes).fold(0, |top, j| if y[j] > y[top] { j } else { top });
        let others: f64 = (0..classes).filter(|&j| j != top).map(|j| (y[j] - y[top]).exp()).sum();
        let log_sum_exp = y[top] + others.ln_1p();
        let q: Vec<f64> = (0..classes)
            .map(|j| {
                let own = match label {
                    Labels::Class(class) => f64::from(u8::from(*class == j as i64)),
                    Labels::Probabilities(q) => q[j],
                };
                weight(j) * ((1.0 - smoothing) * own + smoothing / classes as f64)
            })
            .collect();
        let mut loss: f64 = (0..classes).map(|j| q[j] * ((y[top] - y[j]) + others.ln_1p())).sum();
        loss += z_loss * log_sum_exp * log_sum_exp;
        let factor = f64::from(options.upstream) / divisor
            * options.row_gradients.as_ref().map_or(1.0, |factors| f64::from(factors[row]));
        let label_sum: f64 = q.iter().sum();
        let multiple = label_sum + 2.0 * z_loss * log_sum_exp;
        let gradient = (0..classes).map(|j| {
            let p = (y[j] - y[top]).exp() / (1.0 + others);
            factor * (p * multiple - q[j]) * slope[j]
        });
        result.gradients.push(gradient.collect());
        let steepest = slope.iter().fold(0.0_f64, |a, &b| a.max(b.abs()));
        result.scale.push((factor * (label_sum + (2.0 * z_loss * log_sum_exp).abs()) * steepest).abs());
        result.loss += loss;
        result.per_row.push(loss);
    }
    if is_mean {
        result.loss /= divisor;
    }
    result
}
