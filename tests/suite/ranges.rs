//! Compares logits at the ends of the range of f32, and where the arithmetic changes, with float64.

use logits::{CrossEntropy, Device, Logits, Reduction};
use logits_check::Options;
use logits_check::oracle::{Expected, Labels, Row, transformed};

use crate::common;

/// A row of logits with its target, and options under which it was once wrong or may become so.
struct Case {
    name: &'static str,
    row: Vec<f32>,
    target: i64,
    options: Options,
}

fn cases() -> Vec<Case> {
    let plain = Options::default;
    let two = |a: f32, b: f32| vec![a, b];
    // Steps of a sixteenth below the largest logit, which comes last.
    let below =
        |top: f32| (0..100_u16).rev().map(|nth| top - f32::from(nth) / 16.0).collect::<Vec<_>>();
    let mut weight = vec![1e-3; 2];
    weight[1] = 0.5;
    // All but the last are 0.77 lower, on the other side of -256, where differences are computed in
    // another way.
    let mut across = vec![-256.195_92; 32_000];
    across[31_999] = -255.424_94;
    let mut across_up = vec![255.424_94; 32_000];
    across_up[31_999] = 256.195_92;
    vec![
        Case { name: "a maximum across -256", row: across, target: 5, options: plain() },
        Case { name: "a maximum across 256", row: across_up, target: 31_999, options: plain() },
        Case {
            name: "a cap of 1000",
            row: below(700.0),
            target: 7,
            options: Options { softcap: Some(1000.0), ..plain() },
        },
        Case {
            name: "a cap of 10000, and smoothing",
            row: below(-9000.0),
            target: 99,
            options: Options { softcap: Some(1e4), label_smoothing: 0.1, ..plain() },
        },
        Case {
            name: "a confident row under a cap",
            row: two(44.8, 0.0),
            target: 0,
            options: Options { softcap: Some(40.0), ..plain() },
        },
        Case {
            name: "equal logits under a cap, and smoothing",
            row: vec![0.0; 100],
            target: 3,
            options: Options { softcap: Some(30.0), label_smoothing: 0.1, ..plain() },
        },
        Case {
            name: "logits further apart than f32 reaches, and a small weight",
            row: two(3e38, -3e38),
            target: 1,
            options: Options { weight: Some(vec![0.5, 1e-3]), ..plain() },
        },
        Case {
            name: "the same, smoothed",
            row: two(-3e38, 3e38),
            target: 0,
            options: Options { weight: Some(weight), label_smoothing: 1e-3, ..plain() },
        },
        Case {
            name: "the same, scaled",
            row: two(3e38, -3e38),
            target: 1,
            options: Options { logit_scale: 1e-9, ..plain() },
        },
        Case {
            name: "a log-sum-exp whose square is no f32",
            row: two(1e20, 1e20),
            target: 0,
            options: Options { z_loss: 1e-30, ..plain() },
        },
    ]
}

#[test]
fn extreme_rows_agree_with_float64() {
    for device in common::devices() {
        // A second GPU takes every second case.
        let step = if common::share(&device) == common::Share::Values { 2 } else { 1 };
        for Case { name, row, target, options } in cases().into_iter().step_by(step) {
            let wide = row.iter().map(|&x| f64::from(x)).collect();
            let Expected { per_row, gradients, scale, .. } =
                options.expected(&[wide], &[Labels::Class(target)]);
            let x = Logits::new(&row, [1, row.len()]).unwrap();
            let loss = options.loss();
            let alone = device.cross_entropy(&loss, x, &[target]).loss().unwrap().per_row[0];
            let (out, gradient) =
                device.cross_entropy(&loss, x, &[target]).with_gradient_vec().unwrap();
            for got in [alone, out.per_row[0]].map(f64::from) {
                let error = (got / per_row[0] - 1.0).abs();
                assert!(error <= 1e-6, "{name} on {device}: loss {got:e} for {:e}", per_row[0]);
            }
            for (class, (&got, &wanted)) in gradient.iter().zip(&gradients[0]).enumerate() {
                let error = (f64::from(got) - wanted).abs() / scale[0];
                assert!(
                    error <= 1e-6,
                    "{name} on {device}: gradient of class {class} {got:e} for {wanted:e}"
                );
            }
        }
    }
}

