//! Reads a `.npy` file that was dropped on the page.

use npyz::half::f16;
use npyz::{DType, NpyFile, NpyHeader, Order, TypeChar};

/// Returns the rows, the classes, and the logits as f32.
pub fn read(bytes: &[u8]) -> Result<(usize, usize, Vec<f32>), String> {
    let mut rest = bytes;
    let header =
        NpyHeader::from_reader(&mut rest).map_err(|error| format!("not a .npy file: {error}"))?;
    let DType::Plain(kind) = header.dtype() else {
        return Err("an array of records, not of numbers".to_owned());
    };
    let (rows, classes) = match *header.shape() {
        [classes] => (1, classes),
        [rows, classes] => (rows, classes),
        ref other => {
            return Err(format!("an array of shape {other:?}; [rows, classes] is expected"));
        }
    };
    if header.order() == Order::Fortran && rows > 1 && classes > 1 {
        return Err("in Fortran order; save numpy.ascontiguousarray of it".to_owned());
    }
    // The library multiplies without a check for overflow.
    let needed = rows.checked_mul(classes).and_then(|count| count.checked_mul(kind.size_field()));
    if needed.is_none_or(|needed| needed > rest.len() as u64) {
        return Err(format!(
            "cut short: {} bytes of data for [{rows}, {classes}] of {kind}",
            rest.len()
        ));
    }
    if rows == 0 || classes == 0 {
        return Err(format!("nothing in it: [{rows}, {classes}]"));
    }
    let file = NpyFile::with_header(header, rest);
    let values = match (kind.type_char(), kind.size_field()) {
        (TypeChar::Float, 4) => file.into_vec::<f32>(),
        (TypeChar::Float, 8) => {
            file.into_vec::<f64>().map(|values| values.iter().map(|&x| x as f32).collect())
        }
        (TypeChar::Float, 2) => {
            file.into_vec::<f16>().map(|values| values.iter().map(|x| x.to_f32()).collect())
        }
        _ => return Err(format!("numbers of type {kind}; f16, f32 or f64 are expected")),
    };
    Ok((rows as usize, classes as usize, values.map_err(|error| error.to_string())?))
}
