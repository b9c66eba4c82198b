//! An engine that owns its wgpu device: logits from its own matrix-product shader, loss and
//! gradient from this crate, an update of the weights by its own shader again. Each step is one
//! submission, and only the loss is read back.
//!
//! ```text
//! cargo run --release --example wgpu_engine            # on the best adapter of any kind; or: -- NAME
//! ```
//!
//! It counts allocations and submissions of a step, and compares its gradients with those of the
//! simple API.

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};

use logits::wgpu::{self, BufferUsages, PollType};
use logits::{
    CrossEntropy, DType, Device, Gpu, Logits, Operation, Prediction, StepBuffers, Summary,
};
use pollster::block_on;

#[path = "digits/data.rs"]
mod data;

const INPUTS: usize = 64;
const CLASSES: usize = 10;
const BATCH: usize = 128;
const EPOCHS: usize = 60;

/// The engine's own shaders: y = x W with a bias as the last row of W, and W -= rate * x^T dy.
const SHADERS: &str = "
const INPUTS: u32 = 64u;
const CLASSES: u32 = 10u;
struct Step { first: u32, rows: u32, rate: f32 }
@group(0) @binding(0) var<uniform> step: Step;
@group(0) @binding(1) var<storage, read> inputs: array<f32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;

fn input(row: u32, k: u32) -> f32 {
    if k == INPUTS { return 1.0; }
    return inputs[(step.first + row) * INPUTS + k];
}

@compute @workgroup_size(64)
fn product(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x / CLASSES;
    if row >= step.rows { return; }
    var sum = 0.0;
    for (var k = 0u; k <= INPUTS; k += 1u) { sum += input(row, k) * weights[k * CLASSES + id.x % CLASSES]; }
    logits[id.x] = sum;
}

// The gradient stands where the logits were.
@compute @workgroup_size(64)
fn update(@builtin(global_invocation_id) id: vec3<u32>) {
    let k = id.x / CLASSES;
    if k > INPUTS { return; }
    var sum = 0.0;
    for (var row = 0u; row < step.rows; row += 1u) { sum += input(row, k) * logits[row * CLASSES + id.x % CLASSES]; }
    weights[id.x] -= step.rate * sum;
}
";

