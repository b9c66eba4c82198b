//! Recording into a caller's own wgpu commands: the same results as the simple API, over any device and any buffers.

use std::sync::OnceLock;

use logits::half::f16;
use logits::wgpu::{self, BufferUsages};
use logits::{
    CrossEntropy, DType, Device, Error, Gpu, Logits, Operation, Prediction, Reduction, Sampling, Shape, Step,
    StepBuffers, StepLayout, Summary, Targets,
};
use pollster::block_on;

use crate::common::{self, Share};
use crate::tier;

/// A wgpu device of the caller's, and what the tests do with it.
#[derive(Clone)]
struct Engine {
    device: wgpu::Device,
    queue: wgpu::Queue,
    gpu: Gpu,
}

/// One for each adapter, with wgpu's default limits, shared as [`common::gpus`] are.
fn engines() -> Vec<Engine> {
    static ENGINES: [OnceLock<Vec<Engine>>; common::DEVICES_PER_ADAPTER] =
        [const { OnceLock::new() }; common::DEVICES_PER_ADAPTER];
    // It skips, or fails where a GPU is promised.
    common::gpus();
    common::shared(&ENGINES, || new_engines(|_| {}))
}

/// One for each adapter, with the limits that `limits` makes of the default ones.
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
    // As the crate's own: Vulkan's validation layer did not always know the language of the sources.
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
    assert_eq!(opened.is_empty(), common::gpus().is_empty());
    opened
}

impl Engine {
    /// A buffer with these contents, after `before` bytes of something else.
    fn buffer<T: bytemuck::Pod>(&self, before: usize, contents: &[T]) -> wgpu::Buffer {
        let mut bytes = vec![0xff_u8; before];
        bytes.extend_from_slice(bytemuck::cast_slice(contents));
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let size = bytes.len() as u64;
        let buffer =
            self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        self.queue.write_buffer(&buffer, 0, &bytes);
        buffer
    }

    /// One with nothing but NaNs, so that what is not written shows.
    fn poisoned(&self, words: usize) -> wgpu::Buffer {
        self.buffer(0, &vec![u32::MAX; words])
    }

