// Targets, and the gradient of a loss. The coefficients of the two kernels of gradients
// (cross_entropy.wgsl, cross_entropy_backward.wgsl) come from the target:
//   gradient_j = scale * (labels * exp(y_j - lse) - q_j), q the labels, `labels` their sum
//   q_j = weight_j * (off_value + on_value * (the target is j)), SOFT: on_value * its probability
//   FOCAL: q_j and `labels` are multiplied by (1 - p_t)^gamma * `focal_slope`
// needs: FOCAL, NONE, Stats, class_count, class_step, is_ignored, params, targets, weight_of
//   (shared/bindings.wgsl); Coefficients, Upstream (shared/coefficients.wgsl); LN2_HIGH, LN2_LOW,
//   LOWEST, exp_pair, log1p_pair, multiply_pairs, opaque, two_sum (shared/math.wgsl); classes_from,
//   operand_at (shared/rows.wgsl); Maximum, distance, slope (shared/transform.wgsl)
// provides: labels_of, label_below, RowTarget, target_of, RowExponentials, focal_root,
//   gradient_coefficients, gradient_of

// With SPREAD, the labels of four classes of a unit, without the on_value of a target that is a
// class. A loop over components is avoided, here and below: FXC cannot store to a component whose
// number it does not know (X3511).
fn labels_of(j: u32, part: u32) -> vec4<f32> {
    let classes = min(classes_from(j, part), vec4<u32>(class_count() - 1u));
    return vec4<f32>(label_of(classes.x), label_of(classes.y), label_of(classes.z), label_of(classes.w));
}

fn label_of(j: u32) -> f32 {
    var label = params.off_value;
    if SOFT {
        label += params.on_value * bitcast<f32>(targets[operand_at + j * class_step()]);
    }
    return weight_of(j) * label;
}

// The target of a row.
struct RowTarget {
    // The class; 0 where it does not count, and NONE where targets are probabilities.
    class_index: u32,
    is_ignored: bool,
    // It names no class: targets that no host has seen may do that.
    is_invalid: bool,
    // The weight of the class; 0 where targets are probabilities.
    weight: f32,
    // The label of the class beyond its off_value; and the sum of all other parts of labels.
    on_value: f32,
    off_values: f32,
}

fn target_of(row: u32, stats: Stats) -> RowTarget {
    if SOFT {
        return RowTarget(NONE, false, false, 0.0, 0.0, stats.labels);
    }
    let named = targets[params.targets_at + row];
    let is_ignored = is_ignored(named);
    let is_invalid = !is_ignored && named >= params.classes;
    let class_index = select(named, 0u, is_ignored || is_invalid);
    let weight = weight_of(class_index);
    let off_values = select(0.0, params.off_value * params.class_weight, SPREAD);
    return RowTarget(class_index, is_ignored, is_invalid, weight, params.on_value * weight, off_values);
}

// label * (maximum.y - y): in halves, for the difference of two large logits is no f32. Opaque, for
// a compiler would move the 2 to the difference, or take 2 and the halves out.
fn label_below(label: f32, x: f32, maximum: Maximum) -> f32 {
    if TRANSFORMED {
        let d = distance(x, maximum);
        return label * -(d.x + d.y);
    }
    return opaque(2.0 * label) * (0.5 * maximum.logit - opaque(0.5 * x));
}

// The sums of a row's exponentials that its gradient is made from.
struct RowExponentials {
    // The sum of all exponentials, and of all but the target's.
    sum: f32,
    rest: f32,
    // The target's logit, and its exponential.
    target_logit: f32,
    target_exp: f32,
    // With FOCAL: -log(p) of the target.
    minus_log_p: f32,
    log_sum_exp: f32,
    bad: bool,
}

// log(u) of a positive normal number, high and low part.
fn log_pair(u: f32) -> vec2<f32> {
    // u = 2^k * m with m between sqrt(1/2) and sqrt(2), so that m - 1 is exact.
    let bits = bitcast<i32>(u);
    let k = (bits - 0x3f3504f3) >> 23u;
    let m = bitcast<f32>(bits - (k << 23u));
    let log_m = log1p_pair(vec2<f32>(opaque(m - 1.0), 0.0)).y;
    return two_sum(f32(k) * LN2_HIGH, f32(k) * LN2_LOW + log_m);
}

