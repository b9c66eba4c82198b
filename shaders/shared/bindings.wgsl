// Declares the bindings of every kernel, and the structs in them. `src/gpu/pipelines.rs` joins this
// with the other parts; the layout there is the same for all of them, so that a binding has one
// meaning.
// provides: WORKGROUP, NONE, MEAN, ROW_UPSTREAM, NAN_GRADIENT, LATER_DRAW, Summary, Stats, params,
//   targets, rows_out, partials, summary, row_upstream, thread, Grid, row_start, class_count,
//   class_step, weight_of, is_ignored

const WORKGROUP: u32 = 256u;
// Stands for "no class": no maximum in a row of -inf, no label in an ignored row.
const NONE: u32 = 0xffffffffu;

// The parameters of a pass. Places (`_at`) are indices into the bindings: a binding starts where
// the adapter allows, which need not be where the pass starts.
struct Params {
    rows: u32,
    classes: u32,
    // Values of a class that lie next to each other, one of each of so many rows; and how far apart
    // blocks of such rows start, in what is read and in what is written.
    inner: u32,
    logits_stride: u32,
    elements_stride: u32,
    // Pieces that a whole row is cut into where several workgroups share it, else 1; and those of
    // this pass.
    segments: u32,
    first_segment: u32,
    pass_segments: u32,
    logits_at: u32,
    elements_at: u32,
    targets_at: u32,
    rows_out_at: u32,
    row_upstream_at: u32,
    // A pass over targets or losses has its first group of rows, its first row, and the groups of
    // all passes.
    first_group: u32,
    first_row: u32,
    groups: u32,
    // How many targets are not counted.
    ignored_count: u32,
    flags: u32,
    // The factor of every gradient.
    factor: f32,
    // Labels that are smoothed: what the target's own label is, what each class's is beside that,
    // and the sum of all weights.
    on_value: f32,
    off_value: f32,
    class_weight: f32,
    // The factor of the square of a row's log-sum-exp in its loss.
    z_loss: f32,
    // The logit transform, y = cap * tanh(scale * x / cap): the magnitude of the scale, high and
    // low part, and the scale itself; the same over the cap; the cap, and the |x| at which the tanh
    // is 1 for good; and what makes x descend with y ascending, a sign bit or nothing.
    scale: f32,
    scale_low: f32,
    signed_scale: f32,
    ratio: f32,
    ratio_low: f32,
    cap: f32,
    cap_low: f32,
    cap_limit: f32,
    flip: u32,
    // Decisions: how one is drawn, and how many classes are to be found.
    draw_seed: vec2<u32>,
    draw_step: vec2<u32>,
    k: u32,
    draw_top_k: u32,
    draw_top_p: f32,
    // Rows whose targets are probabilities: they all count.
    soft_rows: u32,
    // WGSL has no literal for these, and may assume that no computation makes them.
    nan: u32,
    negative_infinity: u32,
    // 0, which no compiler knows.
    zero: u32,
    // The targets that are not counted.
    ignored: array<vec4<u32>, 4>,
}

// FLAGS says what a kernel is made for: rows are weighted by `weights`; gradients are divided by
// the weight in `summary`; gradients of rows are multiplied by `row_upstream`.
const WEIGHTED: u32 = 1u;
const MEAN: u32 = 2u;
const ROW_UPSTREAM: u32 = 8u;
// `params.flags` says what a kernel is told: gradients of counted rows are NaN, as a mean over no
// weight is; draws are so many steps on as the first of `targets` says.
const NAN_GRADIENT: u32 = 4u;
const LATER_DRAW: u32 = 16u;

// All losses together. The host's `Summary` has the same layout.
struct Summary {
    // After the reduction, as bits.
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

// A stretch of a row reduced. With `max` its maximum, `rest_of_sum` is the sum of exp(x - max) over
// all elements but one maximum, whose term is 1; high and low part of one number.
struct Stats {
    key: i32,
    // The first maximum, where an operation asks for it.
    at: u32,
    rest_of_sum: vec2<f32>,
    // Where labels are spread: the sum of label * (max - y) over what is not -inf; whether there is
    // any -inf, of a class with a label (1) or without (2); and, where only the row can tell, all
    // labels of the stretch together.
    below: vec2<f32>,
    has_negative_infinity: u32,
    labels: f32,
}

// `logits` (1) and `elements` (4) depend on the type, and stand in a file for it.
@group(0) @binding(0) var<uniform> params: Params;
// Classes, one a row; or as bits, of the shape of the logits and without gaps, the probabilities
// that are targets, or the gradient that a backward starts from.
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(5) var<storage, read_write> rows_out: array<u32>;
@group(0) @binding(6) var<storage, read_write> partials: array<Stats>;
@group(0) @binding(7) var<storage, read_write> summary: Summary;
@group(0) @binding(8) var<storage, read> row_upstream: array<f32>;

// This thread's place in its workgroup, so that a subgroup's threads follow each other.
var<private> thread: u32;

// A Grid holds what all threads of a workgroup know alike. `main`, in the files of lanes, passes it
// to `run`, which is the kernel of this module, and every function passes it on: a browser must
// prove that all threads reach a barrier, and cannot through a private variable. `main` itself
// takes no struct: naga's HLSL has no subgroups in one.
struct Grid {
    // The number of the workgroup.
    group: u32,
    // Threads of a subgroup; 1 where there are no subgroups.
    width: u32,
}

// Where class 0 of a row is, from the first of this pass; and how far apart its classes are.
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
