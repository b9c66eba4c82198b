//! Faults: whatever happens to the GPU, a call that may fall back has the right answer and says
//! why, one that may not has a typed error and intact logits, and the next call works.

use std::time::Duration;

use half::f16;

use super::*;
use crate::gpu::pipelines::{Fit, Kernel, TargetKind, TransformKind};
use crate::gpu::pool::{Sabotage, destroy};
use crate::ops::Op;
use crate::plan::{Access, Entry, Kind, Strategy};
use crate::{DType, Targets};

/// A fault, how to inject it, and the call that meets it.
struct Fault {
    name: &'static str,
    injected: &'static str,
    /// Injects the fault into a device before a call.
    inject: fn(&Gpu),
    /// Text that the reason must contain.
    reason: &'static str,
    settings: fn(Device) -> Device,
    shape: [usize; 2],
}

const FAULTS: [Fault; 5] = [
    Fault {
        name: "device lost during the call",
        injected: "Device::destroy at its second allocation",
        inject: |gpu| sabotage(gpu, |sabotage| sabotage.destroy_after = Some(1)),
        reason: "lost",
        settings: |device| device,
        shape: [3, 5000],
    },
    Fault {
        name: "validation error",
        injected: "a pipeline without entry point",
        inject: |gpu| {
            let context = gpu.now();
            for in_place in [false, true] {
                let kernel = Kernel {
                    op: Op::CrossEntropyGrad,
                    strategy: Strategy {
                        kind: Kind::Online,
                        lanes: context.limits.tuning.long_lanes,
                        units: 4,
                    },
                    dtype: DType::F32,
                    in_place,
                    strided: false,
                    access: Access::Direct,
                    units: 4,
                    stripe: context.limits.tuning.subgroup,
                    fit: Fit { wide: true, aligned: true, whole: true, even: true },
                    classes: 0,
                    segment: 0,
                    long_lanes: context.limits.tuning.long_lanes,
                    flags: 0,
                    target_kind: TargetKind::Classes,
                    z_loss: false,
                    transform: TransformKind::Identity,
                    read_write: false,
                };
                context.kernels.spoil(&context.device, kernel, Entry::Online);
            }
        },
        reason: "ipeline",
        settings: |device| device,
        shape: [3, 20_000],
    },
    Fault {
        name: "out of memory",
        injected: "an allocator that refuses all",
        inject: |gpu| sabotage(gpu, |sabotage| sabotage.refuse_above = Some(0)),
        reason: "no memory",
        settings: |device| device,
        shape: [3, 5000],
    },
    Fault {
        name: "panic in a callback",
        injected: "on_submitted_work_done of the caller",
        inject: |gpu| {
            let context = gpu.now();
            context.queue.submit([]);
            context.queue.on_submitted_work_done(|| panic!("the caller's own"));
        },
        reason: "the caller's own",
        settings: |device| device,
        shape: [3, 5000],
    },
    Fault {
        name: "poll times out",
        injected: "a timeout of 0",
        inject: |_| {},
        reason: "time allowed",
        settings: |device| device.with_timeout(Duration::ZERO),
        // Enough logits that the call is not done when it is first polled.
        shape: [3, 3_000_000],
    },
];

fn sabotage(gpu: &Gpu, change: impl FnOnce(&mut Sabotage)) {
    change(&mut gpu.now().pool.sabotage.lock().unwrap());
}

