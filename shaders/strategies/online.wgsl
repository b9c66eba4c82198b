// Regime for rows that no registers hold: a row is read once for its statistics and once more, where elements are
// written, for those. Each lane sums about the largest logit that it has met so far.
// needs: Grid, Stats, WORKGROUP, params, thread (shared/bindings.wgsl); add_unit, begin_peak, begin_sums, row_peak,
//   see_unit, summed, top_of (shared/passes.wgsl or shared/sum.wgsl); write_stretch (shared/reread.wgsl); enter_row,
//   lane, load, masked, share_of, take_units (shared/rows.wgsl); begin_rise, join_lanes, rise
//   (shared/running_maximum.wgsl or shared/sum.wgsl); see_from (shared/transform.wgsl); finish, pick (the operation,
//   or shared/sum.wgsl); UNIT (the parts in elements/)
// provides: label_logit, stream_rows

fn label_logit(row: u32, label: u32) -> f32 {
    return load(label);
}

fn reduce_row(grid: Grid) -> Stats {
    let share = share_of(0u, params.classes);
    let first = share.first + lane % STRIPE * UNIT;
    let stride = STRIPE * UNITS * UNIT;
    var stats = Stats();
    if PEAKS && !ONLINE && !KNOWN {
        begin_peak();
        for (var j = first; j < share.end; j += stride) {
            let units = take_units(j, share);
            for (var i = 0u; i < UNITS; i += 1u) {
                let at = j + i * STRIPE * UNIT;
                see_unit(at, masked(at, share.end, units[i]));
            }
        }
        let peak = row_peak(grid);
        stats.key = bitcast<i32>(peak.x);
        stats.at = peak.y;
        see_from(top_of(stats));
    }
    begin_sums();
    if ONLINE {
        begin_rise();
    }
    for (var j = first; j < share.end && (SOFT || !KNOWN); j += stride) {
        var units = take_units(j, share);
        if ONLINE {
            begin_peak();
            for (var i = 0u; i < UNITS; i += 1u) {
                let at = j + i * STRIPE * UNIT;
                units[i] = masked(at, share.end, units[i]);
                see_unit(at, units[i]);
            }
            rise();
        }
        for (var i = 0u; i < UNITS; i += 1u) {
            let at = j + i * STRIPE * UNIT;
            add_unit(at, share.end, masked(at, share.end, units[i]));
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
    if PICKS {
        pick(grid, row, stats, present);
    }
    if WRITES {
        if IN_PLACE && TARGETS {
            // Every thread must have seen its label's logit before that is overwritten.
            storageBarrier();
        }
        write_stretch(0u, params.classes, present, coefficients);
    }
}
