//! Tests kernels in the shapes that other GPUs than those at hand get, and with the checks that
//! compilers may add.

use half::{bf16, f16};
use logits_check::oracle::Row;
use wgpu::ShaderRuntimeChecks;

use super::*;
use crate::plan::tuning::Vendor;
use crate::{DType, Element, Shape, Tuning};

/// Returns `gpu` with the tuning of hardware with subgroups of 32.
fn like_hardware(gpu: &Gpu) -> Gpu {
    gpu.with_tuning(Tuning::new(32, Vendor::Other)).unwrap()
}

#[test]
fn the_compilers_checks_do_not_change_a_bit() {
    for (bare, checked) in first_gpus().iter().zip(gpus()) {
        checked.altered(|context| context.kernels.checks = ShaderRuntimeChecks::checked());
        let pairs = [
            (bare.clone(), checked.clone()),
            (like_hardware(bare), like_hardware_checked(&checked)),
        ];
        for (tuning, (bare, checked)) in pairs.into_iter().enumerate() {
            let (bare, checked) = (device(&bare, false), device(&checked, false));
            for (nth, shape) in
                shapes_of(tuning, 2, [[2, 140_000], [3, 20_000], [40, 1001], [300, 10]])
            {
                let logits = wide_logits(shape[0] * shape[1]);
                assert_eq!(
                    all(&checked, &logits, shape, nth),
                    all(&bare, &logits, shape, nth),
                    "{shape:?} on {bare}"
                );
            }
        }
    }
}

fn like_hardware_checked(gpu: &Gpu) -> Gpu {
    let tuned = like_hardware(gpu);
    tuned.altered(|context| context.kernels.checks = ShaderRuntimeChecks::checked());
    tuned
}

/// Returns all of them, or by default every `step`th from `first % step` on, so that types and
/// adapters share them.
fn in_turn<T, const N: usize>(all: [T; N], first: usize, step: usize) -> impl Iterator<Item = T> {
    let (first, step) = if tier::is_full() { (0, 1) } else { (first % step, step) };
    all.into_iter().skip(first).step_by(step)
}

/// Rows of whole units, which need no staging.
#[test]
fn workgroup_memory_does_not_change_a_bit() {
    fn same<T: Element<Row = f32>>(
        staged: &Device,
        direct: &Device,
        first: usize,
        narrow: fn(f32) -> T,
    ) {
        for shape in in_turn([[1000, 8], [777, 16], [500, 24], [301, 40], [1, 64]], first, 4) {
            let x: Vec<T> = wide_logits(shape[0] * shape[1]).into_iter().map(narrow).collect();
            let x = Logits::new(&x, shape).unwrap();
            let softmax = |device: &Device| device.softmax(x).to_vec().unwrap().values;
            let (a, b) = (softmax(staged), softmax(direct));
            assert!(
                a == b && a.iter().all(|&p| p.into() >= 0.0),
                "{shape:?} of {} on {staged}",
                T::DTYPE
            );
        }
    }
    let gpus = first_gpus();
    let adapters = gpus.len();
    for (adapter, gpu) in gpus.into_iter().enumerate() {
        let (staged, direct) = (like_hardware(&gpu), like_hardware(&gpu));
        direct.altered(|context| context.limits.tile_bytes = 0);
        let (staged, direct) = (device(&staged, false), device(&direct, false));
        for (nth, shape) in
            shapes_of(adapter, adapters, [[1000, 4], [777, 8], [500, 12], [301, 16], [100, 64]])
        {
            let logits = wide_logits(shape[0] * shape[1]);
            assert_eq!(
                all(&staged, &logits, shape, nth),
                all(&direct, &logits, shape, nth),
                "{shape:?} on {staged}"
            );
        }
        same(&staged, &direct, adapter, f16::from_f32);
        same(&staged, &direct, adapter + 2, bf16::from_f32);
    }
}

