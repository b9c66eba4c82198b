// Sums about the largest logit that a lane has met so far, for rows that are read once: a larger one moves them on (Milakov and
// Gimelshein, arXiv:1805.02867).
// needs: Grid, Stats (shared/bindings.wgsl); Reference, add_pairs, between, exp_from, exp_pair, power_near,
//   reference_at (shared/math.wgsl); LOWEST_KEY, below, labels, lane_key, maxima_count (shared/passes.wgsl); is_bad,
//   label_below, maximum_of, summed, total (shared/passes.wgsl or shared/sum.wgsl); LARGEST_KEY, reduce
//   (shared/reduce.wgsl); max_logit, measure_from, reference (shared/transform.wgsl)
// provides: begin_running_maximum, raise_maximum, join_lanes

// The key of the largest logit that this lane has met.
var<private> running_key: i32;
// The reference of its sums.
var<private> running_reference: Reference;

fn begin_running_maximum() {
    running_key = LOWEST_KEY;
    running_reference = reference_at(0.0);
    reference = running_reference;
    max_logit = 0.0;
}

fn running_maximum() -> Stats {
    var stats = Stats();
    stats.key = running_key;
    return stats;
}

// Adds the terms of the old maximum to the rest of the sum.
fn demote_maximum(top: f32) {
    total = add_pairs(total, vec2<f32>(maxima_count * exp_from(vec4<f32>(top), running_reference).x, 0.0));
    maxima_count = 0.0;
}

// Rescales the sums to what was seen last, if that is larger or makes the row bad.
fn raise_maximum() {
    let key = lane_key();
    if key <= running_key {
        return;
    }
    let old = running_maximum();
    running_key = key;
    max_logit = maximum_of(running_maximum());
    reference = power_near(max_logit);
    if !is_bad(old) {
        demote_maximum(maximum_of(old));
        total *= exp_pair(between(running_reference, reference));
        if SPREAD {
            below = add_pairs(below, vec2<f32>(label_below(labels.x + labels.y, maximum_of(old)), 0.0));
        }
    }
    running_reference = reference;
}

// Called by all threads of a workgroup together: all lanes about the row's largest logit.
fn join_lanes(grid: Grid) -> Stats {
    let own = running_maximum();
    var stats = Stats();
    stats.key = bitcast<i32>(reduce(grid, vec2<u32>(bitcast<u32>(running_key), 0u), LARGEST_KEY).x);
    measure_from(maximum_of(stats));
    if !is_bad(own) {
        if running_key != stats.key {
            demote_maximum(maximum_of(own));
            if SPREAD {
                below = add_pairs(below, vec2<f32>(label_below(labels.x + labels.y, maximum_of(own)), 0.0));
            }
        }
        total *= exp_pair(between(running_reference, reference));
    }
    return summed(grid, stats);
}
