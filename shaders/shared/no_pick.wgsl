// Of operations that have nothing to look for once a row is reduced.

const PICKS: bool = false;

fn pick(grid: Grid, row: u32, stats: Stats, present: bool) {}
