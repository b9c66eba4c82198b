// Access to values of any type, 16 bytes at once. Bindings start and end at multiples of 16 bytes,
// and rows consist of whole words. Two workgroups write to the same 16 bytes only if the backend
// stores a word without its neighbours (`writes_parts`).
// needs: PACKED, UNIT, Unit, unit_of, words_of (the parts in elements/)
// provides: logit_at, read_unit, put, write_unit, write_some

@group(0) @binding(1) var<storage, read> logits: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> elements: array<vec4<u32>>;

fn words_at(index: u32) -> vec4<u32> {
    if IN_PLACE {
        return elements[index];
    }
    return logits[index];
}

fn logit_at(place: u32) -> f32 {
    let words = words_at(place / UNIT);
    let at = place % UNIT;
    return unit_of(words)[at / 4u][at % 4u];
}

// Returns the values of a unit from `place` on; those beyond `last` are arbitrary. If a unit starts
// in the middle of 16 bytes, it is put together from those and the next.
fn read_unit(place: u32, last: u32) -> Unit {
    let here = words_at(place / UNIT);
    let off = place % UNIT / PACKED;
    if ALIGNED || off == 0u {
        return unit_of(here);
    }
    let next = words_at(min(place / UNIT + 1u, last / UNIT));
    var words = vec4<u32>(here.yzw, next.x);
    words = select(words, vec4<u32>(here.zw, next.xy), off == 2u);
    words = select(words, vec4<u32>(here.w, next.xyz), off == 3u);
    return unit_of(words);
}

// Only for 32-bit values. Compiled, but never called: strided rows are not accessed 16 bytes at
// once.
fn put(place: u32, value: f32) {
    elements[place / UNIT][place % UNIT] = bitcast<u32>(value);
}

fn write_unit(place: u32, unit: Unit) {
    elements[place / UNIT] = words_of(unit);
}

// Writes the first `count` values of a unit, which may start in the middle of 16 bytes:
//   for each of four words that has any: elements[its word] = it
fn write_some(place: u32, unit: Unit, count: u32) {
    let words = words_of(unit);
    for (var i = 0u; i < 4u; i += 1u) {
        if i * PACKED < count {
            let word = place / PACKED + i;
            elements[word / 4u][word % 4u] = words[i];
        }
    }
}
