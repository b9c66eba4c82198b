//! The classes with the largest logits, and their probabilities. Twins of `shaders/predict.wgsl` and `shaders/top_k.wgsl`.

use super::curve::About;
use super::lanes;
use super::real::Real;
use crate::Prediction;
use crate::job::Curve;

pub(super) fn row<W: Real, A: About<W>>(x: &[W], curve: &Curve) -> Prediction {
    let max = lanes::max::<W, A>(x, curve);
    let is_nan = |x: W| x.into().is_nan();
    let class = x.iter().position(|&x| A::in_order(curve, x) == max || (is_nan(max) && is_nan(x))).unwrap_or(0) as u32;
    let about = A::new(curve, max);
    let probability = if about.is_regular() { 1.0 / lanes::stats(x, curve, about).sum() } else { f64::NAN };
    Prediction { class, probability: probability as f32 }
}

/// The `out.len()` largest, which is no more than there are classes: in falling order, of equal ones the lower class first.
pub(super) fn top_row<W: Real, A: About<W>>(x: &[W], curve: &Curve, out: &mut [Prediction]) {
    let about = A::new(curve, lanes::max::<W, A>(x, curve));
    // Found so far, best first. NaN counts as largest.
    let mut best: Vec<(W, u32)> = Vec::with_capacity(out.len() + 1);
    let is_above = |a: W, b: W| a > b || (a.into().is_nan() && !b.into().is_nan());
    for (class, &x) in x.iter().enumerate() {
        let x = A::in_order(curve, x);
        if best.len() == out.len() && !best.last().is_some_and(|&(worst, _)| is_above(x, worst)) {
            continue;
        }
        let at = best.partition_point(|&(other, _)| !is_above(x, other));
        best.truncate(out.len() - 1);
        best.insert(at, (x, class as u32));
    }
    let sum = if about.is_regular() { lanes::stats(x, curve, about).sum() } else { f64::NAN };
    for (out, (x, class)) in out.iter_mut().zip(best) {
        // In order and back.
        let e: f64 = if about.is_regular() { about.exp(A::in_order(curve, x)).into() } else { f64::NAN };
        *out = Prediction { class, probability: (e / sum) as f32 };
    }
}
