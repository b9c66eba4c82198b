// Rows too long for workgroup memory: read from the buffer for the maximum, again for the sum, and again, where elements
// are written, for those.

// Where class 0 of the row would be in `logits` and in `elements`, be it before their beginning.
var<private> row_in: u32;
var<private> row_out: u32;

fn load(j: u32) -> f32 {
    return logit_at(row_in + j);
}

fn keep(j: u32, e: f32) {}

fn exponential(j: u32, top: f32) -> f32 {
    return exp_difference(load(j), top);
}

fn write_stretch(start: u32, end: u32, stats: Stats, coefficients: Coefficients) {
    for (var j = start + thread; j < end; j += WORKGROUP) {
        elements[row_out + j] = element(j, top_of(stats), coefficients);
    }
}
