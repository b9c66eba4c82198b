// A stretch of a row in the registers of its lanes: read once, with one exponential an element. Which lane has which unit,
// and the order in which it adds them up, depend on the number of classes alone.
// needs: Grid, Stats (shared/bindings.wgsl); add_unit, begin_maximum, begin_sums, maximum_of, row_maximum, see_unit,
//   summed (shared/passes.wgsl or shared/sum.wgsl); lane, take_unit (shared/rows.wgsl); measure_from
//   (shared/transform.wgsl); UNIT, Unit (the parts in elements/)
// provides: held, class_of, hold, reduce_held

var<private> held: array<Unit, UNITS>;

fn class_of(start: u32, nth: u32) -> u32 {
    return start + ((lane / STRIPE * UNITS + nth) * STRIPE + lane % STRIPE) * UNIT;
}

fn hold(start: u32, end: u32) {
    for (var i = 0u; i < UNITS; i += 1u) {
        held[i] = take_unit(class_of(start, i), start, end);
    }
}

// Called by all threads of a workgroup together. What is held are exponentials afterwards, where KEEPS.
fn reduce_held(grid: Grid, start: u32, end: u32) -> Stats {
    var stats = Stats();
    if HAS_MAXIMUM {
        begin_maximum();
        for (var i = 0u; i < UNITS; i += 1u) {
            see_unit(class_of(start, i), held[i]);
        }
        let peak = row_maximum(grid);
        stats.key = bitcast<i32>(peak.x);
        stats.at = peak.y;
        measure_from(maximum_of(stats));
    }
    begin_sums();
    for (var i = 0u; i < UNITS; i += 1u) {
        let exponentials = add_unit(class_of(start, i), end, held[i]);
        if KEEPS {
            held[i] = exponentials;
        }
    }
    return summed(grid, stats);
}
