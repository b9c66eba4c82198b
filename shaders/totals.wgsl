// Reduces rows to one number: before a loss, the count and the weight of the rows; after it, the
// sum of their losses. Each pass reduces groups of rows, LANES threads a group, to a partial a
// group; then one group reduces the partials to `summary`.
//
// Sums are those of `src/problem/sum.rs`, which explains them: a group is a block of that file, and
// everything is done in integers, on the bits of f32, so that no order and no compiler changes a
// bit.
// needs: Grid, MEAN, NONE, Stats, Summary, WORKGROUP, is_ignored, params, partials, rows_out,
//   summary, targets, thread, weight_of (shared/bindings.wgsl); COUNT, LARGEST, LARGEST_KEY,
//   combine, reduce (shared/reduce.wgsl)
// provides: count_targets, total_targets, sum_losses, total_losses

// Must equal `BLOCK_ROWS` of `src/problem/sum.rs`.
const GROUP_ROWS: u32 = 1024u;
// The bits of an infinity, and the exponents that stand for an infinity and for a NaN in a partial.
const INFINITY: u32 = 0x7f800000u;
const INFINITE: u32 = 255u;
const NOT_A_NUMBER: u32 = 256u;

// The group of this thread. `group_rows` gives the range of its rows in this pass, which is empty
// if there is no such group.
fn group_of(grid: Grid) -> u32 {
    return grid.group * (WORKGROUP / LANES) + thread / LANES;
}

fn group_rows(group: u32) -> vec2<u32> {
    let start = min(group * GROUP_ROWS, params.rows);
    return vec2<u32>(start, start + min(GROUP_ROWS, params.rows - start));
}

// The number of partials that this thread's group reads: the first group reads all of them.
fn partials_of() -> u32 {
    return select(0u, params.groups, thread < LANES);
}

// The biased exponent of a non-negative number, given as bits: 1 for subnormal numbers and 0,
// NOT_A_NUMBER for NaN.
fn exponent_of(bits: u32) -> u32 {
    return select(max(bits >> 23u, 1u), NOT_A_NUMBER, bits > INFINITY);
}

fn largest_of(grid: Grid, largest: u32) -> u32 {
    return reduce(grid, vec2<u32>(largest, 0u), LARGEST_KEY).x;
}

// A finite number as a multiple of the quantum 2^(exponent - 167), rounded half to even: the low 20
// bits of the multiple, and the 21 bits above. The sums of GROUP_ROWS of each fit 32 bits.
fn multiple_of_quantum(bits: u32, exponent: u32) -> vec2<u32> {
    let own = bits >> 23u;
    let mantissa = select(bits & 0x7fffffu, (bits & 0x7fffffu) | 0x800000u, own > 0u);
    let below = exponent - max(own, 1u);
    if below <= 17u {
        let up = 17u - below;
        return vec2<u32>((mantissa << up) & 0xfffffu, mantissa >> (20u - up));
    }
    let down = min(below - 17u, 31u);
    let whole = mantissa >> down;
    let rest = mantissa & ((1u << down) - 1u);
    let half = 1u << (down - 1u);
    let rounded = whole + select(0u, 1u, rest > half || (rest == half && (whole & 1u) == 1u));
    return vec2<u32>(rounded & 0xfffffu, rounded >> 20u);
}

// Packs a partial into an entry of `partials`, whose fields have other meanings here. Its sum is
// (sum.x + sum.y * 2^20) quanta of `exponent`. Fields of type f32 hold small whole numbers, because
// the bits of an f32 that is not normal need not survive.
fn partial(exponent: u32, sum: vec2<u32>, counted: u32, invalid: u32) -> Stats {
    return Stats(bitcast<i32>(sum.x), invalid, vec2<f32>(0.0, 0.0), vec2<f32>(f32(exponent), 0.0), sum.y, f32(counted));
}

fn exponent_of_partial(part: Stats) -> u32 {
    return u32(part.below.x);
}

