// Threads without subgroups: each stands alone between two barriers.

struct Invocation {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
}

fn enter(invocation: Invocation) {
    thread = invocation.index;
    width = 1u;
}

fn exchange(value: vec2<u32>, distance: u32) -> vec2<u32> {
    return value;
}
