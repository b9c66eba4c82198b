// The class with the largest logit, and its probability 1 / sum. Twin of `src/cpu/ops/predict.rs`.
// needs: NONE, Stats, params, rows_out (shared/bindings.wgsl); Coefficients
//   (shared/coefficients.wgsl); RowState, is_bad, sum_of_exponentials (shared/passes.wgsl)
// provides: finish

fn finish(row: u32, stats: Stats, state: ptr<function, RowState>, leader: bool) -> Coefficients {
    if leader {
        let probability = 1.0 / sum_of_exponentials(stats);
        let place = params.rows_out_at + 2u * row;
        rows_out[place] = select(stats.at, 0u, stats.at == NONE);
        rows_out[place + 1u] = select(bitcast<u32>(probability), params.nan, is_bad(stats));
    }
    return Coefficients();
}
