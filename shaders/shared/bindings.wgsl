// Declares the bindings of every kernel, and the structs in them. `src/gpu/pipelines.rs` joins this
// with the other parts; the layout there is the same for all of them, so that a binding has one
// meaning.
// provides: WORKGROUP, NONE, MEAN, ROW_UPSTREAM, FOCAL, NAN_GRADIENT, LATER_DRAW, Summary, Stats,
//   params, targets, rows_out, partials, summary, row_upstream, thread, Grid, row_start,
//   class_count, class_step, weight_of, is_ignored

const WORKGROUP: u32 = 256u;
// Stands for "no class": no maximum in a row of -inf, no label in an ignored row.
const NONE: u32 = 0xffffffffu;

// The parameters of a pass. Places (`_at`) are indices into the bindings: a binding starts where
// the adapter allows, which need not be where the pass starts.
struct Params {
    rows: u32,
    classes: u32,
    // The number of rows that interleave: the values of a class of `inner` rows are contiguous. The
    // strides are the values from one such block of rows to the next, in `logits` and in
    // `elements`.
    inner: u32,
    logits_stride: u32,
    elements_stride: u32,
    // The segments of a whole row if several workgroups share it, else 1; the first segment of this
    // pass, and how many it has.
    segments: u32,
    first_segment: u32,
    pass_segments: u32,
    logits_at: u32,
    elements_at: u32,
    targets_at: u32,
    rows_out_at: u32,
    row_upstream_at: u32,
    // The first group of rows of a pass over targets or losses; the row of the whole batch at which
    // the pass starts; and the groups of all passes.
    first_group: u32,
    first_row: u32,
    groups: u32,
    // The number of targets in `ignored`.
    ignored_count: u32,
    flags: u32,
    // The factor of every gradient.
    factor: f32,
    // Smoothed labels: the label of the target's class; the label that every class has, added to
    // that; and the sum of all class weights.
    on_value: f32,
    off_value: f32,
    class_weight: f32,
    // The factor of the square of a row's log-sum-exp in its loss.
    z_loss: f32,
    // The logit transform, y = cap * tanh(scale * x / cap): |scale|, high and low part, and the
    // scale with its sign; |scale| / cap, high and low part; the cap, high and low part; the |x|
    // from which on the tanh is 1; and the sign bit if the scale is negative, else 0.
    scale: f32,
    scale_low: f32,
    signed_scale: f32,
    ratio: f32,
    ratio_low: f32,
    cap: f32,
    cap_low: f32,
    cap_limit: f32,
    flip: u32,
    // Decisions: the seed and the step of a draw; the classes to find (top-k); and the top-k and
    // the top-p of a draw.
    draw_seed: vec2<u32>,
    draw_step: vec2<u32>,
    k: u32,
    draw_top_k: u32,
    draw_top_p: f32,
    // The number of rows if targets are probabilities, which all count; else 0.
    soft_rows: u32,
    // WGSL has no literal for these, and may assume that no computation makes them.
    nan: u32,
    negative_infinity: u32,
    // Always 0, which no compiler knows.
    zero: u32,
    // With FOCAL: the exponent of 1 - p of the target in the loss of a row.
    focal_gamma: f32,
    // The targets that are not counted.
    ignored: array<vec4<u32>, 4>,
}

// Bits of FLAGS, a constant of the kernel: rows are weighted by `weights`; gradients are divided by
// the weight in `summary`; gradients of rows are multiplied by `row_upstream`; the loss is a focal
// one.
const WEIGHTED: u32 = 1u;
const MEAN: u32 = 2u;
const ROW_UPSTREAM: u32 = 8u;
const FOCAL: u32 = 32u;
// Bits of `params.flags`: gradients of counted rows are NaN, as a mean over no weight is; the first
// value of `targets` is added to the step of a draw.
const NAN_GRADIENT: u32 = 4u;
const LATER_DRAW: u32 = 16u;

// All losses together. The host's `Summary` has the same layout.
struct Summary {
    // The bits of the reduced loss.
    loss: u32,
    counted_rows: u32,
    // The first row whose target is no class, or NONE.
    first_invalid_row: u32,
    zero: u32,
    // Sums over the counted rows, the bits of a high and a low part: a low part may be a subnormal
    // number, which need not survive as a float.
    sum: vec2<u32>,
    weight: vec2<u32>,
}

// The statistics of a stretch of a row. With `max` its maximum, `rest_of_sum` is the sum of exp(x -
// max) over all elements except one maximum, whose term is 1, as (high, low).
struct Stats {
    key: i32,
    // The class of the first maximum, if the operation uses it.
    at: u32,
    rest_of_sum: vec2<f32>,
    // For entropies: the sum of exp(y - max) * (max - y). For labels spread over classes: the sum
    // of label * (max - y) over logits that are not -inf; whether a logit is -inf, in a class with
    // a label (1) or without (2); and the sum of the labels, if it depends on the row.
    below: vec2<f32>,
    has_negative_infinity: u32,
    labels: f32,
}

// `logits` (1) and `elements` (4) depend on the type: the parts in elements/ declare them.
@group(0) @binding(0) var<uniform> params: Params;
// Target classes, one a row; or target probabilities or an upstream gradient, as bits, of the shape
// of the logits and without gaps; or the draw counter.
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(5) var<storage, read_write> rows_out: array<u32>;
@group(0) @binding(6) var<storage, read_write> partials: array<Stats>;
@group(0) @binding(7) var<storage, read_write> summary: Summary;
@group(0) @binding(8) var<storage, read> row_upstream: array<f32>;

// This thread's place in its workgroup, so that a subgroup's threads follow each other.
var<private> thread: u32;

// A Grid holds values that are the same in all threads of a workgroup. `main`, in the files of
// lanes, passes it to `run`, which is the kernel of this module, and every function passes it on: a
// browser must prove that all threads reach a barrier, and cannot through a private variable.
// `main` itself takes no struct: naga's HLSL has no subgroups in one.
struct Grid {
    // The number of the workgroup.
    group: u32,
    // Threads of a subgroup; 1 where there are no subgroups.
    width: u32,
}

// The place of class 0 of a row, from the first row of this pass. `class_step` is the distance
// between its classes.
fn row_start(row: u32, stride: u32) -> u32 {
    if STRIDED {
        return row / params.inner * stride + row % params.inner;
    }
    return row * stride;
}

fn class_count() -> u32 {
    return select(params.classes, CLASSES, CLASSES > 0u);
}

fn class_step() -> u32 {
    return select(1u, params.inner, STRIDED);
}

// The weight of a class; 1 without weights.
fn weight_of(label: u32) -> f32 {
    if (FLAGS & WEIGHTED) != 0u {
        return weights[label];
    }
    return 1.0;
}

fn is_ignored(label: u32) -> bool {
    var is_one = params.ignored_count > 0u && label == params.ignored[0].x;
    for (var i = 1u; i < params.ignored_count; i += 1u) {
        is_one = is_one || label == params.ignored[i / 4u][i % 4u];
    }
    return is_one;
}
