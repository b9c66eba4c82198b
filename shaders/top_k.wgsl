// Writes the k classes with the largest logits, the lower of equal ones first, and their
// probabilities. Twin of `src/cpu/ops/predict.rs`. Each thread keeps the best of its classes that
// are not taken yet; the thread whose class is taken looks for its next.
// needs: Grid, NONE, Stats, params, rows_out (shared/bindings.wgsl); Coefficients
//   (shared/coefficients.wgsl); key_nan_largest (shared/math.wgsl); RowState, is_bad,
//   sum_of_exponentials (shared/passes.wgsl); LARGEST, reduce (shared/reduce.wgsl); lane, load
//   (shared/rows.wgsl); exp_below (shared/transform.wgsl)
// provides: finish, select_classes

fn finish(row: u32, stats: Stats, state: ptr<function, RowState>, leader: bool) -> Coefficients {
    return Coefficients();
}

// Returns this thread's best class after `last`, or its best class if the place of `last` is NONE.
//   for each class of this lane that comes after `last`: best = max(best, it)
fn best_after(last: vec2<u32>) -> vec2<u32> {
    let last_key = bitcast<i32>(last.x);
    var key = bitcast<i32>(0x80000000u);
    var at = NONE;
    for (var j = lane; j < params.classes; j += LANES) {
        let order = key_nan_largest(load(j));
        let is_left = last.y == NONE || order < last_key || (order == last_key && j > last.y);
        if is_left && (at == NONE || order > key) {
            key = order;
            at = j;
        }
    }
    return vec2<u32>(bitcast<u32>(key), at);
}

//   for i in 0..k: best = the largest of all lanes' best classes; write it;
//       the lane that had it looks for its next
//   for each of the k, one a lane: write its probability
fn select_classes(grid: Grid, row: u32, stats: Stats, state: ptr<function, RowState>, present: bool) {
    let sum = sum_of_exponentials(stats);
    let bad = is_bad(stats);
    let place = params.rows_out_at + 2u * row * params.k;
    var mine = best_after(vec2<u32>(0u, NONE));
    for (var i = 0u; i < params.k; i += 1u) {
        let best = reduce(grid, mine, LARGEST);
        if present && lane == 0u {
            rows_out[place + 2u * i] = best.y;
        }
        if mine.y == best.y && i + 1u < params.k {
            mine = best_after(best);
        }
    }
    storageBarrier();
    if present {
        for (var i = lane; i < params.k; i += LANES) {
            let at = min(rows_out[place + 2u * i], params.classes - 1u);
            let probability = exp_below(load(at), (*state).maximum) / sum;
            rows_out[place + 2u * i + 1u] = select(bitcast<u32>(probability), params.nan, bad);
        }
    }
}
