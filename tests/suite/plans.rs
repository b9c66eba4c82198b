//! Plans of every device: they refuse what a call refuses, and say what would run.

use logits::{DType, Error, Logits, Operation, Sampling, Shape};

use crate::common;

#[test]
fn every_operation_has_a_plan() {
    for device in common::devices() {
        for &operation in Operation::ALL {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                for shape in [[1, 3], [300, 10], [64, 1000], [7, 50_257], [2, 1_000_003]] {
                    let plan = device.plan(operation, shape, dtype).unwrap();
                    let what = format!("{shape:?} on {device}\n{plan}");
                    assert_eq!(plan.device, device.name(), "{what}");
                    assert!(!plan.passes.is_empty() && plan.parts > 0, "{what}");
                    assert!(plan.bytes_needed > 0, "{what}");
                    assert!(plan.bytes_moved.is_none_or(|moved| moved >= plan.bytes_needed));
                    assert_eq!(plan.units.is_some(), device.is_gpu(), "{what}");
                    assert_eq!(plan.simd.is_none(), device.is_gpu(), "{what}");
                    // One line a pass.
                    let text = plan.to_string();
                    for pass in &plan.passes {
                        assert!(plan.passes.len() > 24 || text.contains(&pass.to_string()));
                    }
                }
            }
        }
    }
}

#[test]
fn a_plan_fails_as_a_call_does() {
    for device in common::devices() {
        let plan = |operation, [rows, classes]: [usize; 2]| {
            device.plan(operation, [rows, classes], DType::F32).map(|plan| plan.passes.len())
        };
        let softmax = |shape| plan(Operation::Softmax, shape);
        for rows in [0, 1, 10] {
            assert_eq!(softmax([rows, 0]), Err(Error::ZeroClasses { rows, classes: 0 }));
        }
        assert_eq!(softmax([0, 10]), Ok(0), "{device}");
        for [rows, classes] in
            [[usize::MAX, 2], [u32::MAX as usize; 2], [1, 5_000_000_000], [usize::MAX / 16, 1]]
        {
            let error = Error::ShapeTooLarge { rows, classes };
            assert_eq!(softmax([rows, classes]), Err(error.clone()), "{device}");
            assert_eq!(plan(Operation::Predict, [rows, classes]), Err(error), "{device}");
        }
        let x = Logits::new(&[1.0_f32, 2.0, 3.0], [1, 3]).unwrap();
        for k in [0, 4, 65] {
            let error = device.top_k(x, k).to_vec().unwrap_err();
            assert_eq!(plan(Operation::TopK(k), [1, 3]), Err(error), "{device}");
        }
        let none = Sampling::new(1).top_p(0.0);
        let error = device.sample(&none, x).to_vec().unwrap_err();
        assert_eq!(plan(Operation::Sample(none), [1, 3]), Err(error), "{device}");
        // f64: the error of the GPU, or the plan of the CPU.
        let double = Logits::new(&[1.0_f64, 2.0, 3.0], [1, 3]).unwrap();
        let made = device.plan(Operation::Softmax, [1, 3], DType::F64);
        match device.softmax(double).to_vec() {
            Ok(_) => assert_eq!(made.unwrap().backend, "cpu"),
            Err(error) => assert_eq!(made.unwrap_err(), error),
        }
        // Blocks of rows that lie side by side.
        let plan = device.plan(Operation::Softmax, Shape::new(2, 21, 48), DType::F32).unwrap();
        assert!(plan.to_string().contains("in blocks of 48"), "{plan}");
    }
}