    fn read<T: bytemuck::Pod>(&self, slice: wgpu::BufferSlice<'_>) -> Vec<T> {
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let size = slice.size();
        let staged =
            self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(slice.buffer(), slice.offset(), &staged, 0, size);
        self.queue.submit([encoder.finish()]);
        staged.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
        self.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let view = staged.get_mapped_range(..).unwrap();
        view.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    /// Whether this adapter runs case `nth`. In the default tier an adapter other than the first runs those of `some` only.
    fn takes(&self, nth: usize, some: &[usize]) -> bool {
        common::share(&Device::on(&self.gpu)) != Share::Values || some.contains(&nth)
    }

    fn run(&self, step: &Step, buffers: &StepBuffers<'_>) {
        let bound = step.bind(buffers).unwrap();
        let mut encoder = self.device.create_command_encoder(&Default::default());
        bound.record(&mut encoder);
        self.queue.submit([encoder.finish()]);
    }
}

fn logits(count: usize) -> Vec<f32> {
    (0..count as u32).map(|x| (x.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-6 - 8.0).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Every operation over buffers at odd offsets, against the simple API on the same device; of the losses every `step`th from the
/// `first` on, and of the four other operations one where that is not all of them.
fn same_as_the_simple_api(engine: &Engine, shape: [usize; 2], first: usize, step: usize) {
    let [rows, classes] = shape;
    let simple = Device::on(&engine.gpu);
    let logits = logits(rows * classes);
    let view = Logits::new(&logits, shape).unwrap();
    let targets: Vec<i32> =
        (0..rows).map(|row| if row % 5 == 3 { -100 } else { (row * 7919 % classes) as i32 }).collect();
    let x = engine.buffer(12, &logits);
    let t = engine.buffer(20, &targets);
    let (x, t) = (x.slice(12..), t.slice(20..));
    let out = engine.poisoned(rows * classes + 1);
    let elements = out.slice(4..);
    let values = engine.poisoned(2 * rows + 3);
    let per_row = values.slice(12..);
    let place = format!("{shape:?} on {}", engine.gpu.name());
    fn prepare<'a>(engine: &Engine, operation: impl Into<Operation<'a>>, shape: [usize; 2]) -> Step {
        engine.gpu.prepare(operation, shape, DType::F32).unwrap()
    }

    let takes = |operation: usize| step == 1 || first % 4 == operation;
    if takes(0) {
        engine.run(&prepare(engine, Operation::Softmax, shape), &StepBuffers::new(x).output(elements));
        let wanted = simple.softmax_vec(view).unwrap().values;
        assert_eq!(bits(&engine.read(elements)), bits(&wanted), "softmax of {place}");
    }
    if takes(1) {
        engine.run(&prepare(engine, Operation::LogSumExp, shape), &StepBuffers::new(x).rows(per_row));
        let wanted = simple.log_sum_exp_vec(view).unwrap().values;
        for (got, wanted) in engine.read::<f32>(per_row).iter().zip(&wanted) {
            assert!((got - wanted).abs() <= 2e-7 + 1e-6 * wanted.abs(), "{got} {wanted} in {place}");
        }
    }
    if takes(2) {
        engine.run(&prepare(engine, Operation::LogSoftmax, shape), &StepBuffers::new(x).output(elements));
        let wanted = simple.log_softmax_vec(view).unwrap().values;
        assert_eq!(bits(&engine.read(elements)), bits(&wanted), "log_softmax of {place}");
    }
    if takes(3) {
        engine.run(&prepare(engine, Operation::Predict, shape), &StepBuffers::new(x).rows(per_row));
        let wanted = simple.predict_vec(view).unwrap().values;
        assert_eq!(engine.read::<Prediction>(per_row)[..rows], wanted, "predict of {place}");
    }

    // Weights are bound as a whole.
    let binding = engine.device.limits().max_storage_buffer_binding_size;
    let weight: Vec<f32> = (0..classes).map(|class| (class % 5) as f32 * 0.5 + 0.25).collect();
    let weighted = CrossEntropy::default().weight(weight);
    for (loss, is_weighted) in [
        (CrossEntropy::default(), false),
        (CrossEntropy::default().reduction(Reduction::Sum).upstream_gradient(-2.5), false),
        (CrossEntropy::default().reduction(Reduction::None), false),
        (CrossEntropy::default().label_smoothing(0.1), false),
        (weighted.clone(), true),
        (weighted.clone().label_smoothing(0.3).z_loss(1e-3), true),
    ]
    .into_iter()
    .skip(first % step)
    .step_by(step)
    {
        if is_weighted && classes as u64 * 4 > binding {
            let error = engine.gpu.prepare(&loss, shape, DType::F32).map(drop).unwrap_err();
            assert!(error.to_string().contains("class weights"), "{error}");
            continue;
        }
        let (wanted, gradient) = simple.cross_entropy_grad_vec(&loss, view, &targets).unwrap();
        let summary = engine.poisoned(8);
        let whole = StepBuffers::new(x).targets(t).output(elements).rows(per_row).loss(summary.slice(..));
        engine.run(&prepare(engine, &loss, shape), &whole);
        let got: Vec<f32> = engine.read(elements);
        let scale = gradient.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
        for (got, wanted) in got.iter().zip(&gradient) {
            assert!((got - wanted).abs() <= 1e-6 * scale, "{got} {wanted} in the gradient of {place}");
        }
        assert_eq!(bits(&engine.read::<f32>(per_row)[..rows]), bits(&wanted.per_row), "losses of {place}");
        if loss != CrossEntropy::default().reduction(Reduction::None) {
            let summary: Summary = engine.read(summary.slice(..))[0];
            approx::assert_relative_eq!(f64::from(summary.loss), wanted.loss, max_relative = 1e-6);
            assert_eq!(summary.counted_rows as usize, wanted.counted_rows);
            assert_eq!(summary.first_invalid_row, u32::MAX);
        }

        // In place, without losses, in a pass and with scratch of the caller's.
        let over = engine.buffer(12, &logits);
        let summary = engine.poisoned(8);
        let step = prepare(engine, &loss, shape);
        let scratch = engine.poisoned(step.scratch_bytes() as usize / 4);
        let buffers = StepBuffers::new(over.slice(12..)).in_place().targets(t).loss(summary.slice(..));
        let bound = step.bind(&buffers.scratch(scratch.slice(..))).unwrap();
        let mut encoder = engine.device.create_command_encoder(&Default::default());
        bound.record_in(&mut encoder.begin_compute_pass(&Default::default()));
        engine.queue.submit([encoder.finish()]);
        assert_eq!(bits(&engine.read(over.slice(12..))), bits(&got), "in place, {place}");
    }
}

#[test]
fn steps_are_the_simple_api_on_default_limits() {
    for engine in engines() {
        let shapes = [[1, 1], [50, 9], [9, 300], [3, 5000], [2, 140_000], [5, 2048], [300, 1], [5000, 3]];
        // A driver compiles for each: by default a sixth of the losses, and not every short row.
        let (count, step) = if tier::is_full() { (shapes.len(), 1) } else { (5, 6) };
        for (nth, shape) in shapes.into_iter().enumerate().take(count).filter(|(nth, _)| engine.takes(*nth, &[1])) {
            same_as_the_simple_api(&engine, shape, nth, step);
        }
    }
}

/// A part of [`steps_of_every_type_and_layout`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Softmax,
    TopK,
    Sample,
    SoftmaxBackward,
    /// The gradient of the loss.
    Gradient,
    /// The gradient of the loss from saved log-sum-exps.
    Backward,
}

/// Halves in rows with gaps, and planes: every operation against the simple API on the same device.
#[test]
fn steps_of_every_type_and_layout() {
    use Part::*;
    for engine in engines() {
        // The last entry names the parts that the default tier runs, for a driver compiles each.
        for (nth, (shape, gap, parts)) in [
            (Shape::rows(7, 9), 0, &[TopK, Backward][..]),
            (Shape::rows(7, 9), 4, &[Gradient, Sample]),
            (Shape::rows(5, 3001), 1, &[Softmax, Gradient, SoftmaxBackward]),
            (Shape::rows(2, 140_001), 3, &[Softmax, TopK, Backward]),
            (Shape::new(3, 11, 5), 0, &[Sample, Gradient]),
            (Shape::new(3, 2501, 3), 2, &[Backward, TopK]),
        ]
        .into_iter()
        .enumerate()
        .filter(|(nth, _)| engine.takes(*nth, &[1, 4]))
        {
            let place = format!("{shape:?} with gaps of {gap} on {}", engine.gpu.name());
            let simple = Device::on(&engine.gpu);
            let (rows, classes, block) = (shape.row_count(), shape.classes(), shape.classes() * shape.inner());
            let stride = block + gap;
            let x: Vec<f16> = logits(shape.outer() * stride).iter().map(|&x| f16::from_f32(x)).collect();
            let view = Logits::with_row_stride(&x, shape, stride).unwrap().temperature(0.8).unwrap();
            let padded = |mut values: Vec<f16>| {
                values.resize(values.len().next_multiple_of(2), f16::ZERO);
                values
            };
            let buffer = engine.buffer(4, &padded(x.clone()));
            let x_at = buffer.slice(4..);
            let out = engine.buffer(0, &padded(vec![f16::ONE; shape.outer() * (block + 1) + 1]));
            let values = engine.poisoned(rows * 8);
            let layout =
                StepLayout::default().row_stride(stride).output_row_stride(block + 1).temperature(0.8).unwrap();
            let prepare =
                |operation: Operation<'_>| engine.gpu.prepare_with(operation, shape, DType::F16, layout).unwrap();
            // Results, and what lies between them.
            let read = || {
                let all: Vec<f16> = engine.read(out.slice(..));
                let blocks = all.chunks(block + 1).take(shape.outer());
                assert!(blocks.clone().all(|block_of| block_of[block] == f16::ONE), "gaps of {place}");
                blocks.flat_map(|block_of| block_of[..block].to_vec()).collect::<Vec<f16>>()
            };
            let takes = |part: Part| tier::is_full() || parts.contains(&part);
            let softmax = Device::cpu().softmax_vec(view).unwrap().values;
            if takes(Softmax) {
                engine.run(&prepare(Operation::Softmax), &StepBuffers::new(x_at).output(out.slice(..)));
                assert_eq!(read(), simple.softmax_vec(view).unwrap().values, "softmax of {place}");
            }

            if takes(TopK) {
                let k = classes.min(3);
                engine.run(&prepare(Operation::TopK(k)), &StepBuffers::new(x_at).rows(values.slice(..)));
                let wanted = simple.top_k_vec(view, k).unwrap().values;
                assert_eq!(engine.read::<Prediction>(values.slice(..))[..rows * k], wanted, "top k of {place}");
            }
            if takes(SoftmaxBackward) {
                // From dense results of the same step.
                let dense = StepLayout::default().temperature(0.8).unwrap();
                let backward = engine.gpu.prepare_with(Operation::SoftmaxBackward, shape, DType::F16, dense).unwrap();
                let (y, g) = (engine.buffer(0, &padded(softmax.clone())), engine.buffer(0, &padded(softmax.clone())));
                engine.run(&backward, &StepBuffers::new(y.slice(..)).in_place().upstream(g.slice(..)));
                let y_view = Logits::new(&softmax, shape).unwrap().temperature(0.8).unwrap();
                let wanted = simple.softmax_backward_vec(y_view, &softmax).unwrap().values;
                assert_eq!(engine.read::<f16>(y.slice(..))[..wanted.len()], wanted, "backward of {place}");
            }
            if takes(Sample) {
                let sampling = Sampling::new(3).top_k(5);
                engine.run(&prepare(Operation::Sample(sampling)), &StepBuffers::new(x_at).rows(values.slice(..)));
                let wanted = simple.sample_vec(&sampling, view).unwrap().values;
                assert_eq!(engine.read::<Prediction>(values.slice(..))[..rows], wanted, "draws of {place}");
                // One bound step, whose draws a counter moves on.
                let counter = engine.buffer(4, &[0_u32]);
                let bound = prepare(Operation::Sample(sampling.step(u64::from(u32::MAX))));
                let buffers = StepBuffers::new(x_at).rows(values.slice(..)).draw(counter.slice(4..));
                let bound = bound.bind(&buffers).unwrap();
                for draw in [0_u32, 1, 7] {
                    engine.queue.write_buffer(&counter, 4, bytemuck::bytes_of(&draw));
                    let mut encoder = engine.device.create_command_encoder(&Default::default());
                    bound.record(&mut encoder);
                    engine.queue.submit([encoder.finish()]);
                    let sampling = sampling.step(u64::from(u32::MAX) + u64::from(draw));
                    let wanted = simple.sample_vec(&sampling, view).unwrap().values;
                    assert_eq!(engine.read::<Prediction>(values.slice(..))[..rows], wanted, "draw {draw} of {place}");
                }
            }

            let factors: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32).collect();
            let q: Vec<f32> = logits(shape.elements().unwrap()).iter().map(|x| x.abs() / classes as f32).collect();
            let classes_of: Vec<u32> = (0..rows).map(|row| (row * 7919 % classes) as u32).collect();
            let weight: Vec<f32> = (0..classes).map(|class| (class % 5) as f32 * 0.5 + 0.25).collect();
            // A cap of long rows takes a driver's compiler several seconds.
            let loss = CrossEntropy::default().weight(weight).z_loss(1e-3);
            let loss = if classes > 1000 && !tier::is_full() { loss } else { loss.softcap(6.0) };
            let by_rows = loss.clone().upstream_gradients(factors.clone());
            // A driver compiles for each: by default one kind of targets a shape.
            let kinds =
                [false, true].into_iter().filter(|&is_soft| tier::is_full() || is_soft == ((nth + nth / 2) % 2 == 1));
            for is_soft in kinds {
                let targets = if is_soft { Targets::probabilities(&q) } else { Targets::from(&classes_of) };
                let t = if is_soft { engine.buffer(4, &q) } else { engine.buffer(4, &classes_of) };
                if takes(Gradient) {
                    let (wanted, gradient) = simple.cross_entropy_grad_vec(&by_rows, view, targets).unwrap();
                    let operation = match is_soft {
                        true => Operation::SoftCrossEntropyGrad(&loss),
                        false => Operation::CrossEntropyGrad(&loss),
                    };
                    let (upstream, summary) = (engine.buffer(0, &factors), engine.poisoned(8));
                    let buffers = StepBuffers::new(x_at).targets(t.slice(4..)).output(out.slice(..));
                    let buffers = buffers.upstream(upstream.slice(..)).loss(summary.slice(..)).rows(values.slice(..));
                    engine.run(&prepare(operation), &buffers);
                    let summary: Summary = engine.read(summary.slice(..))[0];
                    approx::assert_relative_eq!(f64::from(summary.loss), wanted.loss, max_relative = 1e-6);
                    assert_eq!(summary.counted_rows as usize, rows);
                    let off = read().iter().zip(&gradient).filter(|(got, wanted)| got != wanted).count();
                    // A mean's divisor is an f32 pair on the device, an f64 on the host.
                    assert!(off * 100 <= gradient.len(), "{off} of {} in the gradient of {place}", gradient.len());
                }
                if takes(Backward) {
                    // Log-sum-exps stand where rows would go; any will do.
                    let saved = engine.buffer(0, &vec![3.0_f32; rows]);
                    let step = prepare(match is_soft {
                        true => Operation::SoftCrossEntropyBackward(&loss),
                        false => Operation::CrossEntropyBackward(&loss),
                    });
                    let buffers = StepBuffers::new(x_at).targets(t.slice(4..)).output(out.slice(..));
                    engine.run(&step, &buffers.rows(saved.slice(..)));
                    let wanted =
                        simple.cross_entropy_backward_vec(&loss, view, targets, &vec![3.0; rows]).unwrap().values;
                    let off = read().iter().zip(&wanted).filter(|(got, wanted)| got != wanted).count();
                    assert!(off * 100 <= wanted.len(), "{off} of {} from log-sum-exps of {place}", wanted.len());
                }
            }
        }
        let refused = engine.gpu.prepare(Operation::Softmax, [2, 3], DType::F64).map(drop);
        assert!(matches!(refused, Err(Error::DType { .. })));
        let overlap = StepLayout::default().row_stride(2);
        let refused = engine.gpu.prepare_with(Operation::Softmax, [2, 3], DType::F32, overlap).map(drop);
        assert_eq!(refused, Err(Error::RowStride { stride: 2, classes: 3 }));
    }
}

