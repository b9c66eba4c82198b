// Pairs of f32, and an exp and a log that are more exact than WGSL's own. Twin of
// `src/cpu/simd/exp.rs`, which gives the reasons.
// needs: params (shared/bindings.wgsl)
// provides: LOWEST, LN2_HIGH, LN2_LOW, opaque, is_infinite_or_nan, two_sum, add_pairs, difference,
//   exp_pair, Reference, reference_at, power_near, between, exp_from, multiply_pairs, divide_pairs,
//   exp_and_minus_one, log1p_pair, key_of, key_nan_largest, value_of

const LOWEST: f32 = -110.0;
const LN2_HIGH: f32 = 0.693359375;
const LN2_LOW: f32 = -2.1219444e-4;

// Returns x, in a way that no compiler sees through: WGSL lets (a + b) - a become b, and Mesa and
// Metal do it.
fn opaque(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) ^ params.zero);
}

fn opaque_4(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) ^ vec4<u32>(params.zero));
}

// Whether these are the bits of an infinity or a NaN. A compiler may take every float for finite,
// but not its bits; the sign is left out, because a compiler may turn 0 into -0.
fn is_infinite_or_nan(bits: u32) -> bool {
    return (bits & 0x7fffffffu) >= 0x7f800000u;
}

fn is_nan(bits: u32) -> bool {
    return (bits & 0x7fffffffu) > 0x7f800000u;
}

// a + b as a rounded sum and what rounding lost (Dekker, 1971). Both are opaque: a low part is
// added to other low parts, and a compiler that may reassociate (Metal, DXC, clang -ffast-math)
// would add the large terms first, so that the low part is rounded away.
fn two_sum(a: f32, b: f32) -> vec2<f32> {
    // A select of vectors: FXC makes one swap of two selects of numbers, and its own validation
    // refuses a swap of a negated number.
    let ordered = select(vec2<f32>(a, b), vec2<f32>(b, a), abs(a) < abs(b));
    let sum = opaque(ordered.x + ordered.y);
    return vec2<f32>(sum, opaque(ordered.y - opaque(sum - ordered.x)));
}

// a + b. The sum of the low parts is opaque, so that the result does not depend on which of the two
// comes first, and a low part that was added is not taken out again term by term.
fn add_pairs(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let sum = two_sum(a.x, b.x);
    return vec2<f32>(sum.x, opaque(a.y + b.y) + sum.y);
}

// x - maximum, and what rounding that difference lost.
fn difference(x: f32, maximum: f32) -> vec2<f32> {
    let d = two_sum(x, -maximum);
    return vec2<f32>(d.x, select(0.0, d.y, d.x > LOWEST));
}

fn power_of_two(n: i32) -> f32 {
    return bitcast<f32>(u32(n + 127) << 23u);
}

// exp of a pair below 88; it may be -inf, and from LOWEST down has no low part.
fn exp_pair(pair: vec2<f32>) -> f32 {
    let d = max(pair.x, LOWEST);
    let n = round(d * 1.442695);
    let r = (opaque(d - n * LN2_HIGH) - n * LN2_LOW) + pair.y;
    let q = (((0.0013818698 * r + 0.008368716) * r + 0.041668292) * r + 0.16666521) * r + 0.49999994;
    let power = 1.0 + (r + r * r * q);
    let exponent = i32(n);
    let half = exponent >> 1u;
    return power * power_of_two(half) * power_of_two(exponent - half);
}

// The reference point of exp_from: shift + turns * ln 2 + rest. A large number has itself as
// `shift`: the differences from it that are small enough to matter are exact.
struct Reference {
    shift: f32,
    lowest: f32,
    turns: f32,
    rest: f32,
}

fn reference_at(maximum: f32) -> Reference {
    let shift = select(0.0, maximum, abs(maximum) > 256.0);
    let moved = opaque(maximum - shift);
    let n = round(moved * 1.442695);
    return Reference(shift, moved - 89.0, n, opaque(moved - n * LN2_HIGH) - n * LN2_LOW);
}

// The point of the power of two next to exp(maximum), unless there is a shift: sums are then
// rescaled by powers of two, which adds no rounding error.
fn power_near(maximum: f32) -> Reference {
    var reference = reference_at(maximum);
    reference.rest = 0.0;
    return reference;
}

// a - b as a pair whose low part is small, as exp_pair needs it: the terms of ln 2 and of the rests
// can be large when one of the two has a shift.
fn between(a: Reference, b: Reference) -> vec2<f32> {
    let turns = a.turns - b.turns;
    let shift = difference(a.shift, b.shift);
    // A difference beyond f32 has no low part.
    let from_shift = vec2<f32>(max(shift.x, -1e30), shift.y);
    let d = add_pairs(from_shift, vec2<f32>(turns * LN2_HIGH, turns * LN2_LOW + (a.rest - b.rest)));
    let near = two_sum(d.x, d.y);
    return vec2<f32>(near.x, select(0.0, near.y, near.x > LOWEST));
}

// exp(x - reference) for x up to about the reference; 0 if that is no normal number, from about 88
// below it on. The arguments and the reference are reduced separately, so that no difference of the
// two needs a low part.
fn exp_from(x: vec4<f32>, reference: Reference) -> vec4<f32> {
    let moved = max(opaque_4(x - reference.shift), vec4<f32>(reference.lowest));
    let n = round(moved * 1.442695);
    let r = (opaque_4(moved - n * LN2_HIGH) - n * LN2_LOW) - reference.rest;
    let q = ((((1.9607169e-4 * r + 0.0014108068) * r + 0.008336203) * r + 0.04166109) * r + 0.16666612) * r + 0.50000036;
    let power = 1.0 + (r + r * r * q);
    let exponent = clamp(vec4<i32>(n - reference.turns) + 127, vec4<i32>(0), vec4<i32>(254));
    return power * bitcast<vec4<f32>>(exponent << vec4<u32>(23u));
}

