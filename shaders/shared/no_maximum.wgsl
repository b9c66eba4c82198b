// Replaces shared/running_maximum.wgsl and a part of shared/passes.wgsl for rows that are not
// reduced to a maximum: its functions do nothing. needs: Grid, Stats (shared/bindings.wgsl);
// RowState (shared/sum.wgsl or the operation); Unit
//   (the parts in elements/)
// provides: set_maximum, begin_maximum, see_unit, row_maximum, begin_running_maximum,
//   raise_maximum, join_lanes

fn set_maximum(state: ptr<function, RowState>, stats: Stats) {}

fn begin_maximum(state: ptr<function, RowState>) {}

fn see_unit(state: ptr<function, RowState>, j: u32, unit: Unit) {}

fn row_maximum(grid: Grid, state: ptr<function, RowState>) -> Stats {
    return Stats();
}

fn begin_running_maximum(state: ptr<function, RowState>) {}

fn raise_maximum(state: ptr<function, RowState>) {}

fn join_lanes(grid: Grid, state: ptr<function, RowState>) -> Stats {
    return Stats();
}
