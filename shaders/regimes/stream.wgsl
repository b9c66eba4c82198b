// Regime for rows that no registers hold: a workgroup a row, which is read once for its statistics and once more, where elements
// are written, for those. Each lane sums about the largest logit that it has met so far.

const PIECES: bool = false;
override STAGED: bool = false;

fn label_logit(row: u32, label: u32) -> f32 {
    return load(label);
}

// Units that follow each other at the distance of a workgroup, as many as are on their way at once.
fn take_units(first: u32) -> array<Unit, UNITS> {
    var units: array<Unit, UNITS>;
    for (var i = 0u; i < UNITS; i += 1u) {
        units[i] = take_unit(first + i * WORKGROUP * UNIT, 0u, params.classes);
    }
    return units;
}

fn reduce_row() -> Stats {
    let stride = WORKGROUP * UNITS * UNIT;
    var stats = Stats();
    if PEAKS && !ONLINE && !KNOWN {
        begin_peak();
        for (var j = thread * UNIT; j < params.classes; j += stride) {
            let units = take_units(j);
            for (var i = 0u; i < UNITS; i += 1u) {
                see_unit(j + i * WORKGROUP * UNIT, units[i]);
            }
        }
        let peak = row_peak(0u, params.classes, thread);
        stats.key = bitcast<i32>(peak.x);
        stats.at = peak.y;
        see_from(top_of(stats));
    }
    begin_sums();
    if ONLINE {
        begin_rise();
    }
    for (var j = thread * UNIT; j < params.classes && (SPREAD || !KNOWN); j += stride) {
        let units = take_units(j);
        if ONLINE {
            begin_peak();
            for (var i = 0u; i < UNITS; i += 1u) {
                see_unit(j + i * WORKGROUP * UNIT, units[i]);
            }
            rise();
        }
        for (var i = 0u; i < UNITS; i += 1u) {
            add_unit(j + i * WORKGROUP * UNIT, params.classes, units[i]);
        }
    }
    if ONLINE {
        return join_lanes();
    }
    return summed(stats);
}

@compute @workgroup_size(256)
fn stream_row(invocation: Invocation) {
    enter(invocation);
    let row = group_index(invocation);
    if row >= params.rows {
        return;
    }
    enter_row(row, 0u);
    let stats = reduce_row();
    let coefficients = finish(row, stats, thread == 0u);
    if PICKS {
        pick(row, stats, params.classes, thread, true);
    }
    if WRITES {
        if IN_PLACE && TARGETS {
            // Every thread must have seen its label's logit before that is overwritten.
            storageBarrier();
        }
        write_stretch(0u, params.classes, coefficients);
    }
}
