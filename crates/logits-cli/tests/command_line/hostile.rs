//! Files and calls that are wrong on purpose. Each ends within a second with exit code 2 and one
//! short line, and leaves no file.

use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use super::files::{Files, line_of, logits, npy, npy_header, write};

/// Runs a call that must be refused within a second. On a busy machine it is tried again.
#[track_caller]
fn refused_at_once(command: &mut Command, context: &str) -> String {
    let mut timed = || {
        let start = Instant::now();
        (command.output().unwrap(), start.elapsed())
    };
    let is_slow = |took: Duration| took >= Duration::from_secs(1);
    let (mut output, mut took) = timed();
    for _ in 0..2 {
        if is_slow(took) {
            (output, took) = timed();
        }
    }
    assert!(!is_slow(took), "{context} took {took:?}");
    line_of(&output)
}

const PLAIN: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 4), }";

/// Headers, with a part of the reason why each is refused.
fn headers() -> Vec<(String, &'static str)> {
    let with = |from: &str, to: &str| PLAIN.replace(from, to);
    let descr = |value: &str| with("'<f4'", value);
    let shape = |value: &str| with("(5, 4)", value);
    let order = |value: &str| with("False", value);
    let records = "an array of records";
    vec![
        (String::new(), "'{' is expected"),
        ("{".to_owned(), "a string is expected"),
        ("}".to_owned(), "'{' is expected"),
        ("{}".to_owned(), "no key 'descr'"),
        ("[]".to_owned(), "'{' is expected"),
        ("\0".repeat(118), "'{' is expected"),
        ("\u{fffd}".repeat(40), "'{' is expected"),
        (" ".repeat(65_000), "its header ends"),
        ("[".repeat(65_000), "'{' is expected"),
        ("{".repeat(65_000), "a string is expected"),
        ("(".repeat(65_000), "'{' is expected"),
        (format!("{{'{}': 1}}", "k".repeat(60_000)), "the key \"kkk"),
        (format!("{{'descr': '{}'", "<".repeat(60_000)), "'}' is expected"),
        ("{'descr".to_owned(), "does not end"),
        ("{'descr': '<f4".to_owned(), "does not end"),
        ("{'descr' '<f4'}".to_owned(), "':' is expected"),
        // A parser that tries every bracket as a list and as something else takes exponential time.
        (descr(&"[".repeat(40)), records),
        (descr(&format!("{}{}", "[".repeat(40), "]".repeat(40))), records),
        (descr(&"[(".repeat(30_000)), records),
        (shape(&"(".repeat(40)), "a size is expected"),
        (shape(&"(".repeat(65_000)), "a size is expected"),
        (shape(&format!("({})", "[".repeat(40))), "a size is expected"),
        (order(&"(".repeat(40)), "True or False is expected"),
        (format!("{}{PLAIN}", "(".repeat(40)), "'{' is expected"),
        (format!("{PLAIN}{}", "[".repeat(40)), "goes on after"),
        (format!("{PLAIN}{PLAIN}"), "goes on after"),
        (format!("{PLAIN}\0"), "goes on after"),
        (PLAIN[..PLAIN.len() - 1].to_owned(), "its header ends"),
        (with(", }", ",, }"), "a string is expected"),
        (with("'descr': '<f4', ", ""), "no key 'descr'"),
        (with("'fortran_order': False, ", ""), "no key 'fortran_order'"),
        (with("'shape': (5, 4), ", ""), "no key 'shape'"),
        (with("'shape'", "'descr'"), records),
        (with("{", "{'descr': '<f4', "), "the key \"descr\" twice"),
        (with("}", "'align': True}"), "the key \"align\""),
        (with("}", "3: True}"), "a string is expected"),
        (with("'descr'", "'DESCR'"), "the key \"DESCR\""),
        (with("'descr'", "'des\\x63r'"), "the key"),
        (with("'descr'", "'\u{1b}[31mdescr'"), "the key"),
        (descr("[('a', '<f4'), ('b', '<i8')]"), records),
        (descr("('<f4', (2,))"), records),
        (descr("'<f16'"), "\"<f16\""),
        (descr("'<c8'"), "\"<c8\""),
        (descr("'|V2'"), "\"|V2\""),
        (descr("'|O'"), "\"|O\""),
        (descr("'<U7'"), "\"<U7\""),
        (descr("'|b1'"), "\"|b1\""),
        (descr("'<M8[ns]'"), "\"<M8[ns]\""),
        (descr("'<f3'"), "\"<f3\""),
        (descr("'<f1'"), "\"<f1\""),
        (descr("'<f'"), "\"<f\""),
        (descr("'<f44'"), "\"<f44\""),
        (descr("'<<f4'"), "\"<<f4\""),
        (descr("'é4'"), "numbers of type"),
        (descr("''"), "numbers of type \"\""),
        (descr("'<f-4'"), "\"<f-4\""),
        (descr("'<f4' '<f4'"), "'}' is expected"),
        (descr("None"), "a string is expected"),
        (order("false"), "True or False is expected"),
        (order("0"), "True or False is expected"),
        (order("'False'"), "True or False is expected"),
        (shape("5"), "'(' is expected"),
        (shape("[5, 4]"), "'(' is expected"),
        (shape("(5 4)"), "',' or ')' is expected"),
        (shape("(,)"), "a size is expected"),
        (shape("(5,, 4)"), "a size is expected"),
        (shape("(20)"), "(20,) is expected"),
        (shape("(-5, -4)"), "a size is expected"),
        (shape("(5.0, 4)"), "',' or ')' is expected"),
        (shape("(True, 4)"), "a size is expected"),
        (shape("(5, None)"), "a size is expected"),
        (shape("(0x5, 4)"), "',' or ')' is expected"),
        (shape("(5e0, 4)"), "',' or ')' is expected"),
        (shape("(5LL, 4)"), "',' or ')' is expected"),
        (shape("(5l, 4)"), "',' or ')' is expected"),
        (shape(&format!("({}, 4)", "9".repeat(20))), "beyond this machine"),
        (shape(&format!("({}, 4)", "9".repeat(60_000))), "beyond this machine"),
        (shape(&format!("({})", "1, ".repeat(20_000))), "more than 64 dimensions"),
        (shape("(9223372036854775807, 4)"), "too large"),
        (shape("(4294967296, 4294967296)"), "too large"),
        (shape("(18446744073709551615, 18446744073709551615)"), "too large"),
        (shape("(1073741824, 1073741824)"), "cut short"),
        (shape("(5, 5)"), "cut short"),
        (shape("()"), "a single number"),
        (shape("(5, 0)"), "no classes"),
        (shape("(0, 0)"), "no classes"),
        (shape("(9223372036854775807, 0, 9223372036854775807)"), "too large"),
        (shape("(0, 9223372036854775807, 9223372036854775807)"), "too large"),
        (shape("(4611686018427387904, 4, 1099511627776, 0)"), "too large"),
    ]
}

