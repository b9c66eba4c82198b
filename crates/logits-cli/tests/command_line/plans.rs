//! `logits info --plan`: which kernel runs a shape, for people and for tools.

use logits::{DType, Device, Operation};
use serde_json::Value;

use crate::common;
use crate::files::{refused, run};

fn json(arguments: &[&str]) -> Value {
    let output = run(&[&["info", "--json", "--plan"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_plan_is_that_of_the_library() {
    for device in common::devices() {
        let name = match device.is_gpu() {
            true => format!("{}:{}", device.backend(), device.name()),
            false => "cpu".to_owned(),
        };
        let plan = device.plan(Operation::CrossEntropyGrad, [1024, 32_000], DType::BF16).unwrap();
        let of = ["1024x32000", "--op", "cross_entropy_grad", "--dtype", "bf16", "--device", &name];
        let found = json(&of);
        for (key, wanted) in [
            ("op", Value::from("cross_entropy_grad")),
            ("rows", 1024.into()),
            ("classes", 32_000.into()),
            ("dtype", "bf16".into()),
            ("device", device.name().into()),
            ("backend", device.backend().into()),
            ("strategy", plan.strategy.into()),
            ("access", plan.access.into()),
            ("lanes", plan.lanes.into()),
            ("units", plan.units.into()),
            ("parts", plan.parts.into()),
            ("bytes_needed", plan.bytes_needed.into()),
            ("bytes_moved", plan.bytes_moved.into()),
        ] {
            assert_eq!(found[key], wanted, "{key} on {name}");
        }
        let passes = found["passes"].as_array().unwrap();
        assert_eq!(passes.len(), plan.passes.len());
        for (found, wanted) in passes.iter().zip(&plan.passes) {
            assert_eq!(
                (&found["name"], &found["file"]),
                (&wanted.name.into(), &wanted.file.into())
            );
            assert_eq!(found["rows"], Value::from(vec![wanted.rows.start, wanted.rows.end]));
            assert_eq!(found["workgroups"].is_array(), device.is_gpu(), "{found}");
            assert_eq!(found["reads"].is_array(), !device.is_gpu(), "{found}");
        }
        let output = run(&[&["info", "--plan"], &of[..]].concat());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{plan}\n"));
    }
}

#[test]
fn what_is_not_given_has_a_default() {
    let found = json(&["100x10"]);
    assert_eq!((&found["op"], &found["dtype"]), (&"softmax".into(), &"f32".into()));
    assert_eq!(found["device"], Device::new().name());
    // Top-k finds no more classes than a row has.
    assert_eq!(json(&["100x3", "--op", "top_k", "--device", "cpu"])["bytes_needed"], 3600);
    let double = json(&["100x10", "--dtype", "f64", "--device", "cpu"]);
    assert_eq!(double["bytes_moved"], 16_000);
}

#[test]
fn a_plan_that_cannot_be_is_refused_in_one_line() {
    for shape in ["10", "0x10", "1x0", "10x0", "axb", "-1x5", "18446744073709551616x2"] {
        refused(&["info", &format!("--plan={shape}")], &["rows x classes"]);
    }
    for shape in ["18446744073709551615x2", "4294967295x4294967295", "1x5000000000"] {
        refused(&["info", "--plan", shape, "--device", "cpu"], &["too large"]);
    }
    for option in [["--op", "softmax"], ["--dtype", "f32"], ["--device", "cpu"]] {
        refused(&[&["info"], &option[..]].concat(), &["--plan"]);
    }
    refused(&["info", "--plan", "4x4", "--op", "softmin"], &["softmin"]);
    refused(&["info", "--plan", "4x4", "--dtype", "f8"], &["f8"]);
    refused(&["info", "--plan", "4x4", "--device", "no such adapter"], &["no such adapter"]);
    for device in common::gpus() {
        let name = format!("{}:{}", device.backend(), device.name());
        refused(&["info", "--plan", "4x4", "--dtype", "f64", "--device", &name], &["f64", "CPU"]);
        let far = ["info", "--plan", "18446744073709551615x2", "--device", &name];
        refused(&far, &["too large"]);
        let many = ["info", "--plan", "100000000000000000x1", "--device", &name];
        refused(&many, &["too large"]);
    }
}
