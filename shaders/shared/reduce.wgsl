// The workgroup reduction: every thread of a row gets the row's value.
//
// Values are always combined as one balanced tree over the threads' numbers, whether a step is an exchange within a
// subgroup or a fold through workgroup memory; the size of a subgroup does not change a bit.

const LARGEST: u32 = 0u; // (key, place): the larger key, of equal ones the lower place
const SUM: u32 = 1u; // (high, low) of an f32 pair

var<workgroup> folds: array<vec2<u32>, 256>;

fn combine(a: vec2<u32>, b: vec2<u32>, how: u32) -> vec2<u32> {
    if how == SUM {
        return bitcast<vec2<u32>>(add_pairs(bitcast<vec2<f32>>(a), bitcast<vec2<f32>>(b)));
    }
    let key_a = bitcast<i32>(a.x);
    let key_b = bitcast<i32>(b.x);
    return select(b, a, key_a > key_b || (key_a == key_b && a.y < b.y));
}

fn fold2(at: u32, count: u32, how: u32) -> vec2<u32> {
    if count < 2u {
        return folds[at];
    }
    return combine(folds[at], folds[at + 1u], how);
}

fn fold4(at: u32, count: u32, how: u32) -> vec2<u32> {
    if count < 4u {
        return fold2(at, count, how);
    }
    return combine(fold2(at, 2u, how), fold2(at + 2u, 2u, how), how);
}

fn fold8(at: u32, count: u32, how: u32) -> vec2<u32> {
    if count < 8u {
        return fold4(at, count, how);
    }
    return combine(fold4(at, 4u, how), fold4(at + 4u, 4u, how), how);
}

fn fold16(at: u32, count: u32, how: u32) -> vec2<u32> {
    if count < 16u {
        return fold8(at, count, how);
    }
    return combine(fold8(at, 8u, how), fold8(at + 8u, 8u, how), how);
}

fn reduce(value: vec2<u32>, how: u32) -> vec2<u32> {
    var result = value;
    // How many neighbours share `result` already.
    var done = min(width, THREADS_PER_ROW);
    for (var distance = 1u; distance < done; distance *= 2u) {
        result = combine(result, exchange(result, distance), how);
    }
    while done < THREADS_PER_ROW {
        let count = min(16u, THREADS_PER_ROW / done);
        // Nobody may still be reading what an earlier fold left there.
        workgroupBarrier();
        if thread % done == 0u {
            folds[thread / done] = result;
        }
        workgroupBarrier();
        result = fold16(thread / (done * count) * count, count, how);
        done *= count;
    }
    return result;
}