// (the sum of a partial * 2^20) / 2^(exponent - its exponent), rounded down, as digits of 24 bits,
// the lowest first.
fn digits_of_partial(part: Stats, exponent: u32) -> vec4<u32> {
    let low = bitcast<u32>(part.key);
    let high = part.has_negative_infinity + (low >> 20u);
    // The sum as bits 20 to 90 of 96.
    var words = vec3<u32>(low << 20u, ((low >> 12u) & 0xffu) | (high << 8u), high >> 24u);
    let down = exponent - exponent_of_partial(part);
    if down >= 95u {
        return vec4<u32>();
    }
    if down >= 64u {
        words = vec3<u32>(words.z, 0u, 0u);
    } else if down >= 32u {
        words = vec3<u32>(words.y, words.z, 0u);
    }
    let bits = down % 32u;
    if bits > 0u {
        words = (words >> vec3<u32>(bits)) | (vec3<u32>(words.y, words.z, 0u) << vec3<u32>(32u - bits));
    }
    return vec4<u32>(
        words.x & 0xffffffu,
        (words.x >> 24u) | ((words.y & 0xffffu) << 8u),
        (words.y >> 16u) | ((words.z & 0xffu) << 16u),
        words.z >> 8u,
    );
}

// Carries the bits of a digit above 24 to the next digit. There are at most 93 bits in all.
fn carried(digits: vec4<u32>) -> vec4<u32> {
    let y = digits.y + (digits.x >> 24u);
    let z = digits.z + (y >> 24u);
    let w = digits.w + (z >> 24u);
    return vec4<u32>(digits.x & 0xffffffu, y & 0xffffffu, z & 0xffffffu, w);
}

// The bits of the f32 m * 2^(exponent - 150), for m below 2^24 where that is exact; infinity beyond
// f32.
fn bits_of_float(m: u32, exponent: i32) -> u32 {
    if m == 0u {
        return 0u;
    }
    let up = countLeadingZeros(m) - 8u;
    let mantissa = m << up;
    let biased = exponent - bitcast<i32>(up);
    if biased >= 255 {
        return INFINITY;
    }
    if biased < 1 {
        return mantissa >> min(u32(1 - biased), 31u);
    }
    return (u32(biased) << 23u) | (mantissa & 0x7fffffu);
}

// The total of the sums of all partials, as the bits of a high and a low part. It is NaN if any sum
// is NaN, else infinite if any is infinite.
//   for each partial: exponent = max(exponent, its exponent); over all lanes
//   for each partial: digits += its sum / 2^(exponent - its exponent); over all lanes
//   the two highest 24 bits of the digits, from the first bit that is set, are the two parts
fn total_of_partials(grid: Grid) -> vec2<u32> {
    var exponent = 1u;
    for (var i = thread; i < partials_of(); i += LANES) {
        exponent = max(exponent, exponent_of_partial(partials[i]));
    }
    exponent = largest_of(grid, exponent);
    var digits = vec4<u32>();
    if exponent < INFINITE {
        for (var i = thread; i < partials_of(); i += LANES) {
            digits = carried(digits + digits_of_partial(partials[i], exponent));
        }
    }
    // The sums of up to 256 digits fit 32 bits.
    let low = reduce(grid, digits.xy, COUNT);
    let high = reduce(grid, digits.zw, COUNT);
    digits = carried(vec4<u32>(low, high));
    if exponent >= INFINITE {
        return vec2<u32>(select(INFINITY, params.nan, exponent == NOT_A_NUMBER), 0u);
    }
    // Shifts the first digit that is not 0 to the top, and then its first bit.
    var place = i32(exponent) + 35;
    for (var i = 0u; i < 3u; i += 1u) {
        if digits.w == 0u {
            digits = vec4<u32>(0u, digits.xyz);
            place -= 24;
        }
    }
    let up = countLeadingZeros(digits.w | 1u) - 8u;
    let upper = ((digits.w << up) | (digits.z >> (24u - up))) & 0xffffffu;
    let lower = ((digits.z << up) | (digits.y >> (24u - up))) & 0xffffffu;
    place -= bitcast<i32>(up);
    let bits = bits_of_float(upper, place);
    return vec2<u32>(bits, select(bits_of_float(lower, place - 24), 0u, bits == INFINITY));
}

// The value that a row adds to a sum: the weight of the class of its target, or its loss.
struct RowValue {
    // The bits of a number that is not negative.
    bits: u32,
    // For targets: whether the row counts, and whether it counts with a target that is no class,
    // which has the weight 0.
    is_counted: bool,
    is_invalid: bool,
}

