// Reduces a row unit by unit: to its maximum, then to the sum of exponentials relative to it.
// needs: Grid, NONE, Stats, params (shared/bindings.wgsl); Coefficients, packed_coefficients,
//   unpacked_coefficients (shared/coefficients.wgsl); add_pairs, key_nan_largest, key_of, value_of
//   (shared/math.wgsl); LARGEST, LARGEST_KEY, reduce, sum_of (shared/reduce.wgsl); classes_from
//   (shared/rows.wgsl); add_segment_to_side_sums, add_to_side_sums, begin_side_sums,
//   element_values, reduce_side_sums (shared/label_sums.wgsl, shared/no_side_sums.wgsl or the
//   operation); Maximum, distance, exp_below, exp_below_4, maximum_at (shared/transform.wgsl);
//   PARTS, Unit (the parts in elements/)
// provides: LOWEST_KEY, RowState, is_bad, maximum_of, sum_of_exponentials, set_maximum,
//   begin_maximum, see_unit, lane_key, row_maximum, begin_sums, add_unit, add_segment, summed,
//   elements_of, packed, unpacked

// The key of -inf: below that of every number.
const LOWEST_KEY: i32 = -2139095041;

// The state that a thread keeps of its row while the row is reduced. One variable of the strategy,
// which every function takes as a pointer; compilers inline the functions and give each field a
// register.
struct RowState {
    // The maximum that exponentials are relative to: the row's, or with ONLINE this lane's until
    // the lanes are joined.
    maximum: Maximum,

    // The maximum of the units seen since `begin_maximum`. `largest_float` is the largest value
    // that is no NaN; the largest bit patterns, as signed and as unsigned numbers, tell +inf and
    // NaNs of either sign.
    largest_float: f32,
    largest_signed: i32,
    largest_unsigned: u32,
    // In their place with CLASS_MATTERS: the largest key, and the first class that has it.
    best_key: i32,
    best_class: u32,

    // The sum of this lane's exponentials below the maximum, high and low part.
    rest_of_sum: vec2<f32>,
    // How many of this lane's logits are equal to the maximum.
    maxima_count: f32,
    // The side sums, as in Stats, high and low parts.
    below: vec2<f32>,
    labels: vec2<f32>,
    has_negative_infinity: u32,

    // With ONLINE: the key of the largest logit that this lane has seen.
    running_key: i32,
}

// Nothing but -inf, or a NaN or +inf.
fn is_bad(stats: Stats) -> bool {
    return stats.key == LOWEST_KEY || stats.key >= 0x7f800000;
}

// The maximum, or 0 where it is no number to compute with.
fn maximum_of(stats: Stats) -> f32 {
    return select(value_of(stats.key), 0.0, is_bad(stats));
}

// The sum of all exponentials relative to the maximum.
fn sum_of_exponentials(stats: Stats) -> f32 {
    let sum = add_pairs(vec2<f32>(1.0, 0.0), stats.rest_of_sum);
    return sum.x + sum.y;
}

// Makes exponentials relative to the maximum of these statistics.
fn set_maximum(state: ptr<function, RowState>, stats: Stats) {
    (*state).maximum = maximum_at(maximum_of(stats));
}

fn begin_maximum(state: ptr<function, RowState>) {
    (*state).largest_float = bitcast<f32>(params.negative_infinity);
    (*state).largest_signed = bitcast<i32>(0x80000000u);
    (*state).largest_unsigned = 0u;
    (*state).best_key = LOWEST_KEY;
    (*state).best_class = NONE;
}

// for each x of the unit: largest = max(largest, x), by value and by bits;
// or with CLASS_MATTERS: if key(x) > best_key { best_key = key(x); best_class = its class }
fn see_unit(state: ptr<function, RowState>, j: u32, unit: Unit) {
    for (var part = 0u; part < PARTS; part += 1u) {
        let x = unit[part];
        if CLASS_MATTERS {
            // An adapter may take subnormals for 0 where it compares floats, but not in their bits.
            for (var k = 0u; k < 4u; k += 1u) {
                let key = key_nan_largest(x[k]);
                let here = j + 4u * part + k;
                (*state).best_class = select((*state).best_class, here, key > (*state).best_key);
                (*state).best_key = max((*state).best_key, key);
            }
        } else {
            let signed = bitcast<vec4<i32>>(x);
            let most = max(max(signed.x, signed.y), max(signed.z, signed.w));
            (*state).largest_signed = max((*state).largest_signed, most);
            let natural = bitcast<vec4<u32>>(x);
            let widest = max(max(natural.x, natural.y), max(natural.z, natural.w));
            (*state).largest_unsigned = max((*state).largest_unsigned, widest);
            let value = max(max(x.x, x.y), max(x.z, x.w));
            (*state).largest_float = max((*state).largest_float, value);
        }
    }
}

// The key of the maximum of what this lane has seen.
fn lane_key(state: ptr<function, RowState>) -> i32 {
    if CLASS_MATTERS {
        return (*state).best_key;
    }
    if (*state).largest_signed > 0x7f800000 || (*state).largest_unsigned > 0xff800000u {
        return 0x7fffffff;
    }
    let is_infinite = (*state).largest_signed == 0x7f800000;
    return select(key_of((*state).largest_float), 0x7f800000, is_infinite);
}

