//! Times `logits` and Burn on the same adapter, in turn, by the wall clock, and prints one JSON
//! object for each operation and shape.
//!
//! Both work on logits that are on the device already, and wait until the device is done. Burn's
//! loss is the mean that its `CrossEntropyLoss` computes, read back as one number; its gradient is
//! autodiff's of that.

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{self, DeviceKind, Int, Tensor, TensorData, activation};
use clap::Parser;
use logits::{CrossEntropy, Device, DeviceChoice, Logits, Stopwatch, Targets, Operation};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

const SHAPES: [[usize; 2]; 6] =
    [[262_144, 10], [65_536, 100], [16_384, 1000], [1024, 32_000], [256, 128_256], [8, 262_144]];

#[derive(Parser)]
struct Arguments {
    /// The adapter of logits; Burn takes wgpu's default, so name that one
    #[arg(long, default_value = "gpu")]
    device: DeviceChoice,
    /// Measurements of each, of which the median is printed
    #[arg(long, default_value_t = 7)]
    runs: usize,
}

fn median(runs: usize, mut run: impl FnMut() -> Result<Duration, Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    // The first runs compile, tune and touch fresh pages.
    for _ in 0..3 {
        run()?;
    }
    let mut times = (0..runs.max(1)).map(|_| run()).collect::<Result<Vec<_>, _>>()?;
    times.sort();
    Ok(times[times.len() / 2].as_secs_f64() * 1e3)
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { device, runs } = Arguments::parse();
    let device = Device::open(&device)?;
    let loss = CrossEntropy::default();
    for shape in SHAPES {
        let [rows, classes] = shape;
        let mut rng = StdRng::seed_from_u64(classes as u64);
        let logits: Vec<f32> = (0..rows * classes).map(|_| rng.random_range(-5.0_f32..5.0)).collect();
        let targets: Vec<i32> = (0..rows).map(|_| rng.random_range(0..classes as i32)).collect();
        for (op, timed) in [
            ("softmax", Operation::Softmax),
            ("cross_entropy", Operation::CrossEntropy),
            ("cross_entropy_grad", Operation::CrossEntropyGrad),
        ] {
            let mut watch =
                Stopwatch::new(&device, timed, &loss, Logits::new(&logits, shape)?, Targets::from(&targets))?;
            let ours = median(runs, || Ok(watch.operation()?.wall))?;
            let copy = median(runs, || Ok(watch.copy()?.wall))?;
            drop(watch);
            let burn = burn_ms(op, &logits, &targets, shape, runs)?;
            println!(
                "{}",
                json!({
                    "op": op, "rows": rows, "classes": classes, "dtype": "f32", "device": device.name(),
                    "logits_ms": ours, "copy_ms": copy, "burn_wgpu_ms": burn, "times_faster": burn / ours,
                })
            );
        }
    }
    Ok(())
}

fn burn_ms(
    op: &str,
    logits: &[f32],
    targets: &[i32],
    [rows, classes]: [usize; 2],
    runs: usize,
) -> Result<f64, Box<dyn Error>> {
    let plain = tensor::Device::wgpu(DeviceKind::DefaultDevice);
    let device = if op == "cross_entropy_grad" { plain.autodiff() } else { plain };
    let x = Tensor::<2>::from_data(TensorData::new(logits.to_vec(), [rows, classes]), &device);
    let y = Tensor::<1, Int>::from_data(TensorData::new(targets.to_vec(), [rows]), &device);
    let loss = CrossEntropyLossConfig::new().init(&device);
    let x = if op == "cross_entropy_grad" { x.require_grad() } else { x };
    device.sync()?;
    median(runs, || {
        let start = Instant::now();
        match op {
            "softmax" => {
                black_box(activation::softmax(x.clone(), 1));
            }
            "cross_entropy" => {
                black_box(loss.forward(x.clone(), y.clone()).into_scalar::<f32>());
            }
            _ => {
                let gradients = loss.forward(x.clone(), y.clone()).backward();
                black_box(x.grad(&gradients));
            }
        }
        device.sync()?;
        Ok(start.elapsed())
    })
}
