//! loss = log-sum-exp - y_t, and its gradient scale * (softmax(y) - onehot(t)), or the same for labels that are spread over
//! the classes: sum_j q_j * (log-sum-exp - y_j). Twin of `shaders/cross_entropy.wgsl`.

use super::Given;
use super::curve::Kind;
use super::simd::{Exp, Real, each};
use super::sweep::{ROWS, Rows, Stats};

impl<W: Real> Given<'_, W> {
    /// Whether labels are not all of one class.
    #[inline(always)]
    fn is_spread(&self) -> bool {
        self.has_beside() || self.scaling.smoothing > 0.0
    }

    #[inline(always)]
    fn is_ignored(&self, row: usize) -> bool {
        !self.has_beside() && self.targets[row].is_ignored()
    }

    /// The label of the target's class beside its share.
    #[inline(always)]
    fn own(&self, row: usize) -> f64 {
        if self.has_beside() { 0.0 } else { self.scaling.hit * f64::from(self.targets[row].weight) }
    }

    /// The label of a class; where the target is a class, without what it has beside its share.
    #[inline(always)]
    fn share(&self, row: usize, class: usize) -> f64 {
        let weight = self.scaling.weight.map_or(1.0, |weight| f64::from(weight[class]));
        let own = if self.has_beside() { self.scaling.hit * self.beside(row, class).into() } else { 0.0 };
        weight * (own + self.scaling.smoothing)
    }

    /// The sum of those.
    #[inline(always)]
    fn shares<R: Rows<W = W>>(&self, rows: &R) -> [f64; ROWS] {
        if !self.has_beside() {
            return [self.scaling.smoothing * self.scaling.class_weight; ROWS];
        }
        rows.sums(
            #[inline(always)]
            |row, class, _| self.share(row, class),
        )
    }

    /// What the gradient of a row is multiplied by: NaN for a mean over no weight, nothing where it is not counted.
    #[inline(always)]
    fn factor(&self, row: usize) -> f64 {
        let factor = if self.scaling.factor.is_finite() { self.scaling.factor } else { f64::NAN };
        if self.is_ignored(row) { 0.0 } else { factor * self.gradients[row] }
    }

    fn all_ignored(&self, count: usize) -> bool {
        (0..count).all(|row| self.is_ignored(row))
    }
}

/// What losses and gradients need beside the statistics.
struct Measured<W> {
    /// The logits of the targets.
    logits: [W; ROWS],
    /// The labels together, without the target's own, which is apart.
    shares: [f64; ROWS],
    losses: [W; ROWS],
}

#[inline(always)]
fn measure<R: Rows>(rows: &R, given: &Given<'_, R::W>, stats: &Stats<R::W>) -> Measured<R::W> {
    let (kind, scaling) = (rows.kind(), given.scaling);
    let mut logits = [R::W::ZERO; ROWS];
    if !given.has_beside() {
        for row in 0..rows.count() {
            if !given.is_ignored(row) {
                logits[row] = rows.get(row, given.targets[row].class as usize);
            }
        }
    }
    let mut losses = [0.0; ROWS];
    for row in 0..ROWS {
        // All terms are positive, so nothing cancels.
        losses[row] = given.own(row) * ((stats.tops[row] - kind.value(logits[row])) + stats.log_sums[row]);
    }
    if given.has_beside() {
        losses = each(
            stats.tops,
            #[inline(always)]
            |top| if top.is_nan() { top } else { 0.0 },
        );
    }
    let mut shares = [0.0; ROWS];
    if given.is_spread() {
        shares = given.shares(rows);
        let below = rows.sums(
            #[inline(always)]
            |row, class, x| given.share(row, class) * (stats.tops[row] - kind.value(x)),
        );
        for row in 0..ROWS {
            if shares[row] > 0.0 || !(below[row] == 0.0) {
                losses[row] += below[row] + shares[row] * stats.log_sums[row];
            }
        }
    }
    if scaling.z_loss > 0.0 {
        for row in 0..ROWS {
            losses[row] += scaling.z_loss * stats.log_sum_exp(row) * stats.log_sum_exp(row);
        }
    }
    let mut rounded = [R::W::ZERO; ROWS];
    for row in 0..ROWS {
        rounded[row] = if given.is_ignored(row) { R::W::ZERO } else { R::W::of(losses[row]) };
    }
    Measured { logits, shares, losses: rounded }
}

#[inline(always)]
pub(super) fn rows<R: Rows>(rows: &mut R, given: &Given<'_, R::W>) -> [R::W; ROWS] {
    if given.all_ignored(rows.count()) {
        return [R::W::ZERO; ROWS];
    }
    let stats = rows.reduce(false);
    measure(rows, given, &stats).losses
}

