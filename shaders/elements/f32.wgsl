// Units of 32-bit values.
// needs: targets (shared/bindings.wgsl); in_order_4 (shared/transform.wgsl)
// provides: PACKED, UNIT, PARTS, Unit, unit_of, words_of, operand_value

// Values in a word, values in a unit of 16 bytes, and vectors in a unit.
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

// Returns a value of the operand that has the shape and the type of the logits.
fn operand_value(place: u32) -> f32 {
    return bitcast<f32>(targets[place]);
}
