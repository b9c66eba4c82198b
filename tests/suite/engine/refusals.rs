//! Refusals: buffers that cannot be bound, operations that cannot be prepared, targets that are no
//! class; and lifetimes of steps.

use logits::wgpu::{self, BufferUsages};
use logits::{CrossEntropy, DType, Device, Error, Gpu, Operation, Reduction, StepBuffers, Summary};

use super::{Engine, devices, engines, logits, new_engines};

#[test]
fn a_target_that_is_no_class_is_told() {
    for engine in engines() {
        let logits = logits(5 * 4);
        let x = engine.buffer(0, &logits);
        let t = engine.buffer(0, &[0_i32, 3, 4, -7, 1]);
        let (out, rows, summary) = (engine.poisoned(20), engine.poisoned(5), engine.poisoned(8));
        let gradient = engine.poisoned(20);
        let step =
            engine.gpu.prepare(Operation::CrossEntropyGrad, [5, 4], DType::F32).build().unwrap();
        let buffers = StepBuffers::new(x.slice(..)).targets(t.slice(..)).output(gradient.slice(..));
        engine.run(&step, &buffers.rows(rows.slice(..)).loss(summary.slice(..)));
        let summary: Summary = engine.read(summary.slice(..))[0];
        assert!(summary.loss.is_nan());
        assert_eq!((summary.first_invalid_row, summary.counted_rows), (2, 5));
        // No target equals an ignored index that does not fit 32 bits, not even -1.
        let none = CrossEntropy::default().ignore_index(1 << 40).reduction(Reduction::Sum);
        let minus_one = engine.buffer(0, &[0_i32, -1, 0, 0, 0]);
        let loss = engine.poisoned(8);
        let step = engine
            .gpu
            .prepare(Operation::CrossEntropyGrad, [5, 4], DType::F32)
            .loss(&none)
            .build()
            .unwrap();
        let buffers =
            StepBuffers::new(x.slice(..)).targets(minus_one.slice(..)).output(out.slice(..));
        engine.run(&step, &buffers.loss(loss.slice(..)));
        assert_eq!(engine.read::<Summary>(loss.slice(..))[0].first_invalid_row, 1);
        // Several ignored indices, a class and its neighbours; and as many as are allowed.
        let several =
            CrossEntropy::default().ignore_indices([4, 1 << 40, -7, 3]).reduction(Reduction::Sum);
        let step = engine
            .gpu
            .prepare(Operation::CrossEntropyGrad, [5, 4], DType::F32)
            .loss(&several)
            .build()
            .unwrap();
        let buffers = StepBuffers::new(x.slice(..)).targets(t.slice(..)).output(out.slice(..));
        engine.run(&step, &buffers.loss(loss.slice(..)));
        let found: Summary = engine.read(loss.slice(..))[0];
        assert_eq!((found.counted_rows, found.first_invalid_row), (2, u32::MAX));
        let gradient_of: Vec<f32> = engine.read(out.slice(..));
        assert!(gradient_of[4..16].iter().all(|&g| g == 0.0) && gradient_of[0] != 0.0);
        let prepare = |count: i64| {
            let many = CrossEntropy::default()
                .ignore_indices((0..count).map(|index| -index).collect::<Vec<_>>());
            engine
                .gpu
                .prepare(Operation::CrossEntropyGrad, [5, 4], DType::F32)
                .loss(&many)
                .build()
                .map(drop)
        };
        assert_eq!(prepare(16), Ok(()));
        assert_eq!(prepare(17), Err(Error::IgnoredIndices { most: 16, found: 17 }));
        let nan: Vec<bool> =
            engine.read::<f32>(rows.slice(..)).iter().map(|loss| loss.is_nan()).collect();
        assert_eq!(nan, [false, false, true, true, false]);
        let gradient: Vec<f32> = engine.read(gradient.slice(..));
        assert!(
            gradient.iter().enumerate().all(|(at, g)| g.is_nan() == (8..16).contains(&at)),
            "{gradient:?}"
        );
    }
}

/// A step adds weights on the device in f32, so it takes only weights whose sum is in the range of
/// f32.
#[test]
fn weights_that_a_step_cannot_add_are_refused() {
    for engine in engines() {
        let prepare = |loss: &CrossEntropy| {
            engine
                .gpu
                .prepare(Operation::CrossEntropyGrad, [4, 3], DType::F32)
                .loss(loss)
                .build()
                .map(drop)
        };
        for weight in [1e-39, 1e38] {
            let loss = CrossEntropy::default().weight([1.0, weight, 0.0]);
            let error = prepare(&loss).unwrap_err();
            assert!(
                matches!(error, Error::OptionValue { option: "weight", value, .. } if value == weight),
                "{error}"
            );
            prepare(&loss.reduction(Reduction::Sum)).unwrap();
        }
        prepare(&CrossEntropy::default().weight([0.0, 1e-10, 1e10])).unwrap();
    }
}

