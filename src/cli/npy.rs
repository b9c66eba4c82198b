//! `.npy` files, read and written a batch of rows at a time.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use npyz::{DType, Endianness, NpyHeader, TypeChar, WriterBuilder};
use tempfile::NamedTempFile;

use crate::CliError;

/// An array open for reading from front to back.
pub(crate) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
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
        let start = std::io::Seek::stream_position(&mut file).map_err(|error| bad(error.to_string()))?;
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

    /// The next `out.len()` numbers, rounded to f32.
    pub(crate) fn floats(&mut self, out: &mut [f32]) -> Result<(), CliError> {
        match self.bytes {
            2 => self.numbers(out, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
            4 => self.numbers(out, f32::from_le_bytes),
            _ => self.numbers(out, |bytes| f64::from_le_bytes(bytes) as f32),
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
}

impl Writer {
    pub(crate) fn create(path: &Path, shape: &[u64]) -> Result<Self, CliError> {
        let bad = |error: &dyn std::fmt::Display| CliError::file(path, error);
        // Renaming over a device or a pipe would replace it.
        let path = match path.metadata() {
            Ok(existing) if !existing.is_file() => return Err(bad(&"exists and is not a regular file")),
            Ok(_) => path.canonicalize().map_err(|error| bad(&error))?,
            Err(_) => path.to_owned(),
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".logits-");
        #[cfg(unix)]
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        #[cfg(unix)]
        builder.permissions(permissions);
        let file = builder.tempfile_in(folder).map_err(|error| CliError::file(&path, error))?;
        let little_endian_f32: npyz::TypeStr = "<f4".parse().map_err(|error| CliError::file(&path, error))?;
        let file = npyz::WriteOptions::new_header_only()
            .dtype(DType::new_scalar(little_endian_f32))
            .shape(shape)
            .writer(BufWriter::with_capacity(1 << 20, file))
            .write_header_only()
            .map_err(|error| CliError::file(&path, error))?;
        Ok(Self { path, file })
    }

    pub(crate) fn write(&mut self, values: &[f32]) -> Result<(), CliError> {
        let written = if cfg!(target_endian = "little") {
            self.file.write_all(bytemuck::cast_slice(values))
        } else {
            values.iter().try_for_each(|value| self.file.write_all(&value.to_le_bytes()))
        };
        written.map_err(|error| CliError::file(&self.path, error))
    }

    /// Gives the file its name.
    pub(crate) fn finish(self) -> Result<(), CliError> {
        let Self { path, file } = self;
        let file = file.into_inner().map_err(|error| CliError::file(&path, error.error()))?;
        file.persist(&path).map_err(|error| CliError::file(&path, error.error))?;
        Ok(())
    }
}
