// Side sums of labels that are spread over the classes (SPREAD): what a loss sums beside the
// exponentials of a row, relative to the same maximum.
//   below = sum_j label_j * (maximum.y - y_j) over what is not -inf; labels = sum_j label_j
// needs: Grid, Stats, params (shared/bindings.wgsl); Coefficients (shared/coefficients.wgsl);
//   add_pairs (shared/math.wgsl); RowState, is_bad (shared/passes.wgsl); COUNT, reduce, sum_of
//   (shared/reduce.wgsl); classes_from (shared/rows.wgsl); gradient_of, label_below, labels_of
//   (shared/targets.wgsl); Maximum (shared/transform.wgsl)
// provides: begin_side_sums, add_to_side_sums, rescale_side_sums, add_segment_to_side_sums,
//   reduce_side_sums, element_values

fn begin_side_sums(state: ptr<function, RowState>) {
    (*state).below = vec2<f32>(0.0, 0.0);
    (*state).labels = vec2<f32>(0.0, 0.0);
    (*state).has_negative_infinity = 0u;
}

// for each x of the part that is not -inf: below += label * (maximum.y - y); labels += its label
fn add_to_side_sums(
    state: ptr<function, RowState>,
    j: u32,
    part: u32,
    end: u32,
    x: vec4<f32>,
    e: vec4<f32>,
) {
    if !SPREAD {
        return;
    }
    let is_here = classes_from(j, part) < vec4<u32>(end);
    let label = select(vec4<f32>(0.0), labels_of(j, part), is_here);
    var sum = 0.0;
    for (var k = 0u; k < 4u; k += 1u) {
        if bitcast<u32>(x[k]) == params.negative_infinity {
            let kind = select(1u, 2u, label[k] == 0.0);
            (*state).has_negative_infinity |= select(0u, kind, is_here[k]);
        } else {
            sum += label_below(label[k], x[k], (*state).maximum);
        }
    }
    (*state).below = add_pairs((*state).below, vec2<f32>(sum, 0.0));
    let all_labels = (label.x + label.y) + (label.z + label.w);
    (*state).labels = add_pairs((*state).labels, vec2<f32>(all_labels, 0.0));
}

// Moves the side sums from the old maximum to that of `state`: below += labels * (maximum - old)
fn rescale_side_sums(state: ptr<function, RowState>, old: Maximum, factor: f32) {
    if SPREAD {
        let moved = label_below((*state).labels.x + (*state).labels.y, old.logit, (*state).maximum);
        (*state).below = add_pairs((*state).below, vec2<f32>(moved, 0.0));
    }
}

// Adds the side sums of a segment, which are relative to its own maximum.
fn add_segment_to_side_sums(
    state: ptr<function, RowState>,
    segment: Stats,
    maximum: f32,
    factor: f32,
    sum: f32,
) {
    if SPREAD {
        (*state).labels = add_pairs((*state).labels, vec2<f32>(segment.labels, 0.0));
        (*state).below = add_pairs((*state).below, segment.below);
        // However small the exponentials of the segment have become, its labels count.
        if !is_bad(segment) && maximum != (*state).maximum.logit {
            let moved = label_below(segment.labels, maximum, (*state).maximum);
            (*state).below = add_pairs((*state).below, vec2<f32>(moved, 0.0));
        }
        (*state).has_negative_infinity |= segment.has_negative_infinity;
    }
}

// Called by all threads of a workgroup together: enters the side sums of a row into its statistics.
fn reduce_side_sums(grid: Grid, state: ptr<function, RowState>, stats: ptr<function, Stats>) {
    if !SPREAD {
        return;
    }
    // The host knows the sum of smoothed labels over a whole row.
    if SOFT || SPLIT_ROW {
        let labels = sum_of(grid, (*state).labels);
        (*stats).labels = labels.x + labels.y;
    }
    (*stats).below = sum_of(grid, (*state).below);
    let kinds = (*state).has_negative_infinity;
    let flags = reduce(grid, vec2<u32>(kinds & 1u, kinds >> 1u), COUNT);
    (*stats).has_negative_infinity = select(0u, 1u, flags.x > 0u) | select(0u, 2u, flags.y > 0u);
}

fn element_values(
    state: ptr<function, RowState>,
    j: u32,
    part: u32,
    x: vec4<f32>,
    values: vec4<f32>,
    coefficients: Coefficients,
) -> vec4<f32> {
    return gradient_of(j, part, x, values, coefficients);
}
