// Sums about the largest logit that a lane has met so far, for rows that are read once: a larger one moves them on (Milakov and
// Gimelshein, arXiv:1805.02867).
// needs: Grid, Stats (shared/bindings.wgsl); Reference, add_pairs, between, exp_from, exp_pair, power_near,
//   reference_at (shared/math.wgsl); LOWEST_KEY, below, labels, lane_key, tops (shared/passes.wgsl); is_bad,
//   label_below, summed, top_of, total (shared/passes.wgsl or shared/sum.wgsl); TOP, reduce (shared/reduce.wgsl);
//   reference, see_from, top_x (shared/transform.wgsl)
// provides: begin_rise, rise, join_lanes

// The key of the largest logit that this lane has met.
var<private> met: i32;
// What its sums are relative to.
var<private> base: Reference;

fn begin_rise() {
    met = LOWEST_KEY;
    base = reference_at(0.0);
    reference = base;
    top_x = 0.0;
}

fn met_so_far() -> Stats {
    var stats = Stats();
    stats.key = met;
    return stats;
}

// What was the largest is one of the others now.
fn yield_top(top: f32) {
    total = add_pairs(total, vec2<f32>(tops * exp_from(vec4<f32>(top), base).x, 0.0));
    tops = 0.0;
}

// To what was seen last, if that is larger or makes the row bad.
fn rise() {
    let key = lane_key();
    if key <= met {
        return;
    }
    let old = met_so_far();
    met = key;
    top_x = top_of(met_so_far());
    reference = power_near(top_x);
    if !is_bad(old) {
        yield_top(top_of(old));
        total *= exp_pair(between(base, reference));
        if SPREAD {
            below = add_pairs(below, vec2<f32>(label_below(labels.x + labels.y, top_of(old)), 0.0));
        }
    }
    base = reference;
}

// Called by all threads of a workgroup together: all lanes about the row's largest logit.
fn join_lanes(grid: Grid) -> Stats {
    let own = met_so_far();
    var stats = Stats();
    stats.key = bitcast<i32>(reduce(grid, vec2<u32>(bitcast<u32>(met), 0u), TOP).x);
    see_from(top_of(stats));
    if !is_bad(own) {
        if met != stats.key {
            yield_top(top_of(own));
            if SPREAD {
                below = add_pairs(below, vec2<f32>(label_below(labels.x + labels.y, top_of(own)), 0.0));
            }
        }
        total *= exp_pair(between(base, reference));
    }
    return summed(grid, stats);
}
