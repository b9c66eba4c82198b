// Access to values of 16 bits word by word, wherever they start. `elements` are atomic, because two
// rows, and so two workgroups, may share a word.
// needs: in_order (shared/transform.wgsl); UNIT, Unit, narrowed, unit_of, widened, word_of (the
//   parts in elements/)
// provides: logit_at, read_unit, put, write_unit, write_some

@group(0) @binding(1) var<storage, read> logits: array<u32>;
@group(0) @binding(4) var<storage, read_write> elements: array<atomic<u32>>;

fn word_at(index: u32) -> u32 {
    if IN_PLACE {
        return atomicLoad(&elements[index]);
    }
    return logits[index];
}

fn logit_at(place: u32) -> f32 {
    return in_order(widened((word_at(place / 2u) >> (place % 2u * 16u)) & 0xffffu));
}

// Returns the values of a unit from `place` on; those beyond `last` are arbitrary. If a unit starts
// in the middle of a word, each of its words is put together from two.
fn read_unit(place: u32, last: u32) -> Unit {
    let first = place / 2u;
    let end = last / 2u;
    let a = word_at(first);
    let b = word_at(min(first + 1u, end));
    let c = word_at(min(first + 2u, end));
    let d = word_at(min(first + 3u, end));
    let words = vec4<u32>(a, b, c, d);
    if EVEN || place % 2u == 0u {
        return unit_of(words);
    }
    let e = word_at(min(first + 4u, end));
    return unit_of((words >> vec4<u32>(16u)) | (vec4<u32>(b, c, d, e) << vec4<u32>(16u)));
}

// Writes one value. The other half of the word is left alone: another thread may write it
// meanwhile.
fn put(place: u32, value: f32) {
    let shift = place % 2u * 16u;
    atomicAnd(&elements[place / 2u], ~(0xffffu << shift));
    atomicOr(&elements[place / 2u], narrowed(value) << shift);
}

fn write_unit(place: u32, unit: Unit) {
    write_some(place, unit, UNIT);
}

// Writes the first `count` values of a unit:
//   a half at an odd place, and one left at the end: by `put`; two in a word: at once
fn write_some(place: u32, unit: Unit, count: u32) {
    let odd = select(place % 2u, 0u, EVEN);
    if odd == 1u && count > 0u {
        put(place, unit[0].x);
    }
    for (var i = 0u; i < 4u; i += 1u) {
        let at = 2u * i + odd;
        if at + 1u < count {
            let first = unit[i / 2u][i % 2u * 2u + odd];
            let next = at + 1u;
            atomicStore(&elements[(place + at) / 2u], word_of(vec2<f32>(first, unit[next / 4u][next % 4u])));
        } else if !EVEN && at < count {
            put(place + at, unit[at / 4u][at % 4u]);
        }
    }
}
