//! The classes with the largest logits, and their probabilities. Twins of `shaders/predict.wgsl` and `shaders/top_k.wgsl`.

use super::curve::About;
use super::lanes;
use super::real::Real;
use crate::Prediction;
use crate::curve::Curve;
use crate::operations::MOST_TOP;

pub(super) fn row<W: Real, A: About<W>>(x: &[W], curve: &Curve) -> Prediction {
    let max = lanes::max::<W, A>(x, curve);
    let is_it = |&x: &W| A::in_order(curve, x) == max || !(max.is_number() || x.is_number());
    let class = x.iter().position(is_it).unwrap_or(0) as u32;
    let about = A::new(curve, max);
    let probability = if about.is_regular() { 1.0 / lanes::stats(x, curve, about).sum() } else { f64::NAN };
    Prediction { class, probability: probability as f32 }
}

/// The `out.len()` largest, which is no more than there are classes: in falling order, of equal ones the lower class first.
pub(super) fn top_row<W: Real, A: About<W>>(x: &[W], curve: &Curve, out: &mut [Prediction]) {
    let about = A::new(curve, lanes::max::<W, A>(x, curve));
    // Found so far, best first. NaN counts as largest.
    let mut best = [(W::ZERO, 0); MOST_TOP];
    let (k, mut found) = (out.len().min(MOST_TOP), 0);
    let is_above = |a: W, b: W| a > b || (!a.is_number() && b.is_number());
    for (class, &x) in x.iter().enumerate() {
        let x = A::in_order(curve, x);
        if found == k && !is_above(x, best[k - 1].0) {
            continue;
        }
        // Mostly near the end.
        let mut at = found.min(k - 1);
        while at > 0 && is_above(x, best[at - 1].0) {
            best[at] = best[at - 1];
            at -= 1;
        }
        best[at] = (x, class as u32);
        found = k.min(found + 1);
    }
    let sum = if about.is_regular() { lanes::stats(x, curve, about).sum() } else { f64::NAN };
    for (out, (x, class)) in out.iter_mut().zip(best) {
        // In order and back.
        let e: f64 = if about.is_regular() { about.exp(A::in_order(curve, x)).into() } else { f64::NAN };
        *out = Prediction { class, probability: (e / sum) as f32 };
    }
}
