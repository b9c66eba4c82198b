// Lanes with subgroups. The size of a subgroup may be anything from 4 to 128, and a subgroup's
// threads need not have neighbouring local indices, so threads are numbered by subgroup. needs: run
// (a line of the host, or self_test.wgsl); Grid, WORKGROUP, thread
//   (shared/bindings.wgsl); combine, folds (shared/reduce.wgsl)
// provides: butterfly, radix, fold

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_size) width: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) within: u32,
) {
    // The remainder keeps `thread` within workgroup memory, whatever sizes a driver reports.
    thread = (subgroup * width + within) % WORKGROUP;
    run(Grid(group.y * groups.x + group.x, width));
}

// Returns, in every thread, the combined values of `count` neighbours.
fn butterfly(value: vec2<u32>, count: u32, how: u32) -> vec2<u32> {
    var result = value;
    for (var distance = 1u; distance < count; distance *= 2u) {
        result = combine(result, subgroupShuffleXor(result, distance), how);
    }
    return result;
}

fn radix(grid: Grid) -> u32 {
    return grid.width;
}

// Every subgroup combines the folds for itself, which saves a barrier.
fn fold(done: u32, count: u32, how: u32) -> vec2<u32> {
    return butterfly(folds[thread / (done * count) * count + thread % count], count, how);
}
