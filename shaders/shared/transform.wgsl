// The logit transform, which comes before anything else: y = cap * tanh(scale * x / cap). y is a
// pair, because rounding it to f32 would lose too much. Twin of `src/cpu/transform.rs`.
// needs: params (shared/bindings.wgsl); LOWEST, Reference, add_pairs, difference, divide_pairs,
//   exp_and_minus_one, exp_from, exp_pair, multiply_pairs, opaque, reference_at
//   (shared/math.wgsl)
// provides: Maximum, in_order, in_order_4, transform, slope, maximum_at, distance, exp_below_4,
//   exp_below

// The largest logit of a row or of a part of it.
struct Maximum {
    logit: f32,
    // Its y, high and low part.
    y: vec2<f32>,
    // The reference point of exponentials (`exp_from`), where there is no logit transform.
    reference: Reference,
}

// Returns a logit such that y ascends with it. Under a cap an infinity becomes the largest finite
// number.
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

// tanh(u) for u = ratio * |x|, as a pair, and exp(-2u).
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

// dy / dx, with respect to the logit before `in_order`, under a cap.
fn slope(x: f32) -> f32 {
    let e = tanh_of(abs(x)).e;
    return params.signed_scale * (4.0 * e / ((1.0 + e) * (1.0 + e)));
}

fn maximum_at(logit: f32) -> Maximum {
    var maximum: Maximum;
    maximum.logit = logit;
    maximum.y = transform(logit);
    if !TRANSFORMED {
        maximum.reference = reference_at(logit);
    }
    return maximum;
}

// y - maximum.y, and what rounding that difference lost.
fn distance(x: f32, maximum: Maximum) -> vec2<f32> {
    if CAPPED {
        // A compiler may round the y of one logit in two ways, so the distance of the maximum from
        // itself is not computed: a confident row's loss is as small as their difference.
        let d = add_pairs(transform(x), -maximum.y);
        return select(d, vec2<f32>(0.0, 0.0), x == maximum.logit);
    }
    if SCALED {
        // In halves: the difference of two large logits may overflow where the scaled difference
        // does not.
        let half = difference(opaque(0.5 * x), opaque(0.5 * maximum.logit));
        return multiply_pairs(2.0 * vec2<f32>(params.scale, params.scale_low), half);
    }
    return difference(x, maximum.logit);
}

fn transformed_exp_below(x: f32, maximum: Maximum) -> f32 {
    let d = distance(x, maximum);
    return exp_pair(vec2<f32>(d.x, select(0.0, d.y, d.x > LOWEST)));
}

// exp(y - maximum.y); x may be -inf.
fn exp_below_4(x: vec4<f32>, maximum: Maximum) -> vec4<f32> {
    if TRANSFORMED {
        let low = vec2<f32>(transformed_exp_below(x.x, maximum), transformed_exp_below(x.y, maximum));
        return vec4<f32>(low, transformed_exp_below(x.z, maximum), transformed_exp_below(x.w, maximum));
    }
    return exp_from(x, maximum.reference);
}

fn exp_below(x: f32, maximum: Maximum) -> f32 {
    if TRANSFORMED {
        return transformed_exp_below(x, maximum);
    }
    return exp_from(vec4<f32>(x), maximum.reference).x;
}
