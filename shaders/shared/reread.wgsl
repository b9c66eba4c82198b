// Writing a stretch of a row that was too long to be held: read again, in units of what is written.

// So many units are on their way at once.
fn write_stretch(start: u32, end: u32, coefficients: Coefficients) {
    var head = 0u;
    if !ALIGNED && !PLANES {
        head = min((UNIT - (row_out + start) % UNIT) % UNIT, end - start);
        if thread == 0u && head > 0u {
            let unit = read_unit(row_in + start, row_in + end - 1u);
            write_some(row_out + start, element_unit(start, unit, false, coefficients), head);
        }
    }
    let body = start + head;
    for (var j = body + thread * UNIT; j < end; j += WORKGROUP * UNITS * UNIT) {
        var units: array<Unit, UNITS>;
        for (var i = 0u; i < UNITS; i += 1u) {
            units[i] = read_classes(j + i * WORKGROUP * UNIT, body, end);
        }
        for (var i = 0u; i < UNITS; i += 1u) {
            let at = j + i * WORKGROUP * UNIT;
            give_unit(at, end, element_unit(at, units[i], false, coefficients));
        }
    }
}
