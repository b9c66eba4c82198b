//! What only the inside can bring about: small limits, lost devices, adapters without subgroups.

use std::io::Write;

use super::kernels::Kernels;
use super::{Gpu, Opened, adapter};
use crate::job::Op;
use crate::plan::Regime;
use crate::{CrossEntropy, Device, Error, Logits, LogitsMut, Prediction, Reduction};

/// Every adapter, opened anew. Without one the reason is printed, and it is a failure where it was promised.
fn gpus() -> Vec<Gpu> {
    let opened: Vec<_> = adapter::adapters().iter().filter_map(|adapter| Gpu::open(adapter).ok()).collect();
    if opened.is_empty() {
        // Past the capture of the test harness: a skip is to be seen. Nothing is lost where stderr is closed.
        let _ = writeln!(std::io::stderr(), "SKIPPED on a GPU: no adapter");
        assert!(std::env::var("LOGITS_REQUIRE_GPU").map_or(true, |value| value != "1"), "LOGITS_REQUIRE_GPU=1");
    }
    opened
}

fn device(gpu: Gpu, may_fall_back: bool) -> Device {
    Device::on_gpu(Opened { gpu, reason: String::new(), passed_over: Vec::new() }, may_fall_back)
}

fn logits(count: usize) -> Vec<f32> {
    (0..count as u32).map(|x| (x.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-6 - 8.0).collect()
}

#[derive(Debug, PartialEq)]
struct Results {
    elements: Vec<Vec<u32>>,
    rows: Vec<Vec<u32>>,
    predictions: Vec<Prediction>,
    loss: f64,
}

/// Every operation.
fn all(device: &Device, logits: &[f32], shape: [usize; 2]) -> Result<Results, Error> {
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let x = Logits::new(logits, shape)?;
    let targets: Vec<usize> = (0..shape[0]).map(|row| row * 7 % shape[1]).collect();
    let loss = CrossEntropy::default().reduction(Reduction::Sum);
    let (out, gradient) = device.cross_entropy_grad_vec(&loss, x, &targets)?;
    let alone = device.cross_entropy(&loss, x, &targets)?;
    let mut in_place = logits.to_vec();
    device.cross_entropy_grad_in_place(&loss, LogitsMut::new(&mut in_place, shape)?, &targets)?;
    let elements = [device.softmax_vec(x)?.values, device.log_softmax_vec(x)?.values, gradient, in_place];
    let rows = [device.log_sum_exp_vec(x)?.values, out.per_row, alone.per_row];
    Ok(Results {
        elements: elements.iter().map(|values| bits(values)).collect(),
        rows: rows.iter().map(|values| bits(values)).collect(),
        predictions: device.predict_vec(x)?.values,
        loss: out.loss,
    })
}

#[test]
fn subgroups_do_not_change_a_bit() {
    for (with, mut without) in gpus().into_iter().zip(gpus()) {
        if !with.kernels.subgroups {
            let _ = writeln!(std::io::stderr(), "SKIPPED: {} ({}) has no subgroups", with.name(), with.backend());
            continue;
        }
        without.kernels = Kernels::new(&without.device, false);
        let (with, without) = (device(with, false), device(without, false));
        for shape in [[300, 1], [50, 9], [9, 300], [5, 2048], [3, 5000], [2, 140_000]] {
            let logits = logits(shape[0] * shape[1]);
            assert_eq!(all(&with, &logits, shape), all(&without, &logits, shape), "{shape:?} on {with}");
        }
    }
}

#[test]
fn chunks_do_not_change_a_bit() {
    for (whole, mut pieces) in gpus().into_iter().zip(gpus()) {
        // A chunk of a handful of rows, in a grid of three workgroups a line.
        pieces.limits.binding_bytes = 1 << 20;
        pieces.limits.workgroups_per_dimension = 30;
        let (whole, pieces) = (device(whole, false), device(pieces, false));
        for shape in [[90_000, 3], [500, 1000], [70, 5000], [4, 200_000]] {
            let logits = logits(shape[0] * shape[1]);
            assert_eq!(all(&pieces, &logits, shape), all(&whole, &logits, shape), "{shape:?} on {whole}");
        }
    }
}

#[test]
fn a_row_beyond_a_binding_goes_to_the_cpu() {
    for (mut gpu, mut strict) in gpus().into_iter().zip(gpus()) {
        (gpu.limits.binding_bytes, strict.limits.binding_bytes) = (1 << 12, 1 << 12);
        let logits = logits(2000);
        let x = Logits::new(&logits, [1, 2000]).unwrap();
        let out = device(gpu, true).softmax_vec(x).unwrap();
        assert_eq!(out.values, Device::cpu().softmax_vec(x).unwrap().values);
        assert!(out.fell_back.unwrap().contains("8000 bytes"));
        assert!(matches!(device(strict, false).softmax_vec(x), Err(Error::Gpu { .. })));
    }
}

#[test]
fn a_lost_device_costs_nothing() {
    for (gpu, strict) in gpus().into_iter().zip(gpus()) {
        let shape = [40, 50];
        let logits = logits(2000);
        let targets = [3; 40];
        let loss = CrossEntropy::default();
        for gpu in [&gpu, &strict] {
            gpu.device.destroy();
        }
        let (falling, strict) = (device(gpu, true), device(strict, false));

        let mut in_place = logits.clone();
        let error = strict.cross_entropy_grad_in_place(&loss, LogitsMut::new(&mut in_place, shape).unwrap(), &targets);
        assert!(matches!(error, Err(Error::Gpu { .. })), "{error:?}");
        assert_eq!(in_place, logits);

        for _ in 0..2 {
            let mut in_place = logits.clone();
            let x = LogitsMut::new(&mut in_place, shape).unwrap();
            let out = falling.cross_entropy_grad_in_place(&loss, x, &targets).unwrap();
            let wanted =
                Device::cpu().cross_entropy_grad_vec(&loss, Logits::new(&logits, shape).unwrap(), &targets).unwrap();
            assert!(out.fell_back.is_some());
            assert_eq!((out.loss, in_place), (wanted.0.loss, wanted.1));
        }
    }
}

#[test]
fn an_error_of_wgpu_costs_nothing() {
    for gpu in gpus() {
        // wgpu reports it when the commands are finished, and then carries on: results are mapped, but are none.
        gpu.kernels.spoil(&gpu.device, Op::CrossEntropyGrad, Regime::Stream, "stream_row");
        let shape = [3, 5000];
        let logits = logits(15_000);
        let falling = device(gpu, true);
        let mut in_place = logits.clone();
        let x = LogitsMut::new(&mut in_place, shape).unwrap();
        let out = falling.cross_entropy_grad_in_place(&CrossEntropy::default(), x, &[1, 2, 3]).unwrap();
        let x = Logits::new(&logits, shape).unwrap();
        let wanted = Device::cpu().cross_entropy_grad_vec(&CrossEntropy::default(), x, &[1, 2, 3]).unwrap();
        let reason = out.fell_back.unwrap();
        assert!(reason.contains("ipeline"), "{reason}");
        assert_eq!((out.loss, in_place), (wanted.0.loss, wanted.1));
        // The device is as good as before.
        assert_eq!(falling.softmax_vec(x).unwrap().fell_back, None);
    }
}

#[test]
fn idle_buffers_are_bounded_and_used_again() {
    for gpu in gpus() {
        let device = device(gpu, false);
        let crate::device::Place::Gpu(gpu) = device.place() else { unreachable!() };
        let logits = logits(4000);
        device.softmax_vec(Logits::new(&logits, [40, 100]).unwrap()).unwrap();
        let after_one = gpu.pool.idle();
        for _ in 0..50 {
            device.softmax_vec(Logits::new(&logits, [40, 100]).unwrap()).unwrap();
        }
        assert_eq!(gpu.pool.idle(), after_one);
    }
}
