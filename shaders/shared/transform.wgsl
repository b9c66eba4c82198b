// Transforms a logit before anything else: y = cap * tanh(scale * x / cap), as a pair, for y rounded to f32 would be
// off by much. Twin of `src/cpu/transform.rs`.
// needs: params (shared/bindings.wgsl); LOWEST, Reference, add_pairs, difference, divide_pairs, exp_and_minus_one,
//   exp_from, exp_pair, is_infinite_or_nan, multiply_pairs, opaque, reference_at, two_sum (shared/math.wgsl)
// provides: max_logit, max_y, reference, in_order, in_order_4, transform, slope, measure_from, measure_from_y,
//   distance, exp_below_4, exp_below

// The largest logit of the row, and its y; and what exponentials are taken from where there is no logit transform.
var<private> max_logit: f32;
var<private> max_y: vec2<f32>;
var<private> reference: Reference;

// A logit such that y ascends with it; under a cap infinities are numbers.
fn in_order(x: f32) -> f32 {
    if !SCALED && !CAPPED {
        return x;
    }
    var bits = bitcast<u32>(x) ^ params.flip;
    if CAPPED && (bits & 0x7fffffffu) == 0x7f800000u {
        bits -= 1u;
    }
    return bitcast<f32>(bits);
}

fn in_order_4(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(in_order(x.x), in_order(x.y), in_order(x.z), in_order(x.w));
}

// tanh(u) of u = ratio * |x|, as a pair, and exp(-2u).
struct Tanh {
    value: vec2<f32>,
    e: f32,
}

fn tanh_of(magnitude: f32) -> Tanh {
    let u = multiply_pairs(vec2<f32>(params.ratio, params.ratio_low), vec2<f32>(min(magnitude, params.cap_limit), 0.0));
    let e = exp_and_minus_one(-2.0 * u);
    let whole = add_pairs(vec2<f32>(1.0, 0.0), e.exp);
    return Tanh(divide_pairs(-e.minus_one, whole), e.exp.x);
}

fn transform(x: f32) -> vec2<f32> {
    if CAPPED {
        let y = multiply_pairs(vec2<f32>(params.cap, params.cap_low), tanh_of(abs(x)).value);
        return select(y, -y, bitcast<i32>(x) < 0);
    }
    if SCALED {
        return multiply_pairs(vec2<f32>(params.scale, params.scale_low), vec2<f32>(x, 0.0));
    }
    return vec2<f32>(x, 0.0);
}

// dy / dx of the logit as it was given.
fn slope(x: f32) -> f32 {
    if CAPPED {
        let e = tanh_of(abs(x)).e;
        return params.signed_scale * (4.0 * e / ((1.0 + e) * (1.0 + e)));
    }
    if SCALED {
        return params.signed_scale;
    }
    return 1.0;
}

fn measure_from(top: f32) {
    max_logit = top;
    max_y = transform(top);
    if !TRANSFORMED {
        reference = reference_at(top);
    }
}

// From a y that is no logit's.
fn measure_from_y(top: f32) {
    max_y = vec2<f32>(top, 0.0);
    if !TRANSFORMED {
        reference = reference_at(top);
    }
}

// y - max_y, and what rounding that difference lost.
fn distance(x: f32) -> vec2<f32> {
    if CAPPED || SAVED_LOG_SUM_EXP {
        let d = add_pairs(transform(x), -max_y);
        if SAVED_LOG_SUM_EXP {
            // Large high parts may have cancelled, so that the low part is the larger one. An infinity has none.
            return select(two_sum(d.x, d.y), vec2<f32>(d.x, 0.0), is_infinite_or_nan(bitcast<u32>(d.x)));
        }
        return d;
    }
    if SCALED {
        // In halves: the difference of two large logits is no f32, but scaled it may be one.
        let half = difference(opaque(0.5 * x), opaque(0.5 * max_logit));
        return multiply_pairs(2.0 * vec2<f32>(params.scale, params.scale_low), half);
    }
    return difference(x, max_logit);
}

fn transformed_exp_below(x: f32) -> f32 {
    var d = distance(x);
    d.y = select(0.0, d.y, d.x > LOWEST);
    if SAVED_LOG_SUM_EXP {
        // The log-sum-exp that was given may be far too small; exp stays a number.
        d = select(d, vec2<f32>(88.0, 0.0), d.x > 88.0);
    }
    return exp_pair(d);
}

// exp(y - max_y); x may be -inf.
fn exp_below_4(x: vec4<f32>) -> vec4<f32> {
    if TRANSFORMED {
        return vec4<f32>(transformed_exp_below(x.x), transformed_exp_below(x.y), transformed_exp_below(x.z), transformed_exp_below(x.w));
    }
    return exp_from(x, reference);
}

fn exp_below(x: f32) -> f32 {
    if TRANSFORMED {
        return transformed_exp_below(x);
    }
    return exp_from(vec4<f32>(x), reference).x;
}
