// Regime for short rows: a workgroup holds as many rows as fit, each with its own few threads. Logits come in once and
// leave once, both in one unbroken stream whatever the width of a row where rows are dense, and in runs of neighbouring rows
// where they are planes; with one exponential an element.

const PIECES: bool = false;

// Eight elements a thread.
var<workgroup> tile: array<f32, 2048>;
var<private> tile_row: u32;
// Where class 0 of the row is in `logits`, and in `targets` of its shape.
var<private> row_in: u32;
var<private> second_in: u32;

fn load(j: u32) -> f32 {
    return tile[tile_row + j];
}

fn original(j: u32) -> f32 {
    return logit_at(row_in + j * class_step());
}

fn keep(j: u32, e: f32) {
    if WRITES && !LOG {
        tile[tile_row + j] = e;
    }
}

fn exponential(j: u32) -> f32 {
    if KNOWN {
        return exp_below(load(j));
    }
    return load(j);
}

fn label_logit(row: u32, label: u32) -> f32 {
    return original(label);
}

// Where the i-th value of the tile is, neighbours in memory following each other.
struct Spot {
    tile: u32,
    row: u32,
    of_class: u32,
}

fn spot_of(i: u32, first: u32, rows: u32) -> Spot {
    let row = i % rows;
    let of_class = i / rows;
    return Spot(row * params.classes + of_class, first + row, of_class);
}

@compute @workgroup_size(256)
fn tile_rows(invocation: Invocation) {
    enter(invocation);
    let held = WORKGROUP / THREADS_PER_ROW;
    let first = group_index(invocation) * held;
    if first >= params.rows {
        return;
    }
    let rows = min(held, params.rows - first);
    let base = first * params.classes;
    let count = rows * params.classes;
    for (var i = thread; i < count; i += WORKGROUP) {
        if DENSE {
            tile[i] = logit_at(params.logits_at + base + i);
        } else {
            let spot = spot_of(i, first, rows);
            let start = params.logits_at + row_start(spot.row, params.logits_stride);
            tile[spot.tile] = logit_at(start + spot.of_class * params.inner);
        }
    }
    workgroupBarrier();

    let lane = thread % THREADS_PER_ROW;
    let row = first + thread / THREADS_PER_ROW;
    let present = row < params.rows;
    tile_row = thread / THREADS_PER_ROW * params.classes;
    row_in = params.logits_at + row_start(row, params.logits_stride);
    second_in = params.targets_at + row_start(row, params.classes * params.inner);
    let classes = select(0u, params.classes, present);
    let stats = reduce_stretch(0u, classes, lane);
    var coefficients = Coefficients();
    if present {
        coefficients = finish(row, stats, lane == 0u);
    }
    if PICKS {
        pick(row, stats, classes, lane, present);
    }

    if WRITES {
        for (var j = lane; j < classes; j += THREADS_PER_ROW) {
            tile[tile_row + j] = element(j, coefficients);
        }
        workgroupBarrier();
        if IN_PLACE {
            // Every thread must have seen its label's logit before that is overwritten.
            storageBarrier();
        }
        if !DENSE {
            for (var i = thread; i < count; i += WORKGROUP) {
                let spot = spot_of(i, first, rows);
                let start = params.elements_at + row_start(spot.row, params.elements_stride);
                put(start + spot.of_class * params.inner, tile[spot.tile]);
            }
        } else if PACKED == 1u {
            for (var i = thread; i < count; i += WORKGROUP) {
                put(params.elements_at + base + i, tile[i]);
            }
        } else {
            // Words of two, from an even place on; what is left of a word is written by itself.
            let head = (params.elements_at + base) % 2u;
            if thread == 0u && head == 1u {
                put(params.elements_at + base, tile[0]);
            }
            for (var i = head + 2u * thread; i < count; i += 2u * WORKGROUP) {
                if i + 1u < count {
                    put_two(params.elements_at + base + i, vec2<f32>(tile[i], tile[i + 1u]));
                } else {
                    put(params.elements_at + base + i, tile[i]);
                }
            }
        }
    }
}
