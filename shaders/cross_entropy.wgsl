// loss = log-sum-exp - x_t, and its gradient scale * (softmax(x) - onehot(t)), or the same for smoothed labels. Twin of
// `src/cpu/cross_entropy.rs`.

override GRADIENT: bool = false;
override WRITES: bool = GRADIENT;
const LOG: bool = false;
const CLASS_MATTERS: bool = false;
const TARGETS: bool = true;

fn finish(row: u32, stats: Stats, leader: bool) -> Coefficients {
    let label = row_targets[params.targets_at + row];
    let place = params.rows_out_at + row;
    let bad = is_bad(stats);
    if is_ignored(label) {
        if leader {
            rows_out[place] = 0u;
        }
        return Coefficients(0.0, NONE, 0.0, bad, 0.0);
    }
    // Targets that no host has seen may name no class at all.
    if label >= params.classes {
        if leader {
            rows_out[place] = params.nan;
        }
        return Coefficients(0.0, NONE, 0.0, true, 0.0);
    }

    let top = top_of(stats);
    let logit = label_logit(row, label);
    let weight = weight_of(label);
    // What the target's own label is worth, and all labels together.
    var hit = weight;
    var labels = weight;
    if SMOOTHING {
        hit = params.hit * weight;
        labels = hit + params.smoothing * params.class_weight;
    }
    let log_sum = log1p_pair(stats.others);
    var scale = params.factor;
    var poisoned = (params.flags & POISONED) != 0u;
    var z_loss = params.z_loss;
    if (params.flags & MEAN) != 0u {
        let total = summary.weight.x + summary.weight.y;
        poisoned = total == 0.0;
        scale /= total;
        // A z-loss is a mean over the rows, whatever they weigh.
        z_loss *= total / f32(summary.counted_rows);
    }
    let log_sum_exp = top + (log_sum.x + log_sum.y);
    if leader {
        // (top - x_t) + log1p(others): both are positive, so nothing cancels.
        let gap = difference(logit, top);
        var bits = bitcast<u32>(hit * ((log_sum.x - gap.x) + (log_sum.y - gap.y)));
        if bitcast<u32>(logit) == params.negative_infinity {
            bits = select(0x7f800000u, params.nan, hit == 0.0);
        }
        if SMOOTHING {
            // The same of every class, and positive too.
            let share = params.smoothing * params.class_weight;
            let every = (stats.below.x + share * log_sum.x) + (stats.below.y + share * log_sum.y);
            let is_infinite = stats.bottomless == 1u || bitcast<u32>(stats.below.x) >= 0x7f800000u;
            if bits < 0x7f800000u {
                bits = select(bitcast<u32>(bitcast<f32>(bits) + every), 0x7f800000u, is_infinite);
            }
            if (stats.bottomless & 2u) != 0u {
                bits = params.nan;
            }
        }
        if Z_LOSS && bits < 0x7f800000u {
            bits = bitcast<u32>(bitcast<f32>(bits) + z_loss * log_sum_exp * log_sum_exp);
        }
        rows_out[place] = select(bits, params.nan, bad);
    }

    // p - 1 of the target is -(sum of the others) / sum, others being relative to the target here.
    var others = stats.others;
    if label != stats.at {
        others = add_pairs(vec2<f32>(1.0, 0.0), add_pairs(others, vec2<f32>(-exp_difference(logit, top), 0.0)));
    }
    let sum = add_pairs(vec2<f32>(1.0, 0.0), stats.others);
    var factor = scale * labels / (sum.x + sum.y);
    var at_value = -(others.x + others.y) * factor;
    if Z_LOSS {
        let slope = scale * (2.0 * z_loss * log_sum_exp) / (sum.x + sum.y);
        factor += slope;
        at_value += slope * exp_difference(logit, top);
    }
    var shift = 0.0;
    if SMOOTHING {
        shift = scale * params.smoothing;
        at_value += shift * (params.class_weight - weight);
    }
    return Coefficients(factor, label, at_value, bad || poisoned, shift);
}
