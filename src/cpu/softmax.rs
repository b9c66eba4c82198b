//! softmax(x)_j = exp(x_j - max) / sum, and its logarithm. Twin of `shaders/softmax.wgsl`.

use super::lanes;

pub(super) fn row(x: &mut [f32]) {
    let max = lanes::max(x);
    if !max.is_finite() {
        return x.fill(f32::NAN);
    }
    let stats = lanes::exponentials(x, max);
    lanes::scale(x, (1.0 / stats.sum()) as f32);
}

pub(super) fn log_row(x: &mut [f32]) {
    let max = lanes::max(x);
    if !max.is_finite() {
        return x.fill(f32::NAN);
    }
    let stats = lanes::stats(x, max);
    lanes::logarithms(x, max, stats.others.ln_1p() as f32);
}
