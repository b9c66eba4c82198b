// Online sums, for rows that are read once: exponentials are relative to the largest logit that a
// lane has seen so far, and a larger one rescales the sums (Milakov and Gimelshein,
// arXiv:1805.02867).
// needs: Grid, Stats (shared/bindings.wgsl); add_pairs, between, exp_from, exp_pair, power_near,
//   reference_at (shared/math.wgsl); LOWEST_KEY, RowState, is_bad, lane_key, maximum_of,
//   set_maximum, summed (shared/passes.wgsl); LARGEST_KEY, reduce (shared/reduce.wgsl);
//   rescale_side_sums (shared/label_sums.wgsl, shared/no_side_sums.wgsl or the operation); Maximum
//   (shared/transform.wgsl)
// provides: begin_running_maximum, raise_maximum, join_lanes

fn begin_running_maximum(state: ptr<function, RowState>) {
    (*state).running_key = LOWEST_KEY;
    (*state).maximum = Maximum(0.0, vec2<f32>(0.0, 0.0), reference_at(0.0));
}

fn running_maximum(state: ptr<function, RowState>) -> Stats {
    var stats = Stats();
    stats.key = (*state).running_key;
    return stats;
}

// Adds the terms of a maximum that is none any more to the rest of the sum, which is relative to it
// still.
fn demote_maximum(state: ptr<function, RowState>, old: Maximum) {
    let terms = (*state).maxima_count * exp_from(vec4<f32>(old.logit), old.reference).x;
    (*state).rest_of_sum = add_pairs((*state).rest_of_sum, vec2<f32>(terms, 0.0));
    (*state).maxima_count = 0.0;
}

// Rescales the sums from an old maximum to that of `state`.
fn rescale_sums(state: ptr<function, RowState>, old: Maximum) {
    let factor = exp_pair(between(old.reference, (*state).maximum.reference));
    (*state).rest_of_sum *= factor;
    rescale_side_sums(state, old, factor);
}

// Rescales the sums to the largest logit seen last, if that is larger or makes the row bad:
//   if seen > maximum {
//       rest_of_sum = (rest_of_sum + maxima_count) * exp(maximum - seen); maxima_count = 0
//       rescale the side sums; maximum = seen
//   }
fn raise_maximum(state: ptr<function, RowState>) {
    let key = lane_key(state);
    if key <= (*state).running_key {
        return;
    }
    let is_old_bad = is_bad(running_maximum(state));
    let old = (*state).maximum;
    (*state).running_key = key;
    (*state).maximum.logit = maximum_of(running_maximum(state));
    (*state).maximum.reference = power_near((*state).maximum.logit);
    if !is_old_bad {
        demote_maximum(state, old);
        rescale_sums(state, old);
    }
}

// Called by all threads of a workgroup together: rescales the sums of all lanes to the row's
// maximum, and adds them up.
fn join_lanes(grid: Grid, state: ptr<function, RowState>) -> Stats {
    let is_old_bad = is_bad(running_maximum(state));
    let old = (*state).maximum;
    let key = vec2<u32>(bitcast<u32>((*state).running_key), 0u);
    var stats = Stats();
    stats.key = bitcast<i32>(reduce(grid, key, LARGEST_KEY).x);
    set_maximum(state, stats);
    if !is_old_bad {
        if (*state).running_key != stats.key {
            demote_maximum(state, old);
        }
        rescale_sums(state, old);
    }
    return summed(grid, state, stats);
}
