//! `logits loss` at the limits: few threads, little memory, types that a GPU lacks, weights of any
//! size.

#[cfg(all(unix, feature = "parallel"))]
use std::process::Command;

use serde_json::Value;

use super::files::{Files, read, refused, run, write};
use crate::common;

/// If the system starts no threads, the calling thread does all the work.
#[cfg(all(unix, feature = "parallel"))]
#[test]
fn one_thread_does_the_work_where_none_can_be_started() {
    let files = Files::new();
    let (rows, classes) = (300, 1000);
    let logits: Vec<f32> =
        (0..rows * classes).map(|x| (x * 7 % 1101) as f32 * 0.01 - 2.0).collect();
    let targets: Vec<i64> = (0..rows as i64).collect();
    let (x, y) = (files.path("large.npy"), files.path("targets.npy"));
    write(&x, &[rows as u64, classes as u64], &logits);
    write(&y, &[rows as u64], &targets);
    let loss = |stack: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logits"));
        command
            .args(["loss", "--device", "cpu", "--json", "--logits"])
            .arg(&x)
            .arg("--targets")
            .arg(&y);
        let output = command.env("RUST_MIN_STACK", stack).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["loss"].clone()
    };
    // No thread has a stack of 200 TB.
    assert_eq!(loss("200000000000000"), loss("2000000"));
}

