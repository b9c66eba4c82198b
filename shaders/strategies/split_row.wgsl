// Split-row strategy, for huge rows: several workgroups a row, in as many passes as it takes to
// bind the whole row piece by piece. The first dispatch reduces each segment relative to its own
// maximum, the second rescales the segments of a row to one maximum (Milakov and Gimelshein,
// arXiv:1805.02867), and a third writes.
// needs: Grid, NONE, Stats, params, partials, targets (shared/bindings.wgsl); hold, reduce_held
//   (shared/held.wgsl); set_maximum (shared/no_maximum.wgsl or shared/passes.wgsl); RowState,
//   add_segment, begin_sums, packed, summed, unpacked (shared/passes.wgsl or shared/sum.wgsl or the
//   operation); LARGEST, combine, reduce (shared/reduce.wgsl); write_stretch (shared/reread.wgsl);
//   enter_row, has_place, lane, load, place_among (shared/rows.wgsl); finish (shared/sum.wgsl or
//   the operation)
// provides: target_logit, split_reduce, split_join, split_write

// Entries of a row in `partials` before its segments: the statistics of the whole row, and its
// coefficients. Until those are there, the key of their entry is the logit of the row's target.
const ROW_ENTRIES: u32 = 2u;

fn entries_of(row: u32) -> u32 {
    return row * (params.segments + ROW_ENTRIES);
}

fn target_logit(row: u32, class_index: u32) -> f32 {
    return bitcast<f32>(partials[entries_of(row) + 1u].key);
}

// The number of segments of a pass: those of its part of each row.
fn segment_count() -> u32 {
    return params.rows * params.pass_segments;
}

// The row and the segment of a thread, and the segment's classes.
struct Segment {
    row: u32,
    number: u32,
    start: u32,
    end: u32,
    present: bool,
}

// Finds this thread's segment, and makes its row this thread's row. A pass over a part of a row has
// no other row, and its bindings start with that part.
fn enter_segment(grid: Grid) -> Segment {
    let place = place_among(grid, segment_count());
    let row = place.index / params.pass_segments;
    let number = params.first_segment + place.index % params.pass_segments;
    let start = number * SEGMENT;
    let end = start + min(SEGMENT, params.classes - start);
    enter_row(row, params.first_segment * SEGMENT);
    return Segment(row, number, start, end, place.present);
}

//   for each segment, LANES threads each: read its units into registers, reduce them, keep the
//   statistics
fn split_reduce(grid: Grid) {
    if !has_place(grid, segment_count()) {
        return;
    }
    let segment = enter_segment(grid);
    hold(segment.start, segment.end);
    var state = RowState();
    let stats = reduce_held(grid, &state, segment.start, segment.end);
    if segment.present && lane == 0u {
        let entries = entries_of(segment.row);
        partials[entries + ROW_ENTRIES + segment.number] = stats;
        if TARGETS && !SOFT {
            let target_class = targets[params.targets_at + segment.row];
            if target_class >= segment.start && target_class < segment.end {
                partials[entries + 1u].key = bitcast<i32>(load(target_class));
            }
        }
    }
}

//   for each segment: maximum = max(maximum, its maximum); over all lanes
//   for each segment: sums += its sums * exp(its maximum - maximum); over all lanes
fn split_join(grid: Grid) {
    if !has_place(grid, params.rows) {
        return;
    }
    let place = place_among(grid, params.rows);
    let row = place.index;
    let leads = place.present && lane == 0u;
    let entries = entries_of(row);
    let first = entries + ROW_ENTRIES;
    var best = vec2<u32>(0x80000000u, NONE);
    for (var i = lane; i < params.segments; i += LANES) {
        let part = partials[first + i];
        best = combine(best, vec2<u32>(bitcast<u32>(part.key), part.at), LARGEST);
    }
    best = reduce(grid, best, LARGEST);
    var stats = Stats();
    stats.key = bitcast<i32>(best.x);
    stats.at = best.y;

    var state = RowState();
    set_maximum(&state, stats);
    begin_sums(&state);
    for (var i = lane; i < params.segments; i += LANES) {
        add_segment(&state, partials[first + i], stats);
    }
    stats = summed(grid, &state, stats);
    let coefficients = finish(row, stats, &state, leads);
    if leads {
        partials[entries] = stats;
        partials[entries + 1u] = packed(&state, coefficients);
    }
}

//   for each segment, LANES threads each: read it again and write its elements
fn split_write(grid: Grid) {
    if !has_place(grid, segment_count()) {
        return;
    }
    let segment = enter_segment(grid);
    let entries = entries_of(segment.row);
    var state = RowState();
    set_maximum(&state, partials[entries]);
    let coefficients = unpacked(&state, partials[entries + 1u]);
    write_stretch(&state, segment.start, segment.end, segment.present, coefficients);
}
