//! Files of every kind that numpy writes, in C and in Fortran order.

use serde_json::Value;

use super::files::{Files, Number, header_of, npy, npy_header, read, refused, run, write};

fn bytes_of(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap().as_bytes();
    hex.chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A shape and its numbers.
type Array = (Vec<u64>, Vec<f32>);

/// All outputs of a call: the printed object, the gradient, the probabilities and the losses.
fn outputs(files: &Files, x: &str, y: &str) -> (Value, [Array; 3]) {
    let names = ["g.npy", "p.npy", "r.npy"].map(|name| files.text(name));
    let [g, p, r] = names.each_ref();
    let (x, y) = (files.text(x), files.text(y));
    let arguments =
        ["loss", "--device", "cpu", "--logits", &x, "--targets", &y, "--grad", g, "--probs", p];
    let output = run(&[&arguments[..], &["--per-row", r, "--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    (serde_json::from_slice(&output.stdout).unwrap(), names.map(|name| read(name.as_ref())))
}

#[test]
fn every_kind_that_numpy_writes_is_read() {
    let golden: Value = serde_json::from_str(include_str!("../golden/numpy_files.json")).unwrap();
    let cases = |key: &str| golden[key].as_array().unwrap().clone();
    let files = Files::new();
    let x: Vec<f32> = (0..24).map(|at| (at * 7 % 11) as f32).collect();
    let y: Vec<i64> = (0..8).map(|at| at % 3).collect();
    write(&files.path("x.npy"), &[2, 3, 2, 2], &x);
    write(&files.path("y.npy"), &[2, 2, 2], &y);
    let wanted = outputs(&files, "x.npy", "y.npy");
    let header = bytes_of(&golden["gradient_header"]);
    assert!(std::fs::read(files.path("g.npy")).unwrap().starts_with(&header));
    for (key, with) in [("logits", "y.npy"), ("targets", "x.npy")] {
        for case in cases(key) {
            std::fs::write(files.path("case.npy"), bytes_of(&case["hex"])).unwrap();
            let (x, y) = if key == "logits" { ("case.npy", with) } else { (with, "case.npy") };
            let got = outputs(&files, x, y);
            // f64 is computed in f64.
            let name = case["name"].as_str().unwrap();
            if name.contains("f8") {
                approx::assert_relative_eq!(
                    got.0["loss"].as_f64().unwrap(),
                    wanted.0["loss"].as_f64().unwrap(),
                    max_relative = 1e-6
                );
                for (got, wanted) in got.1.iter().zip(&wanted.1) {
                    assert_eq!(got.0, wanted.0, "{name}");
                    assert!(
                        got.1
                            .iter()
                            .zip(&wanted.1)
                            .all(|(got, wanted)| (got - wanted).abs() < 1e-6),
                        "{name}"
                    );
                }
            } else {
                assert_eq!(got, wanted, "{name}");
            }
        }
    }
}

/// The elements of `x`, which is in C order, as a file in Fortran order.
pub(super) fn fortran<T: Number>(shape: &[u64], x: &[T]) -> Vec<u8> {
    let mut bytes = header_of::<T>(shape, true);
    let mut index = vec![0; shape.len()];
    for _ in 0..x.len() {
        let place = index.iter().zip(shape).fold(0, |place, (at, size)| place * size + at);
        bytes.extend(bytemuck::bytes_of(&x[place as usize]));
        for (at, &size) in index.iter_mut().zip(shape) {
            *at += 1;
            if *at < size {
                break;
            }
            *at = 0;
        }
    }
    bytes
}

/// Batches of files in Fortran order have another shape. The larger arrays here take several
/// batches.
#[test]
fn fortran_order_gives_what_c_order_gives() {
    let files = Files::new();
    for shape in [
        &[1, 3][..],
        &[7, 5],
        &[3, 1_500_000],
        &[450_000, 10],
        &[3, 1, 4],
        &[2, 3, 4, 5],
        &[2, 3, 1100, 700],
        &[19, 10, 30, 2, 400],
    ] {
        let elements = shape.iter().product::<u64>() as usize;
        let x: Vec<f32> = (0..elements).map(|at| (at * 7919 % 1013) as f32 * 0.007 - 3.0).collect();
        let mut rows = shape.to_vec();
        let classes = rows.remove(1) as usize;
        let y: Vec<i32> =
            (0..elements / classes).map(|at| (at * 31 % classes.min(97)) as i32).collect();
        write(&files.path("x.npy"), shape, &x);
        write(&files.path("y.npy"), &rows, &y);
        std::fs::write(files.path("xf.npy"), fortran(shape, &x)).unwrap();
        std::fs::write(files.path("yf.npy"), fortran(&rows, &y)).unwrap();
        let wanted = outputs(&files, "x.npy", "y.npy");
        assert_eq!(wanted.1[0].0, shape);
        for (x, y) in [("xf.npy", "y.npy"), ("x.npy", "yf.npy"), ("xf.npy", "yf.npy")] {
            let got = outputs(&files, x, y);
            assert!(got.1 == wanted.1, "{shape:?} of {x} and {y}");
            assert_eq!(got.0["loss"], wanted.0["loss"], "{shape:?} of {x} and {y}");
            assert_eq!(got.0["accuracy"], wanted.0["accuracy"]);
        }
    }
}

/// Target probabilities, and the row that an error names, are found by their indices too.
#[test]
fn targets_in_fortran_order_are_those_of_their_rows() {
    let files = Files::new();
    let shape = [2, 3, 2, 2];
    let x: Vec<f32> = (0..24).map(|at| (at * 7 % 11) as f32).collect();
    let mut q: Vec<f32> = (0..24).map(|at| (at * 5 % 13) as f32 / 16.0).collect();
    write(&files.path("x.npy"), &shape, &x);
    write(&files.path("q.npy"), &shape, &q);
    std::fs::write(files.path("qf.npy"), fortran(&shape, &q)).unwrap();
    assert_eq!(outputs(&files, "x.npy", "q.npy"), outputs(&files, "x.npy", "qf.npy"));

    // Class 2 at [0, 1] of the second block.
    q[12 + 2 * 4 + 1] = -1.0;
    std::fs::write(files.path("qf.npy"), fortran(&shape, &q)).unwrap();
    std::fs::write(files.path("yf.npy"), fortran(&[2, 2, 2], &[0, 0, 0, 0, 0, 0, 9, 0])).unwrap();
    let (x, q, y) = (files.text("x.npy"), files.text("qf.npy"), files.text("yf.npy"));
    refused(&["loss", "--logits", &x, "--targets", &q], &["qf.npy", "class 2 in row 5 is -1"]);
    refused(&["loss", "--logits", &x, "--targets", &y], &["yf.npy", "target 9 of row 6"]);
}

/// Headers that programs other than numpy 2 write.
#[test]
fn headers_of_other_writers_are_read() {
    let files = Files::new();
    let data = &npy(&[5, 4], &files.logits)[npy(&[5, 4], &[] as &[f32]).len()..];
    let wanted = outputs(&files, "x.npy", "y.npy");
    for header in [
        // Python 2, on a machine with long integers.
        "{'descr': '<f4', 'fortran_order': False, 'shape': (5L, 4L), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (5L,4L)}",
        // Any order, quotes and white space.
        "{\"shape\":(5,4),\"fortran_order\":False,\"descr\":\"<f4\"}",
        "  { 'shape' : ( 5 , 4 , ) ,\n\t'descr' : '<f4' , 'fortran_order' : False }\n\n",
        "{'descr': 'f4', 'fortran_order': False, 'shape': (0005, 4)}",
        "{'descr': '=f4', 'fortran_order': False, 'shape': (5, 4)}",
    ] {
        std::fs::write(files.path("case.npy"), [&npy_header(header), data].concat()).unwrap();
        assert_eq!(outputs(&files, "case.npy", "y.npy"), wanted, "{header}");
    }
    // A header longer than numpy's own limit, and bytes after the array.
    let padded =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': (5, 4), }}{:>60000}\n", "");
    std::fs::write(files.path("case.npy"), [&npy_header(&padded), data, &[7; 999]].concat())
        .unwrap();
    assert_eq!(outputs(&files, "case.npy", "y.npy"), wanted);
}