// The root of the factor of a focal loss, u^(gamma / 2), of u = 1 - p from 0 to 1. The factor may
// be too small for an f32 beside a weight that is large, or too large before it is multiplied.
fn focal_root(u: f32) -> f32 {
    if u < 1.2e-38 {
        return 0.0;
    }
    let power = multiply_pairs(vec2<f32>(0.5 * params.focal_gamma, 0.0), log_pair(u));
    return exp_pair(vec2<f32>(power.x, select(0.0, power.y, power.x > LOWEST)));
}

// The derivative of a focal loss u^gamma * -log(p) with respect to -log(p), over u^gamma:
//   1 + gamma * p * -log(p) / u
fn focal_slope(u: f32, p: f32, minus_log_p: f32) -> f32 {
    // The limits of p * -log(p) / u are 0 where p is 0, and 1 where u is.
    var ratio = select(p * min(minus_log_p, 1e30) / u, 1.0, u < 1.2e-38);
    ratio = select(ratio, 0.0, p == 0.0);
    return 1.0 + params.focal_gamma * ratio;
}

// The gradient's coefficients:
//   factor = scale * (labels + 2 * z_loss * log_sum_exp) / sum
//   at_value = -scale * labels * rest / sum, and the terms of the z-loss and of off_values
fn gradient_coefficients(goal: RowTarget, upstream: Upstream, row: RowExponentials) -> Coefficients {
    let scale = upstream.scale;
    var labels = goal.on_value + goal.off_values;
    var focal = 1.0;
    if (FLAGS & FOCAL) != 0u {
        let complement = row.rest / row.sum;
        let root = focal_root(complement);
        labels *= root;
        focal = root * focal_slope(complement, row.target_exp / row.sum, row.minus_log_p);
    }
    var factor = scale * labels / row.sum;
    if (FLAGS & FOCAL) != 0u {
        factor = opaque(factor) * focal;
    }
    // Not by `factor`, which is no normal number where the upstream gradient is small and the row
    // long.
    var at_value = -opaque(row.rest / row.sum * focal) * opaque(scale * labels);
    if Z_LOSS {
        let multiple = scale * opaque(opaque(2.0 * upstream.z_loss) * row.log_sum_exp) / row.sum;
        factor += multiple;
        at_value += multiple * row.target_exp;
    }
    var shift = 0.0;
    if SPREAD {
        shift = scale;
        if !SOFT {
            at_value += scale * params.off_value * (params.class_weight - goal.weight);
        }
    }
    if CAPPED {
        at_value *= slope(row.target_logit);
    }
    if goal.is_ignored {
        return Coefficients(0.0, NONE, 0.0, row.bad, 0.0);
    }
    // Under a cap the slope is each logit's own.
    let slope_of_all = select(1.0, params.signed_scale, SCALED);
    let is_nan = row.bad || upstream.has_nan_gradient || goal.is_invalid;
    return Coefficients(factor * slope_of_all, goal.class_index, at_value * slope_of_all, is_nan, shift * slope_of_all);
}

// The gradients of four logits of a unit, of which `values` are the exponentials times `factor`:
//   for each class: values -= shift * label; values *= slope; the target's is at_value
fn gradient_of(
    j: u32,
    part: u32,
    x: vec4<f32>,
    values: vec4<f32>,
    coefficients: Coefficients,
) -> vec4<f32> {
    var result = values;
    if SPREAD {
        result -= coefficients.shift * labels_of(j, part);
    }
    if CAPPED {
        result *= vec4<f32>(slope(x.x), slope(x.y), slope(x.z), slope(x.w));
    }
    let is_target = classes_from(j, part) == vec4<u32>(coefficients.at);
    return select(result, vec4<f32>(coefficients.at_value), is_target);
}
