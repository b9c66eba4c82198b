// Where rows are, which of them a thread has, how it gets its units of one, and where they go.
// needs: Grid, WORKGROUP, class_step, params, row_start, thread (shared/bindings.wgsl);
//   Coefficients (shared/coefficients.wgsl or shared/sum.wgsl); RowState, elements_of
//   (shared/passes.wgsl or shared/sum.wgsl or the operation); PARTS, UNIT, Unit, logit_at, put,
//   read_unit, write_some, write_unit (the parts in elements/)
// provides: lane, row_in, row_out, operand_at, has_place, place_among, enter_row, load,
//   classes_from, masked, take_unit, element_unit, give_unit, class_range, take_units

// This thread's place among those of its row.
var<private> lane: u32;
// These do not change once a thread has entered its row.
// Where class 0 of the row would be in `logits`, in `elements` and in `targets` of its shape, be it
// before their beginning.
var<private> row_in: u32;
var<private> row_out: u32;
var<private> operand_at: u32;

// A thread's place among rows or segments, LANES threads each.
struct Place {
    // Its number, and that of the workgroup's first.
    index: u32,
    first: u32,
    // False of threads beyond the last row. They do what those of the last one do, and give
    // nothing.
    present: bool,
}

// Whether this workgroup has any of `count` rows.
fn has_place(grid: Grid, count: u32) -> bool {
    return grid.group * (WORKGROUP / LANES) < count;
}

// Finds this thread's place among `count` rows, and its lane.
fn place_among(grid: Grid, count: u32) -> Place {
    let rows = WORKGROUP / LANES;
    let first = grid.group * rows;
    lane = select(thread % LANES, thread / rows, LANES_ACROSS_ROWS);
    let index = first + select(thread / LANES, thread % rows, LANES_ACROSS_ROWS);
    return Place(min(index, count - 1u), first, index < count);
}

// Makes `row` this thread's row. What is bound starts with class `first` of it.
fn enter_row(row: u32, first: u32) {
    row_in = params.logits_at + row_start(row, params.logits_stride) - first * class_step();
    row_out = params.elements_at + row_start(row, params.elements_stride) - first * class_step();
    operand_at = params.targets_at + row_start(row, params.classes * params.inner) - first * class_step();
}

fn load(j: u32) -> f32 {
    return logit_at(row_in + j * class_step());
}

fn nothing() -> vec4<f32> {
    return vec4<f32>(bitcast<f32>(params.negative_infinity));
}

// The numbers of the four classes in a part of a unit that starts with class j.
fn classes_from(j: u32, part: u32) -> vec4<u32> {
    return vec4<u32>(j + 4u * part) + vec4<u32>(0u, 1u, 2u, 3u);
}

// Returns the unit that starts with class j, with -inf for classes from `end` on.
fn masked(j: u32, end: u32, unit: Unit) -> Unit {
    var result = unit;
    for (var part = 0u; part < PARTS; part += 1u) {
        if WHOLE {
            result[part] = select(nothing(), unit[part], j < end);
        } else {
            result[part] = select(nothing(), unit[part], classes_from(j, part) < vec4<u32>(end));
        }
    }
    return result;
}

// Reads the unit that starts with class j. There is no branch: classes that the stretch [start,
// end) does not have are read from its last place.
fn read_classes(j: u32, start: u32, end: u32) -> Unit {
    let last = end - 1u;
    if STRIDED {
        var unit: Unit;
        for (var part = 0u; part < PARTS; part += 1u) {
            let at = min(classes_from(j, part), vec4<u32>(last));
            unit[part] = vec4<f32>(load(at.x), load(at.y), load(at.z), load(at.w));
        }
        return unit;
    }
    return read_unit(row_in + min(j, start + (last - start) / UNIT * UNIT), row_in + last);
}

// Returns the unit that starts with class j, with -inf for classes that [start, end) does not have.
fn take_unit(j: u32, start: u32, end: u32) -> Unit {
    return masked(j, end, read_classes(j, start, end));
}

// Returns what is written for the unit that starts with class j.
fn element_unit(
    state: ptr<function, RowState>,
    j: u32,
    unit: Unit,
    are_exponentials: bool,
    coefficients: Coefficients,
) -> Unit {
    var result: Unit;
    for (var part = 0u; part < PARTS; part += 1u) {
        result[part] = elements_of(state, j, part, unit[part], are_exponentials, coefficients);
    }
    return result;
}

// Writes the classes of a unit that are below `end`:
//   for each class from j up to `end`: elements[class] = its value
fn give_unit(j: u32, end: u32, unit: Unit) {
    if STRIDED {
        for (var i = 0u; i < UNIT; i += 1u) {
            if j + i < end {
                put(row_out + (j + i) * class_step(), unit[i / 4u][i % 4u]);
            }
        }
    } else if WHOLE {
        if j < end {
            write_unit(row_out + j, unit);
        }
    } else if j < end {
        write_some(row_out + j, unit, min(end - j, UNIT));
    }
}

// The classes of a stretch that a thread's stripe takes: from `first`, where the stripe's first
// unit is, to `end`. The thread's own units are STRIPE units apart.
struct ClassRange {
    first: u32,
    end: u32,
}

fn class_range(start: u32, end: u32) -> ClassRange {
    let units = (end - start + UNIT - 1u) / UNIT;
    let rounds = (units + LANES - 1u) / LANES;
    let first = start + lane / STRIPE * (rounds * STRIPE * UNIT);
    return ClassRange(first, min(first + rounds * STRIPE * UNIT, end));
}

// Reads UNITS units of this thread from class j on: all are requested before any is used.
fn take_units(j: u32, range: ClassRange) -> array<Unit, UNITS> {
    var units: array<Unit, UNITS>;
    for (var i = 0u; i < UNITS; i += 1u) {
        units[i] = read_classes(j + i * STRIPE * UNIT, range.first, range.end);
    }
    return units;
}