/// Buffers beyond what can be bound at once: parts of rows, and parts of a row.
#[test]
fn steps_go_beyond_a_binding() {
    for engine in new_engines(|limits| {
        limits.max_storage_buffer_binding_size = 1 << 20;
        limits.max_compute_workgroups_per_dimension = 64;
    }) {
        let shapes = [[300_000, 3], [700, 1000], [2, 600_000], [4, 140_000]];
        let (count, step) = if tier::is_full() { (shapes.len(), 1) } else { (3, 6) };
        for (nth, shape) in shapes.into_iter().enumerate().take(count).filter(|(nth, _)| engine.takes(*nth, &[1])) {
            same_as_the_simple_api(&engine, shape, 14 - nth, step);
        }
    }
}

/// One row of 160 MB, where a WebGPU default device binds 128 MiB: it goes through in parts, twice.
#[test]
fn a_row_beyond_a_binding_in_host_memory() {
    let classes = 40_000_000;
    let mut logits = logits(classes);
    logits[classes - 1] = 12.0;
    let x = Logits::new(&logits, [1, classes]).unwrap();
    let loss = CrossEntropy::default();
    let target = [classes - 7];
    let wanted = Device::cpu().cross_entropy_grad_vec(&loss, x, &target).unwrap();
    for engine in engines() {
        let device = Device::on(&engine.gpu);
        assert!(classes as u64 * 4 > engine.device.limits().max_storage_buffer_binding_size);
        let best = device.predict_vec(x).unwrap().values[0];
        assert_eq!(best.class as usize, classes - 1);
        let (got, gradient) = device.cross_entropy_grad_vec(&loss, x, &target).unwrap();
        assert_eq!(got.fell_back, None);
        approx::assert_relative_eq!(got.loss, wanted.0.loss, max_relative = 1e-6);
        let far = gradient.iter().zip(&wanted.1).find(|(a, b)| (*a - *b).abs() > 1e-6 * b.abs().max(1e-12));
        assert_eq!(far, None, "on {device}");
    }
}