fn main() -> Result<(), Box<dyn Error>> {
    let (device, queue) = open(std::env::args().nth(1))?;
    println!("device: {} ({})", device.adapter_info().name, device.adapter_info().backend);
    let gpu = Gpu::from_wgpu(&device, &queue)?;

    // Every fifth digit is held out.
    let digits = data::load()?;
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    let held_out = |at: &usize| at.is_multiple_of(5);
    let (test, train): (Vec<usize>, Vec<usize>) = (0..digits.len()).partition(held_out);
    for at in train.iter().chain(&test) {
        inputs.extend(digits[*at].pixels);
        targets.push(digits[*at].label);
    }
    let engine = Engine::new(&device, &queue, &inputs);
    let target_buffer = engine.filled(&targets);
    let logits = engine.buffer(4 * CLASSES * digits.len());
    let summary = engine.buffer(size_of::<Summary>());
    let loss = CrossEntropy::default();

    // Pipelines, bind groups and scratch are made once, because they take time. Each batch has its
    // part of the targets.
    let batches: Vec<_> = (0..train.len())
        .step_by(BATCH)
        .map(|first| (first, BATCH.min(train.len() - first)))
        .collect();
    let steps = batches
        .iter()
        .map(|&(first, rows)| {
            let buffers = StepBuffers::new(logits.slice(..)).in_place().loss(summary.slice(..));
            let step = gpu
                .prepare(Operation::CrossEntropyGrad, [rows, CLASSES], DType::F32)
                .loss(&loss)
                .build()?;
            let bound = step.bind(&buffers.targets(target_buffer.slice(4 * first as u64..)))?;
            Ok((engine.bind(&logits, first, rows, 0.5), bound))
        })
        .collect::<Result<Vec<_>, logits::Error>>()?;
    let losses = engine.buffer(4 * steps.len());

    queue.submit([]);
    device.poll(PollType::wait_indefinitely())?;
    let objects = || {
        let counters = device.get_internal_counters().hal;
        [counters.buffers.read(), counters.bind_groups.read(), counters.compute_pipelines.read()]
    };
    let (before, mut submissions, mut host_allocations) = (objects(), 0, Vec::new());
    for epoch in 0..EPOCHS {
        for (nth, ((own, bound), (_, rows))) in steps.iter().zip(&batches).enumerate() {
            let mut encoder = device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                engine.record(&mut pass, &engine.product, own, rows * CLASSES);
                let allocated = ALLOCATIONS.load(Ordering::Relaxed);
                bound.record_in(&mut pass);
                host_allocations.push(ALLOCATIONS.load(Ordering::Relaxed) - allocated);
                engine.record(&mut pass, &engine.update, own, (INPUTS + 1) * CLASSES);
            }
            encoder.copy_buffer_to_buffer(&summary, 0, &losses, 4 * nth as u64, 4);
            queue.submit([encoder.finish()]);
            submissions += 1;
        }
        if epoch == 0 || (epoch + 1) % 12 == 0 {
            // The losses are all that the host reads of a step.
            let losses: Vec<f32> = engine.read(&losses, 4 * steps.len())?;
            let weighted = losses.iter().zip(&batches).map(|(loss, (_, rows))| loss * *rows as f32);
            println!(
                "epoch {:>2}: loss {:.4}",
                epoch + 1,
                weighted.sum::<f32>() / train.len() as f32
            );
        }
    }
    device.poll(PollType::wait_indefinitely())?;
    let made: Vec<isize> =
        objects().iter().zip(before).map(|(after, before)| after - before).collect();
    host_allocations.sort_unstable();
    println!(
        "a step: {} submission, {} dispatches of ours; objects on the device after {submissions} steps: {:+} buffers, \
         {:+} bind groups, {:+} pipelines; host allocations while ours is recorded: {} (median)",
        submissions / (EPOCHS * steps.len()),
        steps[0].1.dispatches(),
        made[0],
        made[1],
        made[2],
        host_allocations[host_allocations.len() / 2],
    );
    // The objects of the last reading of losses may still be there.
    assert!(made[0] <= 1 && made[1] <= 0 && made[2] <= 0, "a step has left objects behind");

    // The simple API computes the same gradient, from logits that are read back only for this.
    let (own, bound) = &steps[0];
    let rows = batches[0].1;
    let values = |record: &dyn Fn(&mut wgpu::ComputePass<'_>)| -> Result<Vec<f32>, Box<dyn Error>> {
        let mut encoder = device.create_command_encoder(&Default::default());
        record(&mut encoder.begin_compute_pass(&Default::default()));
        queue.submit([encoder.finish()]);
        engine.read(&logits, 4 * rows * CLASSES)
    };
    let x = values(&|pass| engine.record(pass, &engine.product, own, rows * CLASSES))?;
    let ours = values(&|pass| bound.record_in(pass))?;
    for simple in [Device::on(&gpu), Device::cpu()] {
        let x = Logits::new(&x, [rows, CLASSES])?;
        let (_, gradient) = simple.cross_entropy(&loss, x, &targets[..rows]).with_gradient_vec()?;
        let far = gradient.iter().zip(&ours).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("gradients are those of the simple API on {} within {far:.1e}", simple.name());
        assert!(far <= 1e-6 / rows as f32, "gradients differ");
    }

    // Decisions on the held-out digits stay on the device too, until they are read.
    let best = engine.buffer(size_of::<Prediction>() * test.len());
    let step = gpu.prepare(Operation::Predict, [test.len(), CLASSES], DType::F32).build()?;
    let bound = step.bind(&StepBuffers::new(logits.slice(..)).rows(best.slice(..)))?;
    let own = engine.bind(&logits, train.len(), test.len(), 0.0);
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        engine.record(&mut pass, &engine.product, &own, test.len() * CLASSES);
        bound.record_in(&mut pass);
    }
    queue.submit([encoder.finish()]);
    let best: Vec<Prediction> = engine.read(&best, size_of::<Prediction>() * test.len())?;
    let right = best
        .iter()
        .zip(&targets[train.len()..])
        .filter(|(best, target)| best.class == **target)
        .count();
    println!("held out: accuracy {:.2} %", 100.0 * right as f64 / test.len() as f64);
    Ok(())
}

