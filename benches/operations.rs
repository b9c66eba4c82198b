//! Operations and a plain copy of the same logits, on the CPU and on the best GPU of any kind, data resident there.
//!
//! `logits bench` gives the ratio of the two in one run, which is the figure to quote; this is for watching a change:
//! `cargo bench -- --save-baseline before`, then `--baseline before`.

#![allow(clippy::unwrap_used)] // a benchmark that cannot run has nothing better to do than to say so

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use logits::{CrossEntropy, Device, Logits, Stopwatch, Targets, Timed};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SHAPES: [[usize; 2]; 6] =
    [[262_144, 10], [65_536, 100], [16_384, 1000], [1024, 32_000], [256, 128_256], [8, 262_144]];

fn operations(criterion: &mut Criterion) {
    let mut devices = vec![Device::cpu()];
    match Device::gpu() {
        Ok(device) => devices.push(device),
        Err(error) => println!("SKIPPED on a GPU: {error}"),
    }
    let loss = CrossEntropy::default();
    for device in devices {
        let mut group = criterion.benchmark_group(device.backend());
        group.sample_size(10);
        for shape in SHAPES {
            let [rows, classes] = shape;
            let mut rng = StdRng::seed_from_u64(7);
            let logits: Vec<f32> = (0..rows * classes).map(|_| rng.random_range(-8.0..8.0)).collect();
            let targets: Vec<u32> = (0..rows).map(|_| rng.random_range(0..classes as u32)).collect();
            let x = Logits::new(&logits, shape).unwrap();
            group.throughput(Throughput::Bytes((rows * classes * 4) as u64));
            for timed in [Timed::Softmax, Timed::LogSoftmax, Timed::CrossEntropy, Timed::CrossEntropyGrad] {
                let mut watch = Stopwatch::new(&device, timed, &loss, x, Targets::from(&targets)).unwrap();
                let id = BenchmarkId::new(format!("{timed:?}"), format!("{rows}x{classes}"));
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|count| (0..count).map(|_| watch.operation().unwrap().best()).sum());
                });
                if timed == Timed::Softmax {
                    group.bench_function(BenchmarkId::new("copy", format!("{rows}x{classes}")), |bencher| {
                        bencher.iter_custom(|count| (0..count).map(|_| watch.copy().unwrap().best()).sum());
                    });
                }
            }
        }
    }
}

criterion_group!(benches, operations);
criterion_main!(benches);