#[test]
fn a_target_that_is_no_class_is_told() {
    for engine in engines() {
        let logits = logits(5 * 4);
        let x = engine.buffer(0, &logits);
        let t = engine.buffer(0, &[0_i32, 3, 4, -7, 1]);
        let (out, rows, summary) = (engine.poisoned(20), engine.poisoned(5), engine.poisoned(8));
        let gradient = engine.poisoned(20);
        let step = engine.gpu.prepare(&CrossEntropy::default(), [5, 4], DType::F32).unwrap();
        let buffers = StepBuffers::new(x.slice(..)).targets(t.slice(..)).output(gradient.slice(..));
        engine.run(&step, &buffers.rows(rows.slice(..)).loss(summary.slice(..)));
        let summary: Summary = engine.read(summary.slice(..))[0];
        assert!(summary.loss.is_nan());
        assert_eq!((summary.first_invalid_row, summary.counted_rows), (2, 5));
        // An ignored index that no 32 bits hold is met by no target, be it -1.
        let none = CrossEntropy::default().ignore_index(1 << 40).reduction(Reduction::Sum);
        let minus_one = engine.buffer(0, &[0_i32, -1, 0, 0, 0]);
        let loss = engine.poisoned(8);
        let step = engine.gpu.prepare(&none, [5, 4], DType::F32).unwrap();
        let buffers = StepBuffers::new(x.slice(..)).targets(minus_one.slice(..)).output(out.slice(..));
        engine.run(&step, &buffers.loss(loss.slice(..)));
        assert_eq!(engine.read::<Summary>(loss.slice(..))[0].first_invalid_row, 1);
        // Several of them, a class and its neighbours; and as many as there may be.
        let several = CrossEntropy::default().ignore_indices([4, 1 << 40, -7, 3]).reduction(Reduction::Sum);
        let step = engine.gpu.prepare(&several, [5, 4], DType::F32).unwrap();
        let buffers = StepBuffers::new(x.slice(..)).targets(t.slice(..)).output(out.slice(..));
        engine.run(&step, &buffers.loss(loss.slice(..)));
        let found: Summary = engine.read(loss.slice(..))[0];
        assert_eq!((found.counted_rows, found.first_invalid_row), (2, u32::MAX));
        let gradient_of: Vec<f32> = engine.read(out.slice(..));
        assert!(gradient_of[4..16].iter().all(|&g| g == 0.0) && gradient_of[0] != 0.0);
        let prepare = |count: i64| {
            let many = CrossEntropy::default().ignore_indices((0..count).map(|index| -index).collect::<Vec<_>>());
            engine.gpu.prepare(&many, [5, 4], DType::F32).map(drop)
        };
        assert_eq!(prepare(16), Ok(()));
        assert_eq!(prepare(17), Err(Error::IgnoredIndices { most: 16, found: 17 }));
        let nan: Vec<bool> = engine.read::<f32>(rows.slice(..)).iter().map(|loss| loss.is_nan()).collect();
        assert_eq!(nan, [false, false, true, true, false]);
        let gradient: Vec<f32> = engine.read(gradient.slice(..));
        assert!(gradient.iter().enumerate().all(|(at, g)| g.is_nan() == (8..16).contains(&at)), "{gradient:?}");
    }
}

