// Rows too long for workgroup memory: read from the buffer for the maximum, again for the sum, and again, where elements
// are written, for those.

// Where class 0 of the row would be in `logits`, in `elements` and in `targets` of its shape, be it before their beginning.
var<private> row_in: u32;
var<private> row_out: u32;
var<private> second_in: u32;

fn load(j: u32) -> f32 {
    return logit_at(row_in + j * class_step());
}

fn original(j: u32) -> f32 {
    return load(j);
}

fn keep(j: u32, e: f32) {}

fn exponential(j: u32) -> f32 {
    return exp_below(load(j));
}

fn enter_stretch(row: u32, first: u32) {
    row_in = params.logits_at + row_start(row, params.logits_stride) - first * class_step();
    row_out = params.elements_at + row_start(row, params.elements_stride) - first * class_step();
    second_in = params.targets_at + row_start(row, params.classes * params.inner) - first * class_step();
}

fn write_stretch(start: u32, end: u32, coefficients: Coefficients) {
    if PACKED == 2u && DENSE {
        // Words of two, from an even place on; an odd end is written by itself.
        let head = (row_out + start) % 2u;
        if thread == 0u && head == 1u && start < end {
            put(row_out + start, element(start, coefficients));
        }
        for (var j = start + head + 2u * thread; j < end; j += 2u * WORKGROUP) {
            let value = element(j, coefficients);
            if j + 1u < end {
                put_two(row_out + j, vec2<f32>(value, element(j + 1u, coefficients)));
            } else {
                put(row_out + j, value);
            }
        }
        return;
    }
    for (var j = start + thread; j < end; j += WORKGROUP) {
        put(row_out + j * class_step(), element(j, coefficients));
    }
}
