//! What is made of a logit before anything else, as the inner loops are specialised by it: nothing, or a scale and a soft
//! cap. Twin of `shaders/shared/curve.wgsl`.

use super::exp;
use super::real::Real;
use crate::curve::Curve;

/// A row seen from its largest logit: y(x) is monotonic in x, up to the sign of the scale.
pub(super) trait About<W: Real>: Copy {
    /// Whether y(x) = x.
    const PLAIN: bool;
    /// Of a row whose logits in order, [`About::in_order`], are at most `max`.
    fn new(curve: &Curve, max: W) -> Self;
    /// x, or -x where the scale is negative.
    fn in_order(curve: &Curve, x: W) -> W;
    /// The largest logit in order.
    fn max(self) -> W;
    /// Whether the softmax has a value.
    fn is_regular(self) -> bool;
    /// y of the largest logit.
    fn top(self) -> f64;
    /// y(x).
    fn value(self, x: W) -> f64;
    /// y of the largest logit less y(x).
    fn below(self, x: W) -> f64;
    /// exp(y(x) - y(max)).
    fn exp(self, x: W) -> W;
    /// y(x) - y(max) - log_sum.
    fn log(self, x: W, log_sum: W) -> W;
    /// The derivative of y.
    fn slope(self, x: W) -> f64;
}

#[derive(Clone, Copy)]
pub(super) struct Plain<W>(W);

impl<W: Real> About<W> for Plain<W> {
    const PLAIN: bool = true;

    fn new(_: &Curve, max: W) -> Self {
        Self(max)
    }

    #[inline(always)]
    fn in_order(_: &Curve, x: W) -> W {
        x
    }

    fn max(self) -> W {
        self.0
    }

    fn is_regular(self) -> bool {
        self.top().is_finite()
    }

    fn top(self) -> f64 {
        self.0.into()
    }

    #[inline(always)]
    fn value(self, x: W) -> f64 {
        x.into()
    }

    #[inline(always)]
    fn below(self, x: W) -> f64 {
        self.top() - x.into()
    }

    #[inline(always)]
    fn exp(self, x: W) -> W {
        x.exp_below(self.0)
    }

    #[inline(always)]
    fn log(self, x: W, log_sum: W) -> W {
        x.log_below(self.0, log_sum)
    }

    fn slope(self, _: W) -> f64 {
        1.0
    }
}

/// In f64, for a product rounded to f32 would be off by much of a logit of 80.
#[derive(Clone, Copy)]
pub(super) struct Curved<W> {
    max: W,
    top: f64,
    scale: f64,
    softcap: Option<f64>,
}

impl<W: Real> About<W> for Curved<W> {
    const PLAIN: bool = false;

    fn new(&Curve { scale, softcap }: &Curve, max: W) -> Self {
        let about = Self { max, top: 0.0, scale, softcap };
        let x = if scale < 0.0 { -max } else { max };
        Self { top: about.value(x), ..about }
    }

    #[inline(always)]
    fn in_order(curve: &Curve, x: W) -> W {
        if curve.scale < 0.0 { -x } else { x }
    }

    fn max(self) -> W {
        self.max
    }

    fn is_regular(self) -> bool {
        // A cap makes numbers of infinities.
        let max: f64 = self.max.into();
        if self.softcap.is_some() { !max.is_nan() } else { max.is_finite() }
    }

    fn top(self) -> f64 {
        self.top
    }

    #[inline(always)]
    fn value(self, x: W) -> f64 {
        let x = self.scale * x.into();
        match self.softcap {
            None => x,
            Some(cap) => cap * exp::tanh(x / cap).0,
        }
    }

    #[inline(always)]
    fn below(self, x: W) -> f64 {
        self.top - self.value(x)
    }

    #[inline(always)]
    fn exp(self, x: W) -> W {
        W::exp(self.value(x) - self.top)
    }

    #[inline(always)]
    fn log(self, x: W, log_sum: W) -> W {
        W::of((self.value(x) - self.top) - log_sum.into())
    }

    fn slope(self, x: W) -> f64 {
        let x = self.scale * x.into();
        self.scale * self.softcap.map_or(1.0, |cap| exp::tanh(x / cap).1)
    }
}

/// A row whose log-sum-exp is known: about that, everything is as about a maximum that stands alone.
#[derive(Clone, Copy)]
pub(super) struct Known<A> {
    about: A,
    log_sum_exp: f64,
}

impl<A> Known<A> {
    pub(super) fn new<W: Real>(curve: &Curve, log_sum_exp: W) -> Self
    where
        A: About<W>,
    {
        Self { about: A::new(curve, W::ZERO), log_sum_exp: log_sum_exp.into() }
    }

    pub(super) fn log_sum_exp(self) -> f64 {
        self.log_sum_exp
    }

    /// The probability of a logit.
    #[inline(always)]
    pub(super) fn probability<W: Real>(self, x: W) -> f64
    where
        A: About<W>,
    {
        W::exp(self.about.value(x) - self.log_sum_exp).into()
    }

    #[inline(always)]
    pub(super) fn slope<W: Real>(self, x: W) -> f64
    where
        A: About<W>,
    {
        self.about.slope(x)
    }
}