/// `exp(x - log-sum-exp)` of each class within 2e-6, as long as it is a normal f32.
#[test]
fn probabilities_across_256_are_right() {
    for device in common::devices() {
        for Case { name, row, .. } in cases().into_iter().take(2) {
            let exact = Row::new(&row);
            let got =
                device.softmax(Logits::new(&row, [1, row.len()]).unwrap()).to_vec().unwrap().values;
            for (class, &p) in got.iter().enumerate() {
                let wanted = exact.probability(class);
                let error = (f64::from(p) / wanted - 1.0).abs();
                assert!(error <= 2e-6, "{name} on {device}: class {class} {p:e} for {wanted:e}");
            }
        }
    }
}

/// The difference of two logits under a cap comes from the last terms of a series; the smallest
/// probabilities show its error first.
#[test]
fn probabilities_under_a_large_cap_are_right() {
    let cap = 1e4_f32;
    let row: Vec<f32> = (0..100_u16).map(|nth| 1733.0 - 0.8 * f32::from(nth)).collect();
    let y: Vec<f64> = row.iter().map(|&x| transformed(x.into(), 1.0, Some(cap.into())).0).collect();
    let exact = Row::new(&y);
    let loss = CrossEntropy::default().softcap(cap);
    for device in common::devices() {
        let x = Logits::new(&row, [1, row.len()]).unwrap().as_seen_by(&loss).unwrap();
        let got = device.softmax(x).to_vec().unwrap().values;
        for (class, &p) in got.iter().enumerate() {
            let wanted = exact.probability(class);
            let error = (f64::from(p) / wanted - 1.0).abs();
            assert!(error <= 2e-6, "class {class} on {device}: {p:e} for {wanted:e}");
        }
    }
}

/// A masked class has the probability 0 in a backward too, at any temperature.
#[test]
fn a_masked_class_is_masked_from_a_known_log_sum_exp() {
    let (row, loss) =
        ([1.0, f32::NEG_INFINITY, -0.5, 3.0], CrossEntropy::default().reduction(Reduction::Sum));
    for device in common::devices() {
        let x = Logits::new(&row, [1, 4]).unwrap().temperature(2.0).unwrap();
        let known = Device::cpu().log_sum_exp(x).to_vec().unwrap().values;
        let got = device.cross_entropy_backward(&loss, x, &[0], &known).to_vec().unwrap().values;
        let wanted =
            Device::cpu().cross_entropy_backward(&loss, x, &[0], &known).to_vec().unwrap().values;
        assert_eq!(got[1], 0.0, "{device}: {got:?}");
        let is_near = got.iter().zip(&wanted).all(|(a, b)| (a - b).abs() <= 1e-6);
        assert!(is_near, "{device}: {got:?} for {wanted:?}");
    }
}

/// A NaN in the results of the forward operation, or in the gradients, makes its row NaN and no
/// other.
#[test]
fn a_nan_makes_nan_of_its_row_alone_on_the_way_back() {
    let backward = |device: &Device, log: bool, y: &[f32], g: &[f32]| {
        let y = Logits::new(y, [3, 5]).unwrap();
        let out = if log {
            device.log_softmax_backward(y, g).to_vec()
        } else {
            device.softmax_backward(y, g).to_vec()
        };
        out.unwrap().values
    };
    for device in common::devices() {
        for log in [false, true] {
            let y: Vec<f32> = (0..15_u8)
                .map(|j| if log { -f32::from(j % 5) } else { f32::from(j % 5) / 10.0 })
                .collect();
            let g: Vec<f32> = (0..15_u8).map(|j| f32::from(j) - 7.0).collect();
            let wanted = backward(&Device::cpu(), log, &y, &g);
            for (in_y, in_g) in [(true, false), (false, true)] {
                let with_nan = |values: &[f32], is_in: bool| {
                    let mut values = values.to_vec();
                    values[7] = if is_in { f32::NAN } else { values[7] };
                    values
                };
                let (y, g) = (with_nan(&y, in_y), with_nan(&g, in_g));
                let got = backward(&device, log, &y, &g);
                let cpu = backward(&Device::cpu(), log, &y, &g);
                for (place, (&got, &wanted)) in got.iter().zip(&wanted).enumerate() {
                    let what =
                        format!("log {log}, NaN in y {in_y}, place {place} on {device}: {got}");
                    assert_eq!(
                        got.is_nan(),
                        cpu[place].is_nan(),
                        "{what}, {} on the CPU",
                        cpu[place]
                    );
                    assert!(place / 5 == 1 || (got - wanted).abs() <= 1e-5, "{what} for {wanted}");
                }
                assert!(got[7].is_nan(), "{device}");
            }
        }
    }
}