/// Files whose first bytes are wrong.
fn starts() -> Vec<(Vec<u8>, &'static str)> {
    let bytes = |start: &[u8]| [start, &[b' '; 200]].concat();
    vec![
        (Vec::new(), "ends within its header"),
        (b"\x93".to_vec(), "ends within its header"),
        (b"\x93NUMPY".to_vec(), "ends within its header"),
        (b"\x93NUMPY\x01\x00".to_vec(), "ends within its header"),
        (b"\x93NUMPY\x01\x00\x76".to_vec(), "ends within its header"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr'".to_vec(), "ends within its header"),
        (bytes(b"\x93NUMPY\x00\x00"), "version: 0.0"),
        (bytes(b"\x93NUMPY\x04\x00"), "version: 4.0"),
        (bytes(b"\x93NUMPY\xff\xff"), "version: 255.255"),
        // A header of 4 GiB, and one that is just too long.
        (bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff"), "a header of 4294967295 bytes"),
        (bytes(b"\x93NUMPY\x03\x00\xff\xff\xff\xff"), "a header of 4294967295 bytes"),
        (bytes(b"\x93NUMPY\x02\x00\x01\x00\x01\x00"), "a header of 65537 bytes"),
        (bytes(b"\x93numpy\x01\x00"), "numpy.save"),
        (bytes(b"\x93NUMPX\x01\x00"), "numpy.save"),
        (bytes(b"PK\x03\x04"), "a zip file"),
        (bytes(b"\x1f\x8b\x08"), "numpy.save"),
        (bytes(b"\x80\x04\x95"), "numpy.save"),
        (bytes("0.5 1.5\n".as_bytes()), "numpy.save"),
        (bytes(&[0xff; 300]), "numpy.save"),
    ]
}

#[test]
fn hostile_files_are_refused_in_one_line() {
    let files = Files::new();
    write(&files.path("w.npy"), &[4], &[1.0_f32; 4]);
    fs::write(files.path("case.npy"), "").unwrap();
    let names = files.names();
    let mut count = 0;
    let mut check = |bytes: &[u8], reason: &str| {
        fs::write(files.path("case.npy"), bytes).unwrap();
        // The reason is compared for logits alone: for targets and weights the shape may be refused
        // instead.
        for (input, reason) in [("--logits", reason), ("--targets", ""), ("--weight", "")] {
            let mut command = logits();
            command
                .current_dir(files.folder.path())
                .args(["loss", "--device", "cpu", "--grad", "g.npy"]);
            for (option, file) in
                [("--logits", "x.npy"), ("--targets", "y.npy"), ("--weight", "w.npy")]
            {
                command.args([option, if option == input { "case.npy" } else { file }]);
            }
            let context =
                format!("{input} {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(150)]));
            let line = refused_at_once(&mut command, &context);
            assert!(line.contains("case.npy"), "{context}: {line}");
            assert!(line.contains(reason), "{context}: {line}");
            count += 1;
            assert_eq!(files.names(), names, "{context}");
        }
    };
    for (header, reason) in headers() {
        check(&[npy_header(&header), vec![0; 80]].concat(), reason);
    }
    for (bytes, reason) in starts() {
        check(&bytes, reason);
    }
    let whole = npy(&[5, 4], &files.logits);
    for length in (1..whole.len()).step_by(7) {
        check(&whole[..length], "");
    }
    println!("{count} calls with hostile files");
    assert!(count >= 300);
}

/// A header's claimed length reserves no memory.
#[cfg(target_os = "linux")]
#[test]
fn headers_take_no_memory_that_is_not_there() {
    let files = Files::new();
    for (bytes, reason) in starts().iter().filter(|(_, reason)| reason.contains("a header of")) {
        fs::write(files.path("case.npy"), bytes).unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "ulimit -v 300000; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_logits"),
            "loss",
        ]);
        command.args([
            "--device",
            "cpu",
            "--logits",
            &files.text("case.npy"),
            "--targets",
            &files.text("y.npy"),
        ]);
        assert!(refused_at_once(&mut command, reason).contains(reason));
    }
}

