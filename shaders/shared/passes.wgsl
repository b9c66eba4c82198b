// The two passes over a row, unit by unit: its maximum, then the sum of exponentials.
// needs: Grid, NONE, Stats, class_count, class_step, params, targets, weight_of (shared/bindings.wgsl); add_pairs,
//   key_of, opaque, value_of (shared/math.wgsl); COUNT, LARGEST, LARGEST_KEY, reduce, sum_of (shared/reduce.wgsl);
//   classes_from, operand_at (shared/rows.wgsl); distance, exp_below_4, max_logit, max_y, measure_from_y, slope
//   (shared/transform.wgsl); PARTS, Unit (the parts in elements/)
// provides: LOWEST_KEY, Coefficients, is_bad, maximum_of, begin_maximum, see_unit, lane_key, row_maximum,
//   label_below, total, maxima_count, below, labels, begin_sums, add_unit, summed, element_unit, packed, unpacked

// The key of -inf: below that of every number.
const LOWEST_KEY: i32 = -2139095041;

// Coefficients are what an operation makes of a row's statistics, and then does to each of its elements.
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

// Nothing but -inf, or a NaN or +inf.
fn is_bad(stats: Stats) -> bool {
    return stats.key == LOWEST_KEY || stats.key >= 0x7f800000;
}

// The maximum, or 0 where it is no number to compute with.
fn maximum_of(stats: Stats) -> f32 {
    return select(value_of(stats.key), 0.0, is_bad(stats));
}

// A lane keeps the largest value, and the largest bit patterns, as signed and as unsigned numbers, which give away +inf
// and NaNs of either sign; or, where the class matters, the largest key and its class.
var<private> best: f32;
var<private> largest: i32;
var<private> largest_unsigned: u32;
var<private> best_key: i32;
var<private> best_at: u32;

fn begin_maximum() {
    best = bitcast<f32>(params.negative_infinity);
    largest = bitcast<i32>(0x80000000u);
    largest_unsigned = 0u;
    best_key = LOWEST_KEY;
    best_at = NONE;
}

fn see_unit(j: u32, unit: Unit) {
    if SAVED_LOG_SUM_EXP {
        return;
    }
    for (var part = 0u; part < PARTS; part += 1u) {
        let x = unit[part];
        if CLASS_MATTERS {
            // An adapter may take subnormals for 0 where it compares floats, but not in their bits.
            for (var k = 0u; k < 4u; k += 1u) {
                let is_nan = (bitcast<u32>(x[k]) & 0x7fffffffu) > 0x7f800000u;
                let key = select(key_of(x[k]), 0x7fffffff, is_nan);
                best_at = select(best_at, j + 4u * part + k, key > best_key);
                best_key = max(best_key, key);
            }
        } else {
            let bits = bitcast<vec4<i32>>(x);
            largest = max(largest, max(max(bits.x, bits.y), max(bits.z, bits.w)));
            let natural = bitcast<vec4<u32>>(x);
            largest_unsigned = max(largest_unsigned, max(max(natural.x, natural.y), max(natural.z, natural.w)));
            best = max(best, max(max(x.x, x.y), max(x.z, x.w)));
        }
    }
}

// The key of what a lane has seen.
fn lane_key() -> i32 {
    if CLASS_MATTERS {
        return best_key;
    }
    if largest > 0x7f800000 || largest_unsigned > 0xff800000u {
        return 0x7fffffff;
    }
    return select(key_of(best), 0x7f800000, largest == 0x7f800000);
}

// Called by all threads of a workgroup together: the key of a row's maximum, and where it is.
fn row_maximum(grid: Grid) -> vec2<u32> {
    if SAVED_LOG_SUM_EXP {
        return vec2<u32>(0u, NONE);
    }
    if CLASS_MATTERS {
        return reduce(grid, vec2<u32>(bitcast<u32>(best_key), best_at), LARGEST);
    }
    return reduce(grid, vec2<u32>(bitcast<u32>(lane_key()), 0u), LARGEST_KEY);
}

// The labels of a unit's classes where labels are spread, without what a target class has beside its off_value. A loop over
// components is avoided, here and below: FXC cannot store to a component whose number it does not know (X3511).
fn labels_of(j: u32, part: u32) -> vec4<f32> {
    let classes = min(classes_from(j, part), vec4<u32>(class_count() - 1u));
    return vec4<f32>(label_of(classes.x), label_of(classes.y), label_of(classes.z), label_of(classes.w));
}

fn label_of(j: u32) -> f32 {
    var label = params.off_value;
    if SOFT {
        label += params.on_value * bitcast<f32>(targets[operand_at + j * class_step()]);
    }
    return weight_of(j) * label;
}

// label * (max_y - y): in halves, for the difference of two large logits is no f32. Opaque, for a compiler would move the 2 to the
// difference, or take 2 and the halves out.
fn label_below(label: f32, x: f32) -> f32 {
    if TRANSFORMED {
        let d = distance(x);
        return label * -(d.x + d.y);
    }
    return opaque(2.0 * label) * (0.5 * max_logit - opaque(0.5 * x));
}

// A lane keeps the sum of exponentials below the maximum, how many are equal to the maximum, and where labels are spread what Stats says
// of them.
var<private> total: vec2<f32>;
var<private> maxima_count: f32;
var<private> below: vec2<f32>;
var<private> labels: vec2<f32>;
var<private> has_negative_infinity: u32;

