//! Cross-entropy: loss = log-sum-exp - y_t, and its gradient scale * (softmax(y) - onehot(t)); with
//! labels q that are spread over the classes, loss = sum_j q_j * (log-sum-exp - y_j). Twin of
//! `shaders/cross_entropy.wgsl`.
//!
//! Labels come first, then the losses, the gradient from the logits, and the gradient from a saved
//! log-sum-exp.

use crate::cpu::RowOperands;
use crate::cpu::rows::{LogSumExps, ROWS, Rows, Stats};
use crate::cpu::simd::{Exp, Isa, Real};
use crate::cpu::transform::LogitTransform;

impl<W: Real> RowOperands<'_, W> {
    /// Returns whether the label of a row is spread over the classes, by soft targets or label
    /// smoothing.
    #[inline(always)]
    fn has_spread_labels(&self) -> bool {
        self.has_elementwise() || self.coefficients.off_value > 0.0
    }

    /// Returns the spread part of the label of a class: weight * (on_value * soft target +
    /// off_value). A target that is a class has its on-label beside that.
    #[inline(always)]
    fn spread_label(&self, row: usize, class: usize) -> f64 {
        let weight = self.coefficients.weight.map_or(1.0, |weight| f64::from(weight[class]));
        let on_label = if self.has_elementwise() {
            self.coefficients.on_value * self.elementwise(row, class).into()
        } else {
            0.0
        };
        weight * (on_label + self.coefficients.off_value)
    }

    /// Returns the sum of the spread labels of each row.
    #[inline(always)]
    fn spread_label_sums<R: Rows<W = W>>(&self, rows: &R) -> [f64; ROWS] {
        if !self.has_elementwise() {
            return [self.coefficients.off_value * self.coefficients.class_weight; ROWS];
        }
        rows.sums(
            #[inline(always)]
            |row, class, _| self.spread_label(row, class),
        )
    }
}

/// Targets that are classes, and what follows from them. Soft targets have no class and no
/// on-label.
struct Targets {
    is_ignored: [bool; ROWS],
    /// The target classes; class 0 for an ignored row.
    classes: [usize; ROWS],
    /// The on-label: the label of the target's class beside its spread label.
    on_label: [f64; ROWS],
    /// The factor of the gradient of a row: NaN for a mean over no weight, 0 for an ignored row.
    factors: [f64; ROWS],
}

impl Targets {
    #[inline(always)]
    fn new<W: Real>(operands: &RowOperands<'_, W>) -> Self {
        let (on_value, has_classes) = (operands.coefficients.on_value, !operands.has_elementwise());
        let factor = if operands.coefficients.factor.is_finite() {
            operands.coefficients.factor
        } else {
            f64::NAN
        };
        let (mut is_ignored, mut classes) = ([false; ROWS], [0; ROWS]);
        let (mut on_label, mut factors) = ([0.0; ROWS], [0.0; ROWS]);
        for (row, target) in operands.targets.iter().enumerate() {
            let ignored = has_classes & target.is_ignored();
            let has_class = has_classes & !target.is_ignored();
            is_ignored[row] = ignored;
            classes[row] = if has_class { target.class as usize } else { 0 };
            on_label[row] = if has_class { on_value * f64::from(target.weight) } else { 0.0 };
            factors[row] = if ignored { 0.0 } else { factor * operands.gradients[row] };
        }
        Self { is_ignored, classes, on_label, factors }
    }

    fn all_ignored(&self, count: usize) -> bool {
        self.is_ignored[..count].iter().all(|&ignored| ignored)
    }
}

/// The losses, and what gradients need beside the statistics.
struct Measured<W> {
    /// The logits of the targets.
    logits: [W; ROWS],
    lse: LogSumExps,
    /// The sums of the spread labels.
    spread_sums: [f64; ROWS],
    /// The factor of a focal loss in the gradient; 1 where it is off.
    focal_slopes: [f64; ROWS],
    losses: [W; ROWS],
}

/// Returns the factor of a focal loss, `u^gamma` with `u = 1 - p` of the target, and its factor in
/// the gradient, `u^gamma (1 + gamma p (-log p) / u)`.
#[inline(always)]
fn focal(gamma: f64, u: f64, p: f64, minus_log_p: f64) -> [f64; 2] {
    let power = u.powf(gamma);
    // The limits of p (-log p) / u are 0 where p is 0, and 1 where u is 0.
    let ratio = match (p == 0.0, u == 0.0) {
        (true, _) => 0.0,
        (_, true) => 1.0,
        _ => p * minus_log_p / u,
    };
    [power, power * (1.0 + gamma * ratio)]
}

