// A class drawn from the softmax by the Gumbel-max trick. Twin of `src/cpu/ops/sample.rs`, which
// gives the reasons, and equal to it in every bit: it uses integers, and f32 additions and
// multiplications that no compiler may fuse.
// needs: Grid, LATER_DRAW, NONE, Stats, params, rows_out, targets (shared/bindings.wgsl);
//   Coefficients (shared/coefficients.wgsl); LN2_HIGH, LN2_LOW, key_of, opaque (shared/math.wgsl);
//   RowState, is_bad, sum_of_exponentials (shared/passes.wgsl); LARGEST, WIDE, combine, reduce
//   (shared/reduce.wgsl); lane, load (shared/rows.wgsl); exp_below (shared/transform.wgsl)
// provides: finish, select_classes

fn finish(row: u32, stats: Stats, state: ptr<function, RowState>, leader: bool) -> Coefficients {
    return Coefficients();
}

fn rotated(x: u32, by: u32) -> u32 {
    return (x << by) | (x >> (32u - by));
}

// Threefry-2x32 with 20 rounds.
fn threefry(key: vec2<u32>, counter: vec2<u32>) -> vec2<u32> {
    var keys = array<u32, 3>(key.x, key.y, key.x ^ key.y ^ 0x1bd11bdau);
    var rotations = array<vec4<u32>, 2>(vec4<u32>(13u, 15u, 26u, 6u), vec4<u32>(17u, 29u, 16u, 24u));
    var a = counter.x + keys[0];
    var b = counter.y + keys[1];
    for (var round = 0u; round < 5u; round += 1u) {
        let by = rotations[round % 2u];
        a += b;
        b = rotated(b, by.x) ^ a;
        a += b;
        b = rotated(b, by.y) ^ a;
        a += b;
        b = rotated(b, by.z) ^ a;
        a += b;
        b = rotated(b, by.w) ^ a;
        a += keys[(round + 1u) % 3u];
        b += keys[(round + 2u) % 3u] + round + 1u;
    }
    return vec2<u32>(a, b);
}

// The Threefry key of this step's draws; the counter is (class, row).
fn draw_key() -> vec2<u32> {
    var step = params.draw_step;
    if (params.flags & LATER_DRAW) != 0u {
        step = combine(step, vec2<u32>(targets[params.targets_at], 0u), WIDE);
    }
    return threefry(params.draw_seed, step);
}

fn log1p_short(f: f32) -> f32 {
    var q = 0.052806754;
    q = opaque(q * f) - 0.119419396;
    q = opaque(q * f) + 0.14970232;
    q = opaque(q * f) - 0.16837116;
    q = opaque(q * f) + 0.19979419;
    q = opaque(q * f) - 0.24992879;
    q = opaque(q * f) + 0.33333492;
    q = opaque(q * f) - 0.5000007;
    q = opaque(q * f) + 1.0;
    return opaque(f * opaque(q));
}

fn log_short(x: f32) -> f32 {
    let bits = bitcast<i32>(x);
    let k = (bits - 0x3f400000) >> 23u;
    let f = opaque(bitcast<f32>(bits - (k << 23u)) - 1.0);
    return opaque(opaque(f32(k) * 0.6931472) + log1p_short(f));
}

fn gumbel(bits: u32) -> f32 {
    let zeros = countLeadingZeros(bits | 1u);
    let mantissa = ((bits | 1u) << zeros) >> 8u;
    let v = f32(mantissa) * bitcast<f32>((127u - 24u - zeros) << 23u);
    var exponential: f32;
    if v < 0.25 {
        exponential = -log1p_short(-v);
    } else {
        exponential = -log_short(opaque(1.0 - v));
    }
    return -log_short(exponential);
}

// exp(x) for x up to 0, in units of 2^-31.
fn probability_scale(x: f32) -> u32 {
    let t = max(x, -40.0);
    let n = round(opaque(t * 1.442695));
    let r = opaque(opaque(t - opaque(n * LN2_HIGH)) - opaque(n * LN2_LOW));
    var q = 0.0013818698;
    q = opaque(q * r) + 0.008368716;
    q = opaque(q * r) + 0.041668292;
    q = opaque(q * r) + 0.16666521;
    q = opaque(opaque(q * r) + 0.49999994);
    let power = 1.0 + opaque(r + opaque(opaque(r * r) * q));
    return u32(opaque(power) * bitcast<f32>(u32(i32(n) + 31 + 127) << 23u));
}