fn begin_sums() {
    total = vec2<f32>(0.0, 0.0);
    maxima_count = 0.0;
    below = vec2<f32>(0.0, 0.0);
    labels = vec2<f32>(0.0, 0.0);
    has_negative_infinity = 0u;
}

fn spread_labels(j: u32, end: u32, x: vec4<f32>, part: u32) {
    let is_here = classes_from(j, part) < vec4<u32>(end);
    let values_of_labels = select(vec4<f32>(0.0), labels_of(j, part), is_here);
    var sum = 0.0;
    for (var k = 0u; k < 4u; k += 1u) {
        if bitcast<u32>(x[k]) == params.negative_infinity {
            has_negative_infinity |= select(0u, select(1u, 2u, values_of_labels[k] == 0.0), is_here[k]);
        } else {
            sum += label_below(values_of_labels[k], x[k]);
        }
    }
    below = add_pairs(below, vec2<f32>(sum, 0.0));
    labels = add_pairs(labels, vec2<f32>((values_of_labels.x + values_of_labels.y) + (values_of_labels.z + values_of_labels.w), 0.0));
}

// Adds a unit to the sums, and returns its exponentials. Four at a time are added as a tree, and only their sum with its
// rounding error.
fn add_unit(j: u32, end: u32, unit: Unit) -> Unit {
    var exponentials: Unit;
    for (var part = 0u; part < PARTS; part += 1u) {
        let x = unit[part];
        if SPREAD && (SOFT || !SAVED_LOG_SUM_EXP) {
            spread_labels(j, end, x, part);
        }
        if !SAVED_LOG_SUM_EXP {
            let is_maximum = x == vec4<f32>(max_logit);
            var e = exp_below_4(x);
            exponentials[part] = e;
            if CAPPED {
                // A masked class is a finite number under a cap.
                e = select(vec4<f32>(0.0), e, classes_from(j, part) < vec4<u32>(end));
            }
            let rest_of_sum = select(e, vec4<f32>(0.0), is_maximum);
            let ones = select(vec4<f32>(0.0), vec4<f32>(1.0), is_maximum);
            total = add_pairs(total, vec2<f32>((rest_of_sum.x + rest_of_sum.y) + (rest_of_sum.z + rest_of_sum.w), 0.0));
            maxima_count += (ones.x + ones.y) + (ones.z + ones.w);
        }
    }
    return exponentials;
}

// Called by all threads of a workgroup together: what the lanes of a row have summed, about one top.
fn summed(grid: Grid, peak: Stats) -> Stats {
    var stats = peak;
    if !SAVED_LOG_SUM_EXP {
        let sum = sum_of(grid, add_pairs(total, vec2<f32>(maxima_count, 0.0)));
        stats.rest_of_sum = add_pairs(vec2<f32>(-1.0, 0.0), sum);
    }
    if SPREAD {
        // The host knows the sum of smoothed labels over a whole row.
        if SOFT || (SPLIT_ROW && !SAVED_LOG_SUM_EXP) {
            let sum = sum_of(grid, labels);
            stats.labels = sum.x + sum.y;
        }
        if !SAVED_LOG_SUM_EXP {
            stats.below = sum_of(grid, below);
            let flags = reduce(grid, vec2<u32>(has_negative_infinity & 1u, has_negative_infinity >> 1u), COUNT);
            stats.has_negative_infinity = select(0u, 1u, flags.x > 0u) | select(0u, 2u, flags.y > 0u);
        }
    }
    return stats;
}

fn log_probability(x: f32, factor: f32) -> f32 {
    let d = distance(x);
    return (d.x - factor) + d.y;
}

// Returns what is written for a unit of logits, or for one of exponentials.
fn element_unit(j: u32, unit: Unit, are_exponentials: bool, coefficients: Coefficients) -> Unit {
    var result: Unit;
    for (var part = 0u; part < PARTS; part += 1u) {
        let x = unit[part];
        var values: vec4<f32>;
        if LOG {
            let factor = coefficients.factor;
            let low = vec2<f32>(log_probability(x.x, factor), log_probability(x.y, factor));
            values = vec4<f32>(low, log_probability(x.z, factor), log_probability(x.w, factor));
        } else {
            if are_exponentials {
                values = x * coefficients.factor;
            } else {
                values = exp_below_4(x) * coefficients.factor;
            }
            if SPREAD {
                values -= coefficients.shift * labels_of(j, part);
            }
            if TARGETS && CAPPED {
                values *= vec4<f32>(slope(x.x), slope(x.y), slope(x.z), slope(x.w));
            }
        }
        if TARGETS {
            let is_target = classes_from(j, part) == vec4<u32>(coefficients.at);
            values = select(values, vec4<f32>(coefficients.at_value), is_target);
        }
        result[part] = select(values, vec4<f32>(bitcast<f32>(params.nan)), coefficients.bad);
    }
    return result;
}

// Coefficients in an entry of `partials`, and back.
fn packed(coefficients: Coefficients) -> Stats {
    let values = vec2<f32>(coefficients.factor, coefficients.at_value);
    let spread = vec2<f32>(coefficients.shift, max_y.x);
    return Stats(select(0, 1, coefficients.bad), coefficients.at, values, spread, 0u, 0.0);
}

fn unpacked(entry: Stats) -> Coefficients {
    if SAVED_LOG_SUM_EXP {
        measure_from_y(entry.below.y);
    }
    return Coefficients(entry.rest_of_sum.x, entry.at, entry.rest_of_sum.y, entry.key == 1, entry.below.x);
}
