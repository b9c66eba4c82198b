// softmax(y)_j = exp(y_j - maximum.y) / sum, or its logarithm. Twin of `src/cpu/ops/softmax.rs`.
// needs: Grid, NONE, Stats (shared/bindings.wgsl); Coefficients (shared/coefficients.wgsl);
//   add_pairs, log1p_pair (shared/math.wgsl); RowState, is_bad (shared/passes.wgsl)
// provides: finish

fn finish(row: u32, stats: Stats, state: ptr<function, RowState>, leader: bool) -> Coefficients {
    let log_sum = log1p_pair(stats.rest_of_sum);
    let sum = add_pairs(vec2<f32>(1.0, 0.0), stats.rest_of_sum);
    return Coefficients(select(1.0 / (sum.x + sum.y), log_sum.x + log_sum.y, LOG), NONE, 0.0, is_bad(stats), 0.0);
}
