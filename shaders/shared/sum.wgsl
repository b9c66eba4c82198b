// In place of the two passes: one sum over a row, of a term for each class, with `addend` and `element_of` of the operation.
// needs: Grid, NONE, Stats, class_count, class_step, params (shared/bindings.wgsl); add_pairs (shared/math.wgsl);
//   sum_of (shared/reduce.wgsl); operand_at (shared/rows.wgsl); addend, element_of (the operation); PARTS, UNIT,
//   Unit, operand_value (the parts in elements/)
// provides: Coefficients, total, begin_sums, add_unit, summed, finish, element_unit, begin_maximum, see_unit,
//   row_maximum, maximum_of, label_below, is_bad, begin_running_maximum, raise_maximum, join_lanes, packed, unpacked,
//   select_classes

struct Coefficients {
    sum: f32,
}

var<private> total: vec2<f32>;

fn begin_sums() {
    total = vec2<f32>(0.0, 0.0);
}

fn operand_of(j: u32) -> f32 {
    return operand_value(operand_at + min(j, class_count() - 1u) * class_step());
}

fn add_unit(j: u32, end: u32, unit: Unit) -> Unit {
    for (var i = 0u; i < UNIT; i += 1u) {
        let term = addend(unit[i / 4u][i % 4u], operand_of(j + i));
        total = add_pairs(total, vec2<f32>(select(0.0, term, j + i < end), 0.0));
    }
    return unit;
}

fn summed(grid: Grid, stats: Stats) -> Stats {
    var result = stats;
    result.rest_of_sum = sum_of(grid, total);
    return result;
}

fn finish(row: u32, stats: Stats, leader: bool) -> Coefficients {
    return Coefficients(stats.rest_of_sum.x + stats.rest_of_sum.y);
}

fn element_unit(j: u32, unit: Unit, are_exponentials: bool, coefficients: Coefficients) -> Unit {
    var result: Unit;
    for (var part = 0u; part < PARTS; part += 1u) {
        let x = unit[part];
        let at = j + 4u * part;
        let sum = coefficients.sum;
        let low = vec2<f32>(element_of(x.x, operand_of(at), sum), element_of(x.y, operand_of(at + 1u), sum));
        let high = vec2<f32>(element_of(x.z, operand_of(at + 2u), sum), element_of(x.w, operand_of(at + 3u), sum));
        // A minimum or a maximum may have dropped a NaN.
        let is_nan = (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
        result[part] = select(vec4<f32>(low, high) * params.signed_scale, vec4<f32>(bitcast<f32>(params.nan)), is_nan);
    }
    return result;
}

// No logit is compared with another.
fn begin_maximum() {}

fn see_unit(j: u32, unit: Unit) {}

fn row_maximum(grid: Grid) -> vec2<u32> {
    return vec2<u32>(0u, NONE);
}

fn maximum_of(stats: Stats) -> f32 {
    return 0.0;
}

// This operation has no labels.
fn label_below(label: f32, x: f32) -> f32 {
    return 0.0;
}

fn is_bad(stats: Stats) -> bool {
    return false;
}

fn begin_running_maximum() {}

fn raise_maximum() {}

fn join_lanes(grid: Grid) -> Stats {
    return Stats();
}

fn packed(coefficients: Coefficients) -> Stats {
    return Stats(0, 0u, vec2<f32>(coefficients.sum, 0.0), vec2<f32>(0.0, 0.0), 0u, 0.0);
}

fn unpacked(entry: Stats) -> Coefficients {
    return Coefficients(entry.rest_of_sum.x);
}

// No classes are searched for once the row is reduced.
fn select_classes(grid: Grid, row: u32, stats: Stats, present: bool) {}
