//! loss = log-sum-exp - y_t, and its gradient scale * (softmax(y) - onehot(t)), or the same for labels that are spread over
//! the classes: sum_j q_j * (log-sum-exp - y_j). Twin of `shaders/cross_entropy.wgsl`.

use super::curve::{About, Known};
use super::real::Real;
use super::{Row, Stats, lanes};
use crate::curve::Curve;
use crate::job::Scaling;

/// The labels of a row, where they are not all of one class.
struct Spread<'r, W> {
    second: Option<&'r [W]>,
    weight: Option<&'r [f32]>,
    hit: f64,
    smoothing: f64,
}

impl<'r, W: Real> Spread<'r, W> {
    fn of(row: &Row<'r, W>, scaling: &Scaling<'r>) -> Option<Self> {
        let (weight, hit, smoothing) = (scaling.weight, scaling.hit, scaling.smoothing);
        (row.second.is_some() || smoothing > 0.0).then_some(Self { second: row.second, weight, hit, smoothing })
    }

    /// The label of a class; where the target is a class, without what it has beside its share.
    #[inline(always)]
    fn of_class(&self, class: usize) -> f64 {
        let weight = self.weight.map_or(1.0, |weight| f64::from(weight[class]));
        let own = self.second.map_or(0.0, |second| self.hit * second[class].into());
        weight * (own + self.smoothing)
    }

    /// The sum of those.
    fn total(&self, classes: usize, scaling: &Scaling<'_>) -> f64 {
        match self.second {
            None => self.smoothing * scaling.class_weight,
            Some(second) => lanes::sum(&second[..classes], |class, _| self.of_class(class)),
        }
    }
}

/// What a loss needs of a row's logits beside their maximum and sum.
struct Measured {
    /// The label of the target's class beside its share, and how far below the maximum its logit is.
    own: f64,
    below: f64,
    /// The other labels together, and the same of them.
    shares: f64,
    shares_below: f64,
}

impl Measured {
    fn new<W: Real, A: About<W>>(
        x: &[W],
        row: &Row<'_, W>,
        scaling: &Scaling<'_>,
        spread: Option<&Spread<'_, W>>,
        about: A,
    ) -> Self {
        let mut measured = Self { own: 0.0, below: 0.0, shares: 0.0, shares_below: 0.0 };
        if row.second.is_none() {
            measured.own = scaling.hit * f64::from(row.target.weight);
            measured.below = about.below(x[row.target.class as usize]);
        }
        if let Some(spread) = spread {
            measured.shares = spread.total(x.len(), scaling);
            measured.shares_below = lanes::sum(x, |class, x| spread.of_class(class) * about.below(x));
        }
        measured
    }

    /// All terms are positive, so nothing cancels.
    fn loss<W: Real, A: About<W>>(&self, stats: Stats<A>, scaling: &Scaling<'_>) -> W {
        let log_sum = stats.others.ln_1p();
        let mut loss = self.own * (self.below + log_sum);
        if self.shares > 0.0 || !(self.shares_below == 0.0) {
            loss += self.shares_below + self.shares * log_sum;
        }
        if scaling.z_loss > 0.0 {
            loss += scaling.z_loss * stats.log_sum_exp().powi(2);
        }
        W::of(loss)
    }
}

fn is_ignored<W>(row: &Row<'_, W>) -> bool {
    row.second.is_none() && row.target.is_ignored()
}

pub(super) fn row<W: Real, A: About<W>>(x: &[W], row: &Row<'_, W>, scaling: &Scaling<'_>, curve: &Curve) -> W {
    if is_ignored(row) {
        return W::ZERO;
    }
    let about = A::new(curve, lanes::max::<W, A>(x, curve));
    if !about.is_regular() {
        return W::NAN;
    }
    let spread = Spread::of(row, scaling);
    Measured::new(x, row, scaling, spread.as_ref(), about).loss(lanes::stats(x, curve, about), scaling)
}

/// Replaces the logits by the gradient, and returns the loss.
pub(super) fn gradient_row<W: Real, A: About<W>>(
    x: &mut [W],
    row: &Row<'_, W>,
    scaling: &Scaling<'_>,
    curve: &Curve,
) -> W {
    let about = A::new(curve, lanes::max::<W, A>(x, curve));
    if is_ignored(row) {
        // NaN where its softmax is.
        x.fill(if about.is_regular() { W::ZERO } else { W::NAN });
        return W::ZERO;
    }
    if !about.is_regular() {
        x.fill(W::NAN);
        return W::NAN;
    }
    let spread = Spread::of(row, scaling);
    let measured = Measured::new(x, row, scaling, spread.as_ref(), about);
    let logit = row.second.is_none().then(|| x[row.target.class as usize]);
    let stats = if A::PLAIN { lanes::exponentials(x, curve, about) } else { lanes::stats(x, curve, about) };
    let loss = measured.loss(stats, scaling);
    if !scaling.factor.is_finite() {
        // A mean over no weight.
        x.fill(W::NAN);
        return loss;
    }
    let factor = scaling.factor * row.gradient;
    let labels = factor * (measured.own + measured.shares);
    // The derivative of the z-loss is a multiple of the probabilities.
    let z = if scaling.z_loss > 0.0 { 2.0 * factor * scaling.z_loss * stats.log_sum_exp() } else { 0.0 };
    let multiple = W::of((labels + z) / stats.sum());
    match &spread {
        None if A::PLAIN => lanes::scale(x, multiple),
        _ => lanes::map(x, |class, x| {
            let e = if A::PLAIN { x } else { about.exp(x) };
            let share = spread.as_ref().map_or(0.0, |spread| factor * spread.of_class(class));
            W::of((e.times(multiple).into() - share) * about.slope(x))
        }),
    }
    if let Some(logit) = logit {
        // p - 1 must not cancel; what the others' shares add stands apart from it.
        let class = row.target.class as usize;
        let share = spread.as_ref().map_or(0.0, |spread| measured.shares - spread.of_class(class));
        let term: f64 = about.exp(logit).into();
        let complement = stats.complement(A::in_order(curve, logit) == about.max(), term);
        let value = factor * share - labels * complement + z * term / stats.sum();
        x[class] = W::of(value * about.slope(logit));
    }
    loss
}

/// Replaces the logits by the gradient, from a log-sum-exp that is known.
pub(super) fn backward_row<W: Real, A: About<W>>(x: &mut [W], row: &Row<'_, W>, scaling: &Scaling<'_>, curve: &Curve) {
    let known = Known::<A>::new(curve, row.log_sum_exp);
    let is_regular = known.log_sum_exp().is_finite();
    if is_ignored(row) || !is_regular || !scaling.factor.is_finite() {
        return x.fill(if is_regular && is_ignored(row) { W::ZERO } else { W::NAN });
    }
    let spread = Spread::of(row, scaling);
    let own = if row.second.is_none() { scaling.hit * f64::from(row.target.weight) } else { 0.0 };
    let labels = own + spread.as_ref().map_or(0.0, |spread| spread.total(x.len(), scaling));
    let factor = scaling.factor * row.gradient;
    let z = if scaling.z_loss > 0.0 { 2.0 * scaling.z_loss * known.log_sum_exp() } else { 0.0 };
    let class = if row.second.is_none() { row.target.class as usize } else { usize::MAX };
    lanes::map(x, |at, x| {
        let mut label = spread.as_ref().map_or(0.0, |spread| spread.of_class(at));
        if at == class {
            label += own;
        }
        W::of(factor * ((labels + z) * known.probability(x) - label) * known.slope(x))
    });
}
