//! The time to upload logits to a GPU, to compute there, and to read the results back: each alone,
//! one part after the other, and as a call does it, with parts in flight at the same time.
//!
//! `cargo bench --bench overlap`

#![allow(clippy::unwrap_used)] // a benchmark that cannot run panics

use std::time::{Duration, Instant};

use logits::{CrossEntropy, Device, DeviceChoice, Logits, Operation, Stopwatch, Targets};

const SHAPE: [usize; 2] = [4096, 8192];
/// Rows of a call that is too small to be cut.
const PART: usize = 256;
const RUNS: usize = 7;

fn main() {
    let adapters = Device::adapters();
    if adapters.is_empty() {
        println!("SKIPPED on a GPU: no adapter");
    }
    for adapter in adapters {
        let choice = DeviceChoice::Named(format!("{}:{}", adapter.backend, adapter.name));
        match Device::open(&choice) {
            Ok(device) => measure(&device),
            Err(error) => println!("SKIPPED: {error}"),
        }
    }
}

fn measure(device: &Device) {
    let [rows, classes] = SHAPE;
    let values: Vec<f32> = (0..rows * classes).map(|x| (x % 61) as f32 * 0.25 - 8.0).collect();
    let x = Logits::new(&values, SHAPE).unwrap();
    let mut out = vec![0.0; values.len()];
    let resident = device.upload(x).unwrap();

    let upload = median(|| drop(device.upload(x).unwrap().read_rows(0..1).unwrap()));
    let (loss, targets) = (CrossEntropy::default(), vec![0_u32; rows]);
    let mut watch =
        Stopwatch::new(device, Operation::Softmax, &loss, x, Targets::from(&targets)).unwrap();
    let compute = median(|| {
        watch.operation().unwrap();
    });
    let read_back = median(|| drop(resident.read().unwrap()));
    let in_turn = median(|| {
        for (x, out) in values.chunks(PART * classes).zip(out.chunks_mut(PART * classes)) {
            device.softmax(Logits::new(x, [PART, classes]).unwrap()).write_to(out).unwrap();
        }
    });
    let together = median(|| drop(device.softmax(x).write_to(&mut out).unwrap()));

    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    println!(
        "{} ({}), softmax of {rows}x{classes}, {} MiB",
        device.name(),
        device.backend(),
        (rows * classes) >> 18
    );
    println!("    upload alone    {}", ms(upload));
    println!("    compute alone   {}", ms(compute));
    println!("    read-back alone {}", ms(read_back));
    println!("    their sum       {}", ms(upload + compute + read_back));
    println!("    parts in turn   {}", ms(in_turn));
    println!(
        "    together        {}, {:.2} of in turn",
        ms(together),
        together.as_secs_f64() / in_turn.as_secs_f64()
    );
}

fn median(mut work: impl FnMut()) -> Duration {
    work();
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[RUNS / 2]
}
