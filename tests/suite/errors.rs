//! Every refusal is typed, comes early, names the value and its place, and writes nothing.

use logits::{
    CrossEntropy, Device, DeviceChoice, Error, Logits, LogitsMut, Prediction, Reduction, Shape,
    Targets,
};

use crate::common;

const UNTOUCHED: f32 = 7.25;

#[test]
fn shapes_that_make_no_sense() {
    assert_eq!(
        Logits::<f32>::new(&[], [3, 0]).unwrap_err(),
        Error::ZeroClasses { rows: 3, classes: 0 }
    );
    let huge = Error::ShapeTooLarge { rows: usize::MAX, classes: 2 };
    assert_eq!(Logits::new(&[0.0_f32], [usize::MAX, 2]).unwrap_err(), huge);
    let classes = u32::MAX as usize;
    assert_eq!(Shape::rows(1, classes).elements(), Err(Error::ShapeTooLarge { rows: 1, classes }));
    let wrong = Error::Length { what: "logits", expected: 6, found: 5 };
    assert_eq!(Logits::new(&[0.0_f32; 5], [2, 3]).unwrap_err(), wrong);
    assert_eq!(LogitsMut::new(&mut [0.0_f32; 5], [2, 3]).unwrap_err(), wrong);
    let overlap = Error::RowStride { stride: 2, classes: 3 };
    assert_eq!(Logits::with_row_stride(&[0.0_f32; 6], [2, 3], 2).unwrap_err(), overlap);
    let short = Error::Length { what: "logits", expected: 8, found: 7 };
    assert_eq!(Logits::with_row_stride(&[0.0_f32; 7], [2, 3], 5).unwrap_err(), short);
    let far = Logits::with_row_stride(&[0.0_f32; 7], [3, 3], usize::MAX).unwrap_err();
    assert_eq!(far, Error::ShapeTooLarge { rows: 3, classes: 3 });
}

#[test]
fn results_of_another_length() {
    for device in common::devices() {
        let x = Logits::new(&[0.0_f32; 6], [2, 3]).unwrap();
        let wrong = |expected, found| Err(Error::Length { what: "out", expected, found });
        let mut out = [UNTOUCHED; 5];
        assert_eq!(device.softmax(x).write_to(&mut out), wrong(6, 5));
        assert_eq!(device.log_softmax(x).write_to(&mut out), wrong(6, 5));
        assert_eq!(device.log_sum_exp(x).write_to(&mut out), wrong(2, 5));
        assert_eq!(device.predict(x).write_to(&mut [Prediction::default(); 1]), wrong(2, 1));
        let loss = CrossEntropy::default();
        assert_eq!(
            device.cross_entropy(&loss, x, &[0, 1]).with_gradient(&mut out).map(|_| ()),
            wrong(6, 5).map(|_| ())
        );
        assert_eq!(out, [UNTOUCHED; 5]);
    }
}

#[test]
fn targets_and_options() {
    for device in common::devices() {
        let mut logits = [UNTOUCHED; 6];
        let mut gradient = [UNTOUCHED; 6];
        let mut refused = |loss: &CrossEntropy, targets: &[i64], error: Error| {
            let x = Logits::new(&logits, [2, 3]).unwrap();
            assert_eq!(device.cross_entropy(loss, x, targets).loss().unwrap_err(), error);
            assert_eq!(
                device.cross_entropy(loss, x, targets).with_gradient(&mut gradient).unwrap_err(),
                error
            );
            let x = LogitsMut::new(&mut logits, [2, 3]).unwrap();
            assert_eq!(
                device.cross_entropy(loss, x, targets).with_gradient_in_place().unwrap_err(),
                error
            );
            assert_eq!((logits, gradient), ([UNTOUCHED; 6], [UNTOUCHED; 6]));
        };
        let loss = CrossEntropy::default();
        let out_of_range = |row, target| Error::TargetOutOfRange {
            row,
            target: i128::from(target),
            classes: 3,
            ignored: vec![-100],
        };
        refused(&loss, &[0, 3], out_of_range(1, 3));
        refused(&loss, &[-1, 0], out_of_range(0, -1));
        refused(&loss, &[0, i64::MAX], out_of_range(1, i64::MAX));
        refused(&loss, &[0], Error::Length { what: "targets", expected: 2, found: 1 });
        refused(
            &loss.clone().upstream_gradient(f32::INFINITY),
            &[0, 0],
            Error::OptionValue {
                option: "upstream_gradient",
                value: f32::INFINITY,
                range: "finite",
            },
        );
        for value in [-1e-4, f32::NEG_INFINITY] {
            let error =
                Error::OptionValue { option: "z_loss", value, range: "finite and not negative" };
            refused(&loss.clone().z_loss(value), &[0, 0], error);
        }
        for value in [-0.1, 1.5, f32::INFINITY] {
            let range = "between 0 and 1";
            let error = Error::OptionValue { option: "label_smoothing", value, range };
            refused(&loss.clone().label_smoothing(value), &[0, 0], error);
        }
        refused(
            &loss.clone().weight([1.0, 2.0]),
            &[0, 0],
            Error::Length { what: "weights", expected: 3, found: 2 },
        );
        refused(
            &loss.clone().weight([1.0, 2.0, -1.0]),
            &[0, 0],
            Error::Weight { class: 2, value: -1.0 },
        );
        let not_a_number = loss.clone().weight([1.0, f32::NAN, 1.0]);
        let x = Logits::new(&logits, [2, 3]).unwrap();
        let error = device.cross_entropy(&not_a_number, x, &[0, 0]).loss().unwrap_err();
        assert!(matches!(error, Error::Weight { class: 1, value } if value.is_nan()));
        assert_eq!(
            error.to_string(),
            "the weight of class 1 is NaN; weights must be finite and not negative"
        );
        let beyond = Targets::probabilities(&[0.5, 0.5, 0.0, 0.0, 1e300, 0.0]);
        let error = device.cross_entropy(&loss, x, beyond).loss().unwrap_err();
        assert_eq!(error, Error::Probability { row: 1, class: 1, value: 1e300 });
    }
}

