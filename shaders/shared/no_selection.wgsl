// Replaces the selection of classes by top-k and sampling for operations that select none: its
// function does nothing. needs: Grid, Stats (shared/bindings.wgsl); RowState (shared/passes.wgsl,
// shared/sum.wgsl or the
//   operation)
// provides: select_classes

fn select_classes(
    grid: Grid,
    row: u32,
    stats: Stats,
    state: ptr<function, RowState>,
    present: bool,
) {}