// a * b as a rounded product and what rounding lost, 0 near an overflow: by halves whose products
// are exact (Veltkamp and Dekker, 1971).
fn multiply(a: f32, b: f32) -> vec2<f32> {
    let a_high = bitcast<f32>(bitcast<u32>(a) & 0xfffff000u);
    let b_high = bitcast<f32>(bitcast<u32>(b) & 0xfffff000u);
    let a_low = a - a_high;
    let b_low = b - b_high;
    let product = opaque(a * b);
    // The products are exact, so fusing one with a sum does no harm; the order of the sums is what
    // counts.
    let most = opaque(opaque(opaque(a_high * b_high - product) + a_high * b_low) + a_low * b_high);
    let lost = most + a_low * b_low;
    return vec2<f32>(product, select(lost, 0.0, (bitcast<u32>(product) & 0x7fffffffu) >= 0x7f000000u));
}

// a * b as a pair, whose low part is 0 near an overflow.
fn multiply_pairs(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let product = multiply(a.x, b.x);
    let is_huge = (bitcast<u32>(product.x) & 0x7fffffffu) >= 0x7f000000u;
    let sum = two_sum(product.x, product.y + (a.x * b.y + a.y * b.x));
    return select(sum, vec2<f32>(product.x, 0.0), is_huge);
}

fn divide_pairs(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let quotient = opaque(a.x / b.x);
    let product = multiply(quotient, b.x);
    let rest = (opaque(a.x - product.x) - product.y) + (a.y - quotient * b.y);
    return two_sum(quotient, rest / b.x);
}

// exp(d) and exp(d) - 1 as pairs, for d from -87 to 0, to about 1e-10.
struct Exponential {
    exp: vec2<f32>,
    minus_one: vec2<f32>,
}

fn exp_and_minus_one(d: vec2<f32>) -> Exponential {
    let n = round(d.x * 1.442695);
    let low = multiply(n, LN2_LOW);
    // 1.6465717e-12 is the rest of ln 2 beyond two f32.
    let r = add_pairs(two_sum(opaque(d.x - n * LN2_HIGH), -low.x), vec2<f32>((d.y - low.y) - n * 1.6465717e-12, 0.0));
    let square = multiply_pairs(r, r);
    let cube = multiply_pairs(square, r);
    let sixth = multiply_pairs(cube, vec2<f32>(0.16666667, -4.967054e-9));
    // 1 / 7!, 1 / 8! and 1 / 9!.
    let seventh = 0.0001984127 + r.x * (2.4801587e-5 + r.x * 2.7557319e-6);
    let tail = square.x * square.x * (0.041666668 + r.x * (0.008333334 + r.x * (0.0013888889 + r.x * seventh)));
    let rest = add_pairs(0.5 * square, add_pairs(sixth, vec2<f32>(tail, 0.0)));
    let power = power_of_two(i32(n));
    let scaled = power * add_pairs(r, rest);
    return Exponential(add_pairs(vec2<f32>(power, 0.0), scaled), add_pairs(two_sum(power, -1.0), scaled));
}

// log(1 + rest_of_sum), as a high part that is a multiple of 2^-9 and a low part that holds the
// rest.
fn log1p_pair(rest_of_sum: vec2<f32>) -> vec2<f32> {
    let one_and = two_sum(1.0, rest_of_sum.x);
    let sum = one_and.x;
    let rest = one_and.y + rest_of_sum.y;
    // sum = 2^k * (1 + f) with 1 + f between sqrt(1/2) and sqrt(2).
    let bits = bitcast<i32>(sum);
    let k = (bits - 0x3f3504f3) >> 23u;
    let f = opaque(bitcast<f32>(bits - (k << 23u)) - 1.0) + rest * power_of_two(-k);
    // log(1 + f) = f - f^2/2 + s * (f^2/2 + R(s^2)), s = f / (2 + f): the form of fdlibm, in which
    // an inexact division does little harm. R is the rest of the series of 2 atanh(s).
    let s = f / (2.0 + f);
    let z = s * s;
    let series = z * (0.6666667 + z * (0.4 + z * (0.2857143 + z * (0.22222222 + z * 0.18181819))));
    let square = 0.5 * f * f;
    let log1p_f = f - (square - s * (square + series));
    return vec2<f32>(f32(k) * LN2_HIGH, f32(k) * LN2_LOW + log1p_f);
}

// Returns an integer in the order of the floats: -0 equals 0, and a NaN is beyond the infinity of
// its sign.
fn key_of(x: f32) -> i32 {
    let bits = bitcast<i32>(x);
    let order = bits ^ ((bits >> 31u) & 0x7fffffff);
    return select(order, 0, order == -1);
}

// The key of a logit before its transform: in the same order, with all NaNs equal and largest.
fn key_nan_largest(x: f32) -> i32 {
    return select(key_of(x), 0x7fffffff, is_nan(bitcast<u32>(x)));
}

fn value_of(key: i32) -> f32 {
    return bitcast<f32>(key ^ ((key >> 31u) & 0x7fffffff));
}
