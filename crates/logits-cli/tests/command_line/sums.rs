//! The loss of files is that of one call, to the last bit, however many batches they take.

use logits::{CrossEntropy, Device, Element, Logits, Reduction};

use super::files::{Files, Number, run, write};
use super::npy::fortran;

fn targets(rows: usize, classes: usize) -> Vec<i64> {
    (0..rows).map(|row| if row % 9 == 4 { -100 } else { (row * 31 % classes) as i64 }).collect()
}

/// Losses of many sizes: some rows are confident.
fn value(at: usize) -> f64 {
    let noise = (at.wrapping_mul(2_654_435_761) % 10_007) as f64 / 10_007.0;
    (noise - 0.5) * if (at / 1000).is_multiple_of(2) { 60.0 } else { 1.0 }
}

fn loss_of(files: &Files, more: &[&str]) -> f64 {
    let (x, y) = (files.text("x.npy"), files.text("y.npy"));
    let output =
        run(&[&["loss", "--logits", &x, "--targets", &y, "--device", "cpu", "--json"], more]
            .concat());
    assert!(output.status.success(), "{output:?}");
    // serde_json does not read the nearest f64 of 17 digits.
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, after) = text.split_once("\"loss\":").unwrap();
    after[..after.find([',', '}']).unwrap()].trim().parse().unwrap()
}

fn is_that_of_a_call<T: Element + Number>(shape: [usize; 2], narrow: fn(f64) -> T) {
    let files = Files::new();
    let [rows, classes] = shape;
    let x: Vec<T> = (0..rows * classes).map(|at| narrow(value(at))).collect();
    let y = targets(rows, classes);
    let weight: Vec<f32> = (0..classes).map(|class| 1.0 / (1 + class) as f32).collect();
    write(&files.path("x.npy"), &shape.map(|size| size as u64), &x);
    write(&files.path("y.npy"), &[rows as u64], &y);
    write(&files.path("w.npy"), &[classes as u64], &weight);
    let w = files.text("w.npy");
    let view = Logits::new(&x, shape).unwrap();
    for (reduction, name) in [(Reduction::Sum, "sum"), (Reduction::Mean, "mean")] {
        let plain = CrossEntropy::default().reduction(reduction);
        let weighted = plain.clone().weight(weight.clone());
        for (loss, more) in [
            (plain.clone(), &[][..]),
            (plain.z_loss(0.013), &["--z-loss", "0.013"]),
            (weighted.clone(), &["--weight", &w]),
            (weighted.clone().z_loss(0.013), &["--weight", &w, "--z-loss", "0.013"]),
            (
                weighted.label_smoothing(0.1).z_loss(1e-4),
                &["--weight", &w, "--label-smoothing", "0.1", "--z-loss", "1e-4"],
            ),
        ] {
            let wanted = Device::cpu().cross_entropy(&loss, view, &y).loss().unwrap().loss;
            let got = loss_of(&files, &[&["--reduction", name], more].concat());
            assert_eq!(
                got.to_bits(),
                wanted.to_bits(),
                "{shape:?}, {name}, {more:?}: {got:e} {wanted:e}"
            );
        }
    }
}

#[test]
fn the_loss_of_files_is_that_of_a_call() {
    for rows in [1, 1024, 1025, 5000] {
        is_that_of_a_call([rows, 5], |x| x as f32);
        is_that_of_a_call([rows, 5], |x| x);
    }
    // Several batches, of which only the first begins at a multiple of 1,024 rows.
    is_that_of_a_call([70_001, 100], |x| x as f32);
    is_that_of_a_call([45_001, 100], |x| x);
}

/// In Fortran order neither the batches nor the targets come in the order of the rows.
#[test]
fn the_order_of_files_does_not_matter() {
    let files = Files::new();
    let shape = [19, 10, 300, 80];
    let rows = [19, 300, 80];
    let elements = shape.iter().product::<u64>() as usize;
    let x: Vec<f32> = (0..elements).map(|at| value(at) as f32).collect();
    let y = targets(elements / 10, 10);
    write(&files.path("w.npy"), &[10], &[0.1_f32, 0.7, 1.1, 3.3, 1e-7, 1.9, 0.3, 0.9, 1.3, 0.6]);
    let w = files.text("w.npy");
    for more in [&["--weight", w.as_str()][..], &["--reduction", "sum"]] {
        write(&files.path("x.npy"), &shape, &x);
        write(&files.path("y.npy"), &rows, &y);
        let wanted = loss_of(&files, more);
        std::fs::write(files.path("x.npy"), fortran(&shape, &x)).unwrap();
        assert_eq!(loss_of(&files, more).to_bits(), wanted.to_bits(), "logits, {more:?}");
        std::fs::write(files.path("y.npy"), fortran(&rows, &y)).unwrap();
        assert_eq!(loss_of(&files, more).to_bits(), wanted.to_bits(), "targets too, {more:?}");
        write(&files.path("x.npy"), &shape, &x);
        assert_eq!(loss_of(&files, more).to_bits(), wanted.to_bits(), "targets, {more:?}");
    }
}
