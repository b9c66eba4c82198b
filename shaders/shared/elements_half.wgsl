// Logits and results of 16 bits, two in a word; no adapter needs to know the type. `elements` are atomic, for a word may be
// shared by rows, and so by workgroups.

@group(0) @binding(1) var<storage, read> logits: array<u32>;
@group(0) @binding(4) var<storage, read_write> elements: array<atomic<u32>>;

// The upper half of an f32 instead of IEEE 754's binary16.
override BF16: bool = false;

const PACKED: u32 = 2u;

fn widened(half: u32) -> f32 {
    if BF16 {
        return bitcast<f32>(half << 16u);
    }
    let magnitude = half & 0x7fffu;
    // Of normal numbers the exponent is moved; subnormal ones are whole numbers of 2^-24, in f32 normal.
    var bits = (magnitude << 13u) + 0x38000000u;
    bits = select(bits, bitcast<u32>(f32(magnitude) * 5.9604645e-8), magnitude < 0x400u);
    bits = select(bits, (magnitude << 13u) | 0x7f800000u, magnitude >= 0x7c00u);
    return bitcast<f32>(bits | ((half & 0x8000u) << 16u));
}

// Rounded to the nearest, of two the even one, by whole numbers: WGSL leaves it open how pack2x16float rounds.
fn narrowed(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if BF16 {
        let rounded = (magnitude + 0x7fffu + ((magnitude >> 16u) & 1u)) >> 16u;
        return sign | select(rounded, 0x7fc0u, magnitude > 0x7f800000u);
    }
    var half = (magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u;
    // Below 2^-14: whole numbers of 2^-24.
    half = select(half, u32(round(bitcast<f32>(magnitude) * 16777216.0)), magnitude < 0x38800000u);
    half = select(half, 0x7c00u, magnitude >= 0x477ff000u);
    return sign | select(half, 0x7e00u, magnitude > 0x7f800000u);
}

fn logit_at(place: u32) -> f32 {
    var word: u32;
    if IN_PLACE {
        word = atomicLoad(&elements[place / 2u]);
    } else {
        word = logits[place / 2u];
    }
    return in_order(widened((word >> (place % 2u * 16u)) & 0xffffu));
}

// Of what there is beside the logits, of their type.
fn second_at(place: u32) -> f32 {
    return widened((targets[place / 2u] >> (place % 2u * 16u)) & 0xffffu);
}

// The other half of the word is not touched, whoever writes there meanwhile.
fn put(place: u32, value: f32) {
    let shift = place % 2u * 16u;
    atomicAnd(&elements[place / 2u], ~(0xffffu << shift));
    atomicOr(&elements[place / 2u], narrowed(value) << shift);
}

fn put_two(place: u32, values: vec2<f32>) {
    atomicStore(&elements[place / 2u], narrowed(values.x) | (narrowed(values.y) << 16u));
}
