//! Cross-entropy: loss = log-sum-exp - y_t, and its gradient scale * (softmax(y) - onehot(t)); with
//! labels q that are spread over the classes, loss = sum_j q_j * (log-sum-exp - y_j). Twin of
//! `shaders/cross_entropy.wgsl`.
//!
//! Labels come first, then the losses, the gradient from the logits, and the gradient from a saved
//! log-sum-exp.

use crate::cpu::RowOperands;
use crate::cpu::rows::{
    Lanes, LogSumExps, Place, Rows, Stats, Wanted, Wide, split_factor, values_of,
};
use crate::cpu::simd::{Exp, Isa, Lane, Real, Vector, exp};
use crate::cpu::transform::LogitTransform;

impl<W: Real, const N: usize> RowOperands<'_, W, N> {
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

    /// Returns whether the spread labels, and their products with numbers up to the largest of the
    /// type, are as good in the type of the lanes as in f64, wherever they are finite and normal.
    #[inline(always)]
    fn has_narrow_labels(&self) -> bool
    where
        W: Exp,
    {
        let off_value = self.coefficients.off_value;
        self.weights.is_empty() & ((off_value == 0.0) | (off_value >= W::MIN_NORMAL))
    }

    /// Returns the spread labels of sixteen classes without weights, in the type of the lanes.
    #[inline(always)]
    fn narrow_labels<I: Isa>(&self, isa: I, place: Place<'_>) -> W::V<I> {
        let all = |value| W::V::splat(isa, W::of(value));
        let off_labels = all(self.coefficients.off_value);
        if !self.has_elementwise() {
            return off_labels;
        }
        let targets: W::V<I> = place.of_element(isa, self.elementwise);
        targets.mul_add(all(self.coefficients.on_value), off_labels)
    }

    /// Returns the spread labels of sixteen classes.
    #[inline(always)]
    fn spread_labels<I: Isa>(&self, isa: I, place: Place<'_>) -> I::F64 {
        let mut labels = I::F64::splat(isa, self.coefficients.off_value);
        if self.has_elementwise() {
            let targets: W::V<I> = place.of_element(isa, self.elementwise);
            labels =
                targets.wide(isa).mul_add(I::F64::splat(isa, self.coefficients.on_value), labels);
        }
        if !self.weights.is_empty() {
            let weights: W::V<I> = place.of_class(isa, self.weights);
            labels = weights.wide(isa) * labels;
        }
        labels
    }
}

/// Targets that are classes, and what follows from them. Soft targets have no class and no
/// on-label.
struct Targets<const N: usize> {
    is_ignored: [bool; N],
    /// The target classes; class 0 for an ignored row.
    classes: [usize; N],
    /// The on-label: the label of the target's class beside its spread label.
    on_label: [f64; N],
    /// The factor of the gradient of a row: NaN for a mean over no weight, 0 for an ignored row.
    factors: [f64; N],
}

impl<const N: usize> Targets<N> {
    #[inline(always)]
    fn new<W: Real>(operands: &RowOperands<'_, W, N>) -> Self {
        let (on_value, has_classes) = (operands.coefficients.on_value, !operands.has_elementwise());
        let factor = if operands.coefficients.factor.is_finite() {
            operands.coefficients.factor
        } else {
            f64::NAN
        };
        let (mut is_ignored, mut classes) = ([false; N], [0; N]);
        let (mut on_label, mut factors) = ([0.0; N], [0.0; N]);
        for (row, target) in operands.targets.iter().enumerate() {
            let ignored = has_classes & target.is_ignored();
            let has_class = has_classes & !target.is_ignored();
            is_ignored[row] = ignored;
            classes[row] = if has_class { target.class as usize } else { 0 };
            on_label[row] = if has_class { on_value * f64::from(target.weight) } else { 0.0 };
            factors[row] = if ignored { 0.0 } else { factor * operands.row_upstream[row] };
        }
        Self { is_ignored, classes, on_label, factors }
    }

    fn all_ignored(&self, count: usize) -> bool {
        self.is_ignored[..count].iter().all(|&ignored| ignored)
    }
}

