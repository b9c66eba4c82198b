// The two passes over a stretch of a row: its maximum, then the sum of exponentials. `load`, `keep` and `exponential`
// and PIECES belong to the regime: a row may be in
// workgroup memory or be read again. WRITES, LOG and CLASS_MATTERS belong to the
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
    // Where labels are spread: what each element is lowered by, times its label.
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

// The label of a class where labels are spread, without what a target class has beside its share.
fn label_of(j: u32) -> f32 {
    var label = params.smoothing;
    if SOFT {
        label += params.hit * bitcast<f32>(targets[second_in + j * class_step()]);
    }
    return weight_of(j) * label;
}

// label * (top - y): in halves, for the difference of two large logits is no f32.
fn label_below(label: f32, x: f32) -> f32 {
    if SCALED || CAPPED {
        let d = distance(x);
        return label * -(d.x + d.y);
    }
    return 2.0 * label * (0.5 * top_x - 0.5 * x);
}

// Of the terms of one step of a lane, where labels are spread.
var<private> step_below: f32;
var<private> step_labels: f32;
var<private> bottomless: u32;

fn term(j: u32, end: u32, skip: u32) -> f32 {
    if j >= end {
        return 0.0;
    }
    let x = load(j);
    if SPREAD {
        let label = label_of(j);
        step_labels += label;
        if bitcast<u32>(x) == params.negative_infinity {
            bottomless |= select(1u, 2u, label == 0.0);
        } else {
            step_below += label_below(label, x);
        }
    }
    let e = exp_below(x);
    keep(j, e);
    return select(e, 0.0, j == skip);
}

// Sums of a lane: of exponentials, of what lies below the top, and of labels.
fn lane_sums(start: u32, end: u32, lane: u32, skip: u32) -> array<vec2<f32>, 3> {
    var sum = vec2<f32>(0.0, 0.0);
    var below = vec2<f32>(0.0, 0.0);
    var labels = vec2<f32>(0.0, 0.0);
    bottomless = 0u;
    // Four terms as a tree, and only their sum with its rounding error.
    for (var j = start + lane; j < end; j += 4u * THREADS_PER_ROW) {
        step_below = 0.0;
        step_labels = 0.0;
        let a = term(j, end, skip) + term(j + THREADS_PER_ROW, end, skip);
        let b = term(j + 2u * THREADS_PER_ROW, end, skip) + term(j + 3u * THREADS_PER_ROW, end, skip);
        sum = add_pairs(sum, vec2<f32>(a + b, 0.0));
        if SPREAD {
            below = add_pairs(below, vec2<f32>(step_below, 0.0));
            labels = add_pairs(labels, vec2<f32>(step_labels, 0.0));
        }
    }
    return array<vec2<f32>, 3>(sum, below, labels);
}

// Called by all threads of a workgroup together.
fn reduce_stretch(start: u32, end: u32, lane: u32) -> Stats {
    if KNOWN {
        return known_stats(start, end, lane);
    }
    let peak = reduce(lane_peak(start, end, lane), LARGEST);
    var stats = Stats();
    stats.key = bitcast<i32>(peak.x);
    stats.at = peak.y;
    see_from(top_of(stats));
    let sums = lane_sums(start, end, lane, stats.at);
    stats.others = sum_of(sums[0]);
    if SPREAD {
        stats.below = sum_of(sums[1]);
        // Of smoothed labels alone the host knows the sum over a whole row.
        if SOFT || PIECES {
            let labels = sum_of(sums[2]);
            stats.labels = labels.x + labels.y;
        }
        let flags = reduce(vec2<u32>(bottomless & 1u, bottomless >> 1u), COUNT);
        stats.bottomless = select(0u, 1u, flags.x > 0u) | select(0u, 2u, flags.y > 0u);
    }
    return stats;
}

// Nothing to reduce, but for probabilities that are targets; the top is no element.
fn known_stats(start: u32, end: u32, lane: u32) -> Stats {
    var stats = Stats();
    stats.at = NONE - 1u;
    if SPREAD && (SOFT || PIECES) {
        var labels = vec2<f32>(0.0, 0.0);
        for (var j = start + lane; j < end; j += THREADS_PER_ROW) {
            labels = add_pairs(labels, vec2<f32>(label_of(j), 0.0));
        }
        labels = sum_of(labels);
        stats.labels = labels.x + labels.y;
    }
    return stats;
}

fn element(j: u32, coefficients: Coefficients) -> f32 {
    var value: f32;
    if LOG {
        let d = distance(load(j));
        value = (d.x - coefficients.factor) + d.y;
    } else {
        value = exponential(j) * coefficients.factor;
        if SPREAD {
            value -= coefficients.shift * label_of(j);
        }
        if TARGETS && CAPPED {
            value *= slope(original(j));
        }
    }
    value = select(value, coefficients.at_value, j == coefficients.at);
    return select(value, bitcast<f32>(params.nan), coefficients.bad);
}
