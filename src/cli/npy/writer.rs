//! An array of f32 on its way to a file.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use logits::DType;

use super::header::Header;
use super::reader::Float;
use super::runs::Runs;
use crate::CliError;
use crate::output::Output;

/// An output that is an array of f32 in C order, written in any order of its parts.
pub(crate) struct Writer {
    file: BufWriter<Output>,
    /// Bytes of the header.
    start: u64,
    /// Where the next byte is written.
    position: u64,
}

impl Writer {
    pub(crate) fn new(output: Output, shape: &[usize]) -> Result<Self, CliError> {
        let header = Header::of_f32(shape);
        let mut file = BufWriter::with_capacity(1 << 20, output);
        let written = file.write_all(&header);
        written.map_err(|error| file.get_ref().error(error))?;
        let start = header.len() as u64;
        Ok(Self { file, start, position: start })
    }

    /// Writes a part of the array from `values`, rounded to f32.
    pub(crate) fn write<T: Float>(&mut self, part: &Runs, values: &[T]) -> Result<(), CliError> {
        let Self { file, start, position } = self;
        let length = part.length();
        let written = part.each(|in_file, in_memory| {
            let to = *start + (in_file * size_of::<f32>()) as u64;
            if to != *position {
                file.seek(SeekFrom::Start(to))?;
                *position = to;
            }
            *position += (length * size_of::<f32>()) as u64;
            let values = &values[in_memory..in_memory + length];
            if cfg!(target_endian = "little") && T::DTYPE == DType::F32 {
                file.write_all(bytemuck::cast_slice(values))
            } else {
                values.iter().try_for_each(|&value| file.write_all(&(value.into() as f32).to_le_bytes()))
            }
        });
        written.map_err(|error: io::Error| file.get_ref().error(error))
    }

    /// The output, with all of the array in it.
    pub(crate) fn finish(self) -> Result<Output, CliError> {
        let flushed = self.file.into_inner();
        flushed.map_err(|failed| {
            let (error, file) = failed.into_parts();
            file.get_ref().error(error)
        })
    }
}
