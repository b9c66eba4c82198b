// Coefficients: what an operation makes of a row's statistics, and then does to each of its
// elements; and what the gradient of a row is multiplied by.
// needs: MEAN, NAN_GRADIENT, ROW_UPSTREAM, Stats, params, row_upstream, summary
//   (shared/bindings.wgsl)
// provides: Coefficients, packed_coefficients, unpacked_coefficients, Upstream, upstream_of

struct Coefficients {
    // Probabilities are exponentials times this. With LOG it is the logarithm of the sum.
    factor: f32,
    // The target's class, whose gradient is `at_value`; NONE where all elements are made alike.
    at: u32,
    at_value: f32,
    // The whole row is NaN.
    bad: bool,
    // With SPREAD: each element is lowered by this times its label. In entropy.wgsl: the mean
    // distance from the maximum.
    shift: f32,
}

// Coefficients in an entry of `partials` beside one more number, and back.
fn packed_coefficients(coefficients: Coefficients, more: f32) -> Stats {
    let values = vec2<f32>(coefficients.factor, coefficients.at_value);
    let spread = vec2<f32>(coefficients.shift, more);
    return Stats(select(0, 1, coefficients.bad), coefficients.at, values, spread, 0u, 0.0);
}

fn unpacked_coefficients(entry: Stats) -> Coefficients {
    return Coefficients(entry.rest_of_sum.x, entry.at, entry.rest_of_sum.y, entry.key == 1, entry.below.x);
}

// The factor of the gradients of a row, and its z-loss.
struct Upstream {
    scale: f32,
    // The mean over no weight, whose gradients are NaN.
    has_nan_gradient: bool,
    z_loss: f32,
}

fn upstream_of(row: u32) -> Upstream {
    var upstream = Upstream(params.factor, (params.flags & NAN_GRADIENT) != 0u, params.z_loss);
    if (FLAGS & MEAN) != 0u {
        let weight = bitcast<vec2<f32>>(summary.weight);
        let total = weight.x + weight.y;
        upstream.has_nan_gradient = total == 0.0;
        upstream.scale /= total;
        // A z-loss is a mean over the rows, whatever they weigh.
        upstream.z_loss *= total / f32(summary.counted_rows);
    }
    if (FLAGS & ROW_UPSTREAM) != 0u {
        upstream.scale *= row_upstream[params.row_upstream_at + row];
    }
    return upstream;
}
