//! An array in a file.

use std::fs::{File, FileType};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use logits::Element;
use logits::half::f16;

use super::header::{Header, Kind, NumberType};
use super::runs::Runs;
use crate::CliError;

/// A type that numbers of a file are computed in.
pub(crate) trait Float: Element + From<f32> {
    fn of(value: f64) -> Self;
}

impl Float for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
}

impl Float for f64 {
    fn of(value: f64) -> Self {
        value
    }
}

/// An array open for reading.
pub(crate) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    header: Header,
    /// Where the next byte is read.
    position: u64,
    buffer: Vec<u8>,
}

impl Reader {
    /// Reads the header, and checks that the file holds all that it announces.
    pub(crate) fn open(path: &Path) -> Result<Self, CliError> {
        let bad = |reason: String| CliError::file(path, reason);
        let failed = |error: io::Error| CliError::file(path, error);
        // Opening a pipe waits for its writer.
        let kind = path.metadata().map_err(failed)?.file_type();
        if !kind.is_file() {
            return Err(bad(format!("{}, where a file is needed: arrays are read more than once", name_of(kind))));
        }
        let file = File::open(path).map_err(failed)?;
        let held = file.metadata().map_err(failed)?.len();
        let mut file = BufReader::new(file);
        let header = Header::read(&mut file).map_err(bad)?;
        let held = held.saturating_sub(header.length);
        let Header { number, shape, .. } = &header;
        if bytes_of(shape, number.bytes).is_none_or(|needed| held < needed) {
            return Err(bad(format!("cut short: {held} bytes of data for the shape {shape:?} of {number}")));
        }
        let position = header.length;
        Ok(Self { path: path.to_owned(), file, header, position, buffer: Vec::new() })
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.header.shape
    }

    /// Whether the first index moves fastest, where that makes a difference.
    pub(crate) fn is_fortran(&self) -> bool {
        self.header.is_fortran
    }

    /// The place in C order of the element at this place in the file.
    pub(crate) fn in_c_order(&self, mut place: usize) -> usize {
        if !self.header.is_fortran {
            return place;
        }
        let shape = &self.header.shape;
        let next = |found: usize, &size: &usize| {
            let index = place % size;
            place /= size;
            found * size + index
        };
        shape.iter().fold(0, next)
    }

    pub(crate) fn error(&self, reason: impl ToString) -> CliError {
        CliError::file(&self.path, reason)
    }

    pub(crate) fn is_float(&self) -> bool {
        self.header.number.kind == Kind::Float
    }

    /// Whether the numbers are f64.
    pub(crate) fn is_double(&self) -> bool {
        self.is_float() && self.header.number.bytes == 8
    }

    pub(crate) fn expect_floats(&self) -> Result<(), CliError> {
        match self.is_float() {
            true => Ok(()),
            false => Err(self.error(format!("{} numbers, where f2, f4 or f8 are needed", self.header.number))),
        }
    }

    /// Reads a part of an array of floats into `out`, rounded to its type.
    pub(crate) fn floats<T: Float>(&mut self, part: &Runs, out: &mut [T]) -> Result<(), CliError> {
        match self.header.number.bytes {
            2 => self.numbers(part, out, |bytes| T::of(f16::from_le_bytes(bytes).to_f64())),
            4 => self.numbers(part, out, |bytes| T::of(f32::from_le_bytes(bytes).into())),
            _ => self.numbers(part, out, |bytes| T::of(f64::from_le_bytes(bytes))),
        }
    }

    /// Reads a part of an array of integers into `out`.
    pub(crate) fn integers(&mut self, part: &Runs, out: &mut [i128]) -> Result<(), CliError> {
        let NumberType { kind, bytes, .. } = self.header.number;
        match (kind, bytes) {
            (Kind::Int, 1) => self.numbers(part, out, |bytes| i8::from_le_bytes(bytes).into()),
            (Kind::Int, 2) => self.numbers(part, out, |bytes| i16::from_le_bytes(bytes).into()),
            (Kind::Int, 4) => self.numbers(part, out, |bytes| i32::from_le_bytes(bytes).into()),
            (Kind::Int, _) => self.numbers(part, out, |bytes| i64::from_le_bytes(bytes).into()),
            (_, 1) => self.numbers(part, out, |bytes| u8::from_le_bytes(bytes).into()),
            (_, 2) => self.numbers(part, out, |bytes| u16::from_le_bytes(bytes).into()),
            (_, 4) => self.numbers(part, out, |bytes| u32::from_le_bytes(bytes).into()),
            _ => self.numbers(part, out, |bytes| u64::from_le_bytes(bytes).into()),
        }
    }

    /// Reads the runs of a part, of numbers of `N` bytes each.
    fn numbers<T, const N: usize>(
        &mut self,
        part: &Runs,
        out: &mut [T],
        number: impl Fn([u8; N]) -> T,
    ) -> Result<(), CliError> {
        // A piece is in memory as bytes too.
        const PIECE: usize = 1 << 16;
        let Self { path, file, header, position, buffer } = self;
        let (length, step) = (part.length(), part.step());
        let is_big_endian = header.number.is_big_endian;
        let decode = |bytes: &[u8]| {
            let mut array = [0; N];
            array.copy_from_slice(bytes);
            if is_big_endian {
                array.reverse();
            }
            number(array)
        };
        let read = part.each(|in_file, in_memory| {
            let to = header.length + (in_file * N) as u64;
            if to != *position {
                // What is buffered stays so.
                file.seek_relative(to.wrapping_sub(*position).cast_signed())?;
                *position = to;
            }
            for start in (0..length).step_by(PIECE) {
                let count = PIECE.min(length - start);
                buffer.resize(count * N, 0);
                file.read_exact(buffer)?;
                *position += buffer.len() as u64;
                let numbers = buffer.chunks_exact(N).map(decode);
                let out = &mut out[in_memory + start * step..];
                if step == 1 {
                    out.iter_mut().zip(numbers).for_each(|(to, number)| *to = number);
                } else {
                    out.iter_mut().step_by(step).zip(numbers).for_each(|(to, number)| *to = number);
                }
            }
            Ok(())
        });
        read.map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => CliError::file(path, "cut short while it was read"),
            _ => CliError::file(path, error),
        })
    }
}

/// The bytes of an array's numbers, or none where they are beyond u64.
fn bytes_of(shape: &[usize], bytes: usize) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(bytes as u64, |bytes, &size| bytes.checked_mul(size as u64))
}

fn name_of(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe";
        } else if kind.is_socket() {
            return "a socket";
        } else if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    if kind.is_dir() { "a directory" } else { "no regular file" }
}
