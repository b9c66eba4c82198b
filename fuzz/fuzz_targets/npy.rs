//! Bytes as a `.npy` file: an error, or an array whose parts are its elements at their indices.

#![no_main]

/// The reader of the command line.
#[allow(dead_code)]
#[path = "../../src/cli/npy"]
mod npy {
    pub(crate) mod header;
    pub(crate) mod reader;
    pub(crate) mod runs;
}

use std::ops::Range;
use std::path::Path;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use npy::reader::Reader;
use npy::runs::Runs;

/// What the reader makes errors of.
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

/// A header: bytes, bytes after a right start, or one that is right but for a few bytes; and what follows it.
fn file(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let version = *u.choose(&[1, 1, 1, 2, 3, 0])?;
    let text = match u.int_in_range(0..=3)? {
        0 => return Ok(u.bytes(u.len() / 2)?.to_vec()),
        1 => u.bytes(u.len() / 2)?.to_vec(),
        _ => {
            let code = *u.choose(&["<f4", ">f4", "<f2", ">f8", "|u1", "<i8", ">u2", "i4", "|V2", "<f16"])?;
            let order = *u.choose(&["False", "True"])?;
            let mut shape = String::new();
            for _ in 0..u.int_in_range(0..=5)? {
                shape += &format!("{}{}", u.int_in_range(0..=9)?, u.choose(&[", ", ",", "L, "])?);
            }
            let mut text = format!("{{'descr': '{code}', 'fortran_order': {order}, 'shape': ({shape}), }}").into_bytes();
            for _ in 0..u.int_in_range(0..=7)? / 6 {
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
    let part: Vec<Range<usize>> = shape
        .iter()
        .map(|&size| {
            let start = u.int_in_range(0..=size).unwrap_or(0);
            start..u.int_in_range(start..=size).unwrap_or(size)
        })
        .collect();
    let is_fortran = reader.is_fortran();
    let runs = Runs::new(&shape, is_fortran, &part);
    let length = if part.iter().any(Range::is_empty) { 0 } else { part.iter().map(Range::len).product() };
    // Places in the file of the part's elements, in C order.
    let place_of = |mut nth: usize| {
        let mut index = vec![0; part.len()];
        for (at, range) in index.iter_mut().zip(&part).rev() {
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
        // The part first, so that the reader has to go back.
        reader.floats(&runs, &mut some).expect("the file is whole");
        reader.floats(&Runs::flat(0..count), &mut all).expect("the file is whole");
        assert!(some.iter().enumerate().all(|(nth, x)| x.to_bits() == all[place_of(nth)].to_bits()), "{shape:?} {part:?}");
    } else {
        let (mut all, mut some) = (vec![0; count], vec![0; length]);
        reader.integers(&runs, &mut some).expect("the file is whole");
        reader.integers(&Runs::flat(0..count), &mut all).expect("the file is whole");
        assert!(some.iter().enumerate().all(|(nth, &x)| x == all[place_of(nth)]), "{shape:?} {part:?}");
    }
    Ok(())
}
