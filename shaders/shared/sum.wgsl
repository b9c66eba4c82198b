// Reduces a row of a backward to one sum, of a term for each class. The operation has `addend` and
// `element_of`.
// needs: Grid, Stats, class_count, class_step, params (shared/bindings.wgsl); add_pairs
//   (shared/math.wgsl); sum_of (shared/reduce.wgsl); operand_at (shared/rows.wgsl); addend,
//   element_of (the operation); UNIT, Unit, operand_value (the parts in elements/)
// provides: Coefficients, RowState, begin_sums, add_unit, add_segment, summed, finish, elements_of,
//   packed, unpacked

struct Coefficients {
    sum: f32,
}

// The state that a thread keeps of its row while the row is reduced.
struct RowState {
    // The sum of this lane's terms, high and low part.
    sum: vec2<f32>,
}

fn begin_sums(state: ptr<function, RowState>) {
    (*state).sum = vec2<f32>(0.0, 0.0);
}

fn operand_of(j: u32) -> f32 {
    return operand_value(operand_at + min(j, class_count() - 1u) * class_step());
}

//   for each y of the unit, and its operand g: sum += addend(y, g)
fn add_unit(state: ptr<function, RowState>, j: u32, end: u32, unit: Unit) -> Unit {
    for (var i = 0u; i < UNIT; i += 1u) {
        let term = addend(unit[i / 4u][i % 4u], operand_of(j + i));
        (*state).sum = add_pairs((*state).sum, vec2<f32>(select(0.0, term, j + i < end), 0.0));
    }
    return unit;
}

fn add_segment(state: ptr<function, RowState>, segment: Stats, stats: Stats) {
    (*state).sum = add_pairs((*state).sum, segment.rest_of_sum);
}

fn summed(grid: Grid, state: ptr<function, RowState>, stats: Stats) -> Stats {
    var result = stats;
    result.rest_of_sum = sum_of(grid, (*state).sum);
    return result;
}

fn finish(row: u32, stats: Stats, state: ptr<function, RowState>, leader: bool) -> Coefficients {
    return Coefficients(stats.rest_of_sum.x + stats.rest_of_sum.y);
}

//   for each y, and its operand g: scale * element_of(y, g, sum), NaN where y is NaN
fn elements_of(
    state: ptr<function, RowState>,
    j: u32,
    part: u32,
    y: vec4<f32>,
    are_exponentials: bool,
    coefficients: Coefficients,
) -> vec4<f32> {
    let at = j + 4u * part;
    let sum = coefficients.sum;
    let elements = vec4<f32>(
        element_of(y.x, operand_of(at), sum),
        element_of(y.y, operand_of(at + 1u), sum),
        element_of(y.z, operand_of(at + 2u), sum),
        element_of(y.w, operand_of(at + 3u), sum),
    );
    // A minimum or a maximum may have dropped a NaN.
    let are_nan = (bitcast<vec4<u32>>(y) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    let nan = vec4<f32>(bitcast<f32>(params.nan));
    return select(elements * params.signed_scale, nan, are_nan);
}

fn packed(state: ptr<function, RowState>, coefficients: Coefficients) -> Stats {
    return Stats(0, 0u, vec2<f32>(coefficients.sum, 0.0), vec2<f32>(0.0, 0.0), 0u, 0.0);
}

fn unpacked(state: ptr<function, RowState>, entry: Stats) -> Coefficients {
    return Coefficients(entry.rest_of_sum.x);
}
