//! `.npy` files, read and written a batch of rows at a time.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use logits::half::f16;
use npyz::{DType, Endianness, NpyHeader, TypeChar, WriterBuilder};
use tempfile::NamedTempFile;

use crate::{CliError, output};

/// A type that numbers of a file are computed in.
pub(crate) trait Float: logits::Element + From<f32> {
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

/// An array open for reading from front to back.
pub(crate) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    /// Where the numbers start.
    start: u64,
    shape: Vec<u64>,
    kind: TypeChar,
    bytes: usize,
    big_endian: bool,
    buffer: Vec<u8>,
}

impl Reader {
    /// Reads the header, and checks that the file holds all that it announces.
    pub(crate) fn open(path: &Path) -> Result<Self, CliError> {
        let bad = |reason: String| CliError::file(path, reason);
        let file = File::open(path).map_err(|error| bad(error.to_string()))?;
        let length = file.metadata().map_err(|error| bad(error.to_string()))?.len();
        let mut file = BufReader::new(file);
        let header = NpyHeader::from_reader(&mut file).map_err(|error| bad(format!("not a .npy file: {error}")))?;
        let DType::Plain(kind) = header.dtype() else {
            return Err(bad("an array of records, not of numbers".to_owned()));
        };
        let shape = header.shape().to_vec();
        let needed = shape.iter().try_fold(kind.size_field(), |bytes, &size| bytes.checked_mul(size));
        let start = file.stream_position().map_err(|error| bad(error.to_string()))?;
        let held = length.saturating_sub(start);
        if needed.is_none_or(|needed| held < needed) {
            return Err(bad(format!("cut short: {held} bytes of data for the shape {shape:?} of {kind}")));
        }
        // A vector is the same in either order.
        if header.order() == npyz::Order::Fortran && shape.iter().filter(|&&size| size > 1).count() > 1 {
            return Err(bad("in Fortran order; save numpy.ascontiguousarray of it".to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            start,
            shape,
            kind: kind.type_char(),
            bytes: kind.size_field() as usize,
            big_endian: kind.endianness() == Endianness::Big,
            buffer: Vec::new(),
        })
    }

    pub(crate) fn shape(&self) -> &[u64] {
        &self.shape
    }

    pub(crate) fn error(&self, reason: impl ToString) -> CliError {
        CliError::file(&self.path, reason)
    }

    /// Whether the numbers are ones that [`Reader::floats`] knows.
    pub(crate) fn expect_floats(&self) -> Result<(), CliError> {
        match (self.kind, self.bytes) {
            (TypeChar::Float, 2 | 4 | 8) => Ok(()),
            (kind, bytes) => {
                Err(self.error(format!("{}{bytes} numbers, where f2, f4 or f8 are needed", kind.to_str())))
            }
        }
    }

    /// Whether the numbers are ones that [`Reader::integers`] knows.
    pub(crate) fn expect_integers(&self) -> Result<(), CliError> {
        match (self.kind, self.bytes) {
            (TypeChar::Int | TypeChar::Uint, 1 | 2 | 4 | 8) => Ok(()),
            (kind, bytes) => Err(self.error(format!("{}{bytes} numbers, where integers are needed", kind.to_str()))),
        }
    }

    pub(crate) fn is_float(&self) -> bool {
        self.kind == TypeChar::Float
    }

    /// Whether the numbers are f64.
    pub(crate) fn is_double(&self) -> bool {
        self.kind == TypeChar::Float && self.bytes == 8
    }

    /// Goes to a number, counted from the first.
    pub(crate) fn seek(&mut self, number: usize) -> Result<(), CliError> {
        let to = self.start + number as u64 * self.bytes as u64;
        let here = self.file.stream_position().map_err(|error| CliError::file(&self.path, error))?;
        // What is buffered stays so.
        let moved = self.file.seek_relative(to.wrapping_sub(here) as i64);
        moved.map_err(|error| CliError::file(&self.path, error))
    }

    /// The next `out.len()` numbers, rounded to the type asked for.
    pub(crate) fn floats<T: Float>(&mut self, out: &mut [T]) -> Result<(), CliError> {
        match self.bytes {
            2 => self.numbers(out, |bytes| T::of(f16::from_le_bytes(bytes).to_f64())),
            4 => self.numbers(out, |bytes| T::of(f32::from_le_bytes(bytes).into())),
            _ => self.numbers(out, |bytes| T::of(f64::from_le_bytes(bytes))),
        }
    }

    /// The next `out.len()` integers.
    pub(crate) fn integers(&mut self, out: &mut [i128]) -> Result<(), CliError> {
        match (self.kind, self.bytes) {
            (TypeChar::Int, 1) => self.numbers(out, |bytes| i8::from_le_bytes(bytes).into()),
            (TypeChar::Int, 2) => self.numbers(out, |bytes| i16::from_le_bytes(bytes).into()),
            (TypeChar::Int, 4) => self.numbers(out, |bytes| i32::from_le_bytes(bytes).into()),
            (TypeChar::Int, _) => self.numbers(out, |bytes| i64::from_le_bytes(bytes).into()),
            (_, 1) => self.numbers(out, |bytes| u8::from_le_bytes(bytes).into()),
            (_, 2) => self.numbers(out, |bytes| u16::from_le_bytes(bytes).into()),
            (_, 4) => self.numbers(out, |bytes| u32::from_le_bytes(bytes).into()),
            _ => self.numbers(out, |bytes| u64::from_le_bytes(bytes).into()),
        }
    }

    fn numbers<T, const N: usize>(&mut self, out: &mut [T], number: impl Fn([u8; N]) -> T) -> Result<(), CliError> {
        // Little pieces, so that a batch is in memory once and not twice.
        const PIECE: usize = 1 << 16;
        for piece in out.chunks_mut(PIECE) {
            self.buffer.resize(piece.len() * N, 0);
            self.file.read_exact(&mut self.buffer).map_err(|error| CliError::file(&self.path, error))?;
            for (value, bytes) in piece.iter_mut().zip(self.buffer.chunks_exact(N)) {
                let mut array = [0; N];
                array.copy_from_slice(bytes);
                if self.big_endian {
                    array.reverse();
                }
                *value = number(array);
            }
        }
        Ok(())
    }
}

/// An array of f32 on its way to a file, which appears under its name only when it is whole.
pub(crate) struct Writer {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    start: u64,
}

impl Writer {
    pub(crate) fn create(path: &Path, shape: &[u64]) -> Result<Self, CliError> {
        let (path, file) = output::begin(path)?;
        let little_endian_f32: npyz::TypeStr = "<f4".parse().map_err(|error| CliError::file(&path, error))?;
        let mut file = npyz::WriteOptions::new_header_only()
            .dtype(DType::new_scalar(little_endian_f32))
            .shape(shape)
            .writer(BufWriter::with_capacity(1 << 20, file))
            .write_header_only()
            .map_err(|error| CliError::file(&path, error))?;
        let start = file.stream_position().map_err(|error| CliError::file(&path, error))?;
        Ok(Self { path, file, start })
    }

    /// Goes to a number, counted from the first.
    pub(crate) fn seek(&mut self, number: usize) -> Result<(), CliError> {
        let (to, here) = (self.start + 4 * number as u64, self.file.stream_position());
        let here = here.map_err(|error| CliError::file(&self.path, error))?;
        if to != here {
            self.file.seek(SeekFrom::Start(to)).map_err(|error| CliError::file(&self.path, error))?;
        }
        Ok(())
    }

    /// The next numbers, rounded to f32.
    pub(crate) fn write<T: Float>(&mut self, values: &[T]) -> Result<(), CliError> {
        let written = if cfg!(target_endian = "little") && T::DTYPE == logits::DType::F32 {
            self.file.write_all(bytemuck::cast_slice(values))
        } else {
            values.iter().try_for_each(|&value| self.file.write_all(&(value.into() as f32).to_le_bytes()))
        };
        written.map_err(|error| CliError::file(&self.path, error))
    }

    /// Gives the file its name.
    pub(crate) fn finish(self) -> Result<(), CliError> {
        let Self { path, file, .. } = self;
        let file = file.into_inner().map_err(|error| CliError::file(&path, error.error()))?;
        output::finish(&path, file)
    }
}