/// Computes the losses, and what the gradient needs from them. Not inlined: [`rows`] and
/// [`gradient_rows`] share one copy.
#[inline(never)]
fn losses_and_labels<R: Rows>(
    rows: &R,
    operands: &RowOperands<'_, R::W>,
    targets: &Targets,
    stats: &Stats<R::W>,
) -> Measured<R::W> {
    rows.isa().vectorize(
        #[inline(always)]
        || {
            let (transform, coefficients) = (rows.transform(), operands.coefficients);
            let lse = stats.log_sum_exps(transform);
            let logits = rows.pick(&targets.classes);
            let mut minus_log_p = [0.0; ROWS];
            for row in 0..ROWS {
                // Neither term is negative, so nothing cancels.
                minus_log_p[row] =
                    (lse.max[row] - transform.value(logits[row])) + lse.log1p_rest[row];
            }
            let mut losses = [0.0; ROWS];
            if operands.has_elementwise() {
                for row in 0..ROWS {
                    losses[row] = if stats.is_regular(row) { 0.0 } else { f64::NAN };
                }
            } else {
                for row in 0..ROWS {
                    losses[row] = targets.on_label[row] * minus_log_p[row];
                }
            }
            let mut spread_sums = [0.0; ROWS];
            if operands.has_spread_labels() {
                spread_sums = operands.spread_label_sums(rows);
                let spread_losses = rows.sums(
                    #[inline(always)]
                    |row, class, x| {
                        operands.spread_label(row, class) * (lse.max[row] - transform.value(x))
                    },
                );
                for row in 0..ROWS {
                    if spread_sums[row] > 0.0 || !(spread_losses[row] == 0.0) {
                        losses[row] += spread_losses[row] + spread_sums[row] * lse.log1p_rest[row];
                    }
                }
            }
            let mut focal_slopes = [1.0; ROWS];
            if coefficients.focal_gamma > 0.0 {
                let terms = rows.terms(stats, &logits);
                for row in 0..rows.count() {
                    let is_max = transform.orient_one(logits[row]) == stats.max[row];
                    let u = stats.complement(row, is_max, terms[row]);
                    let p = terms[row] * stats.inverse_sum(row);
                    let [factor, slope] = focal(coefficients.focal_gamma, u, p, minus_log_p[row]);
                    losses[row] *= factor;
                    focal_slopes[row] = slope;
                }
            }
            if coefficients.z_loss > 0.0 {
                for row in 0..ROWS {
                    losses[row] += coefficients.z_loss * lse.total(row) * lse.total(row);
                }
            }
            let mut rounded = [R::W::ZERO; ROWS];
            for row in 0..ROWS {
                rounded[row] =
                    if targets.is_ignored[row] { R::W::ZERO } else { R::W::of(losses[row]) };
            }
            Measured { logits, lse, spread_sums, focal_slopes, losses: rounded }
        },
    )
}

/// Returns the loss of each row.
#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows>(
    rows: &mut R,
    operands: &RowOperands<'_, R::W>,
) -> [R::W; ROWS] {
    let targets = Targets::new(operands);
    if targets.all_ignored(rows.count()) {
        return [R::W::ZERO; ROWS];
    }
    let stats = rows.reduce(false);
    losses_and_labels(rows, operands, &targets, &stats).losses
}

