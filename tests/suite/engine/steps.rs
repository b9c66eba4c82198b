//! Results of steps, compared with those of the simple API on the same device.

use logits::half::f16;
use logits::{
    CrossEntropy, DType, Device, Error, Logits, Operation, Prediction, Reduction, Sampling, Shape,
    Step, StepBuffers, Summary, Targets,
};

use super::{Engine, engines, logits, new_engines};
use crate::tier;

/// Checks that values are equal or neighbouring f16: a step divides a mean by a pair of f32, the
/// simple API by an f64, so the last bit may differ.
#[track_caller]
fn assert_neighbours(got: &[f16], wanted: &[f16], what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    for (at, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let is_near = got == wanted || got.to_bits().abs_diff(wanted.to_bits()) <= 1;
        assert!(is_near, "{what}, element {at}: {got} for {wanted}");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Compares every operation, over buffers at odd offsets, with the simple API on the same device.
/// Runs every `step`th loss from `first % step` on; with a `step` above 1, only one of the four
/// other operations, number `first % 4`.
fn same_as_the_simple_api(engine: &Engine, shape: [usize; 2], first: usize, step: usize) {
    let [rows, classes] = shape;
    let simple = Device::on(&engine.gpu);
    let logits = logits(rows * classes);
    let view = Logits::new(&logits, shape).unwrap();
    let targets: Vec<i32> = (0..rows)
        .map(|row| if row % 5 == 3 { -100 } else { (row * 7919 % classes) as i32 })
        .collect();
    let x = engine.buffer(12, &logits);
    let t = engine.buffer(20, &targets);
    let (x, t) = (x.slice(12..), t.slice(20..));
    let out = engine.poisoned(rows * classes + 1);
    let elements = out.slice(4..);
    let values = engine.poisoned(2 * rows + 3);
    let per_row = values.slice(12..);
    let place = format!("{shape:?} on {}", engine.gpu.name());
    fn prepare(engine: &Engine, operation: Operation, shape: [usize; 2]) -> Step {
        engine.gpu.prepare(operation, shape, DType::F32).build().unwrap()
    }

    fn prepare_loss(engine: &Engine, loss: &CrossEntropy, shape: [usize; 2]) -> Step {
        engine
            .gpu
            .prepare(Operation::CrossEntropyGrad, shape, DType::F32)
            .loss(loss)
            .build()
            .unwrap()
    }

    let takes = |operation: usize| step == 1 || first % 4 == operation;
    if takes(0) {
        engine.run(
            &prepare(engine, Operation::Softmax, shape),
            &StepBuffers::new(x).output(elements),
        );
        let wanted = simple.softmax(view).to_vec().unwrap().values;
        assert_eq!(bits(&engine.read(elements)), bits(&wanted), "softmax of {place}");
    }
    if takes(1) {
        engine
            .run(&prepare(engine, Operation::LogSumExp, shape), &StepBuffers::new(x).rows(per_row));
        let wanted = simple.log_sum_exp(view).to_vec().unwrap().values;
        for (got, wanted) in engine.read::<f32>(per_row).iter().zip(&wanted) {
            assert!(
                (got - wanted).abs() <= 2e-7 + 1e-6 * wanted.abs(),
                "{got} {wanted} in {place}"
            );
        }
    }
    if takes(2) {
        engine.run(
            &prepare(engine, Operation::LogSoftmax, shape),
            &StepBuffers::new(x).output(elements),
        );
        let wanted = simple.log_softmax(view).to_vec().unwrap().values;
        assert_eq!(bits(&engine.read(elements)), bits(&wanted), "log_softmax of {place}");
    }
    if takes(3) {
        engine.run(&prepare(engine, Operation::Predict, shape), &StepBuffers::new(x).rows(per_row));
        let wanted = simple.predict(view).to_vec().unwrap().values;
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
            let error = engine
                .gpu
                .prepare(Operation::CrossEntropyGrad, shape, DType::F32)
                .loss(&loss)
                .build()
                .map(drop)
                .unwrap_err();
            assert!(error.to_string().contains("class weights"), "{error}");
            continue;
        }
        let (wanted, gradient) =
            simple.cross_entropy(&loss, view, &targets).with_gradient_vec().unwrap();
        let summary = engine.poisoned(8);
        let whole =
            StepBuffers::new(x).targets(t).output(elements).rows(per_row).loss(summary.slice(..));
        engine.run(&prepare_loss(engine, &loss, shape), &whole);
        let got: Vec<f32> = engine.read(elements);
        let scale = gradient.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
        for (got, wanted) in got.iter().zip(&gradient) {
            assert!(
                (got - wanted).abs() <= 1e-6 * scale,
                "{got} {wanted} in the gradient of {place}"
            );
        }
        assert_eq!(
            bits(&engine.read::<f32>(per_row)[..rows]),
            bits(&wanted.per_row),
            "losses of {place}"
        );
        if loss != CrossEntropy::default().reduction(Reduction::None) {
            let summary: Summary = engine.read(summary.slice(..))[0];
            approx::assert_relative_eq!(f64::from(summary.loss), wanted.loss, max_relative = 1e-6);
            assert_eq!(summary.counted_rows as usize, wanted.counted_rows);
            assert_eq!(summary.first_invalid_row, u32::MAX);
        }

        // In place, without losses, in a compute pass, and with scratch of the caller.
        let over = engine.buffer(12, &logits);
        let summary = engine.poisoned(8);
        let step = prepare_loss(engine, &loss, shape);
        let scratch = engine.poisoned(step.scratch_bytes() as usize / 4);
        let buffers =
            StepBuffers::new(over.slice(12..)).in_place().targets(t).loss(summary.slice(..));
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
        let shapes =
            [[1, 1], [50, 9], [9, 300], [3, 5000], [2, 140_000], [5, 2048], [300, 1], [5000, 3]];
        // A driver compiles each, so by default a sixth of the losses run, and not every short row.
        let (count, step) = if tier::is_full() { (shapes.len(), 1) } else { (5, 6) };
        for (nth, shape) in
            shapes.into_iter().enumerate().take(count).filter(|(nth, _)| engine.takes(*nth, &[1]))
        {
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

/// 16-bit types in rows with gaps, and strided rows: every operation against the simple API on the
/// same device.
#[test]
fn steps_of_every_type_and_layout() {
    use Part::*;
    for engine in engines() {
        // The last entry names the parts that the default tier runs, because a driver compiles
        // each.
        for (nth, (shape, gap, parts)) in [
            (Shape::rows(7, 9), 0, &[TopK][..]),
            (Shape::rows(7, 9), 4, &[Gradient, Sample]),
            (Shape::rows(5, 3001), 1, &[Softmax, Gradient, SoftmaxBackward]),
            (Shape::rows(2, 140_001), 3, &[Softmax, Backward]),
            (Shape::new(3, 11, 5), 0, &[Sample, Gradient, Backward]),
            (Shape::new(3, 2501, 3), 2, &[Backward, TopK]),
        ]
        .into_iter()
        .enumerate()
        .filter(|(nth, _)| engine.takes(*nth, &[4]))
        {
            let place = format!("{shape:?} with gaps of {gap} on {}", engine.gpu.name());
            let simple = Device::on(&engine.gpu);
            let (rows, classes, block) =
                (shape.row_count(), shape.classes(), shape.classes() * shape.inner());
            let stride = block + gap;
            let x: Vec<f16> =
                logits(shape.outer() * stride).iter().map(|&x| f16::from_f32(x)).collect();
            let view =
                Logits::with_row_stride(&x, shape, stride).unwrap().temperature(0.8).unwrap();
            let padded = |mut values: Vec<f16>| {
                values.resize(values.len().next_multiple_of(2), f16::ZERO);
                values
            };
            let buffer = engine.buffer(4, &padded(x.clone()));
            let x_at = buffer.slice(4..);
            let out = engine.buffer(0, &padded(vec![f16::ONE; shape.outer() * (block + 1) + 1]));
            let values = engine.poisoned(rows * 8);
            let step = |operation| {
                let step = engine.gpu.prepare(operation, shape, DType::F16);
                step.row_stride(stride).output_row_stride(block + 1).temperature(0.8).unwrap()
            };
            let prepare = |operation| step(operation).build().unwrap();
            let prepare_loss = |operation, loss: &CrossEntropy, is_soft| {
                let step = step(operation).loss(loss);
                if is_soft { step.soft_targets().build() } else { step.build() }.unwrap()
            };
            // The results, and the gaps between them.
            let read = || {
                let all: Vec<f16> = engine.read(out.slice(..));
                let blocks = all.chunks(block + 1).take(shape.outer());
                assert!(
                    blocks.clone().all(|block_of| block_of[block] == f16::ONE),
                    "gaps of {place}"
                );
                blocks.flat_map(|block_of| block_of[..block].to_vec()).collect::<Vec<f16>>()
            };
            let takes = |part: Part| tier::is_full() || parts.contains(&part);
            let softmax = Device::cpu().softmax(view).to_vec().unwrap().values;
            if takes(Softmax) {
                engine.run(
                    &prepare(Operation::Softmax),
                    &StepBuffers::new(x_at).output(out.slice(..)),
                );
                assert_eq!(
                    read(),
                    simple.softmax(view).to_vec().unwrap().values,
                    "softmax of {place}"
                );
            }

            if takes(TopK) {
                let k = classes.min(3);
                engine.run(
                    &prepare(Operation::TopK(k)),
                    &StepBuffers::new(x_at).rows(values.slice(..)),
                );
                let wanted = simple.top_k(view, k).to_vec().unwrap().values;
                assert_eq!(
                    engine.read::<Prediction>(values.slice(..))[..rows * k],
                    wanted,
                    "top k of {place}"
                );
            }
            if takes(SoftmaxBackward) {
                // The backward starts from dense results of the same step.
                let backward = engine.gpu.prepare(Operation::SoftmaxBackward, shape, DType::F16);
                let backward = backward.temperature(0.8).unwrap().build().unwrap();
                let (y, g) = (
                    engine.buffer(0, &padded(softmax.clone())),
                    engine.buffer(0, &padded(softmax.clone())),
                );
                engine.run(
                    &backward,
                    &StepBuffers::new(y.slice(..)).in_place().upstream(g.slice(..)),
                );
                let y_view = Logits::new(&softmax, shape).unwrap().temperature(0.8).unwrap();
                let wanted = simple.softmax_backward(y_view, &softmax).to_vec().unwrap().values;
                assert_eq!(
                    engine.read::<f16>(y.slice(..))[..wanted.len()],
                    wanted,
                    "backward of {place}"
                );
            }
            if takes(Sample) {
                let sampling = Sampling::new(3).top_k(5);
                engine.run(
                    &prepare(Operation::Sample(sampling)),
                    &StepBuffers::new(x_at).rows(values.slice(..)),
                );
                let wanted = simple.sample(&sampling, view).to_vec().unwrap().values;
                assert_eq!(
                    engine.read::<Prediction>(values.slice(..))[..rows],
                    wanted,
                    "draws of {place}"
                );
                // One bound step, whose draws a counter advances.
                let counter = engine.buffer(4, &[0_u32]);
                let bound = prepare(Operation::Sample(sampling.step(u64::from(u32::MAX))));
                let buffers =
                    StepBuffers::new(x_at).rows(values.slice(..)).draw(counter.slice(4..));
                let bound = bound.bind(&buffers).unwrap();
                for draw in [0_u32, 1, 7] {
                    engine.queue.write_buffer(&counter, 4, bytemuck::bytes_of(&draw));
                    let mut encoder = engine.device.create_command_encoder(&Default::default());
                    bound.record(&mut encoder);
                    engine.queue.submit([encoder.finish()]);
                    let sampling = sampling.step(u64::from(u32::MAX) + u64::from(draw));
                    let wanted = simple.sample(&sampling, view).to_vec().unwrap().values;
                    assert_eq!(
                        engine.read::<Prediction>(values.slice(..))[..rows],
                        wanted,
                        "draw {draw} of {place}"
                    );
                }
            }

            let factors: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32).collect();
            let q: Vec<f32> = logits(shape.elements().unwrap())
                .iter()
                .map(|x| x.abs() / classes as f32)
                .collect();
            let classes_of: Vec<u32> = (0..rows).map(|row| (row * 7919 % classes) as u32).collect();
            let weight: Vec<f32> =
                (0..classes).map(|class| (class % 5) as f32 * 0.5 + 0.25).collect();
            // A cap of long rows takes a driver's compiler several seconds.
            let loss = CrossEntropy::default().weight(weight).z_loss(1e-3);
            let loss = if classes > 1000 && !tier::is_full() { loss } else { loss.softcap(6.0) };
            let by_rows = loss.clone().upstream_gradients(factors.clone());
            // A driver compiles each, so by default a shape has one kind of targets.
            let kinds = [false, true]
                .into_iter()
                .filter(|&is_soft| tier::is_full() || is_soft == ((nth + nth / 2) % 2 == 1));
            for is_soft in kinds {
                let targets =
                    if is_soft { Targets::probabilities(&q) } else { Targets::from(&classes_of) };
                let t = if is_soft { engine.buffer(4, &q) } else { engine.buffer(4, &classes_of) };
                if takes(Gradient) {
                    let (wanted, gradient) =
                        simple.cross_entropy(&by_rows, view, targets).with_gradient_vec().unwrap();
                    let (upstream, summary) = (engine.buffer(0, &factors), engine.poisoned(8));
                    let buffers =
                        StepBuffers::new(x_at).targets(t.slice(4..)).output(out.slice(..));
                    let buffers = buffers
                        .upstream(upstream.slice(..))
                        .loss(summary.slice(..))
                        .rows(values.slice(..));
                    engine
                        .run(&prepare_loss(Operation::CrossEntropyGrad, &loss, is_soft), &buffers);
                    let summary: Summary = engine.read(summary.slice(..))[0];
                    approx::assert_relative_eq!(
                        f64::from(summary.loss),
                        wanted.loss,
                        max_relative = 1e-6
                    );
                    assert_eq!(summary.counted_rows as usize, rows);
                    assert_neighbours(&read(), &gradient, &format!("gradient of {place}"));
                }
                if takes(Backward) {
                    // Log-sum-exps are in the `rows` buffer; any values will do.
                    let saved = engine.buffer(0, &vec![3.0_f32; rows]);
                    let step = prepare_loss(Operation::CrossEntropyBackward, &loss, is_soft);
                    let buffers =
                        StepBuffers::new(x_at).targets(t.slice(4..)).output(out.slice(..));
                    engine.run(&step, &buffers.rows(saved.slice(..)));
                    let wanted = simple
                        .cross_entropy_backward(&loss, view, targets, &vec![3.0; rows])
                        .to_vec()
                        .unwrap()
                        .values;
                    assert_neighbours(
                        &read(),
                        &wanted,
                        &format!("gradient from log-sum-exps of {place}"),
                    );
                }
            }
        }
        let refused = engine.gpu.prepare(Operation::Softmax, [2, 3], DType::F64).build().map(drop);
        assert!(matches!(refused, Err(Error::DType { .. })));
        let refused = engine
            .gpu
            .prepare(Operation::Softmax, [2, 3], DType::F32)
            .row_stride(2)
            .build()
            .map(drop);
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
        for (nth, shape) in
            shapes.into_iter().enumerate().take(count).filter(|(nth, _)| engine.takes(*nth, &[1]))
        {
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
    let wanted = Device::cpu().cross_entropy(&loss, x, &target).with_gradient_vec().unwrap();
    for engine in engines() {
        let device = Device::on(&engine.gpu);
        assert!(classes as u64 * 4 > engine.device.limits().max_storage_buffer_binding_size);
        let best = device.predict(x).to_vec().unwrap().values[0];
        assert_eq!(best.class as usize, classes - 1);
        let (got, gradient) = device.cross_entropy(&loss, x, &target).with_gradient_vec().unwrap();
        assert_eq!(got.fell_back, None);
        approx::assert_relative_eq!(got.loss, wanted.0.loss, max_relative = 1e-6);
        let far = gradient
            .iter()
            .zip(&wanted.1)
            .find(|(a, b)| (*a - *b).abs() > 1e-6 * b.abs().max(1e-12));
        assert_eq!(far, None, "on {device}");
    }
}

#[test]
fn special_values_are_those_of_the_simple_api() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let weight = [1.0, 0.0, 2.0];
    let rows = [
        [nan, 1.0, 2.0],
        [1.0, inf, 2.0],
        [-inf; 3],
        [-inf, 1.0, 0.0],
        [1.0, 2.0, -inf],
        [0.5, 1.0, 2.0],
    ];
    for engine in engines() {
        // Batches of one row, so that every loss is checked by itself.
        for row in rows {
            for target in [0, 1, 2, -100] {
                // The default tier runs the last two; `pytorch::` checks special values under the
                // other options.
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
                    let (wanted, gradient) =
                        simple.cross_entropy(&loss, view, &[target]).with_gradient_vec().unwrap();
                    let (x, t) = (engine.buffer(0, &row), engine.buffer(0, &[target]));
                    let (out, summary) = (engine.poisoned(3), engine.poisoned(8));
                    let step = engine
                        .gpu
                        .prepare(Operation::CrossEntropyGrad, [1, 3], DType::F32)
                        .loss(&loss)
                        .build()
                        .unwrap();
                    let buffers =
                        StepBuffers::new(x.slice(..)).targets(t.slice(..)).output(out.slice(..));
                    engine.run(&step, &buffers.loss(summary.slice(..)));
                    let got = f64::from(engine.read::<Summary>(summary.slice(..))[0].loss);
                    let place = format!("{row:?} {target} {loss:?}: {got} for {}", wanted.loss);
                    let same = (got.is_nan() && wanted.loss.is_nan()) || got == wanted.loss;
                    // A bound relative to an infinite value would accept everything.
                    let is_close =
                        wanted.loss.is_finite() && (got - wanted.loss).abs() <= 1e-6 * wanted.loss;
                    assert!(same || is_close, "{place}");
                    for (got, wanted) in engine.read::<f32>(out.slice(..)).iter().zip(&gradient) {
                        let same = got.is_nan() && wanted.is_nan();
                        assert!(
                            same || (got - wanted).abs() <= 1e-6,
                            "{place}: gradient {got} for {wanted}"
                        );
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
            let step = engine
                .gpu
                .prepare(Operation::CrossEntropyGrad, [0, 3], DType::F32)
                .loss(&loss)
                .build()
                .unwrap();
            let buffers = StepBuffers::new(x.slice(..)).in_place().targets(t.slice(..));
            engine.run(&step, &buffers.loss(spare.slice(..)));
            let summary: Summary = engine.read(spare.slice(..))[0];
            assert_eq!((summary.loss.is_nan(), summary.counted_rows), (is_nan, 0));
            assert!(is_nan || summary.loss == 0.0);
        }
    }
}
