//! Class weights at the ends of the range of f32, whose sums or reciprocals of sums are beyond it.

use half::f16;
use logits::{CrossEntropy, Logits, Reduction};
use logits_check::Options;
use logits_check::oracle::{Expected, Labels};

use crate::common;

/// Four rows of three classes; the last row is ignored.
const LOGITS: [f32; 12] = [0.3, -1.0, 2.0, 0.0, 5.0, 1.5, -2.0, 0.25, 1.0, 1.0, 2.0, 3.0];
const TARGETS: [i64; 4] = [0, 1, 0, -100];

fn cases() -> Vec<Options> {
    let mut cases = Vec::new();
    for unit in [1e-42, 1e-39, 1e-30, 1.0, 1e30, 1e38] {
        // Class 2 is no row's target.
        for weight in [[0.7, 1.0, 0.4], [0.7, 1.0, 0.0], [1e-3, 1.0, 3.0]] {
            let weight = Some(weight.map(|weight: f32| weight * unit).to_vec());
            let plain = Options { weight, reduction: Reduction::Mean, ..Options::default() };
            cases.push(plain.clone());
            cases.push(Options {
                label_smoothing: 0.1,
                z_loss: 1e-2,
                upstream: 3e38,
                ..plain.clone()
            });
            cases.push(Options { reduction: Reduction::Sum, upstream: 0.25, ..plain });
        }
    }
    // Weights are small compared with that of class 2, which counts only under label smoothing, or
    // with each other.
    for weight in [
        [1e-39, 2e-39, 1.0],
        [1e-42, 1e-42, 3e38],
        [1e-35, 1e-35, 3e38],
        [1e-10, 1e38, 0.0],
        [1e-30, 1e12, 1.0],
    ] {
        cases.push(Options {
            weight: Some(weight.to_vec()),
            reduction: Reduction::Mean,
            ..Options::default()
        });
    }
    // Gradients are normal numbers, though the upstream gradient divided by the rows' weight is
    // not.
    let weight = Some(vec![1e20, 2e20, 4e20]);
    cases.push(Options {
        weight,
        upstream: 1e-30,
        reduction: Reduction::Mean,
        ..Options::default()
    });
    let (weight, label_smoothing) = (Some(vec![1e-39, 2e-39, 1.0]), 1e-10);
    cases.push(Options {
        weight,
        label_smoothing,
        reduction: Reduction::Mean,
        ..Options::default()
    });
    cases
}

/// Checks a loss or a gradient: its error is at most 1e-6 of its row's scale, plus the least normal
/// f32.
#[track_caller]
fn assert_near(got: f64, wanted: f64, scale: f64, what: &str) {
    let error = (got - wanted).abs();
    // A value beyond f32 is infinite.
    let is_beyond = wanted.abs() > f64::from(f32::MAX) && got == wanted.signum() * f64::INFINITY;
    let is_near = error <= 1e-6 * scale + f64::from(f32::MIN_POSITIVE);
    assert!(is_near || is_beyond, "{what}: {got:e} for {wanted:e}");
}

#[test]
fn weights_of_any_size_are_right() {
    let rows: Vec<Vec<f64>> =
        LOGITS.chunks(3).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
    let x = Logits::new(&LOGITS, [4, 3]).unwrap();
    for options in cases() {
        let Expected { loss: wanted, per_row, gradients, scale, .. } =
            options.expected(&rows, &TARGETS.map(Labels::Class));
        let loss = options.loss();
        for device in common::devices() {
            let what = format!("weights {:?}, {} on {device}", options.weight, options.brief());
            let resident = device.upload(x).unwrap();
            let targets = device.upload_targets(&loss, [4, 3], &TARGETS).unwrap();
            let (on_device, its_gradient) =
                resident.cross_entropy_with_gradient(&targets).run().unwrap();
            let (out, gradient) =
                device.cross_entropy(&loss, x, &TARGETS).with_gradient_vec().unwrap();
            let reads = [
                (out.loss, out.per_row, gradient),
                (
                    on_device.read().unwrap().loss,
                    on_device.per_row().read().unwrap(),
                    its_gradient.read().unwrap(),
                ),
            ];
            for (reduced, losses, gradient) in reads {
                // A sum of losses that are not normal numbers may not be normal either.
                assert_near(reduced, wanted, wanted.abs(), &what);
                for (row, &loss) in losses.iter().enumerate() {
                    assert_near(
                        loss.into(),
                        per_row[row],
                        per_row[row].abs(),
                        &format!("{what}, row {row}"),
                    );
                }
                for (place, &value) in gradient.iter().enumerate() {
                    let (row, class) = (place / 3, place % 3);
                    // The gradient of a target is the sum of terms that may each be larger than it.
                    assert_near(
                        value.into(),
                        gradients[row][class],
                        scale[row],
                        &format!("{what}, place {place}"),
                    );
                }
            }
        }
    }
}

/// The mean does not change if all weights are multiplied by a number, even if each weight is then
/// subnormal in f32.
#[test]
fn halves_and_f64_are_weighted_too() {
    let halves = LOGITS.map(f16::from_f32);
    let wide = LOGITS.map(f64::from);
    let with = |unit: f32| CrossEntropy::default().weight([unit, 2.0 * unit, 4.0 * unit]);
    let tiny = with(f32::from_bits(1 << 10));
    for device in common::devices() {
        let x = Logits::new(&halves, [4, 3]).unwrap();
        let wanted = device.cross_entropy(&with(1.0), x, &TARGETS).with_gradient_vec().unwrap();
        let got = device.cross_entropy(&tiny, x, &TARGETS).with_gradient_vec().unwrap();
        assert_eq!((got.0.loss, got.1), (wanted.0.loss, wanted.1), "{device}");
        if !device.is_gpu() {
            let x = Logits::new(&wide, [4, 3]).unwrap();
            let wanted = device.cross_entropy(&with(1.0), x, &TARGETS).loss().unwrap().loss;
            assert_eq!(device.cross_entropy(&tiny, x, &TARGETS).loss().unwrap().loss, wanted);
        }
    }
}

/// A target of weight 0 whose logit is -inf: its term of the loss is `0 * inf`. Another class of
/// weight 0 has a term under label smoothing alone.
#[test]
fn a_weight_of_0_at_an_infinity_is_nan_where_it_has_a_term() {
    let x = [0.0, f32::NEG_INFINITY, 1.0];
    for (target, label_smoothing) in [(0, 0.0), (1, 0.0), (0, 0.1), (1, 0.1)] {
        let weight = Some(vec![1.0, 0.0, 1.0]);
        let options = Options { weight, label_smoothing, ..Options::default() };
        let labels = [Labels::Class(target)];
        let wanted = options.expected(&[x.map(f64::from).to_vec()], &labels).per_row[0];
        assert_eq!(wanted.is_nan(), target == 1 || label_smoothing > 0.0);
        for device in common::devices() {
            let x = Logits::new(&x, [1, 3]).unwrap();
            let got = device.cross_entropy(&options.loss(), x, &[target]).loss().unwrap().per_row;
            let got = f64::from(got[0]);
            assert!(
                got.is_nan() && wanted.is_nan() || (got - wanted).abs() <= 1e-6 * wanted,
                "target {target}, smoothing {label_smoothing} on {device}: {got} for {wanted}"
            );
        }
    }
}
