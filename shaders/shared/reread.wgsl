// Writes a stretch of a row that was too long to be held: reads it again, in units of the elements.
// needs: Coefficients (shared/coefficients.wgsl or shared/sum.wgsl); RowState (shared/passes.wgsl
//   or shared/sum.wgsl or the operation); class_range, element_unit, give_unit, lane, row_in,
//   row_out, take_units (shared/rows.wgsl); UNIT, read_unit, write_some (the parts in elements/)
// provides: write_stretch

//   for each unit of the stretch: read it; write its elements
fn write_stretch(
    state: ptr<function, RowState>,
    start: u32,
    end: u32,
    present: bool,
    coefficients: Coefficients,
) {
    if !present {
        return;
    }
    var head = 0u;
    if !ALIGNED && !STRIDED {
        head = min((UNIT - (row_out + start) % UNIT) % UNIT, end - start);
        if lane == 0u && head > 0u {
            let unit = read_unit(row_in + start, row_in + end - 1u);
            write_some(row_out + start, element_unit(state, start, unit, false, coefficients), head);
        }
    }
    let range = class_range(start + head, end);
    for (var j = range.first + lane % STRIPE * UNIT; j < range.end; j += STRIPE * UNITS * UNIT) {
        let units = take_units(j, range);
        for (var i = 0u; i < UNITS; i += 1u) {
            let at = j + i * STRIPE * UNIT;
            give_unit(at, range.end, element_unit(state, at, units[i], false, coefficients));
        }
    }
}
