// loss = log-sum-exp - y_t, and its gradient scale * (softmax(y) - onehot(t)), or the same for labels that are spread over
// the classes: sum_j q_j * (log-sum-exp - y_j). Twin of `src/cpu/ops/cross_entropy.rs`.
// needs: Grid, MEAN, NONE, POISONED, ROW_GRADIENTS, Stats, is_ignored, params, row_gradients, rows_out, summary,
//   targets, weight_of (shared/bindings.wgsl); add_pairs, is_infinite_or_nan, log1p_pair, opaque (shared/math.wgsl);
//   Coefficients, is_bad, label_below (shared/passes.wgsl or shared/sum.wgsl); distance, exp_below, max_logit, max_y,
//   measure_from_y, slope (shared/transform.wgsl); label_logit (the strategy)
// provides: finish, select_classes

fn finish(row: u32, stats: Stats, leader: bool) -> Coefficients {
    // None where targets are probabilities.
    var label = NONE;
    if !SOFT {
        label = targets[params.targets_at + row];
    }
    let place = params.rows_out_at + row;
    var bad = is_bad(stats);
    if SAVED_LOG_SUM_EXP {
        bad = is_infinite_or_nan(rows_out[place]);
        measure_from_y(bitcast<f32>(rows_out[place]));
    }
    let ignored = !SOFT && is_ignored(label);
    // Targets that no host has seen may name no class at all.
    let invalid = !SOFT && !ignored && label >= params.classes;
    label = select(label, 0u, ignored || invalid);

    // `own` is on_value, `shares` the off_values of all classes, `labels` both together.
    var logit = max_logit;
    var weight = 0.0;
    if !SOFT {
        logit = label_logit(row, label);
        weight = weight_of(label);
    }
    let own = params.on_value * weight;
    var shares = 0.0;
    if SOFT {
        shares = stats.labels;
    } else if SPREAD {
        shares = params.off_value * params.class_weight;
    }
    let labels = own + shares;
    let log_sum = log1p_pair(stats.rest_of_sum);
    var scale = params.factor;
    var poisoned = (params.flags & POISONED) != 0u;
    var z_loss = params.z_loss;
    if (FLAGS & MEAN) != 0u {
        let total = summary.weight.x + summary.weight.y;
        poisoned = total == 0.0;
        scale /= total;
        // A z-loss is a mean over the rows, whatever they weigh.
        z_loss *= total / f32(summary.counted_rows);
    }
    if (FLAGS & ROW_GRADIENTS) != 0u {
        scale *= row_gradients[params.gradients_at + row];
    }
    let log_sum_exp = max_y.x + (max_y.y + log_sum.x + log_sum.y);
    let gap = distance(logit);
    if !SAVED_LOG_SUM_EXP {
        // (max_y - y_t) + log1p(rest_of_sum): both are positive, so nothing cancels.
        var bits = 0u;
        if !SOFT {
            bits = bitcast<u32>(own * ((log_sum.x - gap.x) + (log_sum.y - gap.y)));
            if !TRANSFORMED && is_infinite_or_nan(bitcast<u32>(gap.x)) {
                // The gap is no f32; times a small weight it may be one, beside which log1p(rest_of_sum) is nothing.
                bits = bitcast<u32>(label_below(own, logit));
            }
            if bitcast<u32>(logit) == params.negative_infinity {
                bits = select(0x7f800000u, params.nan, own == 0.0);
            }
        }
        if SPREAD {
            // The terms of every class, which are positive too.
            let every = (stats.below.x + shares * log_sum.x) + (stats.below.y + shares * log_sum.y);
            let is_infinite = stats.has_negative_infinity == 1u || is_infinite_or_nan(bitcast<u32>(stats.below.x));
            if !is_infinite_or_nan(bits) {
                bits = select(bitcast<u32>(bitcast<f32>(bits) + every), 0x7f800000u, is_infinite);
            }
            if (stats.has_negative_infinity & 2u) != 0u {
                bits = params.nan;
            }
        }
        if Z_LOSS && !is_infinite_or_nan(bits) {
            bits = bitcast<u32>(bitcast<f32>(bits) + opaque(z_loss * log_sum_exp) * log_sum_exp);
        }
        bits = select(select(bits, params.nan, bad || invalid), 0u, ignored);
        if leader {
            rows_out[place] = bits;
        }
    }

    let sum = add_pairs(vec2<f32>(1.0, 0.0), stats.rest_of_sum);
    var factor = scale * labels / (sum.x + sum.y);
    var slope_of_all = 1.0;
    if SCALED && !CAPPED {
        slope_of_all = params.signed_scale;
    }
    var at_value = 0.0;
    if !SOFT {
        // p - 1 of the target is -(rest of the sum) / sum, the rest being relative to the target here.
        var rest_of_sum = stats.rest_of_sum;
        if SAVED_LOG_SUM_EXP || logit != max_logit {
            rest_of_sum = add_pairs(vec2<f32>(1.0, 0.0), add_pairs(rest_of_sum, vec2<f32>(-exp_below(logit), 0.0)));
        }
        // Not by `factor`, which is no normal number where the upstream gradient is small and the row long.
        at_value = -opaque((rest_of_sum.x + rest_of_sum.y) / (sum.x + sum.y)) * opaque(scale * labels);
    }
    if Z_LOSS {
        let multiple = scale * opaque(opaque(2.0 * z_loss) * log_sum_exp) / (sum.x + sum.y);
        factor += multiple;
        at_value += multiple * exp_below(logit);
    }
    var shift = 0.0;
    if SPREAD {
        shift = scale;
        if !SOFT {
            at_value += scale * params.off_value * (params.class_weight - weight);
        }
    }
    if CAPPED {
        at_value *= slope(logit);
    }
    if ignored {
        return Coefficients(0.0, NONE, 0.0, bad, 0.0);
    }
    let is_nan = bad || poisoned || invalid;
    return Coefficients(factor * slope_of_all, label, at_value * slope_of_all, is_nan, shift * slope_of_all);
}

// No classes are searched for once the row is reduced.
fn select_classes(grid: Grid, row: u32, stats: Stats, present: bool) {}