/// Opens an adapter, hardware before software, with default limits and features.
fn open(name: Option<String>) -> Result<(wgpu::Device, wgpu::Queue), Box<dyn Error>> {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let backends = descriptor.backends;
    let name = name.unwrap_or_default().to_lowercase();
    let mut adapters = block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends));
    adapters.retain(|adapter| {
        let info = adapter.get_info();
        format!("{}:{}", info.backend, info.name).to_lowercase().contains(&name)
    });
    adapters.sort_by_key(|adapter| adapter.get_info().device_type == wgpu::DeviceType::Cpu);
    let adapter = adapters.first().ok_or("no adapter")?;
    Ok(block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?)
}

struct Engine<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    product: wgpu::ComputePipeline,
    update: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    inputs: wgpu::Buffer,
    weights: wgpu::Buffer,
}

impl<'a> Engine<'a> {
    fn new(device: &'a wgpu::Device, queue: &'a wgpu::Queue, inputs: &[f32]) -> Self {
        let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &[
                entry(0, wgpu::BufferBindingType::Uniform),
                entry(1, storage(true)),
                entry(2, storage(false)),
                entry(3, storage(false)),
            ],
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let source = wgpu::ShaderSource::Wgsl(SHADERS.into());
        let module =
            device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let pipeline = |entry_point| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry_point),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(entry_point),
                compilation_options: Default::default(),
                cache: None,
            })
        };
        let (product, update) = (pipeline("product"), pipeline("update"));
        let unset = |size: usize| {
            let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST;
            let size = size as u64;
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let engine = Self {
            inputs: unset(4 * inputs.len()),
            weights: unset(4 * (INPUTS + 1) * CLASSES),
            device,
            queue,
            product,
            update,
            layout,
        };
        queue.write_buffer(&engine.inputs, 0, bytemuck::cast_slice(inputs));
        engine
    }

    fn buffer(&self, size: usize) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: size as u64,
            usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    fn filled(&self, contents: &[u32]) -> wgpu::Buffer {
        let buffer = self.buffer(size_of_val(contents));
        self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(contents));
        buffer
    }

    fn bind(&self, logits: &wgpu::Buffer, first: usize, rows: usize, rate: f32) -> wgpu::BindGroup {
        let step = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 16,
            usage: BufferUsages::UNIFORM | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(
            &step,
            0,
            bytemuck::cast_slice(&[first as u32, rows as u32, rate.to_bits(), 0]),
        );
        let buffers = [&step, &self.inputs, &self.weights, logits];
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let descriptor =
            wgpu::BindGroupDescriptor { label: None, layout: &self.layout, entries: &entries };
        self.device.create_bind_group(&descriptor)
    }

    fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        pipeline: &wgpu::ComputePipeline,
        bindings: &wgpu::BindGroup,
        threads: usize,
    ) {
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, bindings, &[]);
        pass.dispatch_workgroups(threads.div_ceil(64) as u32, 1, 1);
    }

    fn read<T: bytemuck::Pod>(
        &self,
        from: &wgpu::Buffer,
        bytes: usize,
    ) -> Result<Vec<T>, Box<dyn Error>> {
        let size = bytes as u64;
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let descriptor =
            wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let staged = self.device.create_buffer(&descriptor);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(from, 0, &staged, 0, size);
        self.queue.submit([encoder.finish()]);
        staged.map_async(wgpu::MapMode::Read, .., |_| {});
        self.device.poll(PollType::wait_indefinitely())?;
        let values = staged
            .get_mapped_range(..)?
            .chunks_exact(size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
            .collect();
        Ok(values)
    }
}

/// Counts what the host allocates.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;
