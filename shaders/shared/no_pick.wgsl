// Of operations that have nothing to look for once a row is reduced.

fn pick(grid: Grid, row: u32, stats: Stats, present: bool) {}
