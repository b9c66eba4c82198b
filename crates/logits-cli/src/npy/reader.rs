//! Reads arrays from `.npy` files, one selection at a time.

use std::fs::{File, FileType};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use logits::Element;
use logits::half::f16;

use super::header::{Header, Kind, NumberType};
use super::selection::Selection;
use crate::CliError;

/// f32 or f64: the type that a file's floats are converted to.
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

/// An open `.npy` file.
pub(crate) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    header: Header,
    /// The file offset (bytes) of the next read.
    position: u64,
    buffer: Vec<u8>,
}

impl Reader {
    /// Opens a file and reads its header. Returns an error where the data is shorter than the shape
    /// needs.
    pub(crate) fn open(path: &Path) -> Result<Self, CliError> {
        let bad = |reason: String| CliError::file(path, reason);
        let failed = |error: io::Error| CliError::file(path, error);
        // Opening a pipe waits for its writer.
        let kind = path.metadata().map_err(failed)?.file_type();
        if !kind.is_file() {
            return Err(bad(format!(
                "{}, where a regular file is needed; save the array to one first",
                describe(kind)
            )));
        }
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        // No more than the file's length is read: a file of /proc has the length 0, and may have no
        // end.
        let mut file = BufReader::new(file);
        let header = Header::read(&mut file.by_ref().take(length)).map_err(bad)?;
        let held = length.saturating_sub(header.length);
        let Header { number, shape, .. } = &header;
        let needed = bytes_of(shape, number.itemsize).map_err(bad)?;
        if held < needed {
            return Err(bad(format!(
                "cut short: {held} bytes of data for the shape {shape:?} of {number}"
            )));
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

    /// Converts an index in the order of the file to the index in C order.
    pub(crate) fn c_index(&self, file_index: usize) -> usize {
        if !self.header.is_fortran {
            return file_index;
        }
        let mut rest = file_index;
        self.header.shape.iter().fold(0, |c_index, &size| {
            let index = rest % size;
            rest /= size;
            c_index * size + index
        })
    }

    pub(crate) fn error(&self, reason: impl ToString) -> CliError {
        CliError::file(&self.path, reason)
    }

    pub(crate) fn is_float(&self) -> bool {
        self.header.number.kind == Kind::Float
    }

    /// Whether the numbers are f64.
    pub(crate) fn is_double(&self) -> bool {
        self.is_float() && self.header.number.itemsize == 8
    }

    pub(crate) fn expect_floats(&self) -> Result<(), CliError> {
        match self.is_float() {
            true => Ok(()),
            false => Err(self.error(format!(
                "{} numbers, where float16, float32 or float64 are needed",
                self.header.number
            ))),
        }
    }

    /// Reads a selection of an array of floats into `out`, rounded to its type.
    pub(crate) fn floats<T: Float>(
        &mut self,
        selection: &Selection,
        out: &mut [T],
    ) -> Result<(), CliError> {
        match self.header.number.itemsize {
            2 => self.numbers(selection, out, |bytes| T::of(f16::from_le_bytes(bytes).to_f64())),
            4 => self.numbers(selection, out, |bytes| T::of(f32::from_le_bytes(bytes).into())),
            _ => self.numbers(selection, out, |bytes| T::of(f64::from_le_bytes(bytes))),
        }
    }

    /// Reads a selection of an array of integers into `out`.
    pub(crate) fn integers(
        &mut self,
        selection: &Selection,
        out: &mut [i128],
    ) -> Result<(), CliError> {
        let NumberType { kind, itemsize, .. } = self.header.number;
        match (kind, itemsize) {
            (Kind::Int, 1) => self.numbers(selection, out, |bytes| i8::from_le_bytes(bytes).into()),
            (Kind::Int, 2) => {
                self.numbers(selection, out, |bytes| i16::from_le_bytes(bytes).into())
            }
            (Kind::Int, 4) => {
                self.numbers(selection, out, |bytes| i32::from_le_bytes(bytes).into())
            }
            (Kind::Int, _) => {
                self.numbers(selection, out, |bytes| i64::from_le_bytes(bytes).into())
            }
            (_, 1) => self.numbers(selection, out, |bytes| u8::from_le_bytes(bytes).into()),
            (_, 2) => self.numbers(selection, out, |bytes| u16::from_le_bytes(bytes).into()),
            (_, 4) => self.numbers(selection, out, |bytes| u32::from_le_bytes(bytes).into()),
            _ => self.numbers(selection, out, |bytes| u64::from_le_bytes(bytes).into()),
        }
    }

    /// Reads a selection of numbers of `N` bytes each.
    fn numbers<T, const N: usize>(
        &mut self,
        selection: &Selection,
        out: &mut [T],
        number: impl Fn([u8; N]) -> T,
    ) -> Result<(), CliError> {
        const PIECE: usize = 1 << 16;
        let Self { path, file, header, position, buffer } = self;
        let (length, stride) = (selection.run_length(), selection.memory_stride());
        let is_big_endian = header.number.is_big_endian;
        let decode = |bytes: &[u8]| {
            let mut array = [0; N];
            array.copy_from_slice(bytes);
            if is_big_endian {
                array.reverse();
            }
            number(array)
        };
        // for each run of the selection, in the order of the file:
        //     seek to its first element, unless the file is there (a relative seek keeps what is buffered)
        //     for each piece of at most PIECE elements:
        //         read its bytes; out[memory_offset + i * stride] = decode(bytes of element i)
        let read = selection.for_each_run(|file_offset, memory_offset| {
            let to = header.length + (file_offset * N) as u64;
            if to != *position {
                file.seek_relative(to.wrapping_sub(*position).cast_signed())?;
                *position = to;
            }
            for start in (0..length).step_by(PIECE) {
                let count = PIECE.min(length - start);
                buffer.resize(count * N, 0);
                file.read_exact(buffer)?;
                *position += buffer.len() as u64;
                let numbers = buffer.chunks_exact(N).map(decode);
                let out = &mut out[memory_offset + start * stride..];
                if stride == 1 {
                    out.iter_mut().zip(numbers).for_each(|(to, number)| *to = number);
                } else {
                    out.iter_mut()
                        .step_by(stride)
                        .zip(numbers)
                        .for_each(|(to, number)| *to = number);
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

/// Returns the bytes of an array's data. Like numpy, refuses a shape whose sizes other than 0 have
/// a product beyond memory.
fn bytes_of(shape: &[usize], itemsize: usize) -> Result<u64, String> {
    let not_empty = shape.iter().try_fold(itemsize, |bytes, &size| bytes.checked_mul(size.max(1)));
    match not_empty.filter(|&bytes| bytes <= isize::MAX as usize) {
        None => Err(format!("the shape {shape:?} is too large")),
        Some(_) if shape.contains(&0) => Ok(0),
        Some(bytes) => Ok(bytes as u64),
    }
}

fn describe(kind: FileType) -> &'static str {
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
