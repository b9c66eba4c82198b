//! loss = log-sum-exp - x_t, and its gradient scale * (softmax(x) - onehot(t)), or the same for smoothed labels. Twin of
//! `shaders/cross_entropy.wgsl`.

use super::exp::exp_difference;
use super::{Stats, ignored, lanes};
use crate::job::{RowTarget, Scaling};

pub(super) fn row(x: &[f32], target: RowTarget, scaling: &Scaling<'_>) -> f32 {
    if target.is_ignored() {
        return 0.0;
    }
    let max = lanes::max(x);
    if !max.is_finite() {
        return f32::NAN;
    }
    let below = lanes::below(x, max, scaling);
    loss(lanes::stats(x, max), below, x[target.class as usize], target, scaling)
}

/// Replaces the logits by the gradient, and returns the loss.
pub(super) fn gradient_row(x: &mut [f32], target: RowTarget, scaling: &Scaling<'_>) -> f32 {
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
    let (logit, weight) = (x[class], f64::from(target.weight));
    let below = lanes::below(x, max, scaling);
    let stats = lanes::exponentials(x, max);
    if !scaling.factor.is_finite() {
        // A mean over no weight.
        x.fill(f32::NAN);
        return loss(stats, below, logit, target, scaling);
    }
    let labels = scaling.hit * weight + scaling.smoothing * scaling.class_weight;
    let scale = scaling.factor * labels;
    // The derivative of the z-loss is a multiple of the probabilities.
    let slope = 2.0 * scaling.factor * scaling.z_loss * stats.log_sum_exp();
    lanes::scale(x, ((scale + slope) / stats.sum()) as f32);
    let share = scaling.factor * scaling.smoothing;
    if scaling.smoothing > 0.0 {
        lanes::lower(x, share, scaling.weight);
    }
    // What the others' shares add stands apart from p - 1, which must not cancel.
    let shares = if scaling.smoothing > 0.0 { share * (scaling.class_weight - weight) } else { 0.0 };
    let term = exp_difference(logit, max);
    x[class] = (shares - scale * stats.complement(logit, term) + slope * f64::from(term) / stats.sum()) as f32;
    loss(stats, below, logit, target, scaling)
}

/// All terms are positive, so nothing cancels.
fn loss(stats: Stats, below: f64, logit: f32, target: RowTarget, scaling: &Scaling<'_>) -> f32 {
    let log_sum = stats.others.ln_1p();
    let own = scaling.hit * f64::from(target.weight) * (f64::from(stats.max) - f64::from(logit) + log_sum);
    let every = if scaling.smoothing > 0.0 { below + scaling.class_weight * log_sum } else { 0.0 };
    let z = if scaling.z_loss > 0.0 { scaling.z_loss * stats.log_sum_exp().powi(2) } else { 0.0 };
    (own + scaling.smoothing * every + z) as f32
}
