//! Reads random bytes as a `.npy` file. Either the reader returns an error, or each element of a
//! random selection equals the element at its index.

#![no_main]

/// The reader of the command line.
#[allow(dead_code)]
#[path = "../../crates/logits-cli/src/npy"]
mod npy {
    pub(crate) mod header;
    pub(crate) mod reader;
    pub(crate) mod selection;
}

use std::ops::Range;
use std::path::Path;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use npy::reader::Reader;
use npy::selection::Selection;

/// The error type that the reader expects of its crate.
#[derive(Debug)]
struct CliError(String);

impl CliError {
    fn file(path: &Path, reason: impl ToString) -> Self {
        Self(format!("{}: {}", path.display(), reason.to_string()))
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let _ = check(&mut u);
});

/// A file: random bytes, a valid preamble with a random header, or a valid header with at most one
/// wrong byte, and then data.
fn file(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let version = *u.choose(&[1, 1, 1, 2, 3, 0])?;
    let text = match u.int_in_range(0..=3)? {
        0 => return Ok(u.bytes(u.len() / 2)?.to_vec()),
        1 => u.bytes(u.len() / 2)?.to_vec(),
        _ => {
            let code =
                *u.choose(&["<f4", ">f4", "<f2", ">f8", "|u1", "<i8", ">u2", "i4", "|V2", "<f16"])?;
            let order = *u.choose(&["False", "True"])?;
            let mut shape = String::new();
            for _ in 0..u.int_in_range(0..=5)? {
                shape += &format!("{}{}", u.int_in_range(0..=9)?, u.choose(&[", ", ",", "L, "])?);
            }
            let mut text =
                format!("{{'descr': '{code}', 'fortran_order': {order}, 'shape': ({shape}), }}")
                    .into_bytes();
            // One header of four has a wrong byte.
            if u.ratio(1, 4)? {
                let at = u.int_in_range(0..=text.len() - 1)?;
                text[at] = u.arbitrary()?;
            }
            text
        }
    };
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    let length = if u.ratio(1, 16)? { u.arbitrary()? } else { text.len() as u32 };
    bytes.extend(&length.to_le_bytes()[..if version == 1 { 2 } else { 4 }]);
    bytes.extend(text);
    let data = u.int_in_range(0..=1 << 14)?;
    bytes.extend((0..data).map(|at: usize| (at * 7919 % 251) as u8));
    Ok(bytes)
}

fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let bytes = file(u)?;
    let path = std::env::temp_dir().join(format!("logits-fuzz-{}.npy", std::process::id()));
    std::fs::write(&path, &bytes).expect("a place for temporary files");
    let mut reader = match Reader::open(&path) {
        Ok(reader) => reader,
        Err(CliError(reason)) => {
            assert!(reason.len() < 250 + path.as_os_str().len(), "{reason}");
            return Ok(());
        }
    };
    let shape = reader.shape().to_vec();
    let count = if shape.contains(&0) { 0 } else { shape.iter().product::<usize>() };
    assert!(count <= bytes.len(), "{count} elements of {} bytes", bytes.len());
    let ranges: Vec<Range<usize>> = shape
        .iter()
        .map(|&size| {
            let start = u.int_in_range(0..=size).unwrap_or(0);
            start..u.int_in_range(start..=size).unwrap_or(size)
        })
        .collect();
    let is_fortran = reader.is_fortran();
    let selection = Selection::new(&shape, is_fortran, &ranges);
    let length = if ranges.iter().any(Range::is_empty) {
        0
    } else {
        ranges.iter().map(Range::len).product()
    };
    // The place in the file of each element of the selection, in C order.
    let place_of = |mut nth: usize| {
        let mut index = vec![0; ranges.len()];
        for (at, range) in index.iter_mut().zip(&ranges).rev() {
            *at = range.start + nth % range.len();
            nth /= range.len();
        }
        let next = |place: usize, (at, size): (&usize, &usize)| place * size + at;
        match is_fortran {
            true => index.iter().zip(&shape).rev().fold(0, next),
            false => index.iter().zip(&shape).fold(0, next),
        }
    };
    if reader.is_float() {
        let (mut all, mut some) = (vec![0.0_f64; count], vec![0.0_f64; length]);
        // The selection is read first, so that the reader has to go back.
        reader.floats(&selection, &mut some).expect("the file is whole");
        reader.floats(&Selection::flat(0..count), &mut all).expect("the file is whole");
        assert!(
            some.iter().enumerate().all(|(nth, x)| x.to_bits() == all[place_of(nth)].to_bits()),
            "{shape:?} {ranges:?}"
        );
    } else {
        let (mut all, mut some) = (vec![0; count], vec![0; length]);
        reader.integers(&selection, &mut some).expect("the file is whole");
        reader.integers(&Selection::flat(0..count), &mut all).expect("the file is whole");
        assert!(
            some.iter().enumerate().all(|(nth, &x)| x == all[place_of(nth)]),
            "{shape:?} {ranges:?}"
        );
    }
    Ok(())
}
