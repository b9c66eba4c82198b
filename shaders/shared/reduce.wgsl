// The reduction over a workgroup: every thread of a row gets the combined value of the row.
//
// Values are always combined as one balanced tree over the threads' numbers, whether a step is an
// exchange within a subgroup or a fold through workgroup memory; the size of a subgroup does not
// change a bit.
// needs: Grid, WORKGROUP, thread (shared/bindings.wgsl); butterfly, fold, radix
//   (shared/lanes_*.wgsl); add_pairs (shared/math.wgsl)
// provides: LARGEST, COUNT, WIDE, LARGEST_KEY, folds, combine, reduce, sum_of

const LARGEST: u32 = 0u; // (key, place): the larger key, and the lower place if keys are equal
const SUM: u32 = 1u; // (high, low) of an f32 pair
const COUNT: u32 = 2u; // two whole numbers
const WIDE: u32 = 3u; // (low, high) of one whole number
const LARGEST_KEY: u32 = 4u; // (key, nothing): the larger key

var<workgroup> folds: array<vec2<u32>, 256>;

fn combine(a: vec2<u32>, b: vec2<u32>, how: u32) -> vec2<u32> {
    if how == SUM {
        return bitcast<vec2<u32>>(add_pairs(bitcast<vec2<f32>>(a), bitcast<vec2<f32>>(b)));
    }
    if how == COUNT {
        return a + b;
    }
    if how == WIDE {
        let low = a.x + b.x;
        return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
    }
    if how == LARGEST_KEY {
        return vec2<u32>(bitcast<u32>(max(bitcast<i32>(a.x), bitcast<i32>(b.x))), 0u);
    }
    let key_a = bitcast<i32>(a.x);
    let key_b = bitcast<i32>(b.x);
    return select(b, a, key_a > key_b || (key_a == key_b && a.y < b.y));
}

// Returns the combined values of all lanes of the row. All threads of a workgroup call it together.
//   every `done` neighbours have a common result; at first those of a subgroup
//   while done < LANES { join the results of `count` neighbouring groups; done *= count }
// `fold`, in the files of lanes, combines `count` entries of `folds`, each the result of `done`
// threads.
fn reduce(grid: Grid, value: vec2<u32>, how: u32) -> vec2<u32> {
    if LANES == 1u {
        return value;
    }
    if LANES_ACROSS_ROWS {
        return reduce_across_rows(value, how);
    }
    if DIVERGES {
        // Threads may have left a loop at different times, and an exchange within a subgroup needs
        // all of them.
        workgroupBarrier();
    }
    // The API promises subgroups of at least SUBGROUP threads, and the self-test of an adapter
    // checks the size that it gets. A check of the width at run time, with both ways compiled,
    // makes the compilation of a short row's kernel half as long again.
    if LANES <= SUBGROUP {
        return butterfly(value, LANES, how);
    }
    // The loop ends whatever width a broken driver reports.
    var done = max(min(grid.width, LANES), 1u);
    var result = butterfly(value, done, how);
    while done < LANES {
        let count = max(min(radix(grid), LANES / done), 2u);
        // Nobody may still be reading what an earlier fold left there.
        workgroupBarrier();
        if thread % done == 0u {
            folds[thread / done] = result;
        }
        workgroupBarrier();
        result = fold(done, count, how);
        done *= count;
    }
    return result;
}

// Reduces by the same tree where the lanes of a row are not neighbours:
//   for distance in 1, 2, 4 ...: combine with the lane at that distance, through workgroup memory
fn reduce_across_rows(value: vec2<u32>, how: u32) -> vec2<u32> {
    var result = value;
    for (var distance = 1u; distance < LANES; distance *= 2u) {
        workgroupBarrier();
        folds[thread] = result;
        workgroupBarrier();
        result = combine(result, folds[thread ^ (distance * (WORKGROUP / LANES))], how);
    }
    return result;
}

fn sum_of(grid: Grid, pair: vec2<f32>) -> vec2<f32> {
    return bitcast<vec2<f32>>(reduce(grid, bitcast<vec2<u32>>(pair), SUM));
}