// Called by all threads of a workgroup together: statistics with the row's maximum, which
// exponentials are relative to from now on.
fn row_maximum(grid: Grid, state: ptr<function, RowState>) -> Stats {
    var stats = Stats();
    if CLASS_MATTERS {
        let best = vec2<u32>(bitcast<u32>((*state).best_key), (*state).best_class);
        let found = reduce(grid, best, LARGEST);
        stats.key = bitcast<i32>(found.x);
        stats.at = found.y;
    } else {
        let key = vec2<u32>(bitcast<u32>(lane_key(state)), 0u);
        stats.key = bitcast<i32>(reduce(grid, key, LARGEST_KEY).x);
    }
    set_maximum(state, stats);
    return stats;
}

fn begin_sums(state: ptr<function, RowState>) {
    (*state).rest_of_sum = vec2<f32>(0.0, 0.0);
    (*state).maxima_count = 0.0;
    begin_side_sums(state);
}

// Adds a unit to the sums, and returns its exponentials:
//   for each x: e = exp(y - maximum.y)
//       if x == maximum { maxima_count += 1 } else { rest_of_sum += e }
// Four at a time are added as a tree, and only their sum with its rounding error.
fn add_unit(state: ptr<function, RowState>, j: u32, end: u32, unit: Unit) -> Unit {
    var exponentials: Unit;
    for (var part = 0u; part < PARTS; part += 1u) {
        let x = unit[part];
        let is_maximum = x == vec4<f32>((*state).maximum.logit);
        var e = exp_below_4(x, (*state).maximum);
        exponentials[part] = e;
        if CAPPED {
            // A masked class is a finite number under a cap.
            e = select(vec4<f32>(0.0), e, classes_from(j, part) < vec4<u32>(end));
        }
        add_to_side_sums(state, j, part, end, x, e);
        let rest = select(e, vec4<f32>(0.0), is_maximum);
        let ones = select(vec4<f32>(0.0), vec4<f32>(1.0), is_maximum);
        let sum = (rest.x + rest.y) + (rest.z + rest.w);
        (*state).rest_of_sum = add_pairs((*state).rest_of_sum, vec2<f32>(sum, 0.0));
        (*state).maxima_count += (ones.x + ones.y) + (ones.z + ones.w);
    }
    return exponentials;
}

// Adds a segment's statistics to the sums. `stats` has the maximum of the whole row.
//   rest_of_sum += (1 + the segment's rest_of_sum) * exp(the segment's maximum - maximum)
fn add_segment(state: ptr<function, RowState>, segment: Stats, stats: Stats) {
    var factor = 1.0;
    var sum = vec2<f32>(0.0, 0.0);
    if !is_bad(segment) {
        sum = add_pairs(vec2<f32>(1.0, 0.0), segment.rest_of_sum);
        if segment.key != stats.key {
            factor = exp_below(maximum_of(segment), (*state).maximum);
            sum *= factor;
        }
        (*state).rest_of_sum = add_pairs((*state).rest_of_sum, sum);
    }
    add_segment_to_side_sums(state, segment, maximum_of(segment), factor, sum.x + sum.y);
}

// Called by all threads of a workgroup together: adds to `peak`, the statistics with the maximum,
// what the lanes of a row have summed relative to it.
fn summed(grid: Grid, state: ptr<function, RowState>, peak: Stats) -> Stats {
    var stats = peak;
    let whole = add_pairs((*state).rest_of_sum, vec2<f32>((*state).maxima_count, 0.0));
    stats.rest_of_sum = add_pairs(vec2<f32>(-1.0, 0.0), sum_of(grid, whole));
    reduce_side_sums(grid, state, &stats);
    return stats;
}

fn log_probability(x: f32, maximum: Maximum, log_sum: f32) -> f32 {
    let d = distance(x, maximum);
    return (d.x - log_sum) + d.y;
}

// Returns what is written for four logits, or for four exponentials:
//   LOG: (y - maximum.y) - log(sum); else exponential * factor, as `element_values` changes it
fn elements_of(
    state: ptr<function, RowState>,
    j: u32,
    part: u32,
    x: vec4<f32>,
    are_exponentials: bool,
    coefficients: Coefficients,
) -> vec4<f32> {
    let maximum = (*state).maximum;
    var values: vec4<f32>;
    if LOG {
        let log_sum = coefficients.factor;
        values = vec4<f32>(
            log_probability(x.x, maximum, log_sum),
            log_probability(x.y, maximum, log_sum),
            log_probability(x.z, maximum, log_sum),
            log_probability(x.w, maximum, log_sum),
        );
    } else {
        if are_exponentials {
            values = x * coefficients.factor;
        } else {
            values = exp_below_4(x, maximum) * coefficients.factor;
        }
        values = element_values(state, j, part, x, values, coefficients);
    }
    return select(values, vec4<f32>(bitcast<f32>(params.nan)), coefficients.bad);
}

// Coefficients in an entry of `partials`, and back. `state` has what else elements are made of.
fn packed(state: ptr<function, RowState>, coefficients: Coefficients) -> Stats {
    return packed_coefficients(coefficients, 0.0);
}

fn unpacked(state: ptr<function, RowState>, entry: Stats) -> Coefficients {
    return unpacked_coefficients(entry);
}