/// The losses, and what gradients need beside the statistics.
struct Measured<W, const N: usize> {
    /// The logits of the targets.
    logits: [W; N],
    lse: LogSumExps<N>,
    /// The sums of the spread labels.
    spread_sums: [f64; N],
    /// The factor of a focal loss in the gradient; 1 where it is off.
    focal_slopes: [f64; N],
    losses: [W; N],
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

/// Returns the sums of the spread labels q of each row, and of q (max - y):
///
/// ```text
/// for each class: q = spread label;  sum += q;  loss += q (max - y)
/// ```
#[inline(always)]
fn spread_sums<R: Rows<N>, const N: usize>(
    rows: &R,
    operands: &RowOperands<'_, R::W, N>,
    max: &[f64; N],
) -> [[f64; N]; 2] {
    let (isa, transform) = (rows.isa(), rows.transform());
    // y is a logit, which both are computed from without a rounding in between.
    let is_narrow = R::Y::IS_IDENTITY && operands.has_narrow_labels();
    // Subnormal products lose less than 2^-24 of a larger sum.
    let least = operands.classes as f64 * R::W::MIN_NORMAL;
    let mut narrow_max = [R::W::ZERO; N];
    for row in 0..N {
        narrow_max[row] = R::W::of(max[row]);
    }
    if operands.has_elementwise() {
        return rows.narrow_sums(
            (is_narrow, least),
            #[inline(always)]
            |place, x| {
                let max: Lanes<R, N> = place.of_row(isa, &narrow_max);
                let labels = operands.narrow_labels(isa, place);
                [labels, labels * (max - x)]
            },
            #[inline(always)]
            |place, x| {
                let max: Wide<R, N> = place.of_row(isa, max);
                let labels = operands.spread_labels(isa, place);
                [labels, labels * (max - transform.values::<R::I, R::W>(isa, x))]
            },
        );
    }
    let [losses] = rows.narrow_sums(
        (is_narrow, least),
        #[inline(always)]
        |place, x| {
            let max: Lanes<R, N> = place.of_row(isa, &narrow_max);
            [operands.narrow_labels(isa, place) * (max - x)]
        },
        #[inline(always)]
        |place, x| {
            let max: Wide<R, N> = place.of_row(isa, max);
            let distance = max - transform.values::<R::I, R::W>(isa, x);
            [operands.spread_labels(isa, place) * distance]
        },
    );
    [[operands.coefficients.off_value * operands.coefficients.class_weight; N], losses]
}

/// Computes the losses, and what the gradient needs from them. Not inlined: [`rows`] and
/// [`gradient_rows`] share one copy.
#[inline(never)]
fn losses_and_labels<R: Rows<N>, const N: usize>(
    rows: &R,
    operands: &RowOperands<'_, R::W, N>,
    targets: &Targets<N>,
    stats: &Stats<R::W, N>,
) -> Measured<R::W, N> {
    rows.isa().vectorize(
        #[inline(always)]
        || {
            let (transform, coefficients) = (rows.transform(), operands.coefficients);
            let lse = stats.log_sum_exps(rows.isa(), transform);
            let logits = rows.pick(&targets.classes);
            let values = values_of(rows.isa(), transform, &logits);
            let mut minus_log_p = [0.0; N];
            for row in 0..N {
                // Neither term is negative, so nothing cancels.
                minus_log_p[row] = (lse.max[row] - values[row]) + lse.log1p_rest[row];
            }
            let mut losses = [0.0; N];
            if operands.has_elementwise() {
                for row in 0..N {
                    losses[row] = if stats.is_regular(row) { 0.0 } else { f64::NAN };
                }
            } else {
                for row in 0..N {
                    losses[row] = targets.on_label[row] * minus_log_p[row];
                }
            }
            let mut label_sums = [0.0; N];
            if operands.has_spread_labels() {
                let [sums, spread_losses] = spread_sums(rows, operands, &lse.max);
                label_sums = sums;
                for row in 0..N {
                    if sums[row] > 0.0 || !(spread_losses[row] == 0.0) {
                        losses[row] += spread_losses[row] + sums[row] * lse.log1p_rest[row];
                    }
                }
            }
            let mut focal_slopes = [1.0; N];
            if coefficients.focal_gamma > 0.0 {
                let terms = rows.terms(&logits);
                for row in 0..rows.count() {
                    let u = stats.complement(transform, row, logits[row], terms[row]);
                    let p = terms[row] * stats.inverse_sum(row);
                    let [factor, slope] = focal(coefficients.focal_gamma, u, p, minus_log_p[row]);
                    losses[row] *= factor;
                    focal_slopes[row] = slope;
                }
            }
            if coefficients.z_loss > 0.0 {
                for row in 0..N {
                    losses[row] += coefficients.z_loss * lse.total(row) * lse.total(row);
                }
            }
            let mut rounded = [R::W::ZERO; N];
            for row in 0..N {
                rounded[row] =
                    if targets.is_ignored[row] { R::W::ZERO } else { R::W::of(losses[row]) };
            }
            Measured { logits, lse, spread_sums: label_sums, focal_slopes, losses: rounded }
        },
    )
}

/// Returns the loss of each row.
#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows<N>, const N: usize>(
    rows: &mut R,
    operands: &RowOperands<'_, R::W, N>,
) -> [R::W; N] {
    let targets = Targets::new(operands);
    if targets.all_ignored(rows.count()) {
        return [R::W::ZERO; N];
    }
    let stats = rows.reduce(Wanted::Rest { keeps: false });
    losses_and_labels(rows, operands, &targets, &stats).losses
}

