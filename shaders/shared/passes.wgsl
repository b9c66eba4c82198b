// The two passes over a stretch of a row: its maximum, then the sum of exponentials. `load`, `keep` and `exponential`
// belong to the regime: a row may be in workgroup memory or be read again. WRITES, LOG and CLASS_MATTERS belong to the
// operation: whether elements are written, as logarithms, and whether it is told apart which of equal maxima comes first.

// What an operation makes of a row's statistics, and then does to each of its elements.
struct Coefficients {
    // Probabilities are exponentials times this; log-probabilities are differences less this.
    factor: f32,
    // The one element that is not made like the others, if any.
    at: u32,
    at_value: f32,
    // The whole row is NaN.
    bad: bool,
    // Of smoothed labels: what each element is lowered by, times the weight of its class.
    shift: f32,
}

fn is_bad(stats: Stats) -> bool {
    return stats.at == NONE || stats.key >= 0x7f800000;
}

// The maximum, or 0 where it is no number to compute with.
fn top_of(stats: Stats) -> f32 {
    return select(value_of(stats.key), 0.0, is_bad(stats));
}

fn lane_peak(start: u32, end: u32, lane: u32) -> vec2<u32> {
    var best = bitcast<f32>(params.negative_infinity);
    var key = key_of(best);
    var at = NONE;
    // The largest bit patterns, as signed and as unsigned numbers, give away +inf and NaNs of either sign.
    var largest = 0;
    var largest_unsigned = 0u;
    for (var j = start + lane; j < end; j += THREADS_PER_ROW) {
        let x = load(j);
        let bits = bitcast<u32>(x);
        if CLASS_MATTERS {
            // An adapter may take subnormals for 0 where it compares floats, but not in their bits.
            let order = key_of(x);
            at = select(at, j, order > key);
            key = max(key, order);
        } else {
            at = select(at, j, x > best);
            best = max(best, x);
        }
        largest = max(largest, bitcast<i32>(bits));
        largest_unsigned = max(largest_unsigned, bits);
    }
    if !CLASS_MATTERS {
        key = key_of(best);
    }
    let has_nan = largest > 0x7f800000 || largest_unsigned > 0xff800000u;
    if has_nan || largest == 0x7f800000 {
        // Rare: no comparison above can be trusted, so the first such element is looked up by its bits.
        key = select(0x7f800000, 0x7fffffff, has_nan);
        at = NONE;
        for (var j = start + lane; j < end; j += THREADS_PER_ROW) {
            let magnitude = bitcast<u32>(load(j)) & 0x7fffffffu;
            let is_positive = bitcast<i32>(load(j)) >= 0;
            if at == NONE && select(magnitude == 0x7f800000u && is_positive, magnitude > 0x7f800000u, has_nan) {
                at = j;
            }
        }
    }
    return vec2<u32>(bitcast<u32>(key), at);
}

// Of the terms of one step of a lane, where labels are smoothed.
var<private> step_below: f32;
var<private> bottomless: u32;

fn term(j: u32, end: u32, top: f32, skip: u32) -> f32 {
    if j >= end {
        return 0.0;
    }
    let x = load(j);
    if SMOOTHING {
        let weight = weight_of(j);
        if bitcast<u32>(x) == params.negative_infinity {
            bottomless |= select(1u, 2u, weight == 0.0);
        } else {
            // Halves, for the difference of two large logits is no f32.
            step_below += 2.0 * params.smoothing * weight * (0.5 * top - 0.5 * x);
        }
    }
    let e = exp_difference(x, top);
    keep(j, e);
    return select(e, 0.0, j == skip);
}

// Sums of a lane: of exponentials, and of what lies below the top.
fn lane_sums(start: u32, end: u32, lane: u32, top: f32, skip: u32) -> array<vec2<f32>, 2> {
    var sum = vec2<f32>(0.0, 0.0);
    var below = vec2<f32>(0.0, 0.0);
    bottomless = 0u;
    // Four terms as a tree, and only their sum with its rounding error.
    for (var j = start + lane; j < end; j += 4u * THREADS_PER_ROW) {
        step_below = 0.0;
        let a = term(j, end, top, skip) + term(j + THREADS_PER_ROW, end, top, skip);
        let b = term(j + 2u * THREADS_PER_ROW, end, top, skip) + term(j + 3u * THREADS_PER_ROW, end, top, skip);
        sum = add_pairs(sum, vec2<f32>(a + b, 0.0));
        if SMOOTHING {
            below = add_pairs(below, vec2<f32>(step_below, 0.0));
        }
    }
    return array<vec2<f32>, 2>(sum, below);
}

// Called by all threads of a workgroup together.
fn reduce_stretch(start: u32, end: u32, lane: u32) -> Stats {
    let peak = reduce(lane_peak(start, end, lane), LARGEST);
    var stats = Stats();
    stats.key = bitcast<i32>(peak.x);
    stats.at = peak.y;
    let sums = lane_sums(start, end, lane, top_of(stats), stats.at);
    stats.others = bitcast<vec2<f32>>(reduce(bitcast<vec2<u32>>(sums[0]), SUM));
    if SMOOTHING {
        stats.below = bitcast<vec2<f32>>(reduce(bitcast<vec2<u32>>(sums[1]), SUM));
        let flags = reduce(vec2<u32>(bottomless & 1u, bottomless >> 1u), COUNT);
        stats.bottomless = select(0u, 1u, flags.x > 0u) | select(0u, 2u, flags.y > 0u);
    }
    return stats;
}

fn element(j: u32, top: f32, coefficients: Coefficients) -> f32 {
    var value: f32;
    if LOG {
        let d = difference(load(j), top);
        value = (d.x - coefficients.factor) + d.y;
    } else {
        value = exponential(j, top) * coefficients.factor;
        if SMOOTHING {
            value -= coefficients.shift * weight_of(j);
        }
    }
    value = select(value, coefficients.at_value, j == coefficients.at);
    return select(value, bitcast<f32>(params.nan), coefficients.bad);
}
