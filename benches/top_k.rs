//! The most likely classes: fused, against the ways around it. Every figure from logits that are on the device to the classes
//! and probabilities in host memory; the best of several runs, taken in turn.

#![allow(clippy::unwrap_used)] // a benchmark that cannot run has nothing better to do than to say so

use std::time::{Duration, Instant};

use logits::{Device, Logits, Resident};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const RUNS: usize = 7;
const K: usize = 8;

fn main() {
    let mut devices = vec![Device::cpu()];
    match Device::gpu() {
        Ok(device) => devices.push(device),
        Err(error) => println!("SKIPPED on a GPU: {error}"),
    }
    for device in devices {
        println!("top {K} on {} ({}), ms", device.name(), device.backend());
        println!("{:>14} {:>9} {:>9} {:>16} {:>16}", "shape", "top_k", "softmax", "softmax, select", "softmax, sort");
        for [rows, classes] in [[262_144, 10], [16_384, 1000], [1024, 32_000], [256, 128_256], [8, 262_144]] {
            let mut rng = StdRng::seed_from_u64(7);
            let x: Vec<f32> = (0..rows * classes).map(|_| rng.random_range(-8.0..8.0)).collect();
            let x = device.upload(Logits::new(&x, [rows, classes]).unwrap()).unwrap();
            let [top, softmax, select, sort] = times(&x, classes);
            let shape = format!("{rows}x{classes}");
            println!("{shape:>14} {top:>9.2} {softmax:>9.2} {select:>16.2} {sort:>16.2}");
        }
    }
}

fn times(x: &Resident, classes: usize) -> [f64; 4] {
    let mut best = [Duration::MAX; 4];
    let larger = |p: &[f32], a: &u32, b: &u32| p[*b as usize].total_cmp(&p[*a as usize]).then(a.cmp(b));
    for _ in 0..RUNS {
        let ways: [&dyn Fn() -> u64; 4] = [
            &|| x.top_k(K).unwrap().read().unwrap().iter().map(|top| u64::from(top.class)).sum(),
            &|| x.softmax().unwrap().read().unwrap().len() as u64,
            &|| {
                let p = x.softmax().unwrap().read().unwrap();
                p.chunks(classes)
                    .map(|p| {
                        first(p, |order| {
                            order.select_nth_unstable_by(K - 1, |a, b| larger(p, a, b));
                            order[..K].sort_by(|a, b| larger(p, a, b));
                        })
                    })
                    .sum()
            },
            &|| {
                let p = x.softmax().unwrap().read().unwrap();
                p.chunks(classes).map(|p| first(p, |order| order.sort_by(|a, b| larger(p, a, b)))).sum()
            },
        ];
        for (best, way) in best.iter_mut().zip(ways) {
            let start = Instant::now();
            std::hint::black_box(way());
            *best = start.elapsed().min(*best);
        }
    }
    best.map(|time| time.as_secs_f64() * 1e3)
}

/// The classes in an order of which the first count.
fn first(p: &[f32], into_order: impl FnOnce(&mut [u32])) -> u64 {
    let mut order: Vec<u32> = (0..p.len() as u32).collect();
    into_order(&mut order);
    order[..K].iter().map(|&class| u64::from(class)).sum()
}