/// Replaces the logits by the gradient, and returns the losses.
#[inline(always)]
pub(super) fn gradient_rows<R: Rows>(rows: &mut R, given: &Given<'_, R::W>) -> [R::W; ROWS] {
    let kind = rows.kind();
    if given.all_ignored(rows.count()) {
        ignore(rows);
        return [R::W::ZERO; ROWS];
    }
    let stats = rows.reduce(true);
    let Measured { logits, shares, losses } = measure(rows, given, &stats);
    let (mut labels, mut z, mut multiples) = ([0.0; ROWS], [0.0; ROWS], [0.0; ROWS]);
    for row in 0..ROWS {
        let factor = given.factor(row);
        labels[row] = factor * (given.own(row) + shares[row]);
        if given.scaling.z_loss > 0.0 {
            // The derivative of the z-loss is a multiple of the probabilities.
            z[row] = 2.0 * factor * given.scaling.z_loss * stats.log_sum_exp(row);
        }
        multiples[row] = (labels[row] + z[row]) * stats.share(row);
        if given.is_ignored(row) {
            multiples[row] = if stats.is_regular(row) { 0.0 } else { f64::NAN };
        }
    }
    if R::K::PLAIN && !given.is_spread() {
        rows.scale(&stats, &multiples);
    } else {
        rows.map_with(
            &stats,
            #[inline(always)]
            |row, class, x, e| {
                let share = if given.is_spread() { given.factor(row) * given.share(row, class) } else { 0.0 };
                R::W::of((e.into() * multiples[row] - share) * kind.slope(x))
            },
        );
    }
    if given.has_beside() {
        return losses;
    }
    let terms = rows.terms(&stats, &logits);
    // What the others' shares add.
    let mut added = [0.0; ROWS];
    if given.is_spread() {
        for row in 0..rows.count() {
            if !given.is_ignored(row) {
                added[row] = given.factor(row) * (shares[row] - given.share(row, given.targets[row].class as usize));
            }
        }
    }
    let mut values = [R::W::ZERO; ROWS];
    for row in 0..ROWS {
        // p - 1 must not cancel; the other shares stand apart from it.
        let complement = stats.complement(row, kind.in_order_one(logits[row]) == stats.max[row], terms[row]);
        let value = added[row] - labels[row] * complement + z[row] * terms[row] * stats.share(row);
        values[row] = R::W::of(value * kind.slope(logits[row]));
    }
    for row in 0..rows.count() {
        if !given.is_ignored(row) && stats.is_regular(row) {
            rows.set(row, given.targets[row].class as usize, values[row]);
        }
    }
    losses
}

/// The gradient of rows that do not count: NaN where the softmax is.
fn ignore<R: Rows>(rows: &mut R) {
    let (kind, maxima) = (rows.kind(), rows.maxima());
    let mut values = [R::W::ZERO; ROWS];
    for row in 0..rows.count() {
        if !kind.is_regular(maxima[row]) || rows.first(row, |x| !x.is_number()).is_some() {
            values[row] = R::W::NAN;
        }
    }
    rows.map(|row, _, _| values[row]);
}

/// Replaces the logits by the gradient, from log-sum-exps that are known.
#[inline(always)]
pub(super) fn backward_rows<R: Rows>(rows: &mut R, given: &Given<'_, R::W>) {
    let (kind, scaling) = (rows.kind(), given.scaling);
    let shares = if given.is_spread() { given.shares(rows) } else { [0.0; ROWS] };
    let (mut factors, mut multiples, mut classes) = ([0.0; ROWS], [0.0; ROWS], [usize::MAX; ROWS]);
    let known: [f64; ROWS] = each(
        given.log_sum_exps,
        #[inline(always)]
        |value| value.into(),
    );
    for row in 0..rows.count() {
        let z = if scaling.z_loss > 0.0 { 2.0 * scaling.z_loss * known[row] } else { 0.0 };
        factors[row] = if known[row].is_finite() { given.factor(row) } else { f64::NAN };
        multiples[row] = given.own(row) + shares[row] + z;
        if given.is_ignored(row) {
            multiples[row] = 0.0;
        } else if !given.has_beside() {
            classes[row] = given.targets[row].class as usize;
        }
    }
    rows.map(
        #[inline(always)]
        |row, class, x| {
            let p: f64 = R::W::exp_wide(kind.value(x) - known[row]).into();
            let own = if class == classes[row] { given.own(row) } else { 0.0 };
            let share = if given.is_spread() { given.share(row, class) } else { 0.0 };
            let value = factors[row] * (multiples[row] * p - (own + share)) * kind.slope(x);
            // The gradient of a row that does not count is 0 whatever its logits.
            R::W::of(if factors[row] == 0.0 { 0.0 } else { value })
        },
    );
}