// A 64-bit number (low, high) as an f32, cut to its first 24 bits.
fn coarse(mass: vec2<u32>) -> f32 {
    let length = select(32u - countLeadingZeros(mass.x), 64u - countLeadingZeros(mass.y), mass.y != 0u);
    if length <= 24u {
        return f32(mass.x);
    }
    let excess = length - 24u;
    var digits = mass.x >> min(excess, 31u);
    if excess >= 32u {
        digits = mass.y >> (excess - 32u);
    } else if mass.y != 0u {
        digits |= mass.y << (32u - excess);
    }
    return f32(digits) * bitcast<f32>((excess + 127u) << 23u);
}

// The logit of class j minus the maximum, times the scale: 0 or less.
fn depth_of(j: u32, max_logit: f32) -> f32 {
    return opaque(opaque(load(j) - max_logit) * params.scale);
}

fn is_possible(j: u32, t: f32) -> bool {
    return bitcast<u32>(load(j)) != params.negative_infinity && bitcast<u32>(t) != params.negative_infinity;
}

// The number of classes (`counts`), or their probability in units of 2^-31, whose key is `key` or
// above, as (low, high).
//   for each class of this lane with key(depth) >= key: mass += 1, or its probability;
//   over all lanes
fn mass_from(grid: Grid, max_logit: f32, key: i32, counts: bool) -> vec2<u32> {
    var mass = vec2<u32>(0u, 0u);
    for (var j = lane; j < params.classes; j += LANES) {
        let t = depth_of(j, max_logit);
        if key_of(t) >= key && is_possible(j, t) {
            mass = combine(mass, vec2<u32>(select(probability_scale(t), 1u, counts), 0u), WIDE);
        }
    }
    return reduce(grid, mass, WIDE);
}

// The largest key, up to that of 0, such that draw_top_k classes (`counts`), or `wanted` of the
// probability, are at that key or above.
//   while low < high: middle = half way up;
//       if mass_from(middle) is enough { low = middle } else { high = middle - 1 }
fn last_where(grid: Grid, max_logit: f32, lowest: i32, counts: bool, wanted: f32) -> i32 {
    var low = lowest;
    var high = 0;
    // Every row of the workgroup takes as many steps as any may need.
    // FXC would unroll a loop whose end it knows, barriers included.
    for (var step = 0u; step < 32u + params.zero; step += 1u) {
        let gap = bitcast<u32>(high) - bitcast<u32>(low);
        let middle = low + bitcast<i32>(gap / 2u + gap % 2u);
        let mass = mass_from(grid, max_logit, middle, counts);
        let holds = select(coarse(mass) >= wanted, mass.y != 0u || mass.x >= params.draw_top_k, counts);
        if low < high {
            if holds {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
    }
    return low;
}

//   lowest = the key at which top-k and top-p cut
//   for each class of this lane whose key is not below lowest:
//       score = depth + Gumbel noise
//       best = max(best, (score, class))
//   the class of the best score over all lanes is drawn
fn select_classes(grid: Grid, row: u32, stats: Stats, state: ptr<function, RowState>, present: bool) {
    let bad = is_bad(stats);
    let max_logit = (*state).maximum.logit;
    var lowest = key_of(bitcast<f32>(0xff7fffffu));
    if params.draw_top_k < params.classes {
        lowest = last_where(grid, max_logit, lowest, true, 0.0);
    }
    if params.draw_top_p < 1.0 {
        let wanted = opaque(params.draw_top_p * coarse(mass_from(grid, max_logit, lowest, false)));
        lowest = last_where(grid, max_logit, lowest, false, wanted);
    }
    let key = draw_key();
    var best = vec2<u32>(bitcast<u32>(key_of(bitcast<f32>(params.negative_infinity))), NONE);
    for (var j = lane; j < params.classes; j += LANES) {
        let t = depth_of(j, max_logit);
        if key_of(t) >= lowest && is_possible(j, t) {
            let score = opaque(t + gumbel(threefry(key, vec2<u32>(j, params.first_row + row)).x));
            best = combine(best, vec2<u32>(bitcast<u32>(key_of(score)), j), LARGEST);
        }
    }
    best = reduce(grid, best, LARGEST);
    if present && lane == 0u {
        // A row without a softmax gives the class of its largest logit, as predict.wgsl does.
        let first = select(stats.at, 0u, stats.at == NONE);
        let drawn = min(select(best.y, first, bad), params.classes - 1u);
        let sum = sum_of_exponentials(stats);
        let place = params.rows_out_at + 2u * row;
        rows_out[place] = drawn;
        let probability = exp_below(load(drawn), (*state).maximum) / sum;
        rows_out[place + 1u] = select(bitcast<u32>(probability), params.nan, bad);
    }
}
