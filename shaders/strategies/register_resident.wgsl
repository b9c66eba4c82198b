// Register-resident strategy, for rows that registers hold: a workgroup takes as many as it has
// threads for.
//
// Where neighbouring threads would access distant memory, rows are staged in workgroup memory, and
// copied there and back as one contiguous stream whatever the width of a row.
// needs: Grid, WORKGROUP, class_count, params, thread (shared/bindings.wgsl); class_of, held, hold,
//   reduce_held (shared/held.wgsl); select_classes (shared/no_selection.wgsl or the operation);
//   RowState (shared/passes.wgsl or shared/sum.wgsl or the operation); classes_from, element_unit,
//   enter_row, give_unit, has_place, lane, load, masked, place_among (shared/rows.wgsl); finish
//   (shared/sum.wgsl or the operation); PARTS, UNIT, Unit, read_unit, write_some, write_unit (the
//   parts in elements/)
// provides: target_logit, register_resident_rows

// The rows of the workgroup, without gaps. Words, not vectors: a compiler may store a component of
// a vector as a read and a write of all four, and those of two neighbouring rows are written by two
// threads at once.
var<workgroup> tile: array<f32, 4u * TILE>;

fn target_logit(row: u32, class_index: u32) -> f32 {
    return load(class_index);
}

// Copies the rows of the workgroup into `tile`: neighbouring threads read neighbouring units.
//   for each unit of the rows, WORKGROUP at a time: tile[its places] = logits[its places]
fn stage_in(base: u32, count: u32) {
    for (var i = thread * UNIT; i < count; i += WORKGROUP * UNIT) {
        let unit = read_unit(base + i, base + count - 1u);
        for (var part = 0u; part < PARTS; part += 1u) {
            let place = i + 4u * part;
            tile[place] = unit[part].x;
            tile[place + 1u] = unit[part].y;
            tile[place + 2u] = unit[part].z;
            tile[place + 3u] = unit[part].w;
        }
    }
    workgroupBarrier();
}

// Copies `tile` back, once all threads have written to it:
//   for each unit of the rows, WORKGROUP at a time: elements[its places] = tile[its places]
fn stage_out(base: u32, count: u32) {
    workgroupBarrier();
    for (var i = thread * UNIT; i < count; i += WORKGROUP * UNIT) {
        var unit: Unit;
        for (var part = 0u; part < PARTS; part += 1u) {
            let place = i + 4u * part;
            unit[part] = vec4<f32>(tile[place], tile[place + 1u], tile[place + 2u], tile[place + 3u]);
        }
        if i + UNIT <= count {
            write_unit(base + i, unit);
        } else {
            write_some(base + i, unit, count - i);
        }
    }
}

// Reads this lane's units of a row into registers; the row starts at `at` in `tile`.
fn hold_staged(at: u32) {
    for (var i = 0u; i < UNITS; i += 1u) {
        let j = class_of(0u, i);
        for (var part = 0u; part < PARTS; part += 1u) {
            let places = vec4<u32>(at) + min(classes_from(j, part), vec4<u32>(class_count() - 1u));
            held[i][part] = vec4<f32>(tile[places.x], tile[places.y], tile[places.z], tile[places.w]);
        }
        held[i] = masked(j, class_count(), held[i]);
    }
}

// Writes a unit of the row that starts at `at` in `tile`.
fn give_staged(at: u32, j: u32, unit: Unit) {
    for (var i = 0u; i < UNIT; i += 1u) {
        if j + i < class_count() {
            tile[at + j + i] = unit[i / 4u][i % 4u];
        }
    }
}

//   for each row, LANES threads each: read its units into registers, reduce them, finish the row,
//   and write an element for each of them
fn register_resident_rows(grid: Grid) {
    if !has_place(grid, params.rows) {
        return;
    }
    let place = place_among(grid, params.rows);
    enter_row(place.index, 0u);
    // The workgroup's rows in memory, and this row among them.
    let base = place.first * class_count();
    let count = min(WORKGROUP / LANES, params.rows - place.first) * class_count();
    let at = (place.index - place.first) * class_count();
    if STAGED {
        stage_in(params.logits_at + base, count);
        hold_staged(at);
    } else {
        hold(0u, class_count());
    }
    var state = RowState();
    let stats = reduce_held(grid, &state, 0u, class_count());
    let coefficients = finish(place.index, stats, &state, place.present && lane == 0u);
    if REREADS_ROW {
        select_classes(grid, place.index, stats, &state, place.present);
    }
    if WRITES {
        if IN_PLACE && TARGETS && LANES > 1u {
            // Every thread must have seen its target's logit before that is overwritten.
            storageBarrier();
        }
        for (var i = 0u; i < UNITS; i += 1u) {
            let j = class_of(0u, i);
            let unit = element_unit(&state, j, held[i], KEEPS, coefficients);
            if STAGED && place.present {
                give_staged(at, j, unit);
            } else if place.present {
                give_unit(j, class_count(), unit);
            }
        }
        if STAGED {
            stage_out(params.elements_at + base, count);
        }
    }
}
