// Writing a stretch of a row that was too long to be held: read again, in units of what is written.
// needs: Coefficients, element_unit (shared/passes.wgsl or shared/sum.wgsl); give_unit, lane, row_in, row_out,
//   share_of, take_units (shared/rows.wgsl); UNIT, read_unit, write_some (the parts in elements/)
// provides: write_stretch

fn write_stretch(start: u32, end: u32, present: bool, coefficients: Coefficients) {
    if !present {
        return;
    }
    var head = 0u;
    if !ALIGNED && !PLANES {
        head = min((UNIT - (row_out + start) % UNIT) % UNIT, end - start);
        if lane == 0u && head > 0u {
            let unit = read_unit(row_in + start, row_in + end - 1u);
            write_some(row_out + start, element_unit(start, unit, false, coefficients), head);
        }
    }
    let share = share_of(start + head, end);
    for (var j = share.first + lane % STRIPE * UNIT; j < share.end; j += STRIPE * UNITS * UNIT) {
        let units = take_units(j, share);
        for (var i = 0u; i < UNITS; i += 1u) {
            let at = j + i * STRIPE * UNIT;
            give_unit(at, share.end, element_unit(at, units[i], false, coefficients));
        }
    }
}