#[test]
fn every_fault_costs_nothing() {
    println!(
        "| fault | injected | the call returned | explicit GPU | the next call |\n|---|---|---|---|---|"
    );
    for Fault { name, injected, inject, reason, settings, shape } in FAULTS {
        for (gpu, strict) in gpus().iter().zip(gpus()) {
            if name == "poll times out" && gpu.backend() == "gl" {
                skip("GL has done everything when it returns, so nothing can time out");
                continue;
            }
            let logits = logits(shape[0] * shape[1]);
            let targets = [1, 2, 3];
            let loss = CrossEntropy::default();
            let x = Logits::new(&logits, shape).unwrap();
            let wanted =
                Device::cpu().cross_entropy(&loss, x, &targets).with_gradient_vec().unwrap();
            // An earlier call has pooled buffers and made pipelines.
            for gpu in [gpu, &strict] {
                device(gpu, false).cross_entropy(&loss, x, &targets).with_gradient_vec().unwrap();
                gpu.now().pool.clear();
            }

            inject(gpu);
            let falling = settings(device(gpu, true));
            let mut in_place = logits.clone();
            let x_mut = LogitsMut::new(&mut in_place, shape).unwrap();
            let out =
                falling.cross_entropy(&loss, x_mut, &targets).with_gradient_in_place().unwrap();
            let Some(why) = out.fell_back else {
                assert!(
                    name == "poll times out" && gpu.tuning().coalesces,
                    "{name} on {falling} went unnoticed"
                );
                skip(
                    "the GPU has done each part by the time that it is waited for, so nothing times out",
                );
                continue;
            };
            assert!(why.contains(reason), "{name} on {falling}: {why}");
            // The GPU computed the rows that were done before the fault, so bits may differ.
            approx::assert_relative_eq!(out.loss, wanted.0.loss, max_relative = 1e-6);
            let far = in_place
                .iter()
                .zip(&wanted.1)
                .find(|(a, b)| !approx::abs_diff_eq!(a, b, epsilon = 1e-6));
            assert_eq!(far, None, "{name} on {falling}");

            inject(&strict);
            let explicit = settings(device(&strict, false));
            let mut in_place = logits.clone();
            let x_mut = LogitsMut::new(&mut in_place, shape).unwrap();
            let error = explicit
                .cross_entropy(&loss, x_mut, &targets)
                .with_gradient_in_place()
                .unwrap_err();
            assert!(
                matches!(&error, Error::Gpu { reason: why, .. } if why.contains(reason)),
                "{name}: {error}"
            );
            assert_eq!(in_place, logits, "{name} on {explicit}");

            // The next call succeeds.
            for gpu in [gpu, &strict] {
                sabotage(gpu, |sabotage| *sabotage = Sabotage::default());
                let next = device(gpu, false)
                    .cross_entropy(&loss, x, &targets)
                    .with_gradient_vec()
                    .unwrap();
                assert_eq!(next.0.fell_back, None);
                approx::assert_relative_eq!(next.0.loss, wanted.0.loss, max_relative = 1e-6);
            }
            println!(
                "| {name} ({}) | {injected} | right, from the CPU: \"{why}\" | {error}; logits intact | on the GPU |",
                gpu.backend()
            );
        }
    }
}

#[test]
fn memory_that_is_short_makes_parts_smaller() {
    for gpu in gpus() {
        let shape = [600, 10_000];
        let logits = logits(shape[0] * shape[1]);
        let x = Logits::new(&logits, shape).unwrap();
        let explicit = device(&gpu, false);
        let wanted = explicit.softmax(x).to_vec().unwrap();
        assert_eq!(wanted.fell_back, None);
        gpu.now().pool.clear();
        sabotage(&gpu, |sabotage| sabotage.refuse_above = Some(3 << 20));
        let out = explicit.softmax(x).to_vec().unwrap();
        assert_eq!(out.values, wanted.values);
        let why = out.fell_back.unwrap();
        assert!(why.contains("no memory for") && why.contains("in parts of"), "{why}");

        // In place, logits that are not done yet are intact when a part of them fails.
        let mut in_place = logits.clone();
        explicit.softmax(LogitsMut::new(&mut in_place, shape).unwrap()).in_place().unwrap();
        assert_eq!(in_place, wanted.values);
    }
}

/// The GPU is lost between two parts of one call: it computed the first rows, and the CPU computes
/// the others.
#[test]
fn a_call_is_finished_from_where_it_broke() {
    for (falling, explicit) in gpus().iter().zip(gpus()) {
        let shape = [2000, 1000];
        let logits = logits(shape[0] * shape[1]);
        let x = Logits::new(&logits, shape).unwrap();
        let on_gpu = device(falling, false).softmax(x).to_vec().unwrap().values;
        let on_cpu = Device::cpu().softmax(x).to_vec().unwrap().values;

        // Parts of 1 MiB; the fourth finds no memory at all, nor do the smaller ones after it.
        for gpu in [falling, &explicit] {
            gpu.now().pool.clear();
            sabotage(gpu, |sabotage| sabotage.refuse_after = Some(12));
        }
        let mut in_place = logits.clone();
        let falling = device(falling, true).with_memory_budget(1);
        let out =
            falling.softmax(LogitsMut::new(&mut in_place, shape).unwrap()).in_place().unwrap();
        assert!(out.fell_back.is_some());
        let from_gpu =
            in_place.chunks(1000).zip(on_gpu.chunks(1000)).take_while(|(a, b)| a == b).count();
        assert!(from_gpu > 0 && from_gpu < shape[0], "{from_gpu} rows");
        assert_eq!(in_place[from_gpu * 1000..], on_cpu[from_gpu * 1000..]);

        let mut in_place = logits.clone();
        let explicit = device(&explicit, false).with_memory_budget(1);
        explicit.softmax(LogitsMut::new(&mut in_place, shape).unwrap()).in_place().unwrap_err();
        assert_eq!(in_place, logits);
    }
}

