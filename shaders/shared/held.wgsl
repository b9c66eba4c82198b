// A stretch of a row in the registers of its lanes: read once, with one exponential an element.
// Which lane has which unit, and the order in which it adds them up, depend on the number of
// classes alone.
// needs: Grid, Stats (shared/bindings.wgsl); begin_maximum, row_maximum, see_unit
//   (shared/no_maximum.wgsl or shared/passes.wgsl); RowState, add_unit, begin_sums, summed
//   (shared/passes.wgsl or shared/sum.wgsl or the operation); lane, take_unit (shared/rows.wgsl);
//   UNIT, Unit (the parts in elements/)
// provides: held, class_of, hold, reduce_held

// Not in RowState: an array of a struct that is passed on may be copied, or kept in memory.
var<private> held: array<Unit, UNITS>;

// The first class of this lane's unit number `nth`: neighbouring lanes of a stripe have
// neighbouring units.
fn class_of(start: u32, nth: u32) -> u32 {
    return start + ((lane / STRIPE * UNITS + nth) * STRIPE + lane % STRIPE) * UNIT;
}

// Reads this lane's units of the classes from `start` to `end` into registers.
fn hold(start: u32, end: u32) {
    for (var i = 0u; i < UNITS; i += 1u) {
        held[i] = take_unit(class_of(start, i), start, end);
    }
}

// Called by all threads of a workgroup together. If KEEPS, `held` contains exponentials afterwards.
//   for each unit: maximum = max(maximum, its logits); over all lanes
//   for each unit: sums += its exponentials; over all lanes
fn reduce_held(grid: Grid, state: ptr<function, RowState>, start: u32, end: u32) -> Stats {
    var stats = Stats();
    if !REDUCES {
        return stats;
    }
    if HAS_MAXIMUM {
        begin_maximum(state);
        for (var i = 0u; i < UNITS; i += 1u) {
            see_unit(state, class_of(start, i), held[i]);
        }
        stats = row_maximum(grid, state);
    }
    begin_sums(state);
    for (var i = 0u; i < UNITS; i += 1u) {
        let exponentials = add_unit(state, class_of(start, i), end, held[i]);
        if KEEPS {
            held[i] = exponentials;
        }
    }
    return summed(grid, state, stats);
}
