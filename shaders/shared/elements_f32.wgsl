// Logits and results of 32 bits.

@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(4) var<storage, read_write> elements: array<f32>;

// How many values share a word.
const PACKED: u32 = 1u;

fn logit_at(place: u32) -> f32 {
    if IN_PLACE {
        return in_order(elements[place]);
    }
    return in_order(logits[place]);
}

// Of what there is beside the logits, of their type.
fn second_at(place: u32) -> f32 {
    return bitcast<f32>(targets[place]);
}

fn put(place: u32, value: f32) {
    elements[place] = value;
}

// Values from an even place on.
fn put_two(place: u32, values: vec2<f32>) {
    elements[place] = values.x;
    elements[place + 1u] = values.y;
}
