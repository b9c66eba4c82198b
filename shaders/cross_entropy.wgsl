// loss = log-sum-exp - x_t, and its gradient scale * (softmax(x) - onehot(t)). Twin of `src/cpu/cross_entropy.rs`.

override GRADIENT: bool = false;
override WRITES: bool = GRADIENT;
const LOG: bool = false;
const CLASS_MATTERS: bool = false;

fn finish(row: u32, stats: Stats, leader: bool) -> Coefficients {
    let label = row_targets[row].label;
    let scale = row_targets[row].scale;
    let bad = is_bad(stats);
    if label == NONE {
        if leader {
            rows_out[row] = 0u;
        }
        return Coefficients(0.0, NONE, 0.0, bad);
    }

    let top = top_of(stats);
    let logit = logits[row * params.classes + label];
    if leader {
        // (top - x_t) + log1p(others): both are positive, so nothing cancels.
        let gap = difference(logit, top);
        let log_sum = log1p_pair(stats.others);
        var bits = bitcast<u32>((log_sum.x - gap.x) + (log_sum.y - gap.y));
        if bitcast<u32>(logit) == params.negative_infinity {
            bits = 0x7f800000u;
        }
        rows_out[row] = select(bits, params.nan, bad);
    }

    // p - 1 of the target is -(sum of the others) / sum, others being relative to the target here.
    var others = stats.others;
    if label != stats.at {
        others = add_pairs(vec2<f32>(1.0, 0.0), add_pairs(others, vec2<f32>(-exp_difference(logit, top), 0.0)));
    }
    let sum = add_pairs(vec2<f32>(1.0, 0.0), stats.others);
    let factor = scale / (sum.x + sum.y);
    return Coefficients(factor, label, -(others.x + others.y) * factor, bad);
}
