// loss = log-sum-exp - x_t, and its gradient scale * (softmax(x) - onehot(t)). Twin of `src/cpu/cross_entropy.rs`.

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
        return Coefficients(0.0, NONE, 0.0, bad);
    }
    // Targets that no host has seen may name no class at all.
    if label >= params.classes {
        if leader {
            rows_out[place] = params.nan;
        }
        return Coefficients(0.0, NONE, 0.0, true);
    }

    let top = top_of(stats);
    let logit = label_logit(row, label);
    let weight = weight_of(label);
    if leader {
        // (top - x_t) + log1p(others): both are positive, so nothing cancels.
        let gap = difference(logit, top);
        let log_sum = log1p_pair(stats.others);
        var bits = bitcast<u32>(weight * ((log_sum.x - gap.x) + (log_sum.y - gap.y)));
        if bitcast<u32>(logit) == params.negative_infinity {
            bits = select(0x7f800000u, params.nan, weight == 0.0);
        }
        rows_out[place] = select(bits, params.nan, bad);
    }

    // p - 1 of the target is -(sum of the others) / sum, others being relative to the target here.
    var others = stats.others;
    if label != stats.at {
        others = add_pairs(vec2<f32>(1.0, 0.0), add_pairs(others, vec2<f32>(-exp_difference(logit, top), 0.0)));
    }
    let sum = add_pairs(vec2<f32>(1.0, 0.0), stats.others);
    var scale = params.factor * weight;
    var poisoned = (params.flags & POISONED) != 0u;
    if (params.flags & MEAN) != 0u {
        let total = summary.weight.x + summary.weight.y;
        poisoned = total == 0.0;
        scale /= total;
    }
    let factor = scale / (sum.x + sum.y);
    return Coefficients(factor, label, -(others.x + others.y) * factor, bad || poisoned);
}
