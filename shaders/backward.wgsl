// The backward of softmax, p_j * (g_j - sum_k g_k * p_k), and of log-softmax, g_j - exp(l_j) *
// sum_k g_k, from their results. Twin of `src/cpu/ops/backward.rs`.
// needs: exp_pair (shared/math.wgsl)
// provides: addend, element_of

fn addend(y: f32, upstream: f32) -> f32 {
    if LOG {
        return upstream;
    }
    return upstream * y;
}

fn element_of(y: f32, upstream: f32, sum: f32) -> f32 {
    if LOG {
        return upstream - exp_pair(vec2<f32>(min(y, 88.0), 0.0)) * sum;
    }
    return y * (upstream - sum);
}
