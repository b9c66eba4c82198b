//! loss = log-sum-exp - x_t, and its gradient scale * (softmax(x) - onehot(t)). Twin of `shaders/cross_entropy.wgsl`.

use super::exp::exp_difference;
use super::{ignored, lanes};
use crate::job::RowTarget;

pub(super) fn row(x: &[f32], target: RowTarget) -> f32 {
    if target.is_ignored() {
        return 0.0;
    }
    let max = lanes::max(x);
    if !max.is_finite() {
        return f32::NAN;
    }
    lanes::stats(x, max).loss(x[target.class as usize], target.weight)
}

/// Replaces the logits by the gradient, and returns the loss.
pub(super) fn gradient_row(x: &mut [f32], target: RowTarget) -> f32 {
    let max = lanes::max(x);
    if let Some(gradient) = ignored(target, max) {
        x.fill(gradient);
        return 0.0;
    }
    if !max.is_finite() {
        x.fill(f32::NAN);
        return f32::NAN;
    }
    let class = target.class as usize;
    let logit = x[class];
    let stats = lanes::exponentials(x, max);
    let scale = f64::from(target.scale);
    lanes::scale(x, (scale / stats.sum()) as f32);
    x[class] = (-scale * stats.complement(logit, exp_difference(logit, max))) as f32;
    stats.loss(logit, target.weight)
}
