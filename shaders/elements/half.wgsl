// Units of 16-bit values, two in a word, converted with integers: adapters need no 16-bit types.
// needs: targets (shared/bindings.wgsl); in_order (shared/transform.wgsl)
// provides: PACKED, UNIT, PARTS, Unit, widened, narrowed, two_of, word_of, unit_of, words_of,
//   operand_value

// Values in a word, values in a unit of 16 bytes, and vectors in a unit.
const PACKED: u32 = 2u;
const UNIT: u32 = 8u;
const PARTS: u32 = 2u;
alias Unit = array<vec4<f32>, 2>;

fn widened(half: u32) -> f32 {
    if BF16 {
        return bitcast<f32>(half << 16u);
    }
    let magnitude = half & 0x7fffu;
    // Normal numbers get the exponent bias of f32; subnormal ones are multiples of 2^-24, which are
    // normal in f32.
    var bits = (magnitude << 13u) + 0x38000000u;
    bits = select(bits, bitcast<u32>(f32(magnitude) * 5.9604645e-8), magnitude < 0x400u);
    bits = select(bits, (magnitude << 13u) | 0x7f800000u, magnitude >= 0x7c00u);
    return bitcast<f32>(bits | ((half & 0x8000u) << 16u));
}

// Rounds to the nearest, ties to even, with integers: WGSL leaves open how pack2x16float rounds.
fn narrowed(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if BF16 {
        let rounded = (magnitude + 0x7fffu + ((magnitude >> 16u) & 1u)) >> 16u;
        return sign | select(rounded, 0x7fc0u, magnitude > 0x7f800000u);
    }
    var half = (magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u;
    // Below 2^-14: multiples of 2^-24.
    half = select(half, u32(round(bitcast<f32>(magnitude) * 16777216.0)), magnitude < 0x38800000u);
    half = select(half, 0x7c00u, magnitude >= 0x477ff000u);
    return sign | select(half, 0x7e00u, magnitude > 0x7f800000u);
}

fn two_of(word: u32) -> vec2<f32> {
    return vec2<f32>(in_order(widened(word & 0xffffu)), in_order(widened(word >> 16u)));
}

fn word_of(two: vec2<f32>) -> u32 {
    return narrowed(two.x) | (narrowed(two.y) << 16u);
}

fn unit_of(words: vec4<u32>) -> Unit {
    return Unit(
        vec4<f32>(two_of(words.x), two_of(words.y)),
        vec4<f32>(two_of(words.z), two_of(words.w)),
    );
}

fn words_of(unit: Unit) -> vec4<u32> {
    return vec4<u32>(word_of(unit[0].xy), word_of(unit[0].zw), word_of(unit[1].xy), word_of(unit[1].zw));
}

// Returns a value of the operand that has the shape and the type of the logits.
fn operand_value(place: u32) -> f32 {
    return widened((targets[place / 2u] >> (place % 2u * 16u)) & 0xffffu);
}
