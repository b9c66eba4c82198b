// The self-test of an adapter, in one workgroup (`src/gpu/self_test.rs` judges it): how threads are
// numbered, what they exchange and add up to, and for each thread the loss and the gradient of a
// row of two 16-bit logits under a cap.
//
// Each thread writes eight words at its number, so that two threads of one number leave a gap.
// needs: Grid, WORKGROUP, params, rows_out, targets, thread (shared/bindings.wgsl); butterfly
//   (shared/lanes_*.wgsl); add_pairs, exp_pair, is_infinite_or_nan, log1p_pair (shared/math.wgsl);
//   COUNT, sum_of (shared/reduce.wgsl); transform (shared/transform.wgsl); two_of, word_of (the
//   parts in elements/)
// provides: run

const WORDS: u32 = 8u;
// 2^-30, which a sum with thread numbers loses in a single f32.
const LOW: f32 = 9.313226e-10;

var<workgroup> tile: array<f32, 512>;

fn run(grid: Grid) {
    let near = butterfly(vec2<u32>(thread, 0u), min(grid.width, 4u), COUNT).x;
    let total = sum_of(grid, vec2<f32>(f32(thread), LOW));

    // Each thread stores a row, and loads that of another thread.
    let pair = two_of(targets[thread]);
    tile[2u * thread] = pair.x;
    tile[2u * thread + 1u] = pair.y;
    workgroupBarrier();
    let row = 2u * (WORKGROUP - 1u - thread);
    let max_logit = max(tile[row], tile[row + 1u]);
    //   max_y = y of the largest logit
    //   for each class:
    //       rest_of_sum += exp(y - max_y), except for one maximum
    //       below += label * (max_y - y)
    var max_y = vec2<f32>(0.0, 0.0);
    var rest_of_sum = vec2<f32>(0.0, 0.0);
    var below = 0.0;
    var gap = vec2<f32>(0.0, 0.0);
    var class_exp = 0.0;
    var has_maximum = false;
    // One loop over the maximum and both classes, whose end no compiler knows, keeps the code
    // small.
    for (var i = 0u; i < 3u + params.zero; i += 1u) {
        let x = select(tile[row + max(i, 1u) - 1u], max_logit, i == 0u);
        let y = transform(x);
        if i == 0u {
            max_y = y;
            continue;
        }
        let d = add_pairs(y, -max_y);
        class_exp = exp_pair(d);
        if x == max_logit && !has_maximum {
            has_maximum = true;
        } else {
            rest_of_sum = add_pairs(rest_of_sum, vec2<f32>(class_exp, 0.0));
        }
        below += params.off_value * -(d.x + d.y);
        gap = select(gap, d, i == 1u);
    }
    let log_sum = log1p_pair(rest_of_sum);
    let sum = add_pairs(vec2<f32>(1.0, 0.0), rest_of_sum);
    let p = class_exp / (sum.x + sum.y);

    let place = WORDS * thread;
    rows_out[place] = grid.width;
    rows_out[place + 1u] = near;
    rows_out[place + 2u] = bitcast<u32>(total.x);
    rows_out[place + 3u] = bitcast<u32>(total.y);
    rows_out[place + 4u] = bitcast<u32>(params.on_value * ((log_sum.x - gap.x) + (log_sum.y - gap.y)));
    rows_out[place + 5u] = select(bitcast<u32>(below), 0x7f800000u, is_infinite_or_nan(bitcast<u32>(below)));
    rows_out[place + 6u] = word_of(vec2<f32>(-p, p));
}
