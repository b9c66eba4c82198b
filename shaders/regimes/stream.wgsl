// Regime for long rows: a workgroup a row. A row of this length is still in a cache when it is read again.

@compute @workgroup_size(256)
fn stream_row(invocation: Invocation) {
    enter(invocation);
    let row = group_index(invocation);
    if row >= params.rows {
        return;
    }
    row_base = row * params.classes;
    let stats = reduce_stretch(0u, params.classes, thread);
    let coefficients = finish(row, stats, thread == 0u);
    if WRITES {
        write_stretch(0u, params.classes, stats, coefficients);
    }
}
