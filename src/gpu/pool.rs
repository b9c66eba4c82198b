//! Buffers kept for the next call. Allocation is among the slowest operations of a driver.

use std::sync::Mutex;

use wgpu::{Buffer, BufferUsages, Device};

use super::failure::{GpuError, lock};

#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<Buffer>>,
    #[cfg(test)]
    pub(super) sabotage: Mutex<Sabotage>,
}

/// Faults that tests inject: allocations that fail as on a full device, and a device that is lost
/// during an allocation.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Sabotage {
    /// Allocations of more bytes than this fail.
    pub(super) refuse_above: Option<u64>,
    /// All allocations fail after this many more.
    pub(super) refuse_after: Option<usize>,
    /// The device is lost after this many more allocations.
    pub(super) destroy_after: Option<usize>,
    /// The next allocation returns an invalid buffer, and reports an error to the error scope, as
    /// wgpu does where a driver refuses.
    pub(super) spoil_next: bool,
}

/// Loses a device, and waits for its work: a destroyed device reports its loss only when that is
/// done.
#[cfg(test)]
pub(super) fn destroy(device: &Device) {
    device.destroy();
    let all = wgpu::PollType::Wait {
        submission_index: None,
        timeout: Some(std::time::Duration::from_secs(20)),
    };
    drop(device.poll(all));
}

#[cfg(test)]
impl Sabotage {
    fn spoil(&mut self, device: &Device, buffer: &Buffer) {
        if std::mem::take(&mut self.spoil_next) {
            buffer.destroy();
            let size = device.limits().max_buffer_size + 1;
            let usage = BufferUsages::STORAGE;
            drop(device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage,
                mapped_at_creation: false,
            }));
        }
    }

    fn refuses(&mut self, device: &Device, bytes: u64) -> bool {
        let due = |left: &mut Option<usize>| {
            let is_due = *left == Some(0);
            *left = left.map(|left| left.saturating_sub(1));
            is_due
        };
        if due(&mut self.destroy_after) {
            destroy(device);
        }
        due(&mut self.refuse_after) || self.refuse_above.is_some_and(|most| bytes > most)
    }
}

impl Pool {
    /// A buffer of at least `bytes` bytes and exactly these usages; its contents are whatever was
    /// left there. Call within error scopes.
    pub(super) fn take(
        &self,
        device: &Device,
        usage: BufferUsages,
        bytes: u64,
    ) -> Result<Buffer, GpuError> {
        // Sizes are rounded so that batches of slightly different length share buffers.
        let size = bytes.max(256).next_multiple_of(if bytes <= 1 << 20 { 4096 } else { 1 << 20 });
        let fits = |buffer: &Buffer| {
            buffer.usage() == usage && buffer.size() >= bytes && buffer.size() <= 2 * size
        };
        {
            let mut idle = lock(&self.idle);
            let best =
                idle.iter().enumerate().filter(|(_, b)| fits(b)).min_by_key(|(_, b)| b.size());
            if let Some(at) = best.map(|(at, _)| at) {
                return Ok(idle.swap_remove(at));
            }
        }
        #[cfg(test)]
        if self.sabotage.lock().is_ok_and(|mut sabotage| sabotage.refuses(device, bytes)) {
            return Err(GpuError {
                reason: format!("no memory for {bytes} bytes"),
                out_of_memory: true,
            });
        }
        // Rounding must not take the size past the adapter's limit.
        let most = device.limits().max_buffer_size;
        let size = if size > most { bytes.next_multiple_of(4) } else { size };
        if size > most {
            let reason =
                format!("a buffer of {size} bytes is beyond the {most} bytes that it allows");
            return Err(GpuError { reason, out_of_memory: true });
        }
        let label = Some("logits");
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label,
            size,
            usage,
            mapped_at_creation: false,
        });
        #[cfg(test)]
        if let Ok(mut sabotage) = self.sabotage.lock() {
            sabotage.spoil(device, &buffer);
        }
        Ok(buffer)
    }

    /// The number of idle buffers, and their bytes together.
    #[cfg(test)]
    pub(super) fn idle(&self) -> (usize, u64) {
        let idle = lock(&self.idle);
        (idle.len(), idle.iter().map(Buffer::size).sum())
    }

    /// Takes unmapped buffers back. The oldest are freed where idle buffers have more than `keep`
    /// bytes together.
    pub(super) fn give(&self, buffers: impl IntoIterator<Item = Buffer>, keep: u64) {
        let mut idle = lock(&self.idle);
        idle.extend(buffers);
        let mut total: u64 = idle.iter().map(Buffer::size).sum();
        let excess = idle
            .iter()
            .take_while(|buffer| {
                let over = total > keep;
                total -= if over { buffer.size() } else { 0 };
                over
            })
            .count();
        idle.drain(..excess);
    }

    /// Frees all idle buffers.
    pub(super) fn clear(&self) {
        lock(&self.idle).clear();
    }
}
