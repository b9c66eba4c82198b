// Online strategy, for rows too long for registers: a row is read once for its statistics, and once
// more if elements are written. Each lane sums relative to the largest logit that it has seen so
// far.
// needs: Grid, Stats, params (shared/bindings.wgsl); begin_maximum, row_maximum, see_unit
//   (shared/no_maximum.wgsl or shared/passes.wgsl); begin_running_maximum, join_lanes,
//   raise_maximum (shared/no_maximum.wgsl or shared/running_maximum.wgsl); select_classes
//   (shared/no_selection.wgsl or the operation); RowState, add_unit, begin_sums, summed
//   (shared/passes.wgsl or shared/sum.wgsl or the operation); write_stretch (shared/reread.wgsl);
//   class_range, enter_row, has_place, lane, load, masked, place_among, take_units
//   (shared/rows.wgsl); finish (shared/sum.wgsl or the operation); UNIT (the parts in elements/)
// provides: target_logit, online_rows

fn target_logit(row: u32, class_index: u32) -> f32 {
    return load(class_index);
}

// With ONLINE a row is read once, relative to a maximum that grows:
//   for each few units: maximum = max(maximum, their logits); rescale the sums;
//       sums += their exponentials
//   join the lanes
// else twice:
//   for each unit: maximum = max(maximum, its logits); over all lanes
//   for each unit: sums += its exponentials; over all lanes
fn reduce_row(grid: Grid, state: ptr<function, RowState>) -> Stats {
    var stats = Stats();
    if !REDUCES {
        return stats;
    }
    let range = class_range(0u, params.classes);
    let first = range.first + lane % STRIPE * UNIT;
    let stride = STRIPE * UNITS * UNIT;
    if HAS_MAXIMUM && !ONLINE {
        begin_maximum(state);
        for (var j = first; j < range.end; j += stride) {
            let units = take_units(j, range);
            for (var i = 0u; i < UNITS; i += 1u) {
                let at = j + i * STRIPE * UNIT;
                see_unit(state, at, masked(at, range.end, units[i]));
            }
        }
        stats = row_maximum(grid, state);
    }
    begin_sums(state);
    if ONLINE {
        begin_running_maximum(state);
    }
    for (var j = first; j < range.end; j += stride) {
        var units = take_units(j, range);
        if ONLINE {
            begin_maximum(state);
            for (var i = 0u; i < UNITS; i += 1u) {
                let at = j + i * STRIPE * UNIT;
                units[i] = masked(at, range.end, units[i]);
                see_unit(state, at, units[i]);
            }
            raise_maximum(state);
        }
        for (var i = 0u; i < UNITS; i += 1u) {
            let at = j + i * STRIPE * UNIT;
            add_unit(state, at, range.end, masked(at, range.end, units[i]));
        }
    }
    if ONLINE {
        return join_lanes(grid, state);
    }
    return summed(grid, state, stats);
}

//   for each row, LANES threads each: reduce it while it is read, finish it, reread and write it
fn online_rows(grid: Grid) {
    if !has_place(grid, params.rows) {
        return;
    }
    let place = place_among(grid, params.rows);
    enter_row(place.index, 0u);
    var state = RowState();
    let stats = reduce_row(grid, &state);
    let coefficients = finish(place.index, stats, &state, place.present && lane == 0u);
    if REREADS_ROW {
        select_classes(grid, place.index, stats, &state, place.present);
    }
    if WRITES {
        if IN_PLACE && TARGETS {
            // Every thread must have seen its target's logit before that is overwritten.
            storageBarrier();
        }
        write_stretch(&state, 0u, params.classes, place.present, coefficients);
    }
}
