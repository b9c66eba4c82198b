//! Arrays that move between host and device: through staging buffers, or directly where the
//! device's memory can be mapped.

use bytemuck::cast_slice_mut;
use wgpu::{Buffer, BufferUsages, CommandEncoder, MapMode, WriteOnly};

use super::context::GpuContext;
use super::failure::GpuError;
use super::prepared::Part;
use super::wait::{Mapped, map};

/// An array on the device, with the staging buffers to write it from the host, to read it back, or
/// both.
pub(super) struct StagedArray {
    buffer: Buffer,
    bytes: u64,
    is_written: bool,
    is_read: bool,
    /// None where the buffer itself is mapped.
    staging_in: Option<Buffer>,
    staging_out: Option<Buffer>,
}

impl StagedArray {
    /// Takes the buffers from the pool; `bytes` is not 0. Call within error scopes.
    pub(super) fn new(
        context: &GpuContext,
        bytes: u64,
        is_written: bool,
        is_read: bool,
    ) -> Result<Self, GpuError> {
        let take = |usage| context.pool.take(&context.device, usage, bytes);
        let either = |is: bool, usage| if is { usage } else { BufferUsages::empty() };
        let buffer = if context.maps_storage {
            take(
                BufferUsages::STORAGE
                    | either(is_written, BufferUsages::MAP_WRITE)
                    | either(is_read, BufferUsages::MAP_READ),
            )
        } else {
            take(
                BufferUsages::STORAGE
                    | either(is_written, BufferUsages::COPY_DST)
                    | either(is_read, BufferUsages::COPY_SRC),
            )
        }?;
        let staged = |is: bool, usage| {
            if is && !context.maps_storage { take(usage).map(Some) } else { Ok(None) }
        };
        Ok(Self {
            buffer,
            bytes,
            is_written,
            is_read,
            staging_in: staged(is_written, BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC)?,
            staging_out: staged(is_read, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?,
        })
    }

    pub(super) fn part(&self) -> Part<'_> {
        Part::whole(&self.buffer, self.bytes)
    }

    pub(super) fn is_read(&self) -> bool {
        self.is_read
    }

    pub(super) fn map_for_writing(&self) -> Option<Mapped> {
        self.is_written.then(|| map(self.writable(), MapMode::Write, self.bytes))
    }

    /// Lets `write` fill the array, and unmaps it. Call when `map_for_writing` is done.
    pub(super) fn write(&self, write: impl FnOnce(WriteOnly<'_, [u8]>)) -> Result<(), GpuError> {
        let mut view = self
            .writable()
            .get_mapped_range_mut(..self.bytes)
            .map_err(|error| GpuError::new(error.to_string()))?;
        write(view.slice(..));
        drop(view);
        self.writable().unmap();
        Ok(())
    }

    pub(super) fn record_upload(&self, encoder: &mut CommandEncoder) {
        if let Some(staging) = &self.staging_in {
            encoder.copy_buffer_to_buffer(staging, 0, &self.buffer, 0, self.bytes);
        }
    }

    pub(super) fn record_readback(&self, encoder: &mut CommandEncoder) {
        if let Some(staging) = &self.staging_out {
            encoder.copy_buffer_to_buffer(&self.buffer, 0, staging, 0, self.bytes);
        }
    }

    pub(super) fn map_for_reading(&self) -> Option<Mapped> {
        self.is_read.then(|| map(self.readable(), MapMode::Read, self.bytes))
    }

    /// Returns the contents. Call when `map_for_reading` is done, and drop the view before
    /// `into_buffers`.
    pub(super) fn view(&self) -> Result<wgpu::BufferView, GpuError> {
        self.readable()
            .get_mapped_range(..self.bytes)
            .map_err(|error| GpuError::new(error.to_string()))
    }

    /// Unmaps an array that was read, and returns its buffers.
    pub(super) fn into_buffers(self) -> impl Iterator<Item = Buffer> {
        if self.is_read {
            self.readable().unmap();
        }
        [Some(self.buffer), self.staging_in, self.staging_out].into_iter().flatten()
    }

    fn writable(&self) -> &Buffer {
        self.staging_in.as_ref().unwrap_or(&self.buffer)
    }

    fn readable(&self) -> &Buffer {
        self.staging_out.as_ref().unwrap_or(&self.buffer)
    }
}

/// Copies `bytes` into `out`.
pub(super) fn read_into<T: bytemuck::Pod>(out: &mut [T], bytes: &[u8]) {
    cast_slice_mut(out).copy_from_slice(bytes);
}