/// Replaces the logits by the gradient, and returns the losses.
#[inline(always)]
pub(in crate::cpu) fn gradient_rows<R: Rows>(
    rows: &mut R,
    operands: &RowOperands<'_, R::W>,
) -> [R::W; ROWS] {
    let transform = rows.transform();
    let targets = Targets::new(operands);
    if targets.all_ignored(rows.count()) {
        ignore(rows);
        return [R::W::ZERO; ROWS];
    }
    let stats = rows.reduce(true);
    let Measured { logits, lse, spread_sums, focal_slopes, losses } =
        losses_and_labels(rows, operands, &targets, &stats);
    let (mut labels, mut z, mut multiples) = ([0.0; ROWS], [0.0; ROWS], [0.0; ROWS]);
    for row in 0..ROWS {
        labels[row] =
            targets.factors[row] * (targets.on_label[row] * focal_slopes[row] + spread_sums[row]);
    }
    if operands.coefficients.z_loss > 0.0 {
        for row in 0..ROWS {
            // The derivative of the z-loss is a multiple of the probabilities.
            z[row] = 2.0 * targets.factors[row] * operands.coefficients.z_loss * lse.total(row);
        }
    }
    for row in 0..ROWS {
        // An ignored row has the gradient 0, or NaN where the softmax is NaN.
        let multiple = (labels[row] + z[row]) * stats.inverse_sum(row);
        let ignored = if stats.is_regular(row) { 0.0 } else { f64::NAN };
        multiples[row] = if targets.is_ignored[row] { ignored } else { multiple };
    }
    if R::Y::IS_IDENTITY && !operands.has_spread_labels() {
        rows.scale(&stats, &multiples);
    } else {
        rows.map_with(
            &stats,
            #[inline(always)]
            |row, class, x, e| {
                let spread_label = if operands.has_spread_labels() {
                    targets.factors[row] * operands.spread_label(row, class)
                } else {
                    0.0
                };
                // Adding 0 turns -0 into 0, so the gradient of an ignored row is 0 even where the
                // slope is negative.
                R::W::of((e.into() * multiples[row] - spread_label) * transform.derivative(x) + 0.0)
            },
        );
    }
    if operands.has_elementwise() {
        return losses;
    }
    let terms = rows.terms(&stats, &logits);
    // The spread labels of the other classes add to the gradient of the target class.
    let mut added = [0.0; ROWS];
    if operands.has_spread_labels() {
        for row in 0..rows.count() {
            added[row] = targets.factors[row]
                * (spread_sums[row] - operands.spread_label(row, targets.classes[row]));
        }
    }
    let mut values = [R::W::ZERO; ROWS];
    for row in 0..ROWS {
        // p - 1 must not cancel, so it is the complement; the other spread labels are added apart
        // from it.
        let complement =
            stats.complement(row, transform.orient_one(logits[row]) == stats.max[row], terms[row]);
        let value =
            added[row] - labels[row] * complement + z[row] * terms[row] * stats.inverse_sum(row);
        let value =
            if targets.is_ignored[row] { 0.0 } else { value * transform.derivative(logits[row]) };
        values[row] = R::W::of(if stats.is_regular(row) { value } else { f64::NAN });
    }
    rows.put(&targets.classes, &values);
    losses
}

/// Writes the gradient of ignored rows: 0, or NaN where the softmax is NaN.
fn ignore<R: Rows>(rows: &mut R) {
    let (transform, maxima) = (rows.transform(), rows.maxima());
    let mut values = [R::W::ZERO; ROWS];
    for row in 0..rows.count() {
        if !transform.is_regular(maxima[row]) || rows.find_where(row, |x| !x.is_number()).is_some()
        {
            values[row] = R::W::NAN;
        }
    }
    rows.map(|row, _, _| values[row]);
}

/// Replaces the logits by the gradient, from saved log-sum-exps.
#[inline(always)]
pub(in crate::cpu) fn backward_rows<R: Rows>(rows: &mut R, operands: &RowOperands<'_, R::W>) {
    let (transform, coefficients) = (rows.transform(), operands.coefficients);
    let mut targets = Targets::new(operands);
    let spread_sums =
        if operands.has_spread_labels() { operands.spread_label_sums(rows) } else { [0.0; ROWS] };
    if coefficients.focal_gamma > 0.0 {
        let logits = rows.pick(&targets.classes);
        for row in 0..rows.count() {
            let log_p = transform.value(logits[row]) - operands.log_sum_exps[row].into();
            let u = (-log_p.exp_m1()).clamp(0.0, 1.0);
            targets.on_label[row] *= focal(coefficients.focal_gamma, u, log_p.exp(), -log_p)[1];
        }
    }
    let (mut factors, mut multiples, mut saved_lse) = ([0.0; ROWS], [0.0; ROWS], [0.0; ROWS]);
    for row in 0..ROWS {
        saved_lse[row] = operands.log_sum_exps[row].into();
        let z = if coefficients.z_loss > 0.0 {
            2.0 * coefficients.z_loss * saved_lse[row]
        } else {
            0.0
        };
        factors[row] = if saved_lse[row].is_finite() { targets.factors[row] } else { f64::NAN };
        multiples[row] = targets.on_label[row] + spread_sums[row] + z;
    }
    rows.map(
        #[inline(always)]
        |row, class, x| {
            let p: f64 = R::W::exp_wide(transform.value(x) - saved_lse[row]).into();
            let on_label = if class == targets.classes[row] { targets.on_label[row] } else { 0.0 };
            let spread_label =
                if operands.has_spread_labels() { operands.spread_label(row, class) } else { 0.0 };
            let value = factors[row]
                * (multiples[row] * p - (on_label + spread_label))
                * transform.derivative(x);
            // The gradient of a row that does not count is 0 whatever its logits.
            R::W::of(if factors[row] == 0.0 { 0.0 } else { value })
        },
    );
}
