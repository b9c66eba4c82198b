// From rows to one number, on the device: how many rows count and what they weigh, before a loss; their sum, after it.
// Each pass takes groups of rows, LANES threads a group, to a partial a group; and a last such group takes those to `summary`.
// needs: Grid, MEAN, NONE, Stats, Summary, WORKGROUP, is_ignored, params, partials, rows_out, summary, targets,
//   thread, weight_of (shared/bindings.wgsl); add_pairs (shared/math.wgsl); COUNT, LARGEST, combine, reduce, sum_of
//   (shared/reduce.wgsl)
// provides: count_targets, total_targets, sum_losses, total_losses

const GROUP_ROWS: u32 = 4096u;

// The group of a thread, and its rows as a range of this pass; none where there is no such group.
fn group_of(grid: Grid) -> u32 {
    return grid.group * (WORKGROUP / LANES) + thread / LANES;
}

fn group_rows(group: u32) -> vec2<u32> {
    let start = min(group * GROUP_ROWS, params.rows);
    return vec2<u32>(start, start + min(GROUP_ROWS, params.rows - start));
}

// The first group alone looks at the partials.
fn partials_of() -> u32 {
    return select(0u, params.groups, thread < LANES);
}

// An entry of `partials`, which has other meanings here.
fn partial(key: i32, at: u32, sum: vec2<f32>) -> Stats {
    return Stats(key, at, sum, vec2<f32>(0.0, 0.0), 0u, 0.0);
}

fn count_targets(grid: Grid) {
    let group = group_of(grid);
    let rows = group_rows(group);
    let lane = thread % LANES;
    var weight = vec2<f32>(0.0, 0.0);
    var counted = 0u;
    // The first row whose target is no class: of equal keys the lower place.
    var invalid = vec2<u32>(0u, NONE);
    for (var row = rows.x + lane; row < rows.y; row += LANES) {
        let label = targets[params.targets_at + row];
        if !is_ignored(label) {
            counted += 1u;
            if label < params.classes {
                weight = add_pairs(weight, vec2<f32>(weight_of(label), 0.0));
            } else {
                invalid = combine(invalid, vec2<u32>(0u, params.first_row + row), LARGEST);
            }
        }
    }
    weight = sum_of(grid, weight);
    counted = reduce(grid, vec2<u32>(counted, 0u), COUNT).x;
    invalid = reduce(grid, invalid, LARGEST);
    if lane == 0u && rows.x < rows.y {
        partials[params.first_group + group] = partial(bitcast<i32>(counted), invalid.y, weight);
    }
}

fn total_targets(grid: Grid) {
    var weight = vec2<f32>(0.0, 0.0);
    var counted = 0u;
    var invalid = vec2<u32>(0u, NONE);
    for (var i = thread; i < partials_of(); i += LANES) {
        let part = partials[i];
        weight = add_pairs(weight, part.rest_of_sum);
        counted += bitcast<u32>(part.key);
        invalid = combine(invalid, vec2<u32>(0u, part.at), LARGEST);
    }
    weight = sum_of(grid, weight);
    counted = reduce(grid, vec2<u32>(counted, 0u), COUNT).x;
    invalid = reduce(grid, invalid, LARGEST);
    if params.soft_rows != 0u {
        // Every row of probabilities counts, once.
        counted = params.soft_rows;
        weight = vec2<f32>(f32(counted & 0xffff0000u), f32(counted & 0xffffu));
    }
    if thread == 0u {
        summary = Summary(0u, counted, invalid.y, 0u, vec2<f32>(0.0, 0.0), weight);
    }
}

// Finite losses are added; of the others only the largest matters, as a key.
fn sum_losses(grid: Grid) {
    let group = group_of(grid);
    let rows = group_rows(group);
    let lane = thread % LANES;
    var sum = vec2<f32>(0.0, 0.0);
    var largest = 0;
    for (var row = rows.x + lane; row < rows.y; row += LANES) {
        let bits = rows_out[params.rows_out_at + row] & 0x7fffffffu;
        largest = max(largest, bitcast<i32>(bits));
        if bits < 0x7f800000u {
            sum = add_pairs(sum, vec2<f32>(bitcast<f32>(bits), 0.0));
        }
    }
    sum = sum_of(grid, sum);
    let key = reduce(grid, vec2<u32>(bitcast<u32>(largest), 0u), LARGEST).x;
    if lane == 0u && rows.x < rows.y {
        partials[params.first_group + group] = partial(bitcast<i32>(key), 0u, sum);
    }
}

fn total_losses(grid: Grid) {
    var sum = vec2<f32>(0.0, 0.0);
    var largest = 0;
    for (var i = thread; i < partials_of(); i += LANES) {
        sum = add_pairs(sum, partials[i].rest_of_sum);
        largest = max(largest, partials[i].key);
    }
    sum = sum_of(grid, sum);
    largest = bitcast<i32>(reduce(grid, vec2<u32>(bitcast<u32>(largest), 0u), LARGEST).x);
    // A sum of finite losses that is beyond f32 is infinite, not the NaN that a pair may end in.
    let sum_key = bitcast<i32>(bitcast<u32>(sum.x + sum.y) & 0x7fffffffu);
    largest = max(largest, min(sum_key, 0x7f800000));
    if thread == 0u {
        let weight = summary.weight.x + summary.weight.y;
        var loss = bitcast<u32>(sum.x + sum.y);
        if (FLAGS & MEAN) != 0u {
            loss = select(bitcast<u32>((sum.x + sum.y) / weight), params.nan, weight == 0.0);
        }
        if largest == 0x7f800000 && loss != params.nan {
            loss = 0x7f800000u;
        } else if largest > 0x7f800000 {
            loss = params.nan;
        }
        summary.loss = loss;
        summary.sum = sum;
        if largest >= 0x7f800000 {
            summary.sum = bitcast<vec2<f32>>(vec2<u32>(select(0x7f800000u, params.nan, largest > 0x7f800000), 0u));
        }
    }
}
