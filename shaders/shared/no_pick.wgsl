// Of operations that have nothing to look for once a row is reduced.

const PICKS: bool = false;

fn pick(row: u32, stats: Stats, classes: u32, lane: u32, present: bool) {}
