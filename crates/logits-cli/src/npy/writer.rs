//! Writes arrays of f32 to `.npy` files, one selection at a time.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use logits::DType;

use super::header::Header;
use super::reader::Float;
use super::selection::Selection;
use crate::CliError;
use crate::output::Output;

/// An output file of an array of f32 in C order, whose selections may be written in any order.
pub(crate) struct Writer {
    file: BufWriter<Output>,
    /// Bytes before the data.
    start: u64,
    /// The file offset (bytes) of the next write.
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

    /// Writes the elements of `selection`, which must be of C order, from `values`, rounded to f32.
    pub(crate) fn write<T: Float>(
        &mut self,
        selection: &Selection,
        values: &[T],
    ) -> Result<(), CliError> {
        debug_assert_eq!(selection.memory_stride(), 1);
        let Self { file, start, position } = self;
        let length = selection.run_length();
        let written = selection.for_each_run(|file_offset, memory_offset| {
            let to = *start + (file_offset * size_of::<f32>()) as u64;
            if to != *position {
                file.seek(SeekFrom::Start(to))?;
                *position = to;
            }
            *position += (length * size_of::<f32>()) as u64;
            let values = &values[memory_offset..memory_offset + length];
            if cfg!(target_endian = "little") && T::DTYPE == DType::F32 {
                file.write_all(bytemuck::cast_slice(values))
            } else {
                values
                    .iter()
                    .try_for_each(|&value| file.write_all(&(value.into() as f32).to_le_bytes()))
            }
        });
        written.map_err(|error: io::Error| file.get_ref().error(error))
    }

    /// Writes the buffer, and returns the output.
    pub(crate) fn finish(self) -> Result<Output, CliError> {
        let flushed = self.file.into_inner();
        flushed.map_err(|failed| {
            let (error, file) = failed.into_parts();
            file.get_ref().error(error)
        })
    }
}
