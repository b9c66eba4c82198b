//! A choice of options in the forms that `logits` and the oracle take.

use logits::{CrossEntropy, Reduction};

use crate::oracle::{self, Expected, Labels, Terms};

/// A choice of options of the loss.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Targets that do not count.
    pub ignored: Vec<i64>,
    /// `CrossEntropy::weight`
    pub weight: Option<Vec<f32>>,
    /// `CrossEntropy::label_smoothing`
    pub label_smoothing: f32,
    /// `CrossEntropy::z_loss`
    pub z_loss: f32,
    /// `CrossEntropy::focal_gamma`
    pub focal_gamma: f32,
    /// `CrossEntropy::softcap`
    pub softcap: Option<f32>,
    /// `CrossEntropy::logit_scale`
    pub logit_scale: f32,
    /// `CrossEntropy::reduction`
    pub reduction: Reduction,
    /// `CrossEntropy::upstream_gradient`
    pub upstream: f32,
    /// `CrossEntropy::upstream_gradients`
    pub row_gradients: Option<Vec<f32>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ignored: vec![-100],
            weight: None,
            label_smoothing: 0.0,
            z_loss: 0.0,
            focal_gamma: 0.0,
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
        let Self {
            ignored,
            label_smoothing,
            z_loss,
            focal_gamma,
            softcap,
            logit_scale,
            reduction,
            upstream,
            ..
        } = self;
        let (weighted, by_rows) = (self.weight.is_some(), self.row_gradients.is_some());
        format!(
            "ignored {ignored:?}, weighted {weighted}, smoothing {label_smoothing}, z {z_loss}, \
             focal {focal_gamma}, \
             cap {softcap:?}, scale {logit_scale}, {reduction:?}, upstream {upstream}, \
             by rows {by_rows}"
        )
    }

    /// The options as `logits` takes them.
    pub fn loss(&self) -> CrossEntropy {
        let mut loss = CrossEntropy::default()
            .reduction(self.reduction)
            .ignore_indices(self.ignored.clone())
            .label_smoothing(self.label_smoothing)
            .z_loss(self.z_loss)
            .focal_gamma(self.focal_gamma)
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

    /// Returns the results that the oracle expects of rows with their labels.
    pub fn expected(&self, rows: &[Vec<f64>], labels: &[Labels<'_>]) -> Expected {
        let wide = |values: &Option<Vec<f32>>| -> Option<Vec<f64>> {
            values.as_ref().map(|values| values.iter().map(|&value| f64::from(value)).collect())
        };
        let (weight, row_gradients) = (wide(&self.weight), wide(&self.row_gradients));
        let terms = Terms {
            ignored: &self.ignored,
            weight: weight.as_deref(),
            label_smoothing: f64::from(self.label_smoothing),
            z_loss: f64::from(self.z_loss),
            focal_gamma: f64::from(self.focal_gamma),
            softcap: self.softcap.map(f64::from),
            logit_scale: f64::from(self.logit_scale),
            is_mean: self.reduction == Reduction::Mean,
            upstream: f64::from(self.upstream),
            row_gradients: row_gradients.as_deref(),
            ..Terms::default()
        };
        oracle::cross_entropy(rows, labels, &terms)
    }
}
