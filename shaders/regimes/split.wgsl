// Regime for huge rows: several workgroups a row. The first dispatch reduces each segment about its own maximum, the
// second brings the segments of a row to one maximum (Milakov and Gimelshein, arXiv:1805.02867), and writes.

const SEGMENT: u32 = 8192u;

@compute @workgroup_size(256)
fn split_reduce(invocation: Invocation) {
    enter(invocation);
    let group = group_index(invocation);
    if group >= params.rows * params.segments {
        return;
    }
    row_base = group / params.segments * params.classes;
    let start = group % params.segments * SEGMENT;
    let stats = reduce_stretch(start, min(start + SEGMENT, params.classes), thread);
    if thread == 0u {
        partials[group] = stats;
    }
}

// Called by all threads of a workgroup together.
fn join_segments(row: u32) -> Stats {
    let first = row * params.segments;
    // No number at all is below every key.
    var best = vec2<u32>(bitcast<u32>(key_of(bitcast<f32>(params.negative_infinity))), NONE);
    for (var i = thread; i < params.segments; i += WORKGROUP) {
        let part = partials[first + i];
        best = combine(best, vec2<u32>(bitcast<u32>(part.key), part.at), LARGEST);
    }
    best = reduce(best, LARGEST);
    var stats = Stats(bitcast<i32>(best.x), best.y, vec2<f32>(0.0, 0.0));

    let top = top_of(stats);
    var sum = vec2<f32>(0.0, 0.0);
    for (var i = thread; i < params.segments; i += WORKGROUP) {
        let part = partials[first + i];
        if part.at == stats.at {
            sum = add_pairs(sum, part.others);
        } else if part.at != NONE {
            // This segment's own first maximum is one more of the others now.
            let whole = add_pairs(vec2<f32>(1.0, 0.0), part.others);
            sum = add_pairs(sum, whole * exp_difference(top_of(part), top));
        }
    }
    stats.others = bitcast<vec2<f32>>(reduce(bitcast<vec2<u32>>(sum), SUM));
    return stats;
}

@compute @workgroup_size(256)
fn split_finish(invocation: Invocation) {
    enter(invocation);
    let group = group_index(invocation);
    // Where nothing is written to the elements, one workgroup a row is enough.
    let segments = select(1u, params.segments, WRITES);
    if group >= params.rows * segments {
        return;
    }
    let row = group / segments;
    row_base = row * params.classes;
    let stats = join_segments(row);
    let start = group % segments * SEGMENT;
    let coefficients = finish(row, stats, thread == 0u && start == 0u);
    if WRITES {
        write_stretch(start, min(start + SEGMENT, params.classes), stats, coefficients);
    }
}
