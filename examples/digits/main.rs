//! Trains a classifier of 1,797 real handwritten digits. Every loss and every gradient of the
//! logits comes from this crate, on a GPU if there is one:
//!
//! ```text
//! cargo run --release --example digits            # or: -- cpu, -- gpu, -- NAME
//! ```

use std::error::Error;
use std::io::IsTerminal;

use indicatif::ProgressBar;
use logits::{CrossEntropy, Device, DeviceChoice, Logits, LogitsMut};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

mod data;

const PIXELS: usize = 64;
const HIDDEN: usize = 64;
const CLASSES: usize = 10;
const BATCH: usize = 32;
const EPOCHS: usize = 40;

fn main() -> Result<(), Box<dyn Error>> {
    let choice: DeviceChoice = std::env::args().nth(1).unwrap_or("auto".to_owned()).parse()?;
    let device = Device::open(&choice)?;
    println!("device: {device}");

    // Every fifth digit of a seeded shuffle is held out.
    let digits = data::load()?;
    let mut rng = StdRng::seed_from_u64(1797);
    let mut order: Vec<usize> = (0..digits.len()).collect();
    order.shuffle(&mut rng);
    let image = |&at: &usize| digits[at].pixels;
    let label = |&at: &usize| digits[at].label;
    let (test, train) = order.split_at(digits.len() / 5);
    println!("{} digits to learn from, {} held out", train.len(), test.len());

    let loss = CrossEntropy::default();
    let mut network = Network::new(&mut rng);
    let mut train = train.to_vec();
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(EPOCHS as u64)
    } else {
        ProgressBar::hidden()
    };
    for epoch in 0..EPOCHS {
        train.shuffle(&mut rng);
        let rate = 0.1 * (1.0 - epoch as f32 / EPOCHS as f32);
        let mut sum = 0.0;
        for batch in train.chunks(BATCH) {
            let images: Vec<f32> = batch.iter().flat_map(image).collect();
            let labels: Vec<u32> = batch.iter().map(label).collect();
            let (hidden, mut logits) = network.forward(&images);
            // One fused step computes the loss and overwrites the logits with its gradient.
            let x = LogitsMut::new(&mut logits, [batch.len(), CLASSES])?;
            let out = device.cross_entropy(&loss, x, &labels).with_gradient_in_place()?;
            sum += out.loss * out.counted_rows as f64;
            network.step(&images, &hidden, &logits, rate);
        }
        bar.inc(1);
        if epoch == 0 || (epoch + 1) % 8 == 0 {
            bar.suspend(|| {
                println!("epoch {:>2}: loss {:.4}", epoch + 1, sum / train.len() as f64)
            });
        }
    }
    bar.finish_and_clear();

    let images: Vec<f32> = test.iter().flat_map(image).collect();
    let labels: Vec<u32> = test.iter().map(label).collect();
    let (_, logits) = network.forward(&images);
    let x = Logits::new(&logits, [test.len(), CLASSES])?;
    let predictions = device.predict(x).to_vec()?.values;
    let right = predictions
        .iter()
        .zip(&labels)
        .filter(|(prediction, label)| prediction.class == **label)
        .count();
    let held_out = device.cross_entropy(&loss, x, &labels).loss()?.loss;
    println!(
        "held out: accuracy {:.2} %, loss {held_out:.4}",
        100.0 * right as f64 / test.len() as f64
    );

    // Compares these gradients on a GPU, software if there is no other, and on the CPU.
    let gpu = if device.is_gpu() { Ok(device) } else { Device::gpu() };
    match gpu {
        Err(error) => println!("GPU against CPU: {error}"),
        Ok(gpu) => {
            let (_, on_gpu) = gpu.cross_entropy(&loss, x, &labels).with_gradient_vec()?;
            let (_, on_cpu) = Device::cpu().cross_entropy(&loss, x, &labels).with_gradient_vec()?;
            let largest =
                on_gpu.iter().zip(&on_cpu).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!(
                "GPU against CPU: gradients of {} differ by at most {largest:.1e}",
                gpu.name()
            );
        }
    }
    Ok(())
}

/// Pixels to hidden units to logits, with momentum.
struct Network {
    first: Layer,
    second: Layer,
}

impl Network {
    fn new(rng: &mut StdRng) -> Self {
        Self { first: Layer::new(PIXELS, HIDDEN, rng), second: Layer::new(HIDDEN, CLASSES, rng) }
    }

    fn forward(&self, images: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut hidden = self.first.forward(images);
        hidden.iter_mut().for_each(|unit| *unit = unit.max(0.0));
        let logits = self.second.forward(&hidden);
        (hidden, logits)
    }

    fn step(&mut self, images: &[f32], hidden: &[f32], gradient: &[f32], rate: f32) {
        let mut inner = self.second.backward(gradient);
        for (inner, unit) in inner.iter_mut().zip(hidden) {
            *inner = if *unit > 0.0 { *inner } else { 0.0 };
        }
        self.second.update(hidden, gradient, rate);
        self.first.update(images, &inner, rate);
    }
}

/// y = W x + b for each row of x; the bias is the last column of W.
struct Layer {
    inputs: usize,
    outputs: usize,
    weights: Vec<f32>,
    momentum: Vec<f32>,
}

impl Layer {
    fn new(inputs: usize, outputs: usize, rng: &mut StdRng) -> Self {
        let bound = (3.0 / inputs as f32).sqrt();
        let weights: Vec<f32> =
            (0..outputs * (inputs + 1)).map(|_| rng.random_range(-bound..bound)).collect();
        Self { inputs, outputs, momentum: vec![0.0; weights.len()], weights }
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let rows = x.chunks_exact(self.inputs);
        rows.flat_map(|x| {
            self.weights
                .chunks_exact(self.inputs + 1)
                .map(|w| w[self.inputs] + w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>())
                .collect::<Vec<_>>()
        })
        .collect()
    }

    /// Returns the gradient of the inputs, from that of the outputs.
    fn backward(&self, gradient: &[f32]) -> Vec<f32> {
        let rows = gradient.chunks_exact(self.outputs);
        rows.flat_map(|gradient| {
            let mut inner = vec![0.0; self.inputs];
            for (w, g) in self.weights.chunks_exact(self.inputs + 1).zip(gradient) {
                inner.iter_mut().zip(w).for_each(|(inner, w)| *inner += w * g);
            }
            inner
        })
        .collect()
    }

    fn update(&mut self, x: &[f32], gradient: &[f32], rate: f32) {
        self.momentum.iter_mut().for_each(|momentum| *momentum *= 0.9);
        for (x, gradient) in x.chunks_exact(self.inputs).zip(gradient.chunks_exact(self.outputs)) {
            for (momentum, g) in self.momentum.chunks_exact_mut(self.inputs + 1).zip(gradient) {
                momentum.iter_mut().zip(x).for_each(|(momentum, x)| *momentum += g * x);
                momentum[self.inputs] += g;
            }
        }
        self.weights.iter_mut().zip(&self.momentum).for_each(|(w, momentum)| *w -= rate * momentum);
    }
}
