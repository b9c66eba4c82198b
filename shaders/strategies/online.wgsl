// Online strategy, for rows that no registers hold: a row is read once for its statistics and once more, where elements are
// written, for those. Each lane sums about the largest logit that it has met so far.
// needs: Grid, Stats, WORKGROUP, params, thread (shared/bindings.wgsl); add_unit, begin_maximum, begin_sums,
//   maximum_of, row_maximum, see_unit, summed (shared/passes.wgsl or shared/sum.wgsl); write_stretch
//   (shared/reread.wgsl); class_range, enter_row, lane, load, masked, take_units (shared/rows.wgsl);
//   begin_running_maximum, join_lanes, raise_maximum (shared/running_maximum.wgsl or shared/sum.wgsl); measure_from
//   (shared/transform.wgsl); finish, select_classes (the operation, or shared/sum.wgsl); UNIT (the parts in
//   elements/)
// provides: label_logit, stream_rows

fn label_logit(row: u32, label: u32) -> f32 {
    return load(label);
}

fn reduce_row(grid: Grid) -> Stats {
    let range = class_range(0u, params.classes);
    let first = range.first + lane % STRIPE * UNIT;
    let stride = STRIPE * UNITS * UNIT;
    var stats = Stats();
    if HAS_MAXIMUM && !ONLINE && !SAVED_LOG_SUM_EXP {
        begin_maximum();
        for (var j = first; j < range.end; j += stride) {
            let units = take_units(j, range);
            for (var i = 0u; i < UNITS; i += 1u) {
                let at = j + i * STRIPE * UNIT;
                see_unit(at, masked(at, range.end, units[i]));
            }
        }
        let peak = row_maximum(grid);
        stats.key = bitcast<i32>(peak.x);
        stats.at = peak.y;
        measure_from(maximum_of(stats));
    }
    begin_sums();
    if ONLINE {
        begin_running_maximum();
    }
    for (var j = first; j < range.end && (SOFT || !SAVED_LOG_SUM_EXP); j += stride) {
        var units = take_units(j, range);
        if ONLINE {
            begin_maximum();
            for (var i = 0u; i < UNITS; i += 1u) {
                let at = j + i * STRIPE * UNIT;
                units[i] = masked(at, range.end, units[i]);
                see_unit(at, units[i]);
            }
            raise_maximum();
        }
        for (var i = 0u; i < UNITS; i += 1u) {
            let at = j + i * STRIPE * UNIT;
            add_unit(at, range.end, masked(at, range.end, units[i]));
        }
    }
    if ONLINE {
        return join_lanes(grid);
    }
    return summed(grid, stats);
}

fn stream_rows(grid: Grid) {
    let rows = WORKGROUP / LANES;
    let first = grid.group * rows;
    if first >= params.rows {
        return;
    }
    lane = thread % LANES;
    // Threads without a row do what those of the last one do, and give nothing.
    let row = min(first + thread / LANES, params.rows - 1u);
    let present = first + thread / LANES < params.rows;
    enter_row(row, 0u);
    let stats = reduce_row(grid);
    let coefficients = finish(row, stats, present && lane == 0u);
    if REREADS_ROW {
        select_classes(grid, row, stats, present);
    }
    if WRITES {
        if IN_PLACE && TARGETS {
            // Every thread must have seen its label's logit before that is overwritten.
            storageBarrier();
        }
        write_stretch(0u, params.classes, present, coefficients);
    }
}
