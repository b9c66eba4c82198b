//! An adapter's limits, and how a batch is cut, do not change a bit.

use super::*;
use crate::gpu::pipelines::{Edit, Kernels};
use crate::plan::Plan;

#[test]
fn subgroups_do_not_change_a_bit() {
    for (with, without) in gpus().iter().zip(gpus()) {
        if with.now().kernels.subgroup == 1 {
            skip(&format!("{} ({}) has no subgroups", with.name(), with.backend()));
            continue;
        }
        without.altered(|context| context.kernels = Kernels::new(1));
        let (with, without) = (device(with, false), device(&without, false));
        for (nth, shape) in
            shapes_of(0, 1, [[2, 140_000], [3, 5000], [5, 2048], [9, 300], [50, 9], [300, 1]])
        {
            let logits = wide_logits(shape[0] * shape[1]);
            assert_eq!(
                all(&with, &logits, shape, nth),
                all(&without, &logits, shape, nth),
                "{shape:?} on {with}"
            );
        }
    }
}

/// Returns an edit that makes a module for subgroups one for subgroups of `width` threads that are
/// not neighbours: they exchange values through workgroup memory.
fn as_if_of(width: u32) -> Edit {
    let exchange = "
        var<workgroup> exchanged: array<vec2<u32>, 256>;
        fn exchange(value: vec2<u32>, distance: u32) -> vec2<u32> {
            workgroupBarrier();
            exchanged[thread] = value;
            workgroupBarrier();
            return exchanged[thread ^ distance];
        }";
    let edits = [
        (
            "@builtin(subgroup_size) width: u32,",
            "@builtin(local_invocation_index) index: u32,".to_owned(),
        ),
        ("@builtin(subgroup_id) subgroup: u32,", String::new()),
        ("@builtin(subgroup_invocation_id) within: u32,", String::new()),
        (
            "subgroup * width + within",
            format!("index % (256u / {width}u) * {width}u + index / (256u / {width}u)"),
        ),
        ("group.x, width)", format!("group.x, {width}u)")),
        ("subgroupShuffleXor", "exchange".to_owned()),
    ];
    Box::new(move |text| {
        let edited = edits.iter().fold(text.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from} is not in the text");
            text.replace(from, to)
        });
        edited + exchange
    })
}

/// Tests subgroup sizes that no adapter here has, and subgroups larger than the least that the
/// kernels are made for.
#[test]
fn the_size_of_subgroups_does_not_change_a_bit() {
    let Some(plain) = gpus().into_iter().next() else { return };
    let mut sizes = vec![(4, 4), (32, 8), (64, 64), (16, 16), (128, 128)];
    sizes.truncate(if tier::is_full() { usize::MAX } else { 3 });
    plain.altered(|context| context.kernels = Kernels::new(1));
    for (nth, (width, least)) in sizes.into_iter().enumerate() {
        let sized = gpus().swap_remove(0);
        sized.altered(|context| {
            context.kernels = Kernels::new(least);
            context.kernels.edit = Some(as_if_of(width));
        });
        let (sized, plain) = (device(&sized, false), device(&plain, false));
        for (_, shape) in shapes_of(nth, 2, [[2, 140_000], [9, 300]]) {
            let logits = wide_logits(shape[0] * shape[1]);
            assert_eq!(
                all(&sized, &logits, shape, nth),
                all(&plain, &logits, shape, nth),
                "{shape:?} in {width}s on {plain}"
            );
        }
    }
}

#[test]
fn parts_do_not_change_a_bit() {
    let first = gpus();
    for (adapter, (whole, pieces)) in first.iter().zip(gpus()).enumerate() {
        // A few rows at a time, in a grid of few workgroups a line; and a row of 600,000 classes in
        // three parts.
        pieces.altered(|context| {
            context.limits.binding_bytes = Plan::LEAST_BINDING;
            context.limits.workgroups_per_dimension = 30;
        });
        let (whole, pieces) = (device(whole, false), device(&pieces, false));
        for (nth, shape) in shapes_of(
            adapter,
            first.len(),
            [[4, 200_000], [500, 1000], [70, 5000], [90_000, 3], [2, 600_000]],
        ) {
            let logits = wide_logits(shape[0] * shape[1]);
            assert_eq!(
                all(&pieces, &logits, shape, nth),
                all(&whole, &logits, shape, nth),
                "{shape:?} on {whole}"
            );
        }
    }
}

#[test]
fn staging_does_not_change_a_bit() {
    let (maps, others): (Vec<_>, Vec<_>) =
        gpus().into_iter().zip(gpus()).partition(|(gpu, _)| gpu.now().maps_storage);
    for (gpu, _) in others {
        skip(&format!("{} ({}) maps no storage", gpu.name(), gpu.backend()));
    }
    let adapters = maps.len();
    for (adapter, (mapped, staged)) in maps.into_iter().enumerate() {
        staged.altered(|context| context.maps_storage = false);
        let (mapped, staged) = (device(&mapped, false), device(&staged, false));
        for (nth, shape) in shapes_of(adapter, adapters, [[2, 140_000], [50, 900], [3, 5], [1, 1]])
        {
            let logits = wide_logits(shape[0] * shape[1]);
            assert_eq!(
                all(&mapped, &logits, shape, nth),
                all(&staged, &logits, shape, nth),
                "{shape:?} on {mapped}"
            );
        }
    }
}

#[test]
fn a_small_budget_does_not_change_a_bit() {
    let gpus = gpus();
    let adapters = gpus.len();
    for (adapter, gpu) in gpus.into_iter().enumerate() {
        let whole = device(&gpu, false);
        let poor = whole.clone().with_memory_budget(1);
        for (nth, shape) in shapes_of(adapter, adapters, [[700, 1000], [2, 600_000]]) {
            let logits = wide_logits(shape[0] * shape[1]);
            assert_eq!(
                all(&poor, &logits, shape, nth),
                all(&whole, &logits, shape, nth),
                "{shape:?} on {whole}"
            );
        }
    }
}

