// What every kernel is given. `src/gpu/kernels.rs` joins this with the other parts; the layout there is the same for
// all of them, so that a binding has one meaning.

const WORKGROUP: u32 = 256u;
// Stands for "no class": no maximum in a row of -inf, no label in an ignored row.
const NONE: u32 = 0xffffffffu;

// How many threads share a row: a power of two up to WORKGROUP.
override THREADS_PER_ROW: u32 = 256u;

struct Params {
    rows: u32,
    classes: u32,
    // Pieces that a row is cut into where several workgroups share it, else 1.
    segments: u32,
    // WGSL has no literal for these, and may assume that no computation makes them.
    nan: u32,
    negative_infinity: u32,
    // 0, which no compiler knows.
    zero: u32,
}

struct RowTarget {
    label: u32,
    scale: f32,
}

// A stretch of a row reduced. With `top` its maximum, `others` is the sum of exp(x - top) over all elements but the one
// at `at`, the first maximum, whose term is 1; high and low part of one number.
struct Stats {
    key: i32,
    at: u32,
    others: vec2<f32>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> row_targets: array<RowTarget>;
@group(0) @binding(3) var<storage, read_write> elements: array<f32>;
@group(0) @binding(4) var<storage, read_write> rows_out: array<u32>;
@group(0) @binding(5) var<storage, read_write> partials: array<Stats>;

// This thread's place in its workgroup, so that a subgroup's threads follow each other.
var<private> thread: u32;
// Threads that can exchange values without a barrier; 1 where there are no subgroups.
var<private> width: u32;

fn group_index(invocation: Invocation) -> u32 {
    return invocation.group.y * invocation.groups.x + invocation.group.x;
}
