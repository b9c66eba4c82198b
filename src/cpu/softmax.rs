//! softmax(y)_j = exp(y_j - max) / sum, and its logarithm. Twin of `shaders/softmax.wgsl`.

use super::curve::About;
use super::lanes;
use super::real::Real;
use crate::curve::Curve;

pub(super) fn row<W: Real, A: About<W>>(x: &mut [W], curve: &Curve) {
    let about = A::new(curve, lanes::max::<W, A>(x, curve));
    if !about.is_regular() {
        return x.fill(W::NAN);
    }
    let stats = lanes::exponentials(x, curve, about);
    lanes::scale(x, W::of(1.0 / stats.sum()));
}

pub(super) fn log_row<W: Real, A: About<W>>(x: &mut [W], curve: &Curve) {
    let about = A::new(curve, lanes::max::<W, A>(x, curve));
    if !about.is_regular() {
        return x.fill(W::NAN);
    }
    let log_sum = W::of(lanes::stats(x, curve, about).others.ln_1p());
    lanes::map(x, |_, x| about.log(x, log_sum));
}