/// Neighbouring threads take neighbouring rows, and a row has the same results as in a layout where
/// it is contiguous.
#[test]
fn lanes_across_rows_do_not_change_a_bit() {
    fn same<T: Element<Row = f32>>(device: &Device, first: usize, narrow: fn(f32) -> T) {
        let shapes =
            [(2, 3, 1000), (3, 21, 333), (2, 1000, 40), (1, 1001, 9), (1, 5000, 5), (2, 22, 100)];
        for (outer, classes, inner) in in_turn(shapes, first, 6) {
            let rows = outer * inner;
            let dense: Vec<T> = wide_logits(rows * classes).into_iter().map(narrow).collect();
            let place =
                |row: usize, class: usize| (row / inner * classes + class) * inner + row % inner;
            let mut strided = dense.clone();
            for row in 0..rows {
                for class in 0..classes {
                    strided[place(row, class)] = dense[row * classes + class];
                }
            }
            let targets: Vec<usize> = (0..rows).map(|row| row * 7919 % classes).collect();
            let loss = CrossEntropy::default();
            let run = |x: &[T], shape: Shape| {
                device
                    .cross_entropy(&loss, Logits::new(x, shape).unwrap(), &targets)
                    .with_gradient_vec()
                    .unwrap()
            };
            let (alone, a) = run(&dense, Shape::rows(rows, classes));
            let (across, b) = run(&strided, Shape::new(outer, classes, inner));
            let what = format!("[{outer}, {classes}, {inner}] of {} on {device}", T::DTYPE);
            assert_eq!(bits(&alone.per_row), bits(&across.per_row), "{what}");
            for row in 0..rows {
                for class in 0..classes {
                    assert_eq!(
                        a[row * classes + class],
                        b[place(row, class)],
                        "{what}, row {row}, class {class}"
                    );
                }
            }
        }
    }
    for (adapter, gpu) in gpus().into_iter().enumerate() {
        let device = device(&like_hardware(&gpu), false);
        same(&device, adapter * 3, |x| x);
        same(&device, adapter * 3 + 1, f16::from_f32);
        same(&device, adapter * 3 + 2, bf16::from_f32);
    }
}

/// Compares rows whose width has any remainder by a unit with float64.
#[test]
fn odd_rows_are_right_on_hardware_too() {
    fn right<T: Element<Row = f32>>(
        device: &Device,
        first: usize,
        narrow: fn(f32) -> T,
        unit: f64,
    ) {
        let widths =
            [1, 2, 3, 5, 7, 10, 17, 31, 65, 100, 257, 1001, 131_075, 4001, 8190, 9001, 1022];
        for classes in in_turn(widths, first, 6) {
            let rows = (3000 / classes).max(3);
            let x: Vec<T> = wide_logits(rows * classes).into_iter().map(narrow).collect();
            let softmax =
                device.softmax(Logits::new(&x, [rows, classes]).unwrap()).to_vec().unwrap().values;
            for (row, (x, p)) in x.chunks(classes).zip(softmax.chunks(classes)).enumerate() {
                let exact = Row::new(x);
                for (class, &p) in p.iter().enumerate() {
                    let (p, wanted): (f64, f64) = (p.into(), exact.probability(class));
                    let what = format!(
                        "{rows}x{classes} of {}, row {row}, class {class} on {device}",
                        T::DTYPE
                    );
                    // Subnormals of f16 are multiples of 2^-24; those of other types may be flushed
                    // to 0.
                    let slack =
                        if T::DTYPE == DType::F16 { 6e-8 } else { f64::from(f32::MIN_POSITIVE) };
                    assert!(
                        (p - wanted).abs() <= (2e-6 + unit) * wanted + slack,
                        "{what}: {p} for {wanted}"
                    );
                }
            }
        }
    }
    for (adapter, gpu) in first_gpus().into_iter().enumerate() {
        let device = device(&like_hardware(&gpu), false);
        right(&device, adapter * 3, |x| x, 0.0);
        right(&device, adapter * 3 + 1, f16::from_f32, 4.9e-4);
        right(&device, adapter * 3 + 2, bf16::from_f32, 4e-3);
    }
}

#[test]
fn a_tuning_that_makes_no_kernels_is_refused() {
    let gpus = gpus();
    let adapters = gpus.len();
    for (adapter, gpu) in gpus.into_iter().enumerate() {
        let tuning = Tuning { long_lanes: 3, ..gpu.tuning() };
        let error = gpu.with_tuning(tuning).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no tuning: long_lanes = 3, where it must be a power of two from 4 to 256"
        );
        // The extremes of every number of a tuning.
        for tuning in [
            Tuning {
                subgroup: 1,
                lane_bytes: 32,
                held_classes: 0,
                long_lanes: 4,
                stream_units: 1,
                coalesces: true,
            },
            Tuning {
                subgroup: 256,
                lane_bytes: 512,
                held_classes: 65_536,
                long_lanes: 256,
                stream_units: 16,
                coalesces: false,
            },
        ] {
            let (tuned, plain) =
                (device(&gpu.with_tuning(tuning).unwrap(), false), device(&gpu, false));
            for (_, shape) in
                shapes_of(adapter, adapters, [[300, 10], [5, 2000], [2, 20_000], [1, 140_000]])
            {
                let logits = wide_logits(shape[0] * shape[1]);
                let x = Logits::new(&logits, shape).unwrap();
                let (a, b) = (
                    tuned.softmax(x).to_vec().unwrap().values,
                    plain.softmax(x).to_vec().unwrap().values,
                );
                let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b + f32::MIN_POSITIVE;
                assert!(a.iter().zip(&b).all(is_near), "{shape:?} with {tuning:?}");
            }
        }
    }
}
