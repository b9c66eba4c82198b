// The entropy of softmax(y) and its gradient, by the distances d_j = maximum.y - y_j, with
// e_j = exp(-d_j) and sum = sum_j e_j:
//   H = -sum_j p_j log p_j = log(sum) + mean, where mean = sum_j e_j d_j / sum
//   gradient_j = -g p_j (log p_j + H) dy_j/dx_j = g e_j / sum * (d_j - mean) dy_j/dx_j
// Neither term of H is negative, so nothing cancels. The side sum of a row is
// below = sum_j e_j d_j. Twin of `src/cpu/ops/entropy.rs`.
// needs: Grid, NONE, Stats, params, rows_out (shared/bindings.wgsl); Coefficients, upstream_of
//   (shared/coefficients.wgsl); add_pairs, exp_pair, log1p_pair, opaque (shared/math.wgsl);
//   RowState, is_bad, sum_of_exponentials (shared/passes.wgsl); sum_of (shared/reduce.wgsl);
//   classes_from (shared/rows.wgsl); Maximum, distance, slope (shared/transform.wgsl)
// provides: begin_side_sums, add_to_side_sums, rescale_side_sums, add_segment_to_side_sums,
//   reduce_side_sums, element_values, finish

const LEAST_NORMAL: f32 = 1.1754944e-38;
// Beyond this distance exp(-d) * (d + 1) is no normal number.
const FARTHEST: f32 = 104.0;

// maximum.y - y, which stays a number where y is -inf: times an exponential of 0 it is 0.
fn distance_below(x: f32, maximum: Maximum) -> f32 {
    let d = distance(x, maximum);
    return min(-(d.x + d.y), 1e30);
}

// The term of a class in H, times the sum. The f32 e is 0 from about d = 87 on, but e * (d + 1) may
// be a normal number up to d = 104:
//   e normal: e * d
//   else: e * (d + 1), with e = exp(-d / 2)^2; the 1 is its share of log(sum), which lacks e, but
//     for what an adapter that knows subnormal numbers has of it
fn entropy_term(x: f32, e: f32, maximum: Maximum) -> f32 {
    let d = distance_below(x, maximum);
    if e < LEAST_NORMAL && d < FARTHEST {
        let root = exp_pair(0.5 * distance(x, maximum));
        return root * opaque(root * (d + 1.0)) - e;
    }
    return e * d;
}

fn begin_side_sums(state: ptr<function, RowState>) {
    (*state).below = vec2<f32>(0.0, 0.0);
}

//   for each x of the part: below += e * (maximum.y - y)
fn add_to_side_sums(
    state: ptr<function, RowState>,
    j: u32,
    part: u32,
    end: u32,
    x: vec4<f32>,
    e: vec4<f32>,
) {
    let maximum = (*state).maximum;
    let all = vec4<f32>(
        entropy_term(x.x, e.x, maximum),
        entropy_term(x.y, e.y, maximum),
        entropy_term(x.z, e.z, maximum),
        entropy_term(x.w, e.w, maximum),
    );
    let terms = select(vec4<f32>(0.0), all, classes_from(j, part) < vec4<u32>(end));
    let sum = (terms.x + terms.y) + (terms.z + terms.w);
    (*state).below = add_pairs((*state).below, vec2<f32>(sum, 0.0));
}

// Adds terms of an old maximum, sum_j e_j * (old - y_j), with `sum` = sum_j e_j, whose e_j are
// relative to the new maximum already:
//   below += terms + sum * (maximum - old)
fn add_moved(state: ptr<function, RowState>, terms: vec2<f32>, sum: f32, old: f32) {
    let moved = sum * distance_below(old, (*state).maximum);
    (*state).below = add_pairs((*state).below, add_pairs(terms, vec2<f32>(moved, 0.0)));
}

// Moves the side sum from the old maximum to that of `state`:
//   below = below * factor + rest_of_sum * (maximum - old)
fn rescale_side_sums(state: ptr<function, RowState>, old: Maximum, factor: f32) {
    let terms = (*state).below * factor;
    (*state).below = vec2<f32>(0.0, 0.0);
    add_moved(state, terms, (*state).rest_of_sum.x + (*state).rest_of_sum.y, old.logit);
}

// Adds the side sum of a segment, which is relative to its own maximum.
fn add_segment_to_side_sums(
    state: ptr<function, RowState>,
    segment: Stats,
    maximum: f32,
    factor: f32,
    sum: f32,
) {
    let d = distance_below(maximum, (*state).maximum);
    if factor < LEAST_NORMAL && d < FARTHEST && !is_bad(segment) {
        // All terms of the segment together, by the formula of `entropy_term`.
        let root = exp_pair(0.5 * distance(maximum, (*state).maximum));
        let own = segment.below.x + sum_of_exponentials(segment) * (d + 1.0);
        let terms = root * opaque(root * own) - sum;
        (*state).below = add_pairs((*state).below, vec2<f32>(terms, 0.0));
        return;
    }
    add_moved(state, segment.below * factor, sum, maximum);
}

// Called by all threads of a workgroup together: enters the side sum of a row into its statistics.
fn reduce_side_sums(grid: Grid, state: ptr<function, RowState>, stats: ptr<function, Stats>) {
    (*stats).below = sum_of(grid, (*state).below);
}

// The gradients of four logits of a unit, of which `values` are the exponentials times `factor`:
//   for each class: values * (d - mean) * slope
fn element_values(
    state: ptr<function, RowState>,
    j: u32,
    part: u32,
    x: vec4<f32>,
    values: vec4<f32>,
    coefficients: Coefficients,
) -> vec4<f32> {
    let maximum = (*state).maximum;
    let d = vec4<f32>(
        distance_below(x.x, maximum),
        distance_below(x.y, maximum),
        distance_below(x.z, maximum),
        distance_below(x.w, maximum),
    );
    var result = values * (d - vec4<f32>(coefficients.shift));
    if CAPPED {
        result *= vec4<f32>(slope(x.x), slope(x.y), slope(x.z), slope(x.w));
    }
    return result;
}

fn finish(row: u32, stats: Stats, state: ptr<function, RowState>, leader: bool) -> Coefficients {
    let sum = sum_of_exponentials(stats);
    let mean = (stats.below.x + stats.below.y) / sum;
    if WRITES {
        // Under a cap the slope is each logit's own.
        let slope_of_all = select(1.0, params.signed_scale, SCALED);
        let factor = upstream_of(row).scale * slope_of_all / sum;
        return Coefficients(factor, NONE, 0.0, is_bad(stats), mean);
    }
    if leader {
        let log_sum = log1p_pair(stats.rest_of_sum);
        let entropy = log_sum.x + (log_sum.y + mean);
        rows_out[params.rows_out_at + row] = select(bitcast<u32>(entropy), params.nan, is_bad(stats));
    }
    return Coefficients();
}
