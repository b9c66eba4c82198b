//! The backward of softmax, p_j * (g_j - sum_k g_k * p_k), and of log-softmax, g_j - exp(l_j) * sum_k g_k, from their
//! results. Twin of `shaders/backward.wgsl`.

use super::lanes;
use super::real::Real;

/// Replaces the probabilities by the gradient.
pub(super) fn row<W: Real>(p: &mut [W], upstream: &[W], scale: f64) {
    let dot = lanes::sum(p, |class, p| upstream[class].into() * p.into());
    lanes::map(p, |class, p| W::of(p.into() * (upstream[class].into() - dot) * scale));
}

/// Replaces the log-probabilities by the gradient.
pub(super) fn log_row<W: Real>(l: &mut [W], upstream: &[W], scale: f64) {
    let sum = lanes::sum(l, |class, _| upstream[class].into());
    lanes::map(l, |class, l| W::of((upstream[class].into() - W::exp(l.into()).into() * sum) * scale));
}
