//! loss = log-sum-exp - y_t, and its gradient scale * (softmax(y) - onehot(t)), or the same for labels that are spread over
//! the classes: sum_j q_j * (log-sum-exp - y_j). Twin of `shaders/cross_entropy.wgsl`.

use crate::cpu::RowOperands;
use crate::cpu::rows::{Logs, ROWS, Rows, Stats};
use crate::cpu::simd::{Exp, Isa, Real};
use crate::cpu::transform::Kind;

impl<W: Real> RowOperands<'_, W> {
    /// Whether labels are not all of one class.
    #[inline(always)]
    fn is_spread(&self) -> bool {
        self.has_beside() || self.coefficients.off_value > 0.0
    }

    /// The label of a class; where the target is a class, without what it has beside its share.
    #[inline(always)]
    fn share(&self, row: usize, class: usize) -> f64 {
        let weight = self.coefficients.weight.map_or(1.0, |weight| f64::from(weight[class]));
        let own = if self.has_beside() { self.coefficients.on_value * self.beside(row, class).into() } else { 0.0 };
        weight * (own + self.coefficients.off_value)
    }

    /// The sum of those.
    #[inline(always)]
    fn shares<R: Rows<W = W>>(&self, rows: &R) -> [f64; ROWS] {
        if !self.has_beside() {
            return [self.coefficients.off_value * self.coefficients.class_weight; ROWS];
        }
        rows.sums(
            #[inline(always)]
            |row, class, _| self.share(row, class),
        )
    }
}

/// Targets that are classes, with what comes of them; of probabilities nothing.
struct Targets {
    is_ignored: [bool; ROWS],
    /// Of a row that is ignored the first.
    classes: [usize; ROWS],
    /// The label of the target's class beside its share.
    own: [f64; ROWS],
    /// What the gradient of a row is multiplied by: NaN for a mean over no weight, nothing where it is not counted.
    factors: [f64; ROWS],
}

impl Targets {
    #[inline(always)]
    fn new<W: Real>(operands: &RowOperands<'_, W>) -> Self {
        let (on_value, has_classes) = (operands.coefficients.on_value, !operands.has_beside());
        let factor = if operands.coefficients.factor.is_finite() { operands.coefficients.factor } else { f64::NAN };
        let (mut is_ignored, mut classes) = ([false; ROWS], [0; ROWS]);
        let (mut own, mut factors) = ([0.0; ROWS], [0.0; ROWS]);
        for (row, target) in operands.targets.iter().enumerate() {
            let ignored = has_classes & target.is_ignored();
            let has_class = has_classes & !target.is_ignored();
            is_ignored[row] = ignored;
            classes[row] = if has_class { target.class as usize } else { 0 };
            own[row] = if has_class { on_value * f64::from(target.weight) } else { 0.0 };
            factors[row] = if ignored { 0.0 } else { factor * operands.gradients[row] };
        }
        Self { is_ignored, classes, own, factors }
    }

    fn all_ignored(&self, count: usize) -> bool {
        self.is_ignored[..count].iter().all(|&ignored| ignored)
    }
}

/// What losses and gradients need beside the statistics.
struct Measured<W> {
    /// The logits of the targets.
    logits: [W; ROWS],
    logs: Logs,
    /// The labels together, without the target's own, which is apart.
    shares: [f64; ROWS],
    losses: [W; ROWS],
}

/// Computes the losses, and what the gradient needs from them. Not inlined: [`rows`] and [`gradient_rows`] share one copy.
#[inline(never)]
fn measure<R: Rows>(
    rows: &R,
    operands: &RowOperands<'_, R::W>,
    targets: &Targets,
    stats: &Stats<R::W>,
) -> Measured<R::W> {
    rows.isa().vectorize(
        #[inline(always)]
        || {
            let (kind, coefficients) = (rows.kind(), operands.coefficients);
            let logs = stats.logs(kind);
            let logits = rows.pick(&targets.classes);
            let mut losses = [0.0; ROWS];
            if operands.has_beside() {
                for row in 0..ROWS {
                    losses[row] = if stats.is_regular(row) { 0.0 } else { f64::NAN };
                }
            } else {
                for row in 0..ROWS {
                    // All terms are positive, so nothing cancels.
                    losses[row] = targets.own[row] * ((logs.tops[row] - kind.value(logits[row])) + logs.sums[row]);
                }
            }
            let mut shares = [0.0; ROWS];
            if operands.is_spread() {
                shares = operands.shares(rows);
                let below = rows.sums(
                    #[inline(always)]
                    |row, class, x| operands.share(row, class) * (logs.tops[row] - kind.value(x)),
                );
                for row in 0..ROWS {
                    if shares[row] > 0.0 || !(below[row] == 0.0) {
                        losses[row] += below[row] + shares[row] * logs.sums[row];
                    }
                }
            }
            if coefficients.z_loss > 0.0 {
                for row in 0..ROWS {
                    losses[row] += coefficients.z_loss * logs.whole(row) * logs.whole(row);
                }
            }
            let mut rounded = [R::W::ZERO; ROWS];
            for row in 0..ROWS {
                rounded[row] = if targets.is_ignored[row] { R::W::ZERO } else { R::W::of(losses[row]) };
            }
            Measured { logits, logs, shares, losses: rounded }
        },
    )
}