/// The gradient of sixteen elements, as factors of each row:
///
/// ```text
/// gradient = (p * multiple - (on_target + spread label)) * slope * factor
/// ```
///
/// `multiple` is the sum of the labels and what a z-loss adds, about 1: both it and the labels are
/// divided by a power of two near it, which `factor` makes up for. So no product is beyond the
/// range of f32 unless the gradient is.
struct RowFactors<W, const N: usize> {
    /// The factors that turn exponentials into p * multiple.
    of_exponentials: [f64; N],
    /// The factors of soft targets and of each class, `on_value` and `off_value`.
    on_values: [W; N],
    off_values: [W; N],
    /// Two factors, of which the first is 1 for all ordinary gradients.
    factors: [[W; N]; 2],
    /// Whether a first factor is not 1.
    is_split: bool,
}

impl<W: Exp, const N: usize> RowFactors<W, N> {
    /// Returns the factors of rows with the given multiples and factors; `inverse_sums` turn
    /// exponentials into probabilities. A row with the factor 0 has the gradient 0.
    #[inline(always)]
    fn new(
        operands: &RowOperands<'_, W, N>,
        inverse_sums: &[f64; N],
        multiples: &[f64; N],
        factors: &[f64; N],
    ) -> Self {
        let (zero, one) = ([W::ZERO; N], [W::ONE; N]);
        let mut rows = Self {
            of_exponentials: [0.0; N],
            on_values: zero,
            off_values: zero,
            factors: [one, zero],
            is_split: false,
        };
        for row in 0..N {
            let power = power_of_two(multiples[row].abs()).max(W::MIN_NORMAL);
            let inverse = 1.0 / power;
            let of = |value: f64| (value * inverse).clamp(-W::LARGEST_NUMBER, W::LARGEST_NUMBER);
            rows.of_exponentials[row] = of(multiples[row]) * inverse_sums[row];
            rows.on_values[row] = W::of(of(operands.coefficients.on_value));
            rows.off_values[row] = W::of(of(operands.coefficients.off_value));
            [rows.factors[0][row], rows.factors[1][row]] = split_factor(factors[row], power);
            rows.is_split |= rows.factors[0][row] != W::ONE;
        }
        rows
    }

