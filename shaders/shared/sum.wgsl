// In place of the two passes: one sum over a stretch of a row, of a term for each class, with `addend` and `element_of` of
// the operation.

struct Coefficients {
    sum: f32,
}

// All stretches of a row have the same top, so that their sums are simply added.
fn top_of(stats: Stats) -> f32 {
    return 0.0;
}

// Labels are none of its business.
fn label_below(label: f32, x: f32) -> f32 {
    return 0.0;
}

fn second_of(j: u32) -> f32 {
    return second_at(second_in + j * class_step());
}

fn reduce_stretch(start: u32, end: u32, lane: u32) -> Stats {
    var sum = vec2<f32>(0.0, 0.0);
    for (var j = start + lane; j < end; j += THREADS_PER_ROW) {
        sum = add_pairs(sum, vec2<f32>(addend(load(j), second_of(j)), 0.0));
    }
    return Stats(0, 0u, sum_of(sum), vec2<f32>(0.0, 0.0), 0u, 0.0);
}

fn finish(row: u32, stats: Stats, leader: bool) -> Coefficients {
    return Coefficients(stats.others.x + stats.others.y);
}

fn element(j: u32, coefficients: Coefficients) -> f32 {
    return element_of(load(j), second_of(j), coefficients.sum) * params.signed_scale;
}
