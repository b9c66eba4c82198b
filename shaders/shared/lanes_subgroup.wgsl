// Threads with subgroups. Their size may be anything from 4 to 128, and nothing says that a subgroup's threads have
// neighbouring local indices; so threads are numbered by subgroup.

struct Invocation {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}

fn enter(invocation: Invocation) {
    thread = invocation.subgroup * invocation.size + invocation.lane;
    width = invocation.size;
}

fn exchange(value: vec2<u32>, distance: u32) -> vec2<u32> {
    return subgroupShuffleXor(value, distance);
}
