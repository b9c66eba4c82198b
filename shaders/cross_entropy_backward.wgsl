// The gradient of cross_entropy.wgsl from saved log-sum-exps. Twin of
// `src/cpu/ops/cross_entropy.rs`. Each element is on its own:
//   gradient_j = scale * (labels * exp(y_j - lse) - q_j)
// No row is reduced, but to the sum of its labels where targets are probabilities (SOFT).
// needs: FOCAL, Grid, Stats, params, rows_out (shared/bindings.wgsl); Coefficients,
//   packed_coefficients, unpacked_coefficients, upstream_of (shared/coefficients.wgsl); LOWEST,
//   Reference, add_pairs, exp_from, exp_pair, is_infinite_or_nan, reference_at, two_sum
//   (shared/math.wgsl); sum_of (shared/reduce.wgsl); classes_from (shared/rows.wgsl);
//   RowExponentials, gradient_coefficients, gradient_of, labels_of, target_of
//   (shared/targets.wgsl); transform (shared/transform.wgsl); PARTS, Unit (the parts in elements/);
//   target_logit (the strategy)
// provides: RowState, begin_sums, add_unit, add_segment, summed, finish, elements_of, packed,
//   unpacked

// The state that a thread keeps of its row.
struct RowState {
    log_sum_exp: f32,
    // The reference point of exponentials (`exp_from`), where there is no logit transform.
    reference: Reference,
    // With SOFT: the sum of this lane's labels, high and low part.
    labels: vec2<f32>,
}

fn set_log_sum_exp(state: ptr<function, RowState>, log_sum_exp: f32) {
    (*state).log_sum_exp = log_sum_exp;
    if !TRANSFORMED {
        (*state).reference = reference_at(log_sum_exp);
    }
}

fn transformed_probability(x: f32, log_sum_exp: f32) -> f32 {
    var d = add_pairs(transform(x), vec2<f32>(-log_sum_exp, 0.0));
    // Large high parts may have cancelled, so that the low part is the larger one. An infinity has
    // none.
    d = select(two_sum(d.x, d.y), vec2<f32>(d.x, 0.0), is_infinite_or_nan(bitcast<u32>(d.x)));
    d.y = select(0.0, d.y, d.x > LOWEST);
    // The log-sum-exp that was given may be far too small; exp stays a number.
    return exp_pair(select(d, vec2<f32>(88.0, 0.0), d.x > 88.0));
}

// exp(y - log_sum_exp); x may be -inf.
fn probabilities(state: ptr<function, RowState>, x: vec4<f32>) -> vec4<f32> {
    if TRANSFORMED {
        let lse = (*state).log_sum_exp;
        let low = vec2<f32>(transformed_probability(x.x, lse), transformed_probability(x.y, lse));
        return vec4<f32>(low, transformed_probability(x.z, lse), transformed_probability(x.w, lse));
    }
    return exp_from(x, (*state).reference);
}

fn begin_sums(state: ptr<function, RowState>) {
    (*state).labels = vec2<f32>(0.0, 0.0);
}

// for each class of the unit: labels += its label
fn add_unit(state: ptr<function, RowState>, j: u32, end: u32, unit: Unit) -> Unit {
    for (var part = 0u; part < PARTS; part += 1u) {
        let is_here = classes_from(j, part) < vec4<u32>(end);
        let label = select(vec4<f32>(0.0), labels_of(j, part), is_here);
        let sum = (label.x + label.y) + (label.z + label.w);
        (*state).labels = add_pairs((*state).labels, vec2<f32>(sum, 0.0));
    }
    return unit;
}

fn add_segment(state: ptr<function, RowState>, segment: Stats, stats: Stats) {
    (*state).labels = add_pairs((*state).labels, vec2<f32>(segment.labels, 0.0));
}

fn summed(grid: Grid, state: ptr<function, RowState>, stats: Stats) -> Stats {
    var result = stats;
    if SOFT {
        let labels = sum_of(grid, (*state).labels);
        result.labels = labels.x + labels.y;
    }
    return result;
}

fn finish(row: u32, stats: Stats, state: ptr<function, RowState>, leader: bool) -> Coefficients {
    let log_sum_exp = bitcast<f32>(rows_out[params.rows_out_at + row]);
    set_log_sum_exp(state, log_sum_exp);
    let goal = target_of(row, stats);
    var logit = 0.0;
    if !SOFT {
        logit = target_logit(row, goal.class_index);
    }
    // The exponentials are probabilities already.
    let p = probabilities(state, vec4<f32>(logit)).x;
    let bad = is_infinite_or_nan(bitcast<u32>(log_sum_exp));
    var complement = 1.0 - p;
    var minus_log_p = 0.0;
    if (FLAGS & FOCAL) != 0u {
        let log_p = add_pairs(transform(logit), vec2<f32>(-log_sum_exp, 0.0));
        // A difference beyond all numbers has no low part, and its p is 0.
        minus_log_p = select(max(-(log_p.x + log_p.y), 0.0), 1e30, is_infinite_or_nan(bitcast<u32>(log_p.x)));
        if minus_log_p < 0.015625 {
            // 1 - exp(-l), whose digits 1 - p would lose.
            let l = minus_log_p;
            complement = l * (1.0 - l * (0.5 - l * (0.16666667 - l * 0.041666668)));
        }
    }
    let exponentials =
        RowExponentials(1.0, complement, logit, p, minus_log_p, log_sum_exp, bad);
    return gradient_coefficients(goal, upstream_of(row), exponentials);
}

// for each x: scale * (labels * exp(y - log_sum_exp) - label), see `gradient_of`
fn elements_of(
    state: ptr<function, RowState>,
    j: u32,
    part: u32,
    x: vec4<f32>,
    are_exponentials: bool,
    coefficients: Coefficients,
) -> vec4<f32> {
    let values = probabilities(state, x) * coefficients.factor;
    let gradient = gradient_of(j, part, x, values, coefficients);
    return select(gradient, vec4<f32>(bitcast<f32>(params.nan)), coefficients.bad);
}

fn packed(state: ptr<function, RowState>, coefficients: Coefficients) -> Stats {
    return packed_coefficients(coefficients, (*state).log_sum_exp);
}

fn unpacked(state: ptr<function, RowState>, entry: Stats) -> Coefficients {
    set_log_sum_exp(state, entry.below.y);
    return unpacked_coefficients(entry);
}
