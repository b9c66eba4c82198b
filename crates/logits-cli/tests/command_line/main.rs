//! The binary `logits`, as other tools call it.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

#[allow(dead_code)] // the library's own tests use all of it
#[path = "../../../../tests/suite/common.rs"]
mod common;
#[cfg(all(target_os = "linux", feature = "gpu"))]
mod failing_gpu;
mod files;
mod hostile;
#[cfg(all(target_os = "linux", feature = "gpu"))]
#[allow(dead_code)]
#[path = "../../../../tests/layer/library.rs"]
mod layer;
mod limits;
mod npy;
mod outputs;
mod plans;
mod sums;
#[path = "../../../../tests/suite/tier.rs"]
mod tier;

use std::path::Path;
use std::process::Command;

use logits::{CrossEntropy, Device, Logits, Operation, Targets};
use logits_check::operation::{Takes, Upstream};
use serde_json::Value;

use files::{Files, npy_header, read, refused, run, write};

#[test]
fn loss_is_that_of_the_library() {
    let files = Files::new();
    let (x, y, g, p, l, r) = (
        files.text("x.npy"),
        files.text("y.npy"),
        files.text("g.npy"),
        files.text("p.npy"),
        files.text("l.npy"),
        files.text("r.npy"),
    );
    let mut names = vec!["cpu".to_owned()];
    names.extend(
        common::gpus().iter().map(|device| format!("{}:{}", device.backend(), device.name())),
    );
    for name in names {
        let output = run(&[
            "loss",
            "--logits",
            &x,
            "--targets",
            &y,
            "--grad",
            &g,
            "--probs",
            &p,
            "--log-probs",
            &l,
            "--per-row",
            &r,
            "--device",
            &name,
            "--json",
        ]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();

        let device = Device::cpu();
        let logits = Logits::new(&files.logits, [5, 4]).unwrap();
        let (out, gradient) = device
            .cross_entropy(&CrossEntropy::default(), logits, &files.targets)
            .with_gradient_vec()
            .unwrap();
        let close = |got: &[f32], wanted: &[f32]| {
            assert_eq!(got.len(), wanted.len());
            for (got, wanted) in got.iter().zip(wanted) {
                approx::assert_abs_diff_eq!(got, wanted, epsilon = 1e-6);
            }
        };
        approx::assert_relative_eq!(json["loss"].as_f64().unwrap(), out.loss, max_relative = 1e-6);
        approx::assert_relative_eq!(
            json["perplexity"].as_f64().unwrap(),
            out.loss.exp(),
            max_relative = 1e-6
        );
        assert_eq!((json["rows"].as_u64(), json["counted_rows"].as_u64()), (Some(5), Some(4)));
        assert!(json["accuracy"].as_f64().unwrap() <= 1.0 && json["fell_back"].is_null());
        let (shape, values) = read(&files.path("g.npy"));
        assert_eq!(shape, [5, 4]);
        close(&values, &gradient);
        close(&read(&files.path("p.npy")).1, &device.softmax(logits).to_vec().unwrap().values);
        close(&read(&files.path("l.npy")).1, &device.log_softmax(logits).to_vec().unwrap().values);
        let (shape, values) = read(&files.path("r.npy"));
        assert_eq!(shape, [5]);
        close(&values, &out.per_row);
    }
}

#[test]
fn labels_are_smoothed_and_log_sum_exps_held_down() {
    let files = Files::new();
    let (x, y, g) = (files.text("x.npy"), files.text("y.npy"), files.text("g.npy"));
    let output = run(&[
        "loss",
        "--logits",
        &x,
        "--targets",
        &y,
        "--grad",
        &g,
        "--label-smoothing",
        "0.1",
        "--z-loss",
        "0.01",
        "--json",
    ]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let logits = Logits::new(&files.logits, [5, 4]).unwrap();
    let loss = CrossEntropy::default().label_smoothing(0.1).z_loss(0.01);
    let (wanted, gradient) =
        Device::cpu().cross_entropy(&loss, logits, &files.targets).with_gradient_vec().unwrap();
    approx::assert_relative_eq!(json["loss"].as_f64().unwrap(), wanted.loss, max_relative = 1e-6);
    for (got, wanted) in read(&files.path("g.npy")).1.iter().zip(&gradient) {
        approx::assert_abs_diff_eq!(got, wanted, epsilon = 1e-6);
    }
    refused(
        &["loss", "--logits", &x, "--targets", &y, "--label-smoothing", "1.5"],
        &["label_smoothing", "1.5"],
    );
    let several = ["loss", "--logits", &x, "--targets", &y, "--ignore-index", "-100,3,1", "--json"];
    let json: Value = serde_json::from_slice(&run(&several).stdout).unwrap();
    assert_eq!(json["counted_rows"].as_u64(), Some(2));
    // The error names the value as given, whatever the weights; it comes before any file is made,
    // and also if there are no rows.
    let w = files.text("w.npy");
    write(&files.path("w.npy"), &[4], &[0.25_f32, 0.5, 0.5, 0.25]);
    let p = files.text("p.npy");
    let weighted =
        ["loss", "--logits", &x, "--targets", &y, "--weight", &w, "--probs", &p, "--z-loss=-1"];
    refused(&weighted, &["z_loss is -1;"]);
    assert!(!files.path("p.npy").exists());
    let (none, nothing) = (files.text("none.npy"), files.text("nothing.npy"));
    write::<f32>(&files.path("none.npy"), &[0, 4], &[]);
    write::<i64>(&files.path("nothing.npy"), &[0], &[]);
    refused(&["loss", "--logits", &none, "--targets", &nothing, "--z-loss=-1"], &["z_loss is -1;"]);
}

#[test]
fn files_of_other_types() {
    let files = Files::new();
    let wide: Vec<f64> = files.logits.iter().map(|&x| f64::from(x)).collect();
    let small: Vec<u8> =
        files.targets.iter().map(|&target| if target < 0 { 255 } else { target as u8 }).collect();
    write(&files.path("wide.npy"), &[5, 4], &wide);
    write(&files.path("small.npy"), &[5], &small);
    let loss = |x: &str, y: &str, ignored: &str| -> Value {
        let (x, y) = (files.text(x), files.text(y));
        let output = run(&[
            "loss",
            "--logits",
            &x,
            "--targets",
            &y,
            "--ignore-index",
            ignored,
            "--device",
            "cpu",
            "--json",
        ]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // Files of f64 are computed in f64 here.
    let (wide, narrow) = (loss("wide.npy", "small.npy", "255"), loss("x.npy", "y.npy", "-100"));
    for (key, value) in narrow.as_object().unwrap() {
        match value.as_f64() {
            Some(value) => {
                approx::assert_relative_eq!(wide[key].as_f64().unwrap(), value, max_relative = 1e-6)
            }
            None => assert_eq!(&wide[key], value),
        }
    }
    let sums: f64 = files
        .logits
        .chunks(4)
        .zip(&files.targets)
        .filter(|(_, target)| **target >= 0)
        .map(|(x, &target)| {
            let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
            sum.ln() - f64::from(x[target as usize])
        })
        .sum();
    approx::assert_relative_eq!(wide["loss"].as_f64().unwrap(), sums / 4.0, max_relative = 1e-14);

    // f2 has no Rust primitive, so the file is written by hand.
    let mut bytes = npy_header("{'descr': '<f2', 'fortran_order': False, 'shape': (5, 4), }");
    for &x in &files.logits {
        bytes.extend(logits::half::f16::from_f32(x).to_le_bytes());
    }
    std::fs::write(files.path("half.npy"), bytes).unwrap();
    assert_eq!(loss("half.npy", "y.npy", "-100"), loss("x.npy", "y.npy", "-100"));
}

/// `[n, classes, d1, d2]` with every option, against the library's rows; also for a block that is
/// read in columns.
#[test]
fn any_rank_and_every_option() {
    let files = Files::new();
    let text = |name: &str| files.text(name);
    for (dimensions, device) in [([2, 3, 4, 5], "cpu"), ([1, 3, 2, 900_000], "cpu")]
        .into_iter()
        .chain(common::gpus().first().map(|_| ([2, 3, 4, 5], "gpu")))
    {
        let [n, classes, height, width] = dimensions;
        let (inner, elements) = (height * width, n * classes * height * width);
        let x: Vec<f32> = (0..elements).map(|at| ((at * 7919) % 101) as f32 * 0.07 - 3.0).collect();
        let q: Vec<f32> = (0..elements).map(|at| ((at * 31) % 17) as f32 / 24.0).collect();
        let weight = [0.5_f32, 1.0, 2.0];
        write(&files.path("x4.npy"), &dimensions.map(|size| size as u64), &x);
        write(&files.path("q4.npy"), &dimensions.map(|size| size as u64), &q);
        write(&files.path("w.npy"), &[3], &weight);
        let (g, p) = (text("g4.npy"), text("p4.npy"));
        let output = run(&[
            "loss",
            "--logits",
            &text("x4.npy"),
            "--targets",
            &text("q4.npy"),
            "--weight",
            &text("w.npy"),
            "--label-smoothing",
            "0.1",
            "--z-loss",
            "0.01",
            "--softcap",
            "2.5",
            "--logit-scale",
            "-0.75",
            "--top-k",
            "2",
            "--grad",
            &g,
            "--probs",
            &p,
            "--device",
            device,
            "--json",
        ]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let loss = CrossEntropy::default()
            .weight(weight)
            .label_smoothing(0.1)
            .z_loss(0.01)
            .softcap(2.5)
            .logit_scale(-0.75);
        let view = Logits::new(&x, [n, classes, inner]).unwrap();
        let targets = Targets::probabilities(&q);
        let (out, gradient) =
            Device::cpu().cross_entropy(&loss, view, targets).with_gradient_vec().unwrap();
        approx::assert_relative_eq!(json["loss"].as_f64().unwrap(), out.loss, max_relative = 1e-6);
        assert_eq!(json["rows"].as_u64().unwrap() as usize, n * inner);
        let accuracy =
            |k| Device::cpu().cross_entropy(&loss, view, targets).accuracy(k).unwrap().accuracy();
        assert_eq!(json["accuracy"].as_f64().unwrap(), accuracy(1));
        assert_eq!(json["top_k_accuracy"].as_f64().unwrap(), accuracy(2));
        let (shape, got) = read(Path::new(&g));
        assert_eq!(shape, dimensions.map(|size| size as u64));
        let scale = 1.0 / (n * inner) as f32;
        let off = |got: &f32, wanted: &f32| (got - wanted).abs() > 2e-6 * scale;
        assert!(!got.iter().zip(&gradient).any(|(got, wanted)| off(got, wanted)), "{dimensions:?}");
        let wanted =
            Device::cpu().softmax(view.as_seen_by(&loss).unwrap()).to_vec().unwrap().values;
        assert!(
            read(Path::new(&p))
                .1
                .iter()
                .zip(&wanted)
                .all(|(got, wanted)| (got - wanted).abs() <= 1e-6)
        );
    }
}

#[test]
fn numbers_that_json_has_no_word_for() {
    let files = Files::new();
    write(&files.path("none.npy"), &[5], &[-100_i32; 5]);
    let output = run(&[
        "loss",
        "--logits",
        &files.text("x.npy"),
        "--targets",
        &files.text("none.npy"),
        "--device",
        "cpu",
        "--json",
    ]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["loss"], &json["accuracy"]), (&Value::from("NaN"), &Value::from("NaN")));
    assert_eq!(json["counted_rows"].as_u64(), Some(0));
}

#[test]
fn bad_input_leaves_nothing_behind() {
    let files = Files::new();
    let (x, y, g) = (files.text("x.npy"), files.text("y.npy"), files.text("g.npy"));
    let gradient = ["--grad", &g, "--device", "cpu"];
    let loss = |x: &str, y: &str, more: &[&str], words: &[&str]| {
        let arguments = [&["loss", "--logits", x, "--targets", y], more, &gradient].concat();
        refused(&arguments, words);
        let names =
            std::fs::read_dir(files.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let strange: Vec<_> = names
            .filter(|name| {
                let name = name.to_str().unwrap();
                name.starts_with("g.npy") || name.starts_with('.')
            })
            .collect();
        assert!(strange.is_empty(), "{strange:?}");
    };

    loss(&files.text("missing.npy"), &y, &[], &["missing.npy", "No such file"]);
    std::fs::write(files.path("noise.npy"), b"not an array").unwrap();
    loss(&files.text("noise.npy"), &y, &[], &["noise.npy", "not a .npy file"]);
    std::fs::write(files.path("nothing.npy"), b"").unwrap();
    loss(&files.text("nothing.npy"), &y, &[], &["nothing.npy", "not a .npy file"]);
    std::fs::write(files.path("huge.npy"), files::npy::<f32>(&[i64::MAX as u64, 4], &[])).unwrap();
    loss(&files.text("huge.npy"), &y, &[], &["huge.npy", "too large"]);
    let whole = std::fs::read(files.path("x.npy")).unwrap();
    std::fs::write(files.path("short.npy"), &whole[..whole.len() - 3]).unwrap();
    loss(&files.text("short.npy"), &y, &[], &["short.npy", "cut short"]);
    write(&files.path("empty.npy"), &[5, 0], &[0.0_f32; 0]);
    loss(&files.text("empty.npy"), &y, &[], &["empty.npy", "no classes"]);
    write(&files.path("flat.npy"), &[20], &files.logits);
    loss(&files.text("flat.npy"), &y, &[], &["y.npy", "[5]", "[]"]);
    loss(&y, &y, &[], &["y.npy", "int64 numbers"]);
    loss(&x, &x, &[], &["x.npy", "target probability of class 0 in row 0 is -2"]);
    write(&files.path("soft.npy"), &[4, 5], &[0.25_f32; 20]);
    loss(
        &x,
        &files.text("soft.npy"),
        &[],
        &["soft.npy", "[4, 5]", "probabilities [5, 4] or integers [5]"],
    );

    write(&files.path("far.npy"), &[5], &[0_i64, 1, 2, 9, 0]);
    loss(&x, &files.text("far.npy"), &[], &["far.npy", "target 9 of row 3", "0..4"]);
    write(&files.path("few.npy"), &[4], &[0_i64; 4]);
    loss(&x, &files.text("few.npy"), &[], &["few.npy", "[4]", "[5]"]);
    write(&files.path("w.npy"), &[4], &[1.0, 1.0, f32::NAN, 1.0]);
    loss(&x, &y, &["--weight", &files.text("w.npy")], &["w.npy", "class 2", "NaN"]);
    write(&files.path("w3.npy"), &[3], &[1.0_f32; 3]);
    loss(&x, &y, &["--weight", &files.text("w3.npy")], &["w3.npy", "[3]", "[4]"]);
    loss(&x, &y, &["--reduction", "median"], &["median"]);
    loss(&x, &y, &["--softcap", "0"], &["softcap is 0"]);
    loss(&x, &y, &["--softcap", "nan"], &["softcap is NaN"]);
    loss(&x, &y, &["--logit-scale", "0"], &["logit_scale is 0"]);
    loss(&x, &y, &["--logit-scale", "-inf"], &["logit_scale is -inf"]);
    loss(&x, &y, &["--top-k", "0"], &["top 0 of 4"]);
    loss(&x, &y, &["--top-k", "5"], &["top 5 of 4"]);
    loss(&x, &y, &["--probs", &g], &["same file"]);
    loss(&x, &y, &["--probs", "/nowhere/at/all.npy"], &["/nowhere"]);
    #[cfg(unix)]
    loss(&x, &y, &["--probs", "/dev/null"], &["/dev/null", "not a regular file"]);
    refused(&[], &["a command is needed"]);
    refused(&["loss", "--logits", &x], &["--targets"]);
    refused(
        &["loss", "--logits", &x, "--targets", &y, "--device", "no such adapter"],
        &["no such adapter"],
    );
    refused(&["bench", "--shapes", "10"], &["rows x classes"]);
}

#[test]
fn bench_prints_what_was_agreed() {
    let output = run(&[
        "bench",
        "--device",
        "cpu",
        "--shapes",
        "64x10,3x5000",
        "--ops",
        "softmax,cross_entropy_grad",
        "--json",
    ]);
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 4);
    for line in &lines {
        let number = |key: &str| line[key].as_f64().unwrap();
        approx::assert_relative_eq!(
            number("copies"),
            number("median_ms") / number("copy_ms"),
            max_relative = 1e-9
        );
        let bytes = 2.0 * 4.0 * number("rows") * number("classes");
        approx::assert_relative_eq!(
            number("gb_per_s"),
            bytes / number("median_ms") / 1e6,
            max_relative = 1e-9
        );
        assert_eq!((&line["dtype"], &line["device"]), (&Value::from("f32"), &Value::from("CPU")));
    }
    assert_eq!(lines[3]["op"], "cross_entropy_grad");
}

/// The operations of `bench`: the name of each; how many arrays of the logits' shape it reads or
/// writes, soft targets not counted; and whether it refuses a soft cap.
fn timed_operations() -> Vec<(String, f64, bool)> {
    let of = |&operation: &Operation| {
        let takes = Takes::of(operation);
        let arrays = [true, takes.elements, takes.upstream == Upstream::Elements];
        let arrays = arrays.into_iter().filter(|&is_there| is_there).count();
        (operation.to_string(), arrays as f64, !takes.cap)
    };
    Operation::ALL.iter().map(of).collect()
}

#[test]
fn bench_times_every_operation_with_every_option() {
    let of_loss = ["--label-smoothing", "0.1", "--weight", "--z-loss", "1e-3", "--soft-targets"];
    let of_draws = ["--k", "7", "--top-p", "0.9", "--logit-scale", "0.5"];
    let all = timed_operations();
    let device =
        ["bench", "--device", "cpu", "--shapes", "37x11,5x4099", "--budget", "1", "--json"];
    for dtype in ["f32", "f16", "bf16"] {
        for options in [
            &[][..],
            &of_loss,
            &of_draws,
            &["--softcap", "3", "--logit-scale", "-2"],
            &["--softcap", "1"],
        ] {
            let is_capped = options.contains(&"--softcap");
            let timed: Vec<_> =
                all.iter().filter(|(.., refuses)| !(is_capped && *refuses)).collect();
            let names: Vec<_> = timed.iter().map(|(name, ..)| name.as_str()).collect();
            let ops = if is_capped { names.join(",") } else { "all".to_owned() };
            let output = run(&[&device[..], &["--dtype", dtype, "--ops", &ops], options].concat());
            assert!(output.status.success(), "{dtype} {options:?}: {output:?}");
            let lines: Vec<Value> = String::from_utf8(output.stdout)
                .unwrap()
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            assert_eq!(lines.len(), 2 * timed.len());
            for (line, (name, arrays, _)) in lines.iter().zip(timed.iter().cycle()) {
                let number = |key: &str| line[key].as_f64().unwrap();
                assert_eq!(
                    (line["op"].as_str(), line["dtype"].as_str()),
                    (Some(name.as_str()), Some(dtype))
                );
                let is_soft =
                    options.contains(&"--soft-targets") && name.starts_with("cross_entropy");
                let arrays = arrays + f64::from(u8::from(is_soft));
                let size = if dtype == "f32" { 4.0 } else { 2.0 };
                let bytes = arrays * size * number("rows") * number("classes");
                approx::assert_relative_eq!(
                    number("gb_per_s"),
                    bytes / number("median_ms") / 1e6,
                    max_relative = 1e-9
                );
                let words = options.iter().filter_map(|option| option.strip_prefix("--"));
                for word in words.map(|word| word.replace('-', "_")) {
                    assert!(line["options"].as_str().unwrap().contains(&word), "{line}");
                }
            }
        }
    }
    // An option that an operation does not take is refused before anything is timed.
    fn of<'a>(op: &'a str, options: &[&'a str]) -> Vec<&'a str> {
        [&["bench", "--device", "cpu", "--shapes", "5x7,3x4", "--json", "--ops", op][..], options]
            .concat()
    }
    for (op, ..) in all.iter().filter(|(.., refuses)| *refuses) {
        refused(&of(op, &["--softcap", "30"]), &["softcap", "30"]);
    }
    refused(&of("softmax,sample", &["--logit-scale", "-1"]), &["positive"]);
    refused(&of("softmax,sample", &["--top-p", "0"]), &["top_p"]);
    refused(&of("softmax,sample", &["--k", "0"]), &["top_k"]);
    refused(&of("softmax,top_k", &["--k", "5"]), &["5 of 4"]);
    refused(&of("softmax", &["--label-smoothing", "2"]), &["label_smoothing"]);
    refused(&of("softmax", &["--z-loss=-1"]), &["z_loss"]);
    refused(&of("softmin", &[]), &["softmin", "log_sum_exp"]);
}

#[test]
fn bench_draws_and_counts_what_a_gpu_moves() {
    let files = Files::new();
    for device in common::gpus() {
        let name = format!("{}:{}", device.backend(), device.name());
        let plot = files.text("rates.svg");
        let shapes = [
            "bench",
            "--device",
            &name,
            "--shapes",
            "64x10,3x20000",
            "--ops",
            "softmax",
            "--dtype",
            "bf16",
        ];
        let output = run(&[&shapes[..], &["--plot", &plot, "--json"]].concat());
        let lines: Vec<Value> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let traffic: Vec<f64> =
            lines.iter().map(|line| line["traffic"].as_f64().unwrap()).collect();
        // Rows of the first shape are held in registers, those of the second are read twice.
        assert_eq!(traffic, [1.0, 1.5], "{name}");
        assert!(lines.iter().all(|line| line["clock"] == "wall" || line["clock"] == "timestamps"));
        let drawn = std::fs::read_to_string(&plot).unwrap();
        assert!(
            drawn.starts_with("<svg") && drawn.contains("softmax") && drawn.contains("copy"),
            "{drawn}"
        );
        std::fs::remove_file(&plot).unwrap();
    }
    let to_nowhere = [
        "bench",
        "--device",
        "cpu",
        "--shapes",
        "2x3",
        "--ops",
        "softmax",
        "--plot",
        "/nowhere/at/all.svg",
    ];
    refused(&to_nowhere, &["/nowhere"]);
}

#[test]
fn what_tune_writes_can_be_loaded() {
    let files = Files::new();
    let file = files.text("tuning.txt");
    // Every API is tuned by the same code, so one suffices.
    let count = if tier::is_full() { usize::MAX } else { 1 };
    for device in common::gpus().into_iter().take(count) {
        let name = format!("{}:{}", device.backend(), device.name());
        let output = run(&["tune", "--device", &name, "--elements", "4096", "--out", &file]);
        assert!(output.status.success(), "{output:?}");
        let tuned = device.clone().with_tuning_file(&file).unwrap().tuning().unwrap();
        assert_eq!(tuned, std::fs::read_to_string(&file).unwrap().parse().unwrap());
        let shapes = ["--shapes", "5x7", "--ops", "cross_entropy"];
        assert!(
            run(&[&["bench", "--device", &name, "--tuning", &file][..], &shapes].concat())
                .status
                .success()
        );
    }
    refused(&["tune", "--device", "cpu", "--out", &file], &["no kernels to tune"]);
    std::fs::write(&file, "speed = 11").unwrap();
    if let Some(device) = common::gpus().first() {
        let name = format!("{}:{}", device.backend(), device.name());
        refused(
            &["bench", "--device", &name, "--tuning", &file],
            &["tuning.txt", "coalesces is missing"],
        );
    }
    refused(&["check", "--tuning", "/nowhere.txt"], &["/nowhere.txt"]);
}

#[test]
fn info_names_the_device() {
    let output = run(&["info", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["device"], Device::new().name());
    assert!(output.status.success());
}

#[test]
fn the_environment_is_heard() {
    let info = |variable: &str, value: &str| -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logits"));
        command.args(["info", "--json"]).env(variable, value);
        if variable == "LOGITS_SIMD" {
            // Without an adapter `info` measures none, which would take long.
            command.env("WGPU_BACKEND", "dx12");
        }
        let output = command.output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(info("LOGITS_SIMD", "portable")["cpu_simd"], "portable");
    assert!(info("LOGITS_SIMD", "")["cpu_simd"].is_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_logits"));
    let output =
        command.args(["check", "--device", "cpu"]).env("LOGITS_SIMD", "mmx").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("`mmx`") && said.contains("portable"),
        "{said}"
    );
    let nothing = info("WGPU_BACKEND", "no such backend");
    assert_eq!(nothing["device"], "CPU");
    if cfg!(feature = "gpu") {
        assert!(
            nothing["reason"].as_str().unwrap().contains("WGPU_BACKEND=no such backend"),
            "{nothing}"
        );
    }
    // A name selects an adapter that would be rejected otherwise, such as software.
    for device in common::gpus() {
        let named = info("WGPU_ADAPTER_NAME", device.name());
        assert_eq!(named["device"], device.name());
        let backend = info("WGPU_BACKEND", device.backend());
        assert!(
            backend["adapters"]
                .as_array()
                .unwrap()
                .iter()
                .all(|adapter| adapter["backend"] == device.backend())
        );
    }
    let absent = info("WGPU_ADAPTER_NAME", "no such adapter");
    assert_eq!(absent["device"], "CPU");
}