/// The gradient of a row that is not counted is +0, whichever rows are its neighbours.
#[test]
fn an_ignored_row_has_the_same_zeros_everywhere() {
    let plain = CrossEntropy::default().logit_scale(-1.0);
    for classes in [3, 40] {
        let logits: Vec<f32> = (0..2 * classes as u16).map(|x| f32::from(x % 7)).collect();
        for loss in [plain.clone(), plain.clone().label_smoothing(0.1), plain.clone().softcap(2.0)]
        {
            let x = Logits::new(&logits, [2, classes]).unwrap();
            let gradient =
                Device::cpu().cross_entropy(&loss, x, &[-100, 0]).with_gradient_vec().unwrap().1;
            assert!(
                gradient[..classes].iter().all(|x| x.to_bits() == 0),
                "{classes} classes, {loss:?}"
            );
        }
    }
}

#[test]
fn targets_of_every_integer_type() {
    let device = Device::cpu();
    let loss = CrossEntropy::default();
    let logits = [0.5, -1.0, 2.0];
    let x = Logits::new(&logits, [1, 3]).unwrap();
    let wanted = device.cross_entropy(&loss, x, &[2_usize]).loss().unwrap();
    macro_rules! same {
        ($($integer:ty),*) => {$(
            assert_eq!(device.cross_entropy(&loss, x, &[2 as $integer]).loss().unwrap(), wanted);
            assert_eq!(device.cross_entropy(&loss, x, &vec![2 as $integer]).loss().unwrap(), wanted);
        )*};
    }
    same!(u8, i8, u16, i16, u32, i32, u64, i64, usize, isize);
    let error = device.cross_entropy(&loss, x, &[u64::MAX]).loss().unwrap_err();
    let target = i128::from(u64::MAX);
    assert_eq!(error, Error::TargetOutOfRange { row: 0, target, classes: 3, ignored: vec![-100] });
}

#[test]
fn several_indices_are_ignored() {
    for device in common::devices() {
        let logits: Vec<f32> = (0..15).map(|x| (x * 7 % 11) as f32 * 0.5).collect();
        let x = Logits::new(&logits, [5, 3]).unwrap();
        let targets = [0_i64, -1, 2, i64::MIN, 1];
        let several = CrossEntropy::default().ignore_indices([-1, i64::MIN, 2]);
        let one = CrossEntropy::default();
        let (got, gradient) =
            device.cross_entropy(&several, x, &targets).with_gradient_vec().unwrap();
        let (wanted, same) = device
            .cross_entropy(&one, x, &[0_i64, -100, -100, -100, 1])
            .with_gradient_vec()
            .unwrap();
        assert_eq!((got, gradient), (wanted, same));
        // Without an ignored index, -100 is out of range like any other target.
        let none = CrossEntropy::default().ignore_indices([]);
        let error = device.cross_entropy(&none, x, &[0_i64, 1, 2, -100, 1]).loss().unwrap_err();
        let message = "target -100 of row 3 is neither a class in 0..3 nor among the ignored []";
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn empty_batches() {
    for device in common::devices() {
        let x = Logits::<f32>::new(&[], [0, 3]).unwrap();
        assert!(device.softmax(x).to_vec().unwrap().values.is_empty());
        assert!(device.predict(x).to_vec().unwrap().values.is_empty());
        let none: [i64; 0] = [];
        let mean = device.cross_entropy(&CrossEntropy::default(), x, &none).loss().unwrap();
        assert!(mean.loss.is_nan() && mean.counted_rows == 0);
        let sum = CrossEntropy::default().reduction(Reduction::Sum);
        assert_eq!(device.cross_entropy(&sum, x, &none).with_gradient(&mut []).unwrap().loss, 0.0);
    }
}

#[test]
fn a_gpu_that_is_not_there() {
    let error = Device::open(&DeviceChoice::Named("no such adapter".to_owned())).unwrap_err();
    assert!(
        matches!(&error, Error::NoGpu { wanted, .. } if wanted == "no such adapter"),
        "{error}"
    );
}

#[test]
fn devices_may_be_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Device>();
}

#[test]
fn devices_explain_themselves() {
    assert_eq!(Device::cpu().to_string(), "CPU: asked for");
    assert!(!Device::new().reason().is_empty());
    for device in common::gpus() {
        assert!(device.is_gpu() && device.to_string().starts_with(device.name()), "{device}");
    }
}

#[test]
fn a_confident_row_keeps_its_loss() {
    for device in common::devices() {
        let x = Logits::new(&[20.0_f32, 0.0], [1, 2]).unwrap();
        let (out, gradient) =
            device.cross_entropy(&CrossEntropy::default(), x, &[0]).with_gradient_vec().unwrap();
        let wanted = (-20.0_f64).exp().ln_1p();
        approx::assert_relative_eq!(out.loss, wanted, max_relative = 1e-6);
        approx::assert_relative_eq!(f64::from(gradient[0]), -wanted, max_relative = 1e-6);
        approx::assert_relative_eq!(f64::from(gradient[1]), wanted, max_relative = 1e-6);
        println!("{}: loss {:e}, gradient {gradient:?}", device.name(), out.loss);
    }
}
