//! Recording into a caller's own wgpu commands has the same results as the simple API, on any
//! device and in any buffers.

mod one_buffer;
mod plans;
mod refusals;
mod steps;
mod sums;

use std::sync::OnceLock;

use logits::wgpu::{self, BufferUsages};
use logits::{Device, Gpu, Step, StepBuffers};
use pollster::block_on;

use crate::common::{self, Share};

/// A wgpu device of the caller, with helpers for tests.
#[derive(Clone)]
pub struct Engine {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pub gpu: Gpu,
}

/// Returns an engine for each adapter, with wgpu's default limits, shared as [`common::gpus`] are.
pub fn engines() -> Vec<Engine> {
    static ENGINES: [OnceLock<Vec<Engine>>; common::DEVICES_PER_ADAPTER] =
        [const { OnceLock::new() }; common::DEVICES_PER_ADAPTER];
    // It skips, or fails where a GPU is promised.
    common::gpus();
    common::shared(&ENGINES, || new_engines(|_| {}))
}

/// Opens an engine for each adapter, with the default limits after `limits` has changed them.
fn new_engines(limits: impl Fn(&mut wgpu::Limits)) -> Vec<Engine> {
    let engine = |(device, queue)| {
        let gpu = Gpu::from_wgpu(&device, &queue).unwrap();
        Engine { device, queue, gpu }
    };
    devices(limits).into_iter().map(engine).collect()
}

fn devices(limits: impl Fn(&mut wgpu::Limits)) -> Vec<(wgpu::Device, wgpu::Queue)> {
    // It skips, or fails where a GPU is promised.
    common::gpus();
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    // Debug information is off, as in the crate's own devices: Vulkan's validation layer did not
    // always know WGSL.
    descriptor.flags = descriptor.flags.difference(wgpu::InstanceFlags::DEBUG).with_env();
    let backends = descriptor.backends;
    let adapters = block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends));
    let open = |adapter: wgpu::Adapter| {
        let mut required_limits = wgpu::Limits::default();
        limits(&mut required_limits);
        let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
        block_on(adapter.request_device(&descriptor)).ok()
    };
    let opened: Vec<_> = adapters.into_iter().filter_map(open).collect();
    assert_eq!(opened.len(), common::gpus().len(), "an adapter refused these limits");
    opened
}

impl Engine {
    /// Returns a buffer with these contents, after `before` other bytes.
    pub fn buffer<T: bytemuck::Pod>(&self, before: usize, contents: &[T]) -> wgpu::Buffer {
        let mut bytes = vec![0xff_u8; before];
        bytes.extend_from_slice(bytemuck::cast_slice(contents));
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let size = bytes.len() as u64;
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(&buffer, 0, &bytes);
        buffer
    }

    /// Returns a buffer of NaNs, which show where nothing is written.
    pub fn poisoned(&self, words: usize) -> wgpu::Buffer {
        self.buffer(0, &vec![u32::MAX; words])
    }

    pub fn read<T: bytemuck::Pod>(&self, slice: wgpu::BufferSlice<'_>) -> Vec<T> {
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let size = slice.size();
        let staged = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(slice.buffer(), slice.offset(), &staged, 0, size);
        self.queue.submit([encoder.finish()]);
        staged.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
        self.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let view = staged.get_mapped_range(..).unwrap();
        view.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    /// Whether this adapter runs case `nth`. In the default tier an adapter other than the first
    /// runs those of `some` only.
    fn takes(&self, nth: usize, some: &[usize]) -> bool {
        common::share(&Device::on(&self.gpu)) != Share::Values || some.contains(&nth)
    }

    pub fn run(&self, step: &Step, buffers: &StepBuffers<'_>) {
        let bound = step.bind(buffers).unwrap();
        let mut encoder = self.device.create_command_encoder(&Default::default());
        bound.record(&mut encoder);
        self.queue.submit([encoder.finish()]);
    }
}

fn logits(count: usize) -> Vec<f32> {
    (0..count as u32).map(|x| (x.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-6 - 8.0).collect()
}
