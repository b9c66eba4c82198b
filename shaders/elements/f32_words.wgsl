// Access to values of 32 bits one by one, wherever they start.
// needs: in_order (shared/transform.wgsl); Unit, unit_of, words_of (the parts in elements/)
// provides: logit_at, read_unit, put, write_unit, write_some

@group(0) @binding(1) var<storage, read> logits: array<u32>;
@group(0) @binding(4) var<storage, read_write> elements: array<u32>;

fn word_at(place: u32) -> u32 {
    if IN_PLACE {
        return elements[place];
    }
    return logits[place];
}

fn logit_at(place: u32) -> f32 {
    return in_order(bitcast<f32>(word_at(place)));
}

// Returns the values of a unit from `place` on; those beyond `last` repeat the last one.
fn read_unit(place: u32, last: u32) -> Unit {
    let second = min(place + 1u, last);
    let third = min(place + 2u, last);
    let fourth = min(place + 3u, last);
    return unit_of(vec4<u32>(word_at(place), word_at(second), word_at(third), word_at(fourth)));
}

fn put(place: u32, value: f32) {
    elements[place] = bitcast<u32>(value);
}

fn write_unit(place: u32, unit: Unit) {
    let words = words_of(unit);
    elements[place] = words.x;
    elements[place + 1u] = words.y;
    elements[place + 2u] = words.z;
    elements[place + 3u] = words.w;
}

// Writes the first `count` values of a unit.
fn write_some(place: u32, unit: Unit, count: u32) {
    let words = words_of(unit);
    if count > 0u {
        elements[place] = words.x;
    }
    if count > 1u {
        elements[place + 1u] = words.y;
    }
    if count > 2u {
        elements[place + 2u] = words.z;
    }
    if count > 3u {
        elements[place + 3u] = words.w;
    }
}
