// loss = log-sum-exp - y_t, and its gradient scale * (softmax(y) - onehot(t)), or the same for
// labels that are spread over the classes: sum_j q_j * (log-sum-exp - y_j). Twin of
// `src/cpu/ops/cross_entropy.rs`.
// needs: FOCAL, Stats, params, rows_out (shared/bindings.wgsl); Coefficients, upstream_of
//   (shared/coefficients.wgsl); add_pairs, is_infinite_or_nan, log1p_pair, opaque
//   (shared/math.wgsl); RowState, is_bad, sum_of_exponentials (shared/passes.wgsl);
//   RowExponentials, RowTarget, focal_root, gradient_coefficients, label_below, target_of
//   (shared/targets.wgsl); Maximum, distance, exp_below (shared/transform.wgsl); target_logit (the
//   strategy)
// provides: finish

// The loss of a row, as bits:
//   loss = on_value * (log(sum) - (y_t - maximum.y))
//   SPREAD: loss += below + off_values * log(sum), where below = sum_j off_value_j * (maximum.y - y_j)
//   FOCAL: loss *= complement^gamma, where complement = 1 - p_t
//   Z_LOSS: loss += z_loss * log_sum_exp^2
// where log(sum) = log1p(rest_of_sum); no term is negative, so nothing cancels.
fn loss_of(
    stats: Stats,
    maximum: Maximum,
    goal: RowTarget,
    logit: f32,
    log_sum: vec2<f32>,
    log_sum_exp: f32,
    z_loss: f32,
    complement: f32,
) -> u32 {
    let gap = distance(logit, maximum);
    var label = goal.on_value;
    var root = 1.0;
    if (FLAGS & FOCAL) != 0u {
        root = focal_root(complement);
        label = opaque(label * root);
    }
    var bits = 0u;
    if !SOFT {
        bits = bitcast<u32>(label * ((log_sum.x - gap.x) + (log_sum.y - gap.y)));
        if !TRANSFORMED && is_infinite_or_nan(bitcast<u32>(gap.x)) {
            // The gap is no f32; times a small weight it may be one, beside which
            // log1p(rest_of_sum) is nothing.
            bits = bitcast<u32>(label_below(label, logit, maximum));
        }
        if bitcast<u32>(logit) == params.negative_infinity {
            bits = select(0x7f800000u, params.nan, goal.on_value == 0.0);
        }
    }
    if SPREAD {
        let off_values = goal.off_values;
        let every = (stats.below.x + off_values * log_sum.x) + (stats.below.y + off_values * log_sum.y);
        let is_infinite = stats.has_negative_infinity == 1u || is_infinite_or_nan(bitcast<u32>(stats.below.x));
        if !is_infinite_or_nan(bits) {
            bits = select(bitcast<u32>(bitcast<f32>(bits) + every), 0x7f800000u, is_infinite);
        }
        if (stats.has_negative_infinity & 2u) != 0u {
            bits = params.nan;
        }
    }
    if (FLAGS & FOCAL) != 0u && !is_infinite_or_nan(bits) {
        bits = bitcast<u32>(bitcast<f32>(bits) * root);
    }
    if Z_LOSS && !is_infinite_or_nan(bits) {
        bits = bitcast<u32>(bitcast<f32>(bits) + opaque(z_loss * log_sum_exp) * log_sum_exp);
    }
    return select(select(bits, params.nan, is_bad(stats) || goal.is_invalid), 0u, goal.is_ignored);
}

fn finish(row: u32, stats: Stats, state: ptr<function, RowState>, leader: bool) -> Coefficients {
    let maximum = (*state).maximum;
    let goal = target_of(row, stats);
    let upstream = upstream_of(row);
    var logit = maximum.logit;
    if !SOFT {
        logit = target_logit(row, goal.class_index);
    }
    let log_sum = log1p_pair(stats.rest_of_sum);
    let log_sum_exp = maximum.y.x + (maximum.y.y + log_sum.x + log_sum.y);
    let sum = sum_of_exponentials(stats);
    // p - 1 of the target is -(rest of the sum) / sum, the rest being relative to the target here.
    var rest = stats.rest_of_sum;
    if logit != maximum.logit {
        rest = add_pairs(vec2<f32>(1.0, 0.0), add_pairs(rest, vec2<f32>(-exp_below(logit, maximum), 0.0)));
    }
    let complement = (rest.x + rest.y) / sum;
    let loss =
        loss_of(stats, maximum, goal, logit, log_sum, log_sum_exp, upstream.z_loss, complement);
    if leader {
        rows_out[params.rows_out_at + row] = loss;
    }
    var target_exp = 0.0;
    if Z_LOSS || (FLAGS & FOCAL) != 0u {
        target_exp = exp_below(logit, maximum);
    }
    var minus_log_p = 0.0;
    if (FLAGS & FOCAL) != 0u {
        let gap = distance(logit, maximum);
        minus_log_p = (log_sum.x - gap.x) + (log_sum.y - gap.y);
    }
    let exponentials =
        RowExponentials(sum, rest.x + rest.y, logit, target_exp, minus_log_p, log_sum_exp, is_bad(stats));
    return gradient_coefficients(goal, upstream, exponentials);
}
