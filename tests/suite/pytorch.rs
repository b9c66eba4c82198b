//! Compares every device with PyTorch's answers in float64, also for special values.
//! `tests/golden/pytorch.py` made the file.

use logits::{CrossEntropy, Device, Logits, LogitsMut, Reduction};
use serde_json::Value;

use crate::common::{self, Share};

fn numbers(value: &Value) -> Vec<f64> {
    let number = |value: &Value| match value.as_str() {
        Some("NaN") => f64::NAN,
        Some("inf") => f64::INFINITY,
        Some("-inf") => f64::NEG_INFINITY,
        _ => value.as_f64().unwrap(),
    };
    value.as_array().unwrap().iter().map(number).collect()
}

fn integers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|value| value.as_i64().unwrap()).collect()
}

/// Checks that values are equal, both NaN, or within `relative` of the wanted value plus
/// `absolute`.
#[track_caller]
fn close(what: &str, got: &[f32], wanted: &[f64], relative: f64, absolute: f64) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    for (at, (&got, &wanted)) in got.iter().zip(wanted).enumerate() {
        let got = f64::from(got);
        let same = got == wanted || (got.is_nan() && wanted.is_nan());
        // A bound relative to an infinite value would accept everything.
        let is_close =
            wanted.is_finite() && (got - wanted).abs() <= relative * wanted.abs() + absolute;
        assert!(same || is_close, "{what}[{at}]: {got} for PyTorch's {wanted}");
    }
}

#[test]
fn every_device_agrees_with_pytorch() {
    let file: Value = serde_json::from_str(include_str!("../golden/pytorch.json")).unwrap();
    let devices = common::devices();
    for case in file["cases"].as_array().unwrap() {
        for device in &devices {
            // Most special values are in rows of three classes: by default a GPU other than the
            // first takes only those.
            if common::share(device) != Share::Values || case["classes"] == 3 {
                compare(device, case);
            }
        }
    }
}

fn compare(device: &Device, case: &Value) {
    let name = format!("{} on {} ({})", case["name"], device.name(), device.backend());
    let size = |key: &str| case[key].as_u64().unwrap() as usize;
    let shape = [size("rows"), size("classes")];
    let logits: Vec<f32> = numbers(&case["logits"]).iter().map(|&x| x as f32).collect();
    let x = Logits::new(&logits, shape).unwrap();

    // Below the smallest normal f32 only the absolute error means anything.
    let tiny = f64::from(f32::MIN_POSITIVE);
    // PyTorch itself rounds 1 + x in float64 before it takes a logarithm.
    let rounding = 1e-15;
    let softmax = device.softmax(x).to_vec().unwrap().values;
    close(&format!("softmax of {name}"), &softmax, &numbers(&case["softmax"]), 2e-6, tiny);
    let log_softmax = device.log_softmax(x).to_vec().unwrap().values;
    close(
        &format!("log_softmax of {name}"),
        &log_softmax,
        &numbers(&case["log_softmax"]),
        1e-6,
        rounding,
    );
    let log_sum_exp = device.log_sum_exp(x).to_vec().unwrap().values;
    close(
        &format!("log_sum_exp of {name}"),
        &log_sum_exp,
        &numbers(&case["log_sum_exp"]),
        1e-6,
        rounding,
    );
    let classes: Vec<i64> =
        device.predict(x).to_vec().unwrap().values.iter().map(|p| i64::from(p.class)).collect();
    assert_eq!(classes, integers(&case["argmax"]), "argmax of {name}");

    let targets = integers(&case["targets"]);
    for (reduction, key) in
        [(Reduction::Mean, "mean"), (Reduction::Sum, "sum"), (Reduction::None, "none")]
    {
        let name = format!("{name}, {key}");
        let wanted = &case["reductions"][key];
        let mut loss = CrossEntropy::default()
            .reduction(reduction)
            .ignore_index(case["ignore_index"].as_i64().unwrap());
        let number = |key: &str| case[key].as_f64().unwrap() as f32;
        loss = loss.label_smoothing(number("label_smoothing")).z_loss(number("z_loss"));
        if !case["weight"].is_null() {
            loss =
                loss.weight(numbers(&case["weight"]).iter().map(|&w| w as f32).collect::<Vec<_>>());
        }
        let (out, gradient) = device.cross_entropy(&loss, x, &targets).with_gradient_vec().unwrap();
        let scale =
            if reduction == Reduction::Mean { 1.0 / out.counted_rows.max(1) as f64 } else { 1.0 };
        let got: Vec<f32> =
            if reduction == Reduction::None { out.per_row.clone() } else { vec![out.loss as f32] };
        close(&format!("loss of {name}"), &got, &numbers(&wanted["loss"]), 1e-6, rounding);
        close(
            &format!("gradient of {name}"),
            &gradient,
            &numbers(&wanted["gradient"]),
            1e-6,
            1e-6 * scale,
        );

        // In the default tier a GPU checks the loss alone under a mean and the gradient in place
        // under a sum.
        let takes = |turn| common::share(device) == Share::All || reduction == turn;
        if takes(Reduction::Mean) {
            let alone = device.cross_entropy(&loss, x, &targets).loss().unwrap();
            assert_eq!(alone.loss.to_bits(), out.loss.to_bits(), "loss alone of {name}");
        }
        if !takes(Reduction::Sum) {
            continue;
        }
        let mut in_place = logits.clone();
        device
            .cross_entropy(&loss, LogitsMut::new(&mut in_place, shape).unwrap(), &targets)
            .with_gradient_in_place()
            .unwrap();
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&in_place), bits(&gradient), "in place, {name}");
    }
}
