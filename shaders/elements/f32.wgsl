// Values of 32 bits.
// needs: targets (shared/bindings.wgsl); in_order_4 (shared/transform.wgsl)
// provides: PACKED, UNIT, PARTS, Unit, unit_of, words_of, operand_value

// Values in a word, and in 16 bytes: by fours.
const PACKED: u32 = 1u;
const UNIT: u32 = 4u;
const PARTS: u32 = 1u;
alias Unit = array<vec4<f32>, 1>;

fn unit_of(words: vec4<u32>) -> Unit {
    return Unit(in_order_4(bitcast<vec4<f32>>(words)));
}

fn words_of(unit: Unit) -> vec4<u32> {
    return bitcast<vec4<u32>>(unit[0]);
}

// Returns a value of the operand beside the logits, which has their type.
fn operand_value(place: u32) -> f32 {
    return bitcast<f32>(targets[place]);
}