    /// Returns the gradient of sixteen elements without what a target that is a class subtracts;
    /// `value` is p * multiple.
    #[inline(always)]
    fn gradient<I: Isa, Y: LogitTransform>(
        &self,
        (isa, transform): (I, Y),
        operands: &RowOperands<'_, W, N>,
        place: Place<'_>,
        x: W::V<I>,
        mut value: W::V<I>,
    ) -> W::V<I> {
        let zero = W::V::splat(isa, W::ZERO);
        if operands.has_spread_labels() {
            let mut labels: W::V<I> = place.of_row(isa, &self.off_values);
            if operands.has_elementwise() {
                let targets: W::V<I> = place.of_element(isa, operands.elementwise);
                labels = targets.mul_add(place.of_row(isa, &self.on_values), labels);
            }
            if !operands.weights.is_empty() {
                labels = labels * place.of_class(isa, operands.weights);
            }
            value = value - labels;
        }
        if !Y::IS_IDENTITY {
            value = value * transform.derivatives::<I, W>(isa, x);
        }
        if self.is_split {
            value = value * place.of_row(isa, &self.factors[0]);
        }
        // Adding 0 turns -0 into 0, so the gradient of an ignored row is 0 even where the slope is
        // negative.
        value * place.of_row(isa, &self.factors[1]) + zero
    }
}

/// Returns the power of two at most `x`, or 1 where x is 0, infinite, NaN or subnormal.
#[inline(always)]
fn power_of_two(x: f64) -> f64 {
    let exponent = x.to_bits() & 0x7ff0_0000_0000_0000;
    let is_usual = exponent != 0 && exponent != 0x7ff0_0000_0000_0000;
    if is_usual { f64::from_bits(exponent) } else { 1.0 }
}

/// Replaces the logits by the gradient, and returns the losses.
///
/// ```text
/// for each class: out = the gradient of `RowFactors`, without what a target that is a class
///                 subtracts; one product where nothing but p matters: p * multiple * factor
/// out of each target's class = factor * slope * (z p - labels (1 - p) + spread labels of the rest)
/// ```
#[inline(always)]
pub(in crate::cpu) fn gradient_rows<R: Rows<N>, const N: usize>(
    rows: &mut R,
    operands: &RowOperands<'_, R::W, N>,
) -> [R::W; N] {
    let (isa, transform) = (rows.isa(), rows.transform());
    let targets = Targets::new(operands);
    if targets.all_ignored(rows.count()) {
        ignore(rows);
        return [R::W::ZERO; N];
    }
    let stats = rows.reduce(Wanted::Rest { keeps: true });
    let Measured { logits, lse, spread_sums, focal_slopes, losses } =
        losses_and_labels(rows, operands, &targets, &stats);
    let (mut labels, mut z) = ([0.0; N], [0.0; N]);
    for row in 0..N {
        labels[row] = targets.on_label[row] * focal_slopes[row] + spread_sums[row];
    }
    if operands.coefficients.z_loss > 0.0 {
        for row in 0..N {
            // The derivative of the z-loss is a multiple of the probabilities.
            z[row] = 2.0 * operands.coefficients.z_loss * lse.total(row);
        }
    }
    let mut multiples = [0.0; N];
    if R::Y::IS_IDENTITY && !operands.has_spread_labels() {
        for row in 0..N {
            // An ignored row has the gradient 0, or NaN where the softmax is NaN.
            let multiple = targets.factors[row] * (labels[row] + z[row]) * stats.inverse_sum(row);
            let ignored = if stats.is_regular(row) { 0.0 } else { f64::NAN };
            multiples[row] = if targets.is_ignored[row] { ignored } else { multiple };
        }
        rows.scale(&multiples);
    } else {
        for row in 0..N {
            multiples[row] = labels[row] + z[row];
        }
        let factors = RowFactors::new(operands, stats.inverse_sums(), &multiples, &targets.factors);
        rows.map_p(
            &factors.of_exponentials,
            #[inline(always)]
            |place, x, p| factors.gradient((isa, transform), operands, place, x, p),
        );
    }
    if operands.has_elementwise() {
        return losses;
    }
    let terms = rows.terms(&logits);
    // The spread labels of the other classes add to the gradient of the target class.
    let mut added = [0.0; N];
    if operands.has_spread_labels() {
        for row in 0..rows.count() {
            added[row] = spread_sums[row] - operands.spread_label(row, targets.classes[row]);
        }
    }
    let mut values = [R::W::ZERO; N];
    for row in 0..N {
        // p - 1 must not cancel, so it is the complement; the other spread labels are added apart
        // from it.
        let complement = stats.complement(transform, row, logits[row], terms[row]);
        let value =
            added[row] - labels[row] * complement + z[row] * terms[row] * stats.inverse_sum(row);
        let slope = transform.derivative(logits[row]);
        let value =
            if targets.is_ignored[row] { 0.0 } else { targets.factors[row] * value * slope };
        values[row] = R::W::of(if stats.is_regular(row) { value } else { f64::NAN });
    }
    rows.put(&targets.classes, &values);
    losses
}

