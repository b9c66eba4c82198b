//! Tests that need private access: small limits, faults, adapters without subgroups.

mod faults;
mod hostile;
mod limits;
mod self_test;
mod shapes;
mod targets;
mod variants;
mod verdict;

use pollster::block_on;

use super::{Gpu, Opened, adapter};
use crate::tier::skip;
use crate::{CrossEntropy, Device, Error, Logits, LogitsMut, Prediction, Reduction, tier};

/// Opens every adapter anew. Without one it prints the reason, and fails if one was promised.
fn gpus() -> Vec<Gpu> {
    let adapters = block_on(adapter::adapters());
    let open =
        |adapter| Some(block_on(Gpu::open(adapter)).inspect_err(|error| skip(error)).ok()?.0);
    let opened: Vec<_> = adapters.iter().filter_map(open).collect();
    if opened.is_empty() {
        skip("no adapter");
        assert!(!tier::requires_gpu(), "LOGITS_REQUIRE_GPU=1");
    }
    opened
}

/// Returns every adapter with `LOGITS_FULL=1`, else the first one: for tests that do not depend on
/// the API.
fn first_gpus() -> Vec<Gpu> {
    let mut gpus = gpus();
    gpus.truncate(if tier::is_full() { usize::MAX } else { 1 });
    gpus
}

/// Returns the shapes for adapter or tuning `nth` of `count`, with their places: all of them, or by
/// default every second one if another adapter or tuning takes the others.
fn shapes_of<S, const N: usize>(
    nth: usize,
    count: usize,
    shapes: [S; N],
) -> impl Iterator<Item = (usize, S)> {
    let turns = count.clamp(1, 2);
    shapes
        .into_iter()
        .enumerate()
        .filter(move |(place, _)| tier::is_full() || place % turns == nth % turns)
}

fn device(gpu: &Gpu, may_fall_back: bool) -> Device {
    Device::on_gpu(
        Opened { gpu: gpu.clone(), reason: String::new(), rejected_adapters: Vec::new() },
        may_fall_back,
    )
}

fn logits(count: usize) -> Vec<f32> {
    (0..count as u32).map(|x| (x.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-6 - 8.0).collect()
}

/// Returns the same logits, but every fifth is up to 88 below the largest, and every seventh is
/// next to 0, some of them subnormal.
fn wide_logits(count: usize) -> Vec<f32> {
    let mut logits = logits(count);
    logits.iter_mut().skip(2).step_by(5).for_each(|x| *x -= 71.5);
    logits.iter_mut().skip(3).step_by(7).for_each(|x| *x *= 1e-38);
    logits
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[derive(Debug, Default, PartialEq)]
struct Results {
    elements: Vec<Vec<u32>>,
    rows: Vec<Vec<u32>>,
    predictions: Vec<Prediction>,
    loss: f64,
}

/// Runs every operation; in the default tier, a third of them, chosen by `nth`, because a driver
/// compiles each: the loss and its gradient if `nth % 3` is 0.
fn all(device: &Device, logits: &[f32], shape: [usize; 2], nth: usize) -> Result<Results, Error> {
    let x = Logits::new(logits, shape)?;
    let takes = |third: usize| tier::is_full() || nth % 3 == third;
    let mut results = Results::default();
    if takes(0) {
        let targets: Vec<usize> = (0..shape[0]).map(|row| row * 7919 % shape[1]).collect();
        let loss = CrossEntropy::default().reduction(Reduction::Sum);
        let (out, gradient) = device.cross_entropy(&loss, x, &targets).with_gradient_vec()?;
        let alone = device.cross_entropy(&loss, x, &targets).loss()?;
        let mut in_place = logits.to_vec();
        device
            .cross_entropy(&loss, LogitsMut::new(&mut in_place, shape)?, &targets)
            .with_gradient_in_place()?;
        results.elements.extend([bits(&gradient), bits(&in_place)]);
        results.rows.extend([bits(&out.per_row), bits(&alone.per_row)]);
        results.loss = out.loss;
    }
    if takes(1) {
        results.elements.push(bits(&device.softmax(x).to_vec()?.values));
        results.predictions = device.predict(x).to_vec()?.values;
    }
    if takes(2) {
        results.elements.push(bits(&device.log_softmax(x).to_vec()?.values));
        results.rows.push(bits(&device.log_sum_exp(x).to_vec()?.values));
    }
    Ok(results)
}
