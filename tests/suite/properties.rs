//! Properties of softmax that hold for any logits, on every device.

use approx::{abs_diff_eq, relative_eq};
use logits::{CrossEntropy, Device, Logits, LogitsMut, Reduction};
use proptest::prelude::*;

use crate::common::{self, Share};

/// Widths of rows for GPUs, one for each kind of kernel, because a driver compiles each. The first
/// GPU takes all of them, the others the second and the last.
const ON_GPUS: [usize; 4] = [4, 33, 1, 2049];

/// Returns the CPU and the GPUs that check rows of this width.
fn devices(classes: usize) -> impl Iterator<Item = Device> {
    common::devices().into_iter().filter(move |device| match common::share(device) {
        Share::All => true,
        Share::Pairs => ON_GPUS.contains(&classes),
        Share::Values => classes == ON_GPUS[1] || classes == ON_GPUS[3],
    })
}

/// A shape, its logits and a target for each row.
fn batches() -> impl Strategy<Value = (usize, usize, Vec<f32>, Vec<usize>)> {
    let classes = prop_oneof![
        1_usize..40,
        250_usize..270,
        2040_usize..2060,
        prop::sample::select(&ON_GPUS[..])
    ];
    (1_usize..12, classes).prop_flat_map(|(rows, classes)| {
        let logits = prop::collection::vec(-44.0_f32..44.0, rows * classes);
        (Just(rows), Just(classes), logits, prop::collection::vec(0..classes, rows))
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]

    #[test]
    fn rows_sum_to_one_and_gradients_to_zero((rows, classes, logits, targets) in batches(), smoothing in 0.0_f32..=1.0) {
        let x = Logits::new(&logits, [rows, classes]).unwrap();
        let loss = CrossEntropy::default().reduction(Reduction::Sum).label_smoothing(smoothing);
        for device in devices(classes) {
            let softmax = device.softmax(x).to_vec().unwrap().values;
            let (_, gradient) = device.cross_entropy(&loss, x, &targets).with_gradient_vec().unwrap();
            for (p, g) in softmax.chunks(classes).zip(gradient.chunks(classes)) {
                let sum: f64 = p.iter().map(|&p| f64::from(p)).sum();
                prop_assert!(abs_diff_eq!(sum, 1.0, epsilon = 1e-6), "{sum} on {device}");
                let sum: f64 = g.iter().map(|&g| f64::from(g)).sum();
                prop_assert!(abs_diff_eq!(sum, 0.0, epsilon = 1e-6), "{sum} on {device}");
            }
        }
    }

    #[test]
    fn adding_a_constant_changes_no_more_than_rounding((rows, classes, logits, _) in batches(), shift in -64_i32..64) {
        // Whole numbers over a grid of 1/16, so that the sum is exact.
        let grid: Vec<f32> = logits.iter().map(|x| (x * 16.0).round() / 16.0).collect();
        let moved: Vec<f32> = grid.iter().map(|x| x + shift as f32).collect();
        for device in devices(classes) {
            let one = device.softmax(Logits::new(&grid, [rows, classes]).unwrap()).to_vec().unwrap().values;
            let other = device.softmax(Logits::new(&moved, [rows, classes]).unwrap()).to_vec().unwrap().values;
            for (one, other) in one.iter().zip(&other) {
                prop_assert!(relative_eq!(one, other, epsilon = f32::MIN_POSITIVE, max_relative = 1e-6), "{one} {other} on {device}");
            }
        }
    }

    #[test]
    fn permuting_classes_permutes_results((rows, classes, logits, targets) in batches()) {
        let turned: Vec<f32> = logits.chunks(classes).flat_map(|row| row.iter().rev().copied()).collect();
        let turned_targets: Vec<usize> = targets.iter().map(|target| classes - 1 - target).collect();
        let loss = CrossEntropy::default();
        for device in devices(classes) {
            let (a, x) = device.cross_entropy(&loss, Logits::new(&logits, [rows, classes]).unwrap(), &targets).with_gradient_vec().unwrap();
            let (b, y) =
                device.cross_entropy(&loss, Logits::new(&turned, [rows, classes]).unwrap(), &turned_targets).with_gradient_vec().unwrap();
            prop_assert!(relative_eq!(a.loss, b.loss, max_relative = 1e-6), "{} {} on {device}", a.loss, b.loss);
            for (x, y) in x.chunks(classes).zip(y.chunks(classes)) {
                for (x, y) in x.iter().zip(y.iter().rev()) {
                    prop_assert!(abs_diff_eq!(x, y, epsilon = 1e-6), "{x} {y} on {device}");
                }
            }
        }
    }

    /// The gradient agrees with central differences of the crate's own loss, which the battery
    /// compares with float64.
    #[test]
    fn gradients_are_finite_differences(
        logits in prop::collection::vec(-4.0_f32..4.0, 12),
        targets in prop::collection::vec(0_usize..4, 3),
        at in 0_usize..12,
        smoothing in 0.0_f32..=1.0,
    ) {
        let loss = CrossEntropy::default().upstream_gradient(2.0).label_smoothing(smoothing).z_loss(1e-3);
        let step = 1.0 / 64.0;
        for device in devices(4) {
            let (_, gradient) = device.cross_entropy(&loss, Logits::new(&logits, [3, 4]).unwrap(), &targets).with_gradient_vec().unwrap();
            let moved = |by: f32| {
                let mut moved = logits.clone();
                moved[at] += by;
                let run = f64::from(moved[at]);
                (device.cross_entropy(&loss, Logits::new(&moved, [3, 4]).unwrap(), &targets).loss().unwrap().loss, run)
            };
            let ((up, to), (down, from)) = (moved(step), moved(-step));
            let slope = 2.0 * (up - down) / (to - from);
            // The third derivative of the loss is at most 1/6, which makes an error of 2 * step^2 /
            // 36. The rest of the limit is rounding: two losses of about 8, off by a few 1e-7, over
            // a step.
            prop_assert!(
                abs_diff_eq!(f64::from(gradient[at]), slope, epsilon = 6e-4), "{} {slope} on {device}", gradient[at]
            );
        }
    }

    #[test]
    fn a_row_has_the_same_bits_wherever_it_stands((rows, classes, logits, targets) in batches()) {
        let loss = CrossEntropy::default().reduction(Reduction::Sum);
        for device in devices(classes) {
            let (out, gradient) = device.cross_entropy(&loss, Logits::new(&logits, [rows, classes]).unwrap(), &targets).with_gradient_vec().unwrap();
            let last = &logits[(rows - 1) * classes..];
            let (alone, row) = device.cross_entropy(&loss, Logits::new(last, [1, classes]).unwrap(), &targets[rows - 1..]).with_gradient_vec().unwrap();
            prop_assert_eq!(bits(&row), bits(&gradient[(rows - 1) * classes..]), "{}", device);
            prop_assert_eq!(bits(&alone.per_row), bits(&out.per_row[rows - 1..]), "{}", device);
        }
    }

    #[test]
    fn strides_and_places_do_not_matter((rows, classes, logits, targets) in batches(), gap in 1_usize..9) {
        let stride = classes + gap;
        // The gaps between rows must be neither read nor written.
        let mut padded = vec![f32::NAN; (rows - 1) * stride + classes];
        for (row, x) in padded.chunks_mut(stride).zip(logits.chunks(classes)) {
            row[..classes].copy_from_slice(x);
        }
        let loss = CrossEntropy::default();
        for device in devices(classes) {
            let (out, wanted) = device.cross_entropy(&loss, Logits::new(&logits, [rows, classes]).unwrap(), &targets).with_gradient_vec().unwrap();
            let x = Logits::with_row_stride(&padded, [rows, classes], stride).unwrap();
            let (strided, gradient) = device.cross_entropy(&loss, x, &targets).with_gradient_vec().unwrap();
            prop_assert_eq!(bits(&gradient), bits(&wanted), "{}", device);
            prop_assert_eq!(out.loss.to_bits(), strided.loss.to_bits());

            let mut in_place = padded.clone();
            let x = LogitsMut::with_row_stride(&mut in_place, [rows, classes], stride).unwrap();
            device.cross_entropy(&loss, x, &targets).with_gradient_in_place().unwrap();
            for (row, wanted) in in_place.chunks(stride).zip(wanted.chunks(classes)) {
                prop_assert_eq!(bits(&row[..classes]), bits(wanted), "{}", device);
                prop_assert!(row[classes..].iter().all(|x| x.is_nan()));
            }
        }
    }
}