/// Writes the gradient of ignored rows: 0, or NaN where the softmax is NaN.
fn ignore<R: Rows<N>, const N: usize>(rows: &mut R) {
    let (isa, transform, maxima) = (rows.isa(), rows.transform(), rows.maxima());
    let mut values = [R::W::ZERO; N];
    for row in 0..rows.count() {
        if !transform.is_regular(maxima[row]) || rows.find_nan(row).is_some() {
            values[row] = R::W::NAN;
        }
    }
    rows.map(
        #[inline(always)]
        |place, _| place.of_row(isa, &values),
    );
}

/// Replaces the logits by the gradient, from saved log-sum-exps.
///
/// ```text
/// for each class: out = the gradient of `RowFactors` with p = exp(y - log-sum-exp), without what a
///                 target that is a class subtracts
/// out of each target's class = factor * slope * (multiple p - (on-label + spread label))
/// ```
#[inline(always)]
pub(in crate::cpu) fn backward_rows<R: Rows<N>, const N: usize>(
    rows: &mut R,
    operands: &RowOperands<'_, R::W, N>,
) {
    let (isa, transform, coefficients) = (rows.isa(), rows.transform(), operands.coefficients);
    let mut targets = Targets::new(operands);
    let logits = rows.pick(&targets.classes);
    let mut label_sums = [coefficients.off_value * coefficients.class_weight; N];
    if operands.has_elementwise() {
        [label_sums] = rows.narrow_sums(
            (operands.has_narrow_labels(), 0.0),
            #[inline(always)]
            |place, _| [operands.narrow_labels(isa, place)],
            #[inline(always)]
            |place, _| [operands.spread_labels(isa, place)],
        );
    }
    if coefficients.focal_gamma > 0.0 {
        for row in 0..rows.count() {
            let log_p = transform.value(logits[row]) - operands.log_sum_exps[row].into();
            let u = (-log_p.exp_m1()).clamp(0.0, 1.0);
            targets.on_label[row] *= focal(coefficients.focal_gamma, u, log_p.exp(), -log_p)[1];
        }
    }
    let mut multiples = [0.0; N];
    for row in 0..N {
        let saved: f64 = operands.log_sum_exps[row].into();
        let z = if coefficients.z_loss > 0.0 { 2.0 * coefficients.z_loss * saved } else { 0.0 };
        if !saved.is_finite() {
            targets.factors[row] = f64::NAN;
        }
        multiples[row] = targets.on_label[row] + label_sums[row] + z;
    }
    let inverse_sums = rows.normalize(&operands.log_sum_exps);
    let factors = RowFactors::new(operands, &inverse_sums, &multiples, &targets.factors);
    let row_factors = &factors.factors[1];
    rows.map_p(
        &factors.of_exponentials,
        #[inline(always)]
        |place, x, p| {
            let zero = Lanes::<R, N>::splat(isa, R::W::ZERO);
            let value = factors.gradient((isa, transform), operands, place, x, p);
            // The gradient of a row that does not count is 0 whatever its logits.
            let factor: Lanes<R, N> = place.of_row(isa, row_factors);
            factor.where_equal(zero, zero, value)
        },
    );
    if operands.has_elementwise() {
        return;
    }
    let mut values = [R::W::ZERO; N];
    for row in 0..rows.count() {
        let saved: f64 = operands.log_sum_exps[row].into();
        let class = targets.classes[row];
        let p = exp(transform.value(logits[row]) - saved);
        let spread =
            if operands.has_spread_labels() { operands.spread_label(row, class) } else { 0.0 };
        let value = multiples[row] * p - (targets.on_label[row] + spread);
        let value = targets.factors[row] * value * transform.derivative(logits[row]);
        values[row] = R::W::of(if targets.factors[row] == 0.0 { 0.0 } else { value });
    }
    rows.put(&targets.classes, &values);
}