/// Logits in several buffers, of which only the first begins at a block of a sum.
#[test]
fn chunks_do_not_change_the_loss() {
    for (whole, pieces) in first_gpus().into_iter().zip(first_gpus()) {
        pieces.altered(|context| context.limits.buffer_bytes = 700 * 3 * 8 + 256);
        for reduction in [Reduction::Sum, Reduction::Mean] {
            let loss = CrossEntropy::default().reduction(reduction).weight([0.3, 1.7, 1e-3]);
            let shape = [5000, 3];
            let logits = logits(shape[0] * shape[1]);
            let x = Logits::new(&logits, shape).unwrap();
            let targets: Vec<usize> = (0..shape[0]).map(|row| row * 7919 % shape[1]).collect();
            let wanted = device(&whole, false).cross_entropy(&loss, x, &targets).loss().unwrap();
            for gpu in [&whole, &pieces] {
                let device = device(gpu, false);
                let on_device = device.upload_targets(&loss, shape, &targets).unwrap();
                let got = device.upload(x).unwrap().cross_entropy(&on_device).run().unwrap();
                assert_eq!(bits(&got.per_row().read().unwrap()), bits(&wanted.per_row));
                let got = got.read().unwrap();
                assert_eq!(got.loss.to_bits(), wanted.loss.to_bits(), "{reduction:?} on {device}");
                assert_eq!(
                    got.perplexity.to_bits(),
                    wanted.perplexity.to_bits(),
                    "{reduction:?} on {device}"
                );
            }
        }
    }
}

/// Watches wgpu's own count from another thread, while far more data than the budget goes through.
#[test]
fn a_call_stays_within_its_budget() {
    const BUDGET: isize = 48 << 20;
    for gpu in gpus() {
        gpu.altered(|context| context.maps_storage = false);
        let memory = || gpu.now().device.get_internal_counters().hal.buffer_memory.read();
        let before = memory();
        if before == 0 {
            skip(&format!("{} ({}) does not count memory", gpu.name(), gpu.backend()));
            continue;
        }
        let device = device(&gpu, false).with_memory_budget(BUDGET as u64);
        for shape in [[4_000_000, 1], [2000, 10_000], [3, 5_000_000]] {
            let logits = logits(shape[0] * shape[1]);
            let targets = vec![0_u32; shape[0]];
            let x = Logits::new(&logits, shape).unwrap();
            let is_done = std::sync::atomic::AtomicBool::new(false);
            let most = std::thread::scope(|scope| {
                let watch = scope.spawn(|| {
                    let mut most = 0;
                    while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                        most = most.max(memory());
                        std::thread::yield_now();
                    }
                    most
                });
                let out = device
                    .cross_entropy(&CrossEntropy::default(), x, &targets)
                    .with_gradient_vec()
                    .unwrap();
                is_done.store(true, std::sync::atomic::Ordering::Relaxed);
                assert_eq!(out.0.fell_back, None);
                watch.join().unwrap()
            });
            // About eight buffers are rounded up to the next MiB each.
            println!("{shape:?}: {} MiB", (most - before) >> 20);
            assert!(most - before <= BUDGET, "{shape:?}: {} MiB", (most - before) >> 20);
            assert!(most - before > 0, "{shape:?}: nothing was seen");
        }
    }
}

#[test]
fn idle_buffers_are_bounded_and_used_again() {
    for gpu in gpus() {
        let device = device(&gpu, false);
        let logits = logits(4000);
        let x = Logits::new(&logits, [40, 100]).unwrap();
        device.softmax(x).to_vec().unwrap();
        let after_one = gpu.now().pool.idle();
        for _ in 0..50 {
            device.softmax(x).to_vec().unwrap();
        }
        assert_eq!(gpu.now().pool.idle(), after_one);
        device.with_memory_budget(0).softmax(x).to_vec().unwrap();
        assert_eq!(gpu.now().pool.idle(), (0, 0));
    }
}

/// wgpu counts objects and bytes over calls of ever-changing shapes.
#[test]
fn calls_leave_nothing() {
    let calls = if tier::is_full() { 10_000_usize } else { 1_500 };
    for gpu in gpus() {
        let device = device(&gpu, false).with_memory_budget(8 << 20);
        let logits = logits(300 * 40);
        let counters = || {
            let counters = gpu.now().device.get_internal_counters().hal;
            (counters.buffers.read(), counters.bind_groups.read(), counters.buffer_memory.read())
        };
        let mut most = (0, 0, 0);
        for call in 0..calls {
            // Sizes change with each call, but there are few widths, because each needs its
            // kernels.
            let shape = [1 + call * 31 % 300, [3, 10, 40][call / 3 % 3]];
            let x = Logits::new(&logits[..shape[0] * shape[1]], shape).unwrap();
            match call % 3 {
                0 => drop(device.softmax(x).to_vec().unwrap()),
                1 => drop(device.predict(x).to_vec().unwrap()),
                _ => drop(
                    device
                        .cross_entropy(&CrossEntropy::default(), x, &vec![0; shape[0]])
                        .loss()
                        .unwrap(),
                ),
            }
            let now = counters();
            if call < calls / 3 {
                most = (most.0.max(now.0), most.1.max(now.1), most.2.max(now.2));
            } else {
                assert!(
                    now.0 <= most.0 + 8 && now.1 <= most.1 + 8 && now.2 <= most.2 + (1 << 20),
                    "{call}: {now:?} {most:?}"
                );
            }
        }
    }
}