/// A GPU computes no f64: an error if a GPU was asked for; the CPU does it if the device was chosen
/// automatically.
#[test]
fn a_gpu_refuses_files_of_f64() {
    let files = Files::new();
    let wide: Vec<f64> = files.logits.iter().map(|&x| f64::from(x)).collect();
    write(&files.path("wide.npy"), &[5, 4], &wide);
    let (x, y, g) = (files.text("wide.npy"), files.text("y.npy"), files.text("g.npy"));
    for device in common::gpus() {
        let name = format!("{}:{}", device.backend(), device.name());
        let arguments = ["loss", "--logits", &x, "--targets", &y, "--grad", &g, "--device", &name];
        refused(&arguments, &["f64", device.name()]);
        assert!(!files.path("g.npy").exists());
    }
    let output = run(&["loss", "--logits", &x, "--targets", &y, "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let fell_back = json["fell_back"].as_str();
    assert_eq!(
        fell_back.is_some_and(|why| why.contains("f64")),
        json["backend"] != "cpu",
        "{json}"
    );
}

/// The mean depends only on the ratios of the weights, which may have any size in f32, or in f64
/// sizes that f32 rounds to 0.
#[test]
fn weights_of_any_size_have_a_mean() {
    let files = Files::new();
    let (x, y, w, g, r) = (
        files.text("x.npy"),
        files.text("y.npy"),
        files.text("w.npy"),
        files.text("g.npy"),
        files.text("r.npy"),
    );
    let weights = [0.5, 2.0, 1.0, 0.25];
    let run = |unit: f64, device: &str| {
        write(&files.path("w.npy"), &[4], &weights.map(|weight| weight * unit));
        let arguments =
            ["loss", "--logits", &x, "--targets", &y, "--weight", &w, "--device", device];
        let output = run(&[&arguments[..], &["--grad", &g, "--per-row", &r, "--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (json["loss"].as_f64().unwrap(), read(&files.path("g.npy")).1, read(&files.path("r.npy")).1)
    };
    let mut names = vec!["cpu".to_owned()];
    names.extend(
        common::gpus().iter().map(|device| format!("{}:{}", device.backend(), device.name())),
    );
    for name in names {
        let (loss, gradient, losses) = run(1.0, &name);
        for exponent in [-140, -130, -90, 90, 120] {
            let unit = 2.0_f64.powi(exponent);
            let (same, as_steep, scaled) = run(unit, &name);
            assert_eq!((same, &as_steep), (loss, &gradient), "2^{exponent} on {name}");
            for (scaled, loss) in scaled.iter().zip(&losses) {
                assert_eq!(*scaled, (f64::from(*loss) * unit) as f32, "2^{exponent} on {name}");
            }
        }
        // Only the weights that count must have about the same size.
        let wide = |weights: [f64; 4], targets: &[i64; 5]| {
            write(&files.path("w.npy"), &[4], &weights);
            write(&files.path("t.npy"), &[5], targets);
            let (t, x, w) = (files.text("t.npy"), files.text("x.npy"), files.text("w.npy"));
            let output = super::run(&[
                "loss",
                "--logits",
                &x,
                "--targets",
                &t,
                "--weight",
                &w,
                "--device",
                &name,
                "--json",
            ]);
            serde_json::from_slice::<Value>(&output.stdout).unwrap()["loss"].as_f64().unwrap()
        };
        let targets = [0, 1, -100, 1, 0];
        let even = wide([1.0, 1.0, 1.0, 1.0], &targets);
        for light in [1e-60, 1e-300] {
            approx::assert_relative_eq!(
                wide([light, light, 1.0, 3e38], &targets),
                even,
                max_relative = 1e-6
            );
        }
        for unit in [1e-200, 1e-310] {
            approx::assert_relative_eq!(run(unit, &name).0, loss, max_relative = 1e-6);
        }
    }
}

/// The mean over target probabilities divides by the rows, so tiny weights make it tiny, as they do
/// a sum.
#[test]
fn tiny_weights_make_a_tiny_sum_or_mean_of_target_probabilities() {
    let files = Files::new();
    write(&files.path("q.npy"), &[5, 4], &[0.25_f32; 20]);
    let [x, q, y, w, g, r] =
        ["x.npy", "q.npy", "y.npy", "w.npy", "g.npy", "r.npy"].map(|name| files.text(name));
    let loss = |unit: f64, targets: &[&str]| {
        write(&files.path("w.npy"), &[4], &[0.5, 2.0, 1.0, 0.25].map(|weight| weight * unit));
        let arguments =
            ["loss", "--logits", &x, "--weight", &w, "--device", "cpu", "--json", "--grad", &g];
        let output = run(&[&arguments[..], &["--per-row", &r, "--targets"], targets].concat());
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (json["loss"].as_f64().unwrap(), [&g, &r].map(|name| read(name.as_ref()).1))
    };
    for targets in [&[q.as_str()][..], &[&q, "--reduction", "sum"], &[&y, "--reduction", "sum"]] {
        let (one, arrays) = loss(1.0, targets);
        for exponent in [-100, -120, -150, -500] {
            let unit = 2.0_f64.powi(exponent);
            let (tiny, tiny_arrays) = loss(unit, targets);
            approx::assert_relative_eq!(tiny, one * unit, max_relative = 1e-6, epsilon = 0.0);
            for (tiny, one) in tiny_arrays.iter().flatten().zip(arrays.iter().flatten()) {
                // The tolerance adds half of the smallest number of f32.
                approx::assert_relative_eq!(
                    f64::from(*tiny),
                    f64::from(*one) * unit,
                    max_relative = 1e-6,
                    epsilon = 1e-45
                );
            }
        }
    }
    // The z-loss has no weights.
    let (z, _) = loss(1e-42, &[&q, "--z-loss", "0.5"]);
    assert!(z > 0.1, "{z}");
}

/// With little address space there are no threads, and no room for a huge row: the work is done
/// without threads, and the row is refused.
#[cfg(all(target_os = "linux", feature = "parallel"))]
#[test]
fn little_memory_is_enough_or_the_row_is_refused() {
    let files = Files::new();
    let limited = |kilobytes: &str, x: &str, y: &str, grad: &str| {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "ulimit -v $0; exec \"$@\"",
            kilobytes,
            env!("CARGO_BIN_EXE_logits"),
            "loss",
        ]);
        command.args(["--device", "cpu", "--json", "--logits", x, "--targets", y, "--grad", grad]);
        command.env("RAYON_NUM_THREADS", "500").output().unwrap()
    };
    let (x, y, g) = (files.text("x.npy"), files.text("y.npy"), files.text("g.npy"));
    let (large, wanted) = (files.text("large.npy"), files.text("wanted.npy"));
    let logits: Vec<f32> = (0..300_000).map(|x| (x * 7 % 1101) as f32 * 0.01 - 2.0).collect();
    write(&files.path("large.npy"), &[5, 60_000], &logits);
    let free = run(&[
        "loss",
        "--device",
        "cpu",
        "--json",
        "--logits",
        &large,
        "--targets",
        &y,
        "--grad",
        &wanted,
    ]);
    let short = limited("300000", &large, &y, &g);
    assert!(short.status.success(), "{short:?}");
    assert_eq!(
        (short.stdout, read(&files.path("g.npy"))),
        (free.stdout, read(&files.path("wanted.npy")))
    );

    // A row of 1.6 GB, which takes no room in the file system.
    write(&files.path("target.npy"), &[1], &[0_i64]);
    files.zeros("row.npy", &[1, 400_000_000]);
    let refused = limited("1000000", &files.text("row.npy"), &files.text("target.npy"), &x);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), told.lines().count()), (Some(2), 1), "{told}");
    assert!(told.contains("1600000000 bytes of host memory"), "{told}");
    assert_eq!(read(&files.path("x.npy")).1, files.logits);
}
