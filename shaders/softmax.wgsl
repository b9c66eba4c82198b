// softmax(y)_j = exp(y_j - maximum.y) / sum, or its logarithm. Twin of `src/cpu/ops/softmax.rs`.
// needs: NONE, Stats (shared/bindings.wgsl); Coefficients (shared/coefficients.wgsl); log1p_pair
//   (shared/math.wgsl); RowState, is_bad, sum_of_exponentials (shared/passes.wgsl)
// provides: finish

fn finish(row: u32, stats: Stats, state: ptr<function, RowState>, leader: bool) -> Coefficients {
    let log_sum = log1p_pair(stats.rest_of_sum);
    let factor = 1.0 / sum_of_exponentials(stats);
    return Coefficients(select(factor, log_sum.x + log_sum.y, LOG), NONE, 0.0, is_bad(stats), 0.0);
}
