// Regime for long rows: a workgroup a row. A row of this length is still in a cache when it is read again.

fn label_logit(row: u32, label: u32) -> f32 {
    return load(label);
}

@compute @workgroup_size(256)
fn stream_row(invocation: Invocation) {
    enter(invocation);
    let row = group_index(invocation);
    if row >= params.rows {
        return;
    }
    row_in = params.logits_at + row * params.classes;
    row_out = params.elements_at + row * params.classes;
    let stats = reduce_stretch(0u, params.classes, thread);
    let coefficients = finish(row, stats, thread == 0u);
    if WRITES {
        if IN_PLACE {
            // Every thread must have seen its label's logit before that is overwritten.
            storageBarrier();
        }
        write_stretch(0u, params.classes, stats, coefficients);
    }
}
