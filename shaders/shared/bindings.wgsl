// What every kernel is given. `src/gpu/kernels.rs` joins this with the other parts; the layout there is the same for
// all of them, so that a binding has one meaning.

const WORKGROUP: u32 = 256u;
// Stands for "no class": no maximum in a row of -inf, no label in an ignored row.
const NONE: u32 = 0xffffffffu;

// How many threads share a row: a power of two up to WORKGROUP.
override THREADS_PER_ROW: u32 = 256u;

// Whether logits are read where elements are written: one buffer cannot be bound both ways at once.
override IN_PLACE: bool = false;

// What a pass is about. Places (`_at`) are indices into the bindings: a binding starts where the adapter allows, which
// need not be where the pass starts.
struct Params {
    rows: u32,
    classes: u32,
    // Pieces that a whole row is cut into where several workgroups share it, else 1; and those of this pass.
    segments: u32,
    first_segment: u32,
    pass_segments: u32,
    logits_at: u32,
    elements_at: u32,
    targets_at: u32,
    rows_out_at: u32,
    // Of a pass over targets or losses: its first group of rows, its first row, and the groups of all passes.
    first_group: u32,
    first_row: u32,
    groups: u32,
    // How many targets are not counted.
    ignored_count: u32,
    flags: u32,
    // What every gradient is multiplied by.
    factor: f32,
    // Of smoothed labels: what the target's own label is, what each class's is beside that, and the sum of all weights.
    hit: f32,
    smoothing: f32,
    class_weight: f32,
    // What the square of a row's log-sum-exp adds to its loss.
    z_loss: f32,
    // WGSL has no literal for these, and may assume that no computation makes them.
    nan: u32,
    negative_infinity: u32,
    // 0, which no compiler knows.
    zero: u32,
    // The targets that are not counted.
    ignored: array<vec4<u32>, 4>,
}

// Flags: rows are weighted by `weights`; gradients are divided by the weight in `summary`; gradients of counted rows are
// NaN, as a mean over no weight is.
const WEIGHTED: u32 = 1u;
const MEAN: u32 = 2u;
const POISONED: u32 = 4u;

// All losses together. The host's `Summary` has the same layout.
struct Summary {
    // After the reduction, as bits.
    loss: u32,
    counted_rows: u32,
    // The first row whose target is no class, or NONE.
    first_invalid_row: u32,
    zero: u32,
    // Sums over the counted rows, high and low part.
    sum: vec2<f32>,
    weight: vec2<f32>,
}

// Whether labels are smoothed, and whether there is a z-loss.
override SMOOTHING: bool = false;
override Z_LOSS: bool = false;

// A stretch of a row reduced. With `top` its maximum, `others` is the sum of exp(x - top) over all elements but the one
// at `at`, the first maximum, whose term is 1; high and low part of one number.
struct Stats {
    key: i32,
    at: u32,
    others: vec2<f32>,
    // Where labels are smoothed: the sum of top - x over what is not -inf, each times its class's share of the labels;
    // whether there is any -inf, of a class with a weight (1) or without (2); and the weight of all classes of the stretch.
    below: vec2<f32>,
    bottomless: u32,
    weight: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> row_targets: array<u32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> elements: array<f32>;
@group(0) @binding(5) var<storage, read_write> rows_out: array<u32>;
@group(0) @binding(6) var<storage, read_write> partials: array<Stats>;
@group(0) @binding(7) var<storage, read_write> summary: Summary;

// This thread's place in its workgroup, so that a subgroup's threads follow each other.
var<private> thread: u32;
// Threads that can exchange values without a barrier; 1 where there are no subgroups.
var<private> width: u32;

fn group_index(invocation: Invocation) -> u32 {
    return invocation.group.y * invocation.groups.x + invocation.group.x;
}

fn logit_at(place: u32) -> f32 {
    if IN_PLACE {
        return elements[place];
    }
    return logits[place];
}

// The weight of a class; 1 without weights.
fn weight_of(label: u32) -> f32 {
    if (params.flags & WEIGHTED) != 0u {
        return weights[label];
    }
    return 1.0;
}

fn is_ignored(label: u32) -> bool {
    for (var i = 0u; i < params.ignored_count; i += 1u) {
        if label == params.ignored[i / 4u][i % 4u] {
            return true;
        }
    }
    return false;
}
