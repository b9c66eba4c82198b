//! log(sum_j exp(y_j)). Twin of `shaders/log_sum_exp.wgsl`.

use super::curve::About;
#[cfg(feature = "gpu")]
use super::curve::{Curved, Plain};
use super::lanes;
use super::real::Real;
use crate::curve::Curve;

pub(super) fn row<W: Real, A: About<W>>(x: &[W], curve: &Curve) -> W {
    let about = A::new(curve, lanes::max::<W, A>(x, curve));
    if !about.is_regular() {
        // -inf of nothing but -inf, +inf with a +inf, else NaN: as PyTorch.
        return W::of(about.top());
    }
    let stats = lanes::stats(x, curve, about);
    let log_sum_exp = stats.log_sum_exp();
    // The exponentials of an f32 row are f32, so the logarithm is off by up to 1e-7 of its slope others / (1 + others);
    // where max all but cancels it, that would be much of the little that is left.
    if log_sum_exp.abs() < 0.32 * stats.others / stats.sum() {
        return W::of(exact_about(x.iter().map(|&x| about.value(x)), about.top()));
    }
    W::of(log_sum_exp)
}

/// The same in float64 throughout: slow, for the rare rows of a GPU whose log-sum-exp is next to 0.
#[cfg(feature = "gpu")]
pub(crate) fn exact(x: &[f32], curve: &Curve) -> f32 {
    fn of<A: About<f32>>(x: &[f32], curve: &Curve) -> f64 {
        let about = A::new(curve, lanes::max::<f32, A>(x, curve));
        if !about.is_regular() {
            return about.top();
        }
        exact_about(x.iter().map(|&x| about.value(x)), about.top())
    }
    (if curve.is_plain() { of::<Plain<f32>>(x, curve) } else { of::<Curved<f32>>(x, curve) }) as f32
}

fn exact_about(values: impl Iterator<Item = f64>, top: f64) -> f64 {
    let (mut others, mut tops) = (0.0_f64, 0_u64);
    for y in values {
        if y == top {
            tops += 1;
        } else {
            others += (y - top).exp();
        }
    }
    top + (others + tops.saturating_sub(1) as f64).ln_1p()
}
