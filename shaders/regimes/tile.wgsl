// Regime for short rows: a workgroup holds as many rows as fit, each with its own few threads. Logits come in once and
// leave once, both in one unbroken stream whatever the width of a row, with one exponential an element.

// Eight elements a thread.
var<workgroup> tile: array<f32, 2048>;
var<private> tile_row: u32;

fn load(j: u32) -> f32 {
    return tile[tile_row + j];
}

fn keep(j: u32, e: f32) {
    if WRITES && !LOG {
        tile[tile_row + j] = e;
    }
}

fn exponential(j: u32, top: f32) -> f32 {
    return tile[tile_row + j];
}

fn label_logit(row: u32, label: u32) -> f32 {
    return logit_at(params.logits_at + row * params.classes + label);
}

@compute @workgroup_size(256)
fn tile_rows(invocation: Invocation) {
    enter(invocation);
    let held = WORKGROUP / THREADS_PER_ROW;
    let first = group_index(invocation) * held;
    if first >= params.rows {
        return;
    }
    let base = first * params.classes;
    let count = min(held, params.rows - first) * params.classes;
    for (var i = thread; i < count; i += WORKGROUP) {
        tile[i] = logit_at(params.logits_at + base + i);
    }
    workgroupBarrier();

    let lane = thread % THREADS_PER_ROW;
    let row = first + thread / THREADS_PER_ROW;
    let present = row < params.rows;
    tile_row = thread / THREADS_PER_ROW * params.classes;
    let classes = select(0u, params.classes, present);
    let stats = reduce_stretch(0u, classes, lane);
    var coefficients = Coefficients();
    if present {
        coefficients = finish(row, stats, lane == 0u);
    }

    if WRITES {
        for (var j = lane; j < classes; j += THREADS_PER_ROW) {
            tile[tile_row + j] = element(j, top_of(stats), coefficients);
        }
        workgroupBarrier();
        if IN_PLACE {
            // Every thread must have seen its label's logit before that is overwritten.
            storageBarrier();
        }
        for (var i = thread; i < count; i += WORKGROUP) {
            elements[params.elements_at + base + i] = tile[i];
        }
    }
}
