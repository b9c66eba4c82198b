//! The class with the largest logit, and its probability 1 / sum. Twin of `shaders/predict.wgsl`.

use super::lanes;
use crate::Prediction;

pub(super) fn row(x: &[f32]) -> Prediction {
    let max = lanes::max(x);
    let class = x.iter().position(|&x| x == max || (max.is_nan() && x.is_nan())).unwrap_or(0) as u32;
    let probability = if max.is_finite() { (1.0 / lanes::stats(x, max).sum()) as f32 } else { f32::NAN };
    Prediction { class, probability }
}