#[test]
fn buffers_that_do_not_do_are_refused() {
    for engine in engines() {
        let loss = CrossEntropy::default();
        let step = engine
            .gpu
            .prepare(Operation::CrossEntropyGrad, [4, 10], DType::F32)
            .loss(&loss)
            .build()
            .unwrap();
        let big = engine.poisoned(4096);
        let (x, t, g, l) =
            (engine.poisoned(40), engine.poisoned(4), engine.poisoned(40), engine.poisoned(8));
        let good = StepBuffers::new(x.slice(..))
            .targets(t.slice(..))
            .output(g.slice(..))
            .loss(l.slice(..));
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
        refused(
            good.output(g.slice(..156)),
            Error::BufferSize { what: "output", needed: 160, found: 156 },
        );
        refused(
            good.targets(t.slice(..8)),
            Error::BufferSize { what: "targets", needed: 16, found: 8 },
        );
        refused(good.rows(t.slice(..8)), Error::BufferSize { what: "rows", needed: 16, found: 8 });
        refused(good.output(x.slice(..)), Error::BufferOverlap { what: "output", other: "logits" });
        refused(good.rows(g.slice(..)), Error::BufferOverlap { what: "rows", other: "output" });
        refused(good.rows(t.slice(..)), Error::BufferOverlap { what: "rows", other: "targets" });
        refused(
            good.output(big.slice(2..)),
            Error::BufferOffset { what: "output", offset: 2, alignment: 4 },
        );
        refused(
            good.output(big.slice(..160)).rows(big.slice(164..)),
            Error::BufferOffset { what: "rows", offset: 164, alignment: 256 },
        );
        refused(
            good.scratch(big.slice(128..)),
            Error::BufferOffset { what: "scratch", offset: 128, alignment: 256 },
        );
        assert!(
            step.bind(
                &good.output(big.slice(..160)).rows(big.slice(256..512)).scratch(big.slice(512..))
            )
            .is_ok()
        );
        let plain = engine.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 160,
            usage: BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        refused(
            good.output(plain.slice(..)),
            Error::BufferUsage { what: "output", missing: "STORAGE" },
        );

        // Only wgpu finds that a buffer is destroyed.
        let gone = engine.poisoned(40);
        gone.destroy();
        assert!(matches!(
            step.bind(&good.output(gone.slice(..))).map(drop),
            Err(Error::Gpu { .. })
        ));
        assert!(step.bind(&good).is_ok());

        let prepare = |shape: [usize; 2]| {
            engine
                .gpu
                .prepare(Operation::CrossEntropyGrad, shape, DType::F32)
                .loss(&loss)
                .build()
                .map(drop)
        };
        assert_eq!(prepare([3, 0]), Err(Error::ZeroClasses { rows: 3, classes: 0 }));
        assert!(matches!(prepare([usize::MAX, 2]), Err(Error::ShapeTooLarge { .. })));
        let weighted = CrossEntropy::default().weight([1.0, f32::NAN]);
        let refused = engine
            .gpu
            .prepare(Operation::CrossEntropyGrad, [3, 2], DType::F32)
            .loss(&weighted)
            .build()
            .map(drop);
        assert!(matches!(refused, Err(Error::Weight { class: 1, .. })));
    }
}

/// A lost device of the caller is not opened again, and the call returns an error instead of a
/// panic.
#[test]
fn a_device_of_the_callers_that_is_gone_is_told() {
    for engine in new_engines(|_| {}) {
        let x = engine.poisoned(12);
        let step = engine.gpu.prepare(Operation::Softmax, [3, 4], DType::F32).build().unwrap();
        let simple = Device::on(&engine.gpu);
        engine.device.destroy();
        let mut logits = vec![1.0_f32; 12];
        for _ in 0..2 {
            let in_place = logits::LogitsMut::new(&mut logits, [3, 4]).unwrap();
            assert!(matches!(simple.softmax(in_place).in_place(), Err(Error::Gpu { .. })));
            assert_eq!(logits, vec![1.0; 12]);
            let bound = step.bind(&StepBuffers::new(x.slice(..)).in_place());
            assert!(matches!(bound.map(drop), Err(Error::Gpu { .. })));
            let prepared = engine.gpu.prepare(Operation::Predict, [3, 4], DType::F32).build();
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

/// Recording makes no object and no allocation on the device, and handles may be dropped in any
/// order.
#[test]
fn recording_allocates_nothing_and_drops_in_any_order() {
    for engine in new_engines(|_| {}) {
        let logits = logits(64 * 100);
        let x = engine.buffer(0, &logits);
        let t = engine.buffer(0, &[7_u32; 64]);
        let (g, l) = (engine.poisoned(6400), engine.poisoned(8));
        let step =
            engine.gpu.prepare(Operation::CrossEntropyGrad, [64, 100], DType::F32).build().unwrap();
        let buffers = StepBuffers::new(x.slice(..))
            .targets(t.slice(..))
            .output(g.slice(..))
            .loss(l.slice(..));
        let bound = step.bind(&buffers).unwrap();
        let Engine { device, queue, gpu } = engine;
        drop((step, gpu));
        let count = || {
            let hal = device.get_internal_counters().hal;
            [
                hal.buffers.read(),
                hal.bind_groups.read(),
                hal.compute_pipelines.read(),
                hal.buffer_memory.read(),
            ]
        };
        // Wait until the uploads have arrived.
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
