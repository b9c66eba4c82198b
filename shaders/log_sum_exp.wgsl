// log(sum_j exp(y_j)) = maximum.y + log1p(rest_of_sum). Twin of `src/cpu/ops/log_sum_exp.rs`, which
// also takes over the rows where the two terms nearly cancel.
// needs: Stats, params, rows_out (shared/bindings.wgsl); Coefficients (shared/coefficients.wgsl);
//   is_infinite_or_nan, log1p_pair, two_sum (shared/math.wgsl); LOWEST_KEY, RowState
//   (shared/passes.wgsl)
// provides: finish

fn finish(row: u32, stats: Stats, state: ptr<function, RowState>, leader: bool) -> Coefficients {
    let y = (*state).maximum.y;
    if leader {
        let log_sum = log1p_pair(stats.rest_of_sum);
        let high = two_sum(y.x, log_sum.x);
        var bits = bitcast<u32>(high.x + (high.y + (y.y + log_sum.y)));
        if is_infinite_or_nan(bitcast<u32>(y.x)) {
            // The scaled maximum overflowed f32.
            bits = bitcast<u32>(y.x);
        }
        if stats.key == LOWEST_KEY {
            bits = params.negative_infinity;
        } else if stats.key > 0x7f800000 {
            bits = params.nan;
        } else if stats.key == 0x7f800000 {
            bits = 0x7f800000u;
        }
        rows_out[params.rows_out_at + row] = bits;
    }
    return Coefficients();
}