#[test]
fn special_values_are_those_of_the_simple_api() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let weight = [1.0, 0.0, 2.0];
    let rows = [[nan, 1.0, 2.0], [1.0, inf, 2.0], [-inf; 3], [-inf, 1.0, 0.0], [1.0, 2.0, -inf], [0.5, 1.0, 2.0]];
    for engine in engines() {
        // Batches of one row, so that every loss is seen by itself.
        for row in rows {
            for target in [0, 1, 2, -100] {
                // By default the last two alone: of what the others would show, `pytorch` has more.
                for loss in [
                    CrossEntropy::default(),
                    CrossEntropy::default().reduction(Reduction::Sum),
                    CrossEntropy::default().label_smoothing(0.1),
                    CrossEntropy::default().weight(weight),
                    CrossEntropy::default().weight(weight).label_smoothing(0.1).z_loss(0.1),
                ]
                .into_iter()
                .skip(if tier::is_full() { 0 } else { 3 })
                {
                    let simple = Device::on(&engine.gpu);
                    let view = Logits::new(&row, [1, 3]).unwrap();
                    let (wanted, gradient) = simple.cross_entropy_grad_vec(&loss, view, &[target]).unwrap();
                    let (x, t) = (engine.buffer(0, &row), engine.buffer(0, &[target]));
                    let (out, summary) = (engine.poisoned(3), engine.poisoned(8));
                    let step = engine.gpu.prepare(&loss, [1, 3], DType::F32).unwrap();
                    let buffers = StepBuffers::new(x.slice(..)).targets(t.slice(..)).output(out.slice(..));
                    engine.run(&step, &buffers.loss(summary.slice(..)));
                    let got = f64::from(engine.read::<Summary>(summary.slice(..))[0].loss);
                    let place = format!("{row:?} {target} {loss:?}: {got} for {}", wanted.loss);
                    let same = (got.is_nan() && wanted.loss.is_nan()) || got == wanted.loss;
                    // From infinity everything is within a millionth of it.
                    let is_close = wanted.loss.is_finite() && (got - wanted.loss).abs() <= 1e-6 * wanted.loss;
                    assert!(same || is_close, "{place}");
                    for (got, wanted) in engine.read::<f32>(out.slice(..)).iter().zip(&gradient) {
                        let same = got.is_nan() && wanted.is_nan();
                        assert!(same || (got - wanted).abs() <= 1e-6, "{place}: gradient {got} for {wanted}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_empty_batch_has_a_loss() {
    for engine in engines() {
        for (reduction, is_nan) in [(Reduction::Mean, true), (Reduction::Sum, false)] {
            let loss = CrossEntropy::default().reduction(reduction);
            let spare = engine.poisoned(8);
            let (x, t) = (engine.poisoned(8), engine.poisoned(8));
            let step = engine.gpu.prepare(&loss, [0, 3], DType::F32).unwrap();
            let buffers = StepBuffers::new(x.slice(..)).in_place().targets(t.slice(..));
            engine.run(&step, &buffers.loss(spare.slice(..)));
            let summary: Summary = engine.read(spare.slice(..))[0];
            assert_eq!((summary.loss.is_nan(), summary.counted_rows), (is_nan, 0));
            assert!(is_nan || summary.loss == 0.0);
        }
    }
}

#[test]
fn buffers_that_do_not_do_are_refused() {
    for engine in engines() {
        let loss = CrossEntropy::default();
        let step = engine.gpu.prepare(&loss, [4, 10], DType::F32).unwrap();
        let big = engine.poisoned(4096);
        let (x, t, g, l) = (engine.poisoned(40), engine.poisoned(4), engine.poisoned(40), engine.poisoned(8));
        let good = StepBuffers::new(x.slice(..)).targets(t.slice(..)).output(g.slice(..)).loss(l.slice(..));
        assert!(step.bind(&good).is_ok());
        let refused = |buffers: StepBuffers<'_>, error: Error| {
            assert_eq!(step.bind(&buffers).map(|bound| bound.dispatches()), Err(error));
        };
        refused(
            StepBuffers::new(x.slice(..)).targets(t.slice(..)).loss(l.slice(..)),
            Error::BufferMissing { what: "output" },
        );
        refused(
            StepBuffers::new(x.slice(..)).output(g.slice(..)).loss(l.slice(..)),
            Error::BufferMissing { what: "targets" },
        );
        refused(
            StepBuffers::new(x.slice(..)).targets(t.slice(..)).output(g.slice(..)),
            Error::BufferMissing { what: "loss" },
        );
        refused(good.output(g.slice(..156)), Error::BufferSize { what: "output", needed: 160, found: 156 });
        refused(good.targets(t.slice(..8)), Error::BufferSize { what: "targets", needed: 16, found: 8 });
        refused(good.rows(t.slice(..8)), Error::BufferSize { what: "rows", needed: 16, found: 8 });
        refused(good.output(x.slice(..)), Error::BufferOverlap { what: "output", other: "logits" });
        refused(good.rows(g.slice(..)), Error::BufferOverlap { what: "rows", other: "output" });
        refused(good.rows(t.slice(..)), Error::BufferOverlap { what: "rows", other: "targets" });
        refused(good.output(big.slice(2..)), Error::BufferOffset { what: "output", offset: 2, alignment: 4 });
        refused(
            good.output(big.slice(..160)).rows(big.slice(164..)),
            Error::BufferOffset { what: "rows", offset: 164, alignment: 256 },
        );
        refused(good.scratch(big.slice(128..)), Error::BufferOffset { what: "scratch", offset: 128, alignment: 256 });
        assert!(step.bind(&good.output(big.slice(..160)).rows(big.slice(256..512)).scratch(big.slice(512..))).is_ok());
        let plain = engine.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 160,
            usage: BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        refused(good.output(plain.slice(..)), Error::BufferUsage { what: "output", missing: "STORAGE" });

        // What only wgpu can tell.
        let gone = engine.poisoned(40);
        gone.destroy();
        assert!(matches!(step.bind(&good.output(gone.slice(..))).map(drop), Err(Error::Gpu { .. })));
        assert!(step.bind(&good).is_ok());

        let prepare = |shape: [usize; 2]| engine.gpu.prepare(&loss, shape, DType::F32).map(drop);
        assert_eq!(prepare([3, 0]), Err(Error::ZeroClasses { rows: 3, classes: 0 }));
        assert!(matches!(prepare([usize::MAX, 2]), Err(Error::ShapeTooLarge { .. })));
        let weighted = CrossEntropy::default().weight([1.0, f32::NAN]);
        let refused = engine.gpu.prepare(&weighted, [3, 2], DType::F32).map(drop);
        assert!(matches!(refused, Err(Error::Weight { class: 1, .. })));
    }
}

/// Not ours to open again, but no panic either.
#[test]
fn a_device_of_the_callers_that_is_gone_is_told() {
    for engine in new_engines(|_| {}) {
        let x = engine.poisoned(12);
        let step = engine.gpu.prepare(Operation::Softmax, [3, 4], DType::F32).unwrap();
        let simple = Device::on(&engine.gpu);
        engine.device.destroy();
        let mut logits = vec![1.0_f32; 12];
        for _ in 0..2 {
            let in_place = logits::LogitsMut::new(&mut logits, [3, 4]).unwrap();
            assert!(matches!(simple.softmax_in_place(in_place), Err(Error::Gpu { .. })));
            assert_eq!(logits, vec![1.0; 12]);
            let bound = step.bind(&StepBuffers::new(x.slice(..)).in_place());
            assert!(matches!(bound.map(drop), Err(Error::Gpu { .. })));
            let prepared = engine.gpu.prepare(Operation::Predict, [3, 4], DType::F32);
            assert!(matches!(prepared.map(drop), Err(Error::Gpu { .. })));
        }
    }
}

#[test]
fn a_device_that_cannot_do_it_is_refused() {
    for (device, queue) in devices(|limits| limits.max_storage_buffers_per_shader_stage = 4) {
        let refused = Gpu::from_wgpu(&device, &queue).map(drop);
        assert!(
            matches!(&refused, Err(Error::NoGpu { reason, .. }) if reason.contains("4 storage buffers")),
            "{refused:?}"
        );
    }
}

/// Recording makes no object and no allocation on the device, and whatever order things are dropped in is fine.
#[test]
fn recording_allocates_nothing_and_drops_in_any_order() {
    for engine in new_engines(|_| {}) {
        let logits = logits(64 * 100);
        let x = engine.buffer(0, &logits);
        let t = engine.buffer(0, &[7_u32; 64]);
        let (g, l) = (engine.poisoned(6400), engine.poisoned(8));
        let step = engine.gpu.prepare(&CrossEntropy::default(), [64, 100], DType::F32).unwrap();
        let buffers = StepBuffers::new(x.slice(..)).targets(t.slice(..)).output(g.slice(..)).loss(l.slice(..));
        let bound = step.bind(&buffers).unwrap();
        let Engine { device, queue, gpu } = engine;
        drop((step, gpu));
        let count = || {
            let hal = device.get_internal_counters().hal;
            [hal.buffers.read(), hal.bind_groups.read(), hal.compute_pipelines.read(), hal.buffer_memory.read()]
        };
        // What was uploaded has arrived.
        queue.submit([]);
        device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let before = count();
        assert!(before[..3].iter().all(|&count| count > 0), "{before:?}");
        for _ in 0..50 {
            let mut encoder = device.create_command_encoder(&Default::default());
            for _ in 0..10 {
                bound.record(&mut encoder);
            }
            assert_eq!(count(), before);
            queue.submit([encoder.finish()]);
        }
        drop((x, t, l));
        let again = Engine { gpu: Gpu::from_wgpu(&device, &queue).unwrap(), device, queue };
        let gradient: Vec<f32> = again.read(g.slice(..));
        assert!(gradient.iter().all(|g| g.is_finite()));
        drop(again);
        drop(bound);
        drop(g);
    }
}