/// Pipes, sockets, devices, directories and broken paths are named in the error.
#[cfg(unix)]
#[test]
fn inputs_that_are_no_files_are_named() {
    use std::os::unix::ffi::OsStringExt;

    let files = Files::new();
    assert!(Command::new("mkfifo").arg(files.path("pipe")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(files.path("socket")).unwrap();
    std::os::unix::fs::symlink("loop", files.path("loop")).unwrap();
    std::os::unix::fs::symlink("gone.npy", files.path("dangling")).unwrap();
    let names = files.names();
    let long = "n".repeat(4000);
    let longer = format!("{}x.npy", "./".repeat(3000));
    let odd = "a\nb\u{1b}[31m\tc.npy";
    for (name, reason) in [
        // The pipe has no writer, so opening it would wait.
        ("pipe", "a pipe"),
        ("socket", "a socket"),
        ("/dev/zero", "a device"),
        ("/dev/null", "a device"),
        (".", "a directory"),
        ("/", "a directory"),
        ("", "a value is required"),
        ("loop", "symbolic links"),
        ("dangling", "No such file"),
        ("x.npy/", "Not a directory"),
        ("x.npy/y", "Not a directory"),
        (&long, "File name too long"),
        (&longer, "File name too long"),
        (odd, "No such file"),
        ("/proc/self/mem", ""),
        // Files of length 0, which may have no end.
        ("/proc/self/maps", "ends within its header"),
        ("/proc/uptime", "ends within its header"),
    ] {
        for input in ["--logits", "--targets", "--weight"] {
            let mut command = logits();
            command
                .current_dir(files.folder.path())
                .args(["loss", "--device", "cpu", "--probs", "p.npy"]);
            for (option, file) in [("--logits", "x.npy"), ("--targets", "y.npy")] {
                command.args(if option == input { vec![] } else { vec![option, file] });
            }
            let line = refused_at_once(command.args([input, name]), name);
            assert!(line.contains(reason), "{name}: {line}");
            assert!(!line.trim_end().contains(char::is_control), "{line:?}");
            assert_eq!(files.names(), names, "{name}");
        }
    }
    // A name that is not UTF-8.
    let mut command = files.loss(&["--weight"]);
    refused_at_once(command.arg(OsString::from_vec(b"\xff\xfe.npy".to_vec())), "no text");
    // Standard input may be redirected from a file.
    let mut command = logits();
    command
        .args(["loss", "--device", "cpu", "--logits", "/dev/stdin", "--targets"])
        .arg(files.path("y.npy"));
    assert!(
        command.stdin(fs::File::open(files.path("x.npy")).unwrap()).status().unwrap().success()
    );
    let mut command = logits();
    command
        .args(["loss", "--device", "cpu", "--logits", "/dev/stdin", "--targets"])
        .arg(files.path("y.npy"));
    command.stdin(std::process::Stdio::piped());
    assert!(refused_at_once(&mut command, "a pipe").contains("a pipe"));
}

#[test]
fn hostile_calls_are_refused_in_one_line() {
    let files = Files::new();
    let long = "9".repeat(20_000);
    let words = ["word"; 2000].join(" ");
    let names = files.names();
    fn loss<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["loss", "--logits", "x.npy", "--targets", "y.npy", "--grad", "g.npy"], more].concat()
    }
    fn bench<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["bench", "--device", "cpu", "--plot", "p.svg"], more].concat()
    }
    let calls: Vec<Vec<&str>> = vec![
        vec![],
        vec![""],
        vec!["nonsense"],
        vec![&long],
        vec![&words],
        vec!["\n\n\u{1b}[31m\n"],
        vec!["--nonsense"],
        vec!["loss"],
        vec!["loss", "--logits"],
        vec!["loss", "--logits", "x.npy"],
        vec!["loss", "--logits", "x.npy", "--logits", "x.npy", "--targets", "y.npy"],
        vec!["info", "--json", "--json"],
        vec!["info", "extra"],
        vec!["check", "--device", ""],
        vec!["check", "--device", "cpu", "--tuning", "/dev/zero"],
        vec!["check", "--device", "cpu", "--tuning", "/"],
        vec!["check", "--device", "cpu", "--tuning", ""],
        vec!["check", "--device", "cpu", "--tuning", "x.npy"],
        loss(&["--device", ""]),
        loss(&["--device", "cpu", "--tuning", "none"]),
        loss(&["--reduction", "MEAN"]),
        loss(&["--reduction", &long]),
        loss(&["--reduction", &words]),
        loss(&["--top-k", "0"]),
        loss(&["--top-k", "-1"]),
        loss(&["--top-k", "65"]),
        loss(&["--top-k", "18446744073709551615"]),
        loss(&["--top-k", "18446744073709551616"]),
        loss(&["--top-k", &long]),
        loss(&["--top-k", "2.5"]),
        loss(&["--ignore-index", ""]),
        loss(&["--ignore-index", "9223372036854775808"]),
        loss(&["--ignore-index", "1,,2"]),
        loss(&["--ignore-index", &long]),
        loss(&["--label-smoothing", "nan"]),
        loss(&["--label-smoothing", "-0.1"]),
        loss(&["--label-smoothing", "1.0001"]),
        loss(&["--label-smoothing", "inf"]),
        loss(&["--label-smoothing", "1,5"]),
        loss(&["--z-loss", "nan"]),
        loss(&["--z-loss", "inf"]),
        loss(&["--z-loss=-1e-30"]),
        loss(&["--softcap", "-0"]),
        loss(&["--softcap", "1e-46"]),
        loss(&["--softcap", "inf"]),
        loss(&["--softcap", &long]),
        loss(&["--logit-scale", "1e-46"]),
        loss(&["--logit-scale", "nan"]),
        loss(&["--logit-scale", "1e39"]),
        loss(&["--weight", "y.npy"]),
        loss(&["--weight", "x.npy"]),
        bench(&["--shapes", "0x5"]),
        bench(&["--shapes", "5x0"]),
        bench(&["--shapes", "5x5x5"]),
        bench(&["--shapes", "-1x5"]),
        bench(&["--shapes", ""]),
        bench(&["--shapes", "x"]),
        bench(&["--shapes", "99999999999999999999x1"]),
        bench(&["--shapes", "1x4294967295"]),
        bench(&["--shapes", "4294967296x4294967296"]),
        bench(&["--shapes", "9000000000000000x7"]),
        bench(&["--shapes", "1x4000000000000000"]),
        bench(&["--weight", "--shapes", "1x9000000000000"]),
        bench(&["--soft-targets", "--shapes", "100000000x4000000000"]),
        bench(&["--ops", ""]),
        bench(&["--ops", "softmax,,softmax"]),
        bench(&["--dtype", "f64"]),
        bench(&["--budget", "-1"]),
        bench(&["--budget", "1e9"]),
        bench(&["--k", "99999999999999999999"]),
        vec!["tune", "--device", "cpu", "--out", "t.txt"],
        vec!["tune", "--device", "cpu"],
        vec!["tune", "--device", "cpu", "--out", "t.txt", "--elements", "0"],
        vec!["tune", "--device", "cpu", "--out", "t.txt", "--elements", "1073741825"],
    ];
    println!("{} hostile calls", calls.len());
    for call in calls {
        let mut command = logits();
        command.current_dir(files.folder.path()).args(&call);
        let context = format!("{call:.60?}");
        let line = refused_at_once(&mut command, &context);
        assert!(!line.trim_end().contains(char::is_control), "{context}: {line:?}");
        assert_eq!(files.names(), names, "{context}");
    }
}
