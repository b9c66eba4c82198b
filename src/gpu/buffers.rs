//! Buffers kept for the next call. Allocation is among the slowest things that a driver does.

use std::sync::{Mutex, PoisonError};

use wgpu::{Buffer, BufferUsages, Device};

/// What a pool may hold while nobody uses it.
const IDLE_BYTES: u64 = 1 << 30;

#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<Buffer>>,
}

impl Pool {
    /// A buffer of at least `bytes` bytes and exactly these usages; its contents are whatever was left there.
    pub(super) fn take(&self, device: &Device, usage: BufferUsages, bytes: u64) -> Buffer {
        // Sizes are rounded so that batches of slightly different length share buffers.
        let size = bytes.max(256).next_multiple_of(if bytes <= 1 << 20 { 4096 } else { 1 << 20 });
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &Buffer| buffer.usage() == usage && buffer.size() >= bytes && buffer.size() <= 2 * size;
        let best = idle.iter().enumerate().filter(|(_, b)| fits(b)).min_by_key(|(_, b)| b.size()).map(|(at, _)| at);
        match best {
            Some(at) => idle.swap_remove(at),
            // A little past the limit of the adapter is past it.
            None => {
                let size = if size > device.limits().max_buffer_size { bytes.next_multiple_of(4) } else { size };
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("logits"),
                    size,
                    usage,
                    mapped_at_creation: false,
                })
            }
        }
    }

    /// How many buffers wait, and how large they are together.
    #[cfg(test)]
    pub(super) fn idle(&self) -> (usize, u64) {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        (idle.len(), idle.iter().map(Buffer::size).sum())
    }

    /// Takes buffers back; the oldest leave where there are too many.
    pub(super) fn give(&self, buffers: impl IntoIterator<Item = Buffer>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(buffers);
        let mut total: u64 = idle.iter().map(Buffer::size).sum();
        let excess = idle
            .iter()
            .take_while(|buffer| {
                let over = total > IDLE_BYTES;
                total -= if over { buffer.size() } else { 0 };
                over
            })
            .count();
        idle.drain(..excess);
    }
}