// The value of a row without its sign bit, which a zero may have.
fn value_of_row(row: u32, of_targets: bool) -> RowValue {
    if !of_targets {
        return RowValue(rows_out[params.rows_out_at + row] & 0x7fffffffu, false, false);
    }
    let label = targets[params.targets_at + row];
    let is_counted = !is_ignored(label);
    let is_class = label < params.classes;
    var bits = 0u;
    if is_counted && is_class {
        bits = bitcast<u32>(weight_of(label)) & 0x7fffffffu;
    }
    return RowValue(bits, is_counted, is_counted && !is_class);
}

// Sums each group's rows to its partial:
//   for each row: largest = max(largest, its value); over all lanes
//       of targets: if it counts { counted += 1 }; invalid = the first whose target is no class
//   for each row: sum += its value, as a multiple of the quantum of `largest`; over all lanes
fn sum_rows(grid: Grid, of_targets: bool) {
    let group = group_of(grid);
    let rows = group_rows(group);
    let lane = thread % LANES;
    var largest = 0u;
    var counted = 0u;
    // All keys are equal, so the lower place is kept.
    var invalid = vec2<u32>(0u, NONE);
    for (var row = rows.x + lane; row < rows.y; row += LANES) {
        let value = value_of_row(row, of_targets);
        largest = max(largest, value.bits);
        counted += select(0u, 1u, value.is_counted);
        if value.is_invalid {
            invalid = combine(invalid, vec2<u32>(0u, params.first_row + row), LARGEST);
        }
    }
    if of_targets {
        counted = reduce(grid, vec2<u32>(counted, 0u), COUNT).x;
        invalid = reduce(grid, invalid, LARGEST);
    }
    let exponent = exponent_of(largest_of(grid, largest));
    var sum = vec2<u32>();
    if exponent < INFINITE {
        for (var row = rows.x + lane; row < rows.y; row += LANES) {
            sum += multiple_of_quantum(value_of_row(row, of_targets).bits, exponent);
        }
    }
    sum = reduce(grid, sum, COUNT);
    if lane == 0u && rows.x < rows.y {
        partials[params.first_group + group] = partial(exponent, sum, counted, invalid.y);
    }
}

fn count_targets(grid: Grid) {
    sum_rows(grid, true);
}

fn sum_losses(grid: Grid) {
    sum_rows(grid, false);
}

//   for each partial: counted += its rows; invalid = the first row whose target is no class;
//   over all lanes
fn total_targets(grid: Grid) {
    var counted = 0u;
    var invalid = vec2<u32>(0u, NONE);
    for (var i = thread; i < partials_of(); i += LANES) {
        let part = partials[i];
        counted += u32(part.labels);
        invalid = combine(invalid, vec2<u32>(0u, part.at), LARGEST);
    }
    counted = reduce(grid, vec2<u32>(counted, 0u), COUNT).x;
    invalid = reduce(grid, invalid, LARGEST);
    var weight = total_of_partials(grid);
    if params.soft_rows != 0u {
        // Every row of probabilities counts, with the weight 1.
        counted = params.soft_rows;
        weight = bitcast<vec2<u32>>(vec2<f32>(f32(counted & 0xffff0000u), f32(counted & 0xffffu)));
    }
    if thread == 0u {
        summary = Summary(0u, counted, invalid.y, 0u, vec2<u32>(0u, 0u), weight);
    }
}

//   loss = sum, or sum / weight; the bits of the sum decide whether it is infinite or NaN
fn total_losses(grid: Grid) {
    let bits = total_of_partials(grid);
    if thread == 0u {
        let pair = bitcast<vec2<f32>>(bits);
        let sum = pair.x + pair.y;
        var loss = bitcast<u32>(sum);
        if (FLAGS & MEAN) != 0u {
            let pair = bitcast<vec2<f32>>(summary.weight);
            let weight = pair.x + pair.y;
            loss = select(bitcast<u32>(sum / weight), params.nan, weight == 0.0);
        }
        if bits.x == INFINITY && loss != params.nan {
            loss = INFINITY;
        } else if bits.x > INFINITY {
            loss = params.nan;
        }
        summary.loss = loss;
        summary.sum = bits;
    }
}