/// Probabilities in f32 are wider than 16-bit logits, so logits that fit one part may need two.
/// Whichever allocation fails, the logits are intact.
#[test]
fn a_second_part_that_fails_leaves_logits_in_place_intact() {
    let shape = [512, 1024];
    let halves: Vec<f16> = logits(shape[0] * shape[1]).into_iter().map(f16::from_f32).collect();
    let soft = vec![1.0 / 1024.0; halves.len()];
    let (loss, targets) = (CrossEntropy::default(), Targets::probabilities(&soft));
    for gpu in first_gpus() {
        let device = device(&gpu, false);
        let x = Logits::new(&halves, shape).unwrap();
        let wanted = device.cross_entropy(&loss, x, targets).with_gradient_vec().unwrap().1;
        let mut failed = 0;
        for allowed in 0..20 {
            gpu.now().pool.clear();
            sabotage(&gpu, |sabotage| {
                *sabotage = Sabotage { refuse_after: Some(allowed), ..Sabotage::default() }
            });
            let mut in_place = halves.clone();
            let x_mut = LogitsMut::new(&mut in_place, shape).unwrap();
            match device.cross_entropy(&loss, x_mut, targets).with_gradient_in_place() {
                Ok(_) => assert!(in_place == wanted, "{allowed} allocations"),
                Err(error) => {
                    failed += 1;
                    assert!(in_place == halves, "{allowed} allocations: {error}");
                }
            }
        }
        assert!(failed > 0);
    }
}

/// Rows are longer than the memory that is left. A row of which a piece has been overwritten is not
/// read as logits again.
#[test]
fn rows_in_place_are_not_cut_where_memory_is_short() {
    let shape = [2, 700_001];
    let logits = logits(shape[0] * shape[1]);
    let wanted =
        Device::cpu().softmax(Logits::new(&logits, shape).unwrap()).to_vec().unwrap().values;
    for gpu in first_gpus() {
        for allowed in 0..16 {
            gpu.now().pool.clear();
            let refuse = Sabotage {
                refuse_above: Some(2 << 20),
                refuse_after: Some(allowed),
                ..Sabotage::default()
            };
            sabotage(&gpu, |sabotage| *sabotage = refuse);
            let mut in_place = logits.clone();
            device(&gpu, true)
                .softmax(LogitsMut::new(&mut in_place, shape).unwrap())
                .in_place()
                .unwrap();
            let near = |(a, b): &(&f32, &f32)| {
                approx::relative_eq!(**a, **b, epsilon = 0.0, max_relative = 2e-6)
            };
            let far = in_place.iter().zip(&wanted).find(|pair| !near(pair));
            assert_eq!(far, None, "{allowed} allocations");
        }
    }
}

/// An invalid buffer must not return from the pool.
#[test]
fn a_refused_buffer_is_not_used_again() {
    for gpu in gpus() {
        let device = device(&gpu, false);
        let values = [1.0_f32, 2.0, 3.0];
        let x = Logits::new(&values, [1, 3]).unwrap();
        sabotage(&gpu, |sabotage| sabotage.spoil_next = true);
        assert!(matches!(device.upload(x).map(drop), Err(Error::Gpu { .. })));
        assert_eq!(device.upload(x).unwrap().read().unwrap(), values);
    }
}

/// A process that was forked after the GPU was opened gets an error, or the CPU.
#[test]
fn a_forked_process_does_not_use_the_gpu() {
    for gpu in gpus() {
        gpu.altered(|context| context.process += 1);
        let x = Logits::new(&[1.0_f32, 2.0, 3.0], [1, 3]).unwrap();
        let error = device(&gpu, false).softmax(x).to_vec().unwrap_err();
        assert!(error.to_string().contains("forked"), "{error}");
        let out = device(&gpu, true).softmax(x).to_vec().unwrap();
        assert!(out.fell_back.is_some_and(|why| why.contains("forked")));
        assert_eq!(out.values, Device::cpu().softmax(x).to_vec().unwrap().values);
    }
}

#[test]
fn a_device_lost_before_a_call_is_opened_again() {
    for gpu in gpus() {
        let device = device(&gpu, false);
        let x = Logits::new(&[1.0_f32, 2.0, 3.0], [1, 3]).unwrap();
        let before = device.softmax(x).to_vec().unwrap();
        destroy(&gpu.now().device);
        assert_eq!(device.softmax(x).to_vec().unwrap(), before);
    }
}

#[test]
fn resident_data_is_lost_with_its_device() {
    for gpu in gpus() {
        let device = device(&gpu, true);
        let x = Logits::new(&[1.0_f32, 2.0, 3.0], [1, 3]).unwrap();
        let before = device.upload(x).unwrap();
        let targets = device.upload_targets(&CrossEntropy::default(), [1, 3], &[0]).unwrap();
        destroy(&gpu.now().device);
        assert!(matches!(before.softmax().run().map(drop), Err(Error::Gpu { .. })));
        assert!(matches!(before.read(), Err(Error::Gpu { .. })));
        let after = device.upload(x).unwrap();
        assert_eq!(after.read().unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(after.cross_entropy(&targets).run().map(drop), Err(Error::ResidentElsewhere));
    }
}
