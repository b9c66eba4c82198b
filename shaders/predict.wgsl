// The class with the largest logit, and its probability 1 / sum. Twin of `src/cpu/ops/predict.rs`.
// needs: Grid, NONE, Stats, params, rows_out (shared/bindings.wgsl); Coefficients
//   (shared/coefficients.wgsl); add_pairs (shared/math.wgsl); RowState, is_bad
//   (shared/passes.wgsl)
// provides: finish

fn finish(row: u32, stats: Stats, state: ptr<function, RowState>, leader: bool) -> Coefficients {
    if leader {
        let sum = add_pairs(vec2<f32>(1.0, 0.0), stats.rest_of_sum);
        rows_out[params.rows_out_at + 2u * row] = select(stats.at, 0u, stats.at == NONE);
        rows_out[params.rows_out_at + 2u * row + 1u] = select(bitcast<u32>(1.0 / (sum.x + sum.y)), params.nan, is_bad(stats));
    }
    return Coefficients();
}