#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows>(rows: &mut R, operands: &RowOperands<'_, R::W>) -> [R::W; ROWS] {
    let targets = Targets::new(operands);
    if targets.all_ignored(rows.count()) {
        return [R::W::ZERO; ROWS];
    }
    let stats = rows.reduce(false);
    measure(rows, operands, &targets, &stats).losses
}

/// Replaces the logits by the gradient, and returns the losses.
#[inline(always)]
pub(in crate::cpu) fn gradient_rows<R: Rows>(rows: &mut R, operands: &RowOperands<'_, R::W>) -> [R::W; ROWS] {
    let kind = rows.kind();
    let targets = Targets::new(operands);
    if targets.all_ignored(rows.count()) {
        ignore(rows);
        return [R::W::ZERO; ROWS];
    }
    let stats = rows.reduce(true);
    let Measured { logits, logs, shares, losses } = measure(rows, operands, &targets, &stats);
    let (mut labels, mut z, mut multiples) = ([0.0; ROWS], [0.0; ROWS], [0.0; ROWS]);
    for row in 0..ROWS {
        labels[row] = targets.factors[row] * (targets.own[row] + shares[row]);
    }
    if operands.coefficients.z_loss > 0.0 {
        for row in 0..ROWS {
            // The derivative of the z-loss is a multiple of the probabilities.
            z[row] = 2.0 * targets.factors[row] * operands.coefficients.z_loss * logs.whole(row);
        }
    }
    for row in 0..ROWS {
        // Of a row that does not count 0, or NaN where the softmax is.
        let multiple = (labels[row] + z[row]) * stats.share(row);
        let ignored = if stats.is_regular(row) { 0.0 } else { f64::NAN };
        multiples[row] = if targets.is_ignored[row] { ignored } else { multiple };
    }
    if R::K::PLAIN && !operands.is_spread() {
        rows.scale(&stats, &multiples);
    } else {
        rows.map_with(
            &stats,
            #[inline(always)]
            |row, class, x, e| {
                let share = if operands.is_spread() { targets.factors[row] * operands.share(row, class) } else { 0.0 };
                // Adding 0 turns -0 into 0, so the gradient of an ignored row is 0 even where the slope is negative.
                R::W::of((e.into() * multiples[row] - share) * kind.slope(x) + 0.0)
            },
        );
    }
    if operands.has_beside() {
        return losses;
    }
    let terms = rows.terms(&stats, &logits);
    // What the others' shares add.
    let mut added = [0.0; ROWS];
    if operands.is_spread() {
        for row in 0..rows.count() {
            added[row] = targets.factors[row] * (shares[row] - operands.share(row, targets.classes[row]));
        }
    }
    let mut values = [R::W::ZERO; ROWS];
    for row in 0..ROWS {
        // p - 1 must not cancel; the other shares stand apart from it.
        let complement = stats.complement(row, kind.in_order_one(logits[row]) == stats.max[row], terms[row]);
        let value = added[row] - labels[row] * complement + z[row] * terms[row] * stats.share(row);
        let value = if targets.is_ignored[row] { 0.0 } else { value * kind.slope(logits[row]) };
        values[row] = R::W::of(if stats.is_regular(row) { value } else { f64::NAN });
    }
    rows.put(&targets.classes, &values);
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
pub(in crate::cpu) fn backward_rows<R: Rows>(rows: &mut R, operands: &RowOperands<'_, R::W>) {
    let (kind, coefficients) = (rows.kind(), operands.coefficients);
    let targets = Targets::new(operands);
    let shares = if operands.is_spread() { operands.shares(rows) } else { [0.0; ROWS] };
    let (mut factors, mut multiples, mut known) = ([0.0; ROWS], [0.0; ROWS], [0.0; ROWS]);
    for row in 0..ROWS {
        known[row] = operands.log_sum_exps[row].into();
        let z = if coefficients.z_loss > 0.0 { 2.0 * coefficients.z_loss * known[row] } else { 0.0 };
        factors[row] = if known[row].is_finite() { targets.factors[row] } else { f64::NAN };
        multiples[row] = targets.own[row] + shares[row] + z;
    }
    rows.map(
        #[inline(always)]
        |row, class, x| {
            let p: f64 = R::W::exp_wide(kind.value(x) - known[row]).into();
            let own = if class == targets.classes[row] { targets.own[row] } else { 0.0 };
            let share = if operands.is_spread() { operands.share(row, class) } else { 0.0 };
            let value = factors[row] * (multiples[row] * p - (own + share)) * kind.slope(x);
            // The gradient of a row that does not count is 0 whatever its logits.
            R::W::of(if factors[row] == 0.0 { 0.0 } else { value })
        },
    );
}
