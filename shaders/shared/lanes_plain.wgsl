// Lanes without subgroups: threads exchange values through workgroup memory alone.
// needs: run (a line of the host, or self_test.wgsl); Grid, WORKGROUP, thread
//   (shared/bindings.wgsl); combine, folds (shared/reduce.wgsl)
// provides: butterfly, radix, fold

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    thread = index;
    run(Grid(group.y * groups.x + group.x, 1u));
}

fn butterfly(value: vec2<u32>, count: u32, how: u32) -> vec2<u32> {
    return value;
}

fn radix(grid: Grid) -> u32 {
    return 16u;
}

// One thread combines the entries of a result while others wait, so that whole subgroups of the
// hardware are idle, rather than part of each.
fn fold(done: u32, count: u32, how: u32) -> vec2<u32> {
    let first = thread * count;
    if first < WORKGROUP / done {
        for (var distance = 1u; distance < count; distance *= 2u) {
            for (var i = first; i < first + count; i += 2u * distance) {
                folds[i] = combine(folds[i], folds[i + distance], how);
            }
        }
    }
    workgroupBarrier();
    return folds[thread / (done * count) * count];
}
