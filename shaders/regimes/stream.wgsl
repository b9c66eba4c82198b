// Regime for long rows: a workgroup a row. A row of this length is still in a cache when it is read again.

const PIECES: bool = false;

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
    enter_stretch(row, 0u);
    let stats = reduce_stretch(0u, params.classes, thread);
    let coefficients = finish(row, stats, thread == 0u);
    if PICKS {
        pick(row, stats, params.classes, thread, true);
    }
    if WRITES {
        if IN_PLACE {
            // Every thread must have seen its label's logit before that is overwritten.
            storageBarrier();
        }
        write_stretch(0u, params.classes, coefficients);
    }
}
