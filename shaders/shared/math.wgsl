// The arithmetic that WGSL's own exp and log are too coarse for. Twin of `src/cpu/exp.rs`; reasons stand there.

const LOWEST: f32 = -110.0;
const LN2_HIGH: f32 = 0.693359375;
const LN2_LOW: f32 = -2.1219444e-4;

// The same value, in a way that no compiler sees through: WGSL lets (a + b) - a become b, and Mesa and Metal do it.
fn opaque(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) ^ params.zero);
}

// a + b as a rounded sum and what rounding lost (Dekker, 1971).
fn two_sum(a: f32, b: f32) -> vec2<f32> {
    let swap = abs(a) < abs(b);
    let large = select(a, b, swap);
    let small = select(b, a, swap);
    let sum = opaque(large + small);
    return vec2<f32>(sum, small - opaque(sum - large));
}

fn add_pairs(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let sum = two_sum(a.x, b.x);
    return vec2<f32>(sum.x, (a.y + b.y) + sum.y);
}

// x - top, and what rounding that difference lost.
fn difference(x: f32, top: f32) -> vec2<f32> {
    let d = two_sum(x, -top);
    return vec2<f32>(d.x, select(0.0, d.y, d.x > LOWEST));
}

fn power_of_two(n: i32) -> f32 {
    return bitcast<f32>(u32(n + 127) << 23u);
}

// exp(x - top) for a finite top >= x; x may be -inf.
fn exp_difference(x: f32, top: f32) -> f32 {
    let split = difference(x, top);
    let d = max(split.x, LOWEST);
    let n = round(d * 1.442695);
    let r = (opaque(d - n * LN2_HIGH) - n * LN2_LOW) + split.y;
    let q = (((0.0013818698 * r + 0.008368716) * r + 0.041668292) * r + 0.16666521) * r + 0.49999994;
    let power = 1.0 + (r + r * r * q);
    let exponent = i32(n);
    let half = exponent >> 1u;
    return power * power_of_two(half) * power_of_two(exponent - half);
}

// log(1 + others), as a high part that is a multiple of 2^-9 and a low part that holds the rest.
fn log1p_pair(others: vec2<f32>) -> vec2<f32> {
    let one_and = two_sum(1.0, others.x);
    let sum = one_and.x;
    let rest = one_and.y + others.y;
    // sum = 2^k * (1 + f) with 1 + f between sqrt(1/2) and sqrt(2).
    let bits = bitcast<i32>(sum);
    let k = (bits - 0x3f3504f3) >> 23u;
    let f = (bitcast<f32>(bits - (k << 23u)) - 1.0) + rest * power_of_two(-k);
    // log(1 + f) = f - f^2/2 + s * (f^2/2 + R(s^2)), s = f / (2 + f): the form of fdlibm, in which an inexact division
    // does little harm. R is the rest of the series of 2 atanh(s).
    let s = f / (2.0 + f);
    let z = s * s;
    let series = z * (0.6666667 + z * (0.4 + z * (0.2857143 + z * (0.22222222 + z * 0.18181819))));
    let square = 0.5 * f * f;
    let log1p_f = f - (square - s * (square + series));
    return vec2<f32>(f32(k) * LN2_HIGH, f32(k) * LN2_LOW + log1p_f);
}

// Floats in an order that integers can compare. NaN comes last, and -0 equals 0.
fn key_of(x: f32) -> i32 {
    let bits = bitcast<i32>(x);
    let order = bits ^ ((bits >> 31u) & 0x7fffffff);
    return select(order, 0, order == -1);
}

fn value_of(key: i32) -> f32 {
    return bitcast<f32>(key ^ ((key >> 31u) & 0x7fffffff));
}
