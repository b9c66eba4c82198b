//! Output files appear together or not at all; a standard output that is full or closed is an
//! error.

use std::fs;

use super::files::{Files, line_of, logits, read, write};

/// Two names of one file, and a name that no file can have, are refused before anything is made.
#[test]
fn places_that_cannot_be_are_refused_before_any_work() {
    let files = Files::new();
    // 2 GB of logits: evaluating them would take longer than the two seconds allowed.
    files.zeros("long.npy", &[500_000, 1000]);
    write(&files.path("many.npy"), &[500_000], &vec![0_i64; 500_000]);
    write(&files.path("w.npy"), &[1000], &[1.0_f32; 1000]);
    fs::write(files.path("former.npy"), "former").unwrap();
    fs::create_dir(files.path("folder")).unwrap();
    fs::write(files.path("t.txt"), "").unwrap();
    let absolute = files.text("g.npy");
    let (too_long, deep) =
        (format!("{}.npy", "n".repeat(300)), format!("{}g.npy", "./".repeat(3000)));
    let mut cases: Vec<(Vec<&str>, &str)> = vec![
        (vec!["--grad", "g.npy", "--probs", "g.npy"], "same file as the output g.npy"),
        (vec!["--grad", "g.npy", "--probs", "./g.npy"], "same file as the output g.npy"),
        (
            vec!["--grad", "folder/../g.npy", "--log-probs", "g.npy"],
            "same file as the output folder/../g.npy",
        ),
        (vec!["--grad", &absolute, "--per-row", "g.npy"], "same file"),
        (
            vec!["--probs", "p.npy", "--grad", "former.npy", "--per-row", ".//former.npy"],
            "same file",
        ),
        (vec!["--grad", "long.npy"], "same file as the input long.npy"),
        (vec!["--probs", "p.npy", "--grad", "./many.npy"], "same file as the input many.npy"),
        (
            vec!["--probs", "p.npy", "--grad", "w.npy", "--weight", "w.npy"],
            "same file as the input w.npy",
        ),
        (
            vec!["--probs", "p.npy", "--grad", "t.txt", "--tuning", "t.txt"],
            "same file as the input t.txt",
        ),
        (vec!["--probs", "p.npy", "--grad", ""], "a value is required"),
        (vec!["--probs", "p.npy", "--grad", "."], "not a regular file"),
        (vec!["--probs", "p.npy", "--grad", ".."], "not a regular file"),
        (vec!["--probs", "p.npy", "--grad", "/"], "not a regular file"),
        (vec!["--probs", "p.npy", "--grad", "folder"], "not a regular file"),
        (vec!["--probs", "p.npy", "--grad", "folder/"], "not a regular file"),
        (vec!["--probs", "p.npy", "--grad", "new/"], "names a folder"),
        (vec!["--probs", "p.npy", "--grad", "new/."], "names a folder"),
        (vec!["--probs", "p.npy", "--grad", "former.npy/"], ""),
        (vec!["--probs", "p.npy", "--grad", "former.npy/g.npy"], ""),
        (vec!["--probs", "p.npy", "--grad", "missing/g.npy"], "no folder"),
        (vec!["--probs", "p.npy", "--grad", "missing/../g.npy"], "no folder missing/.."),
        (vec!["--probs", "p.npy", "--grad", &too_long], "too long"),
        (vec!["--probs", "p.npy", "--grad", &deep], "too long"),
    ];
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink("g.npy", files.path("dangling")).unwrap();
        symlink("dangling", files.path("second")).unwrap();
        symlink("long.npy", files.path("input")).unwrap();
        symlink("loop", files.path("loop")).unwrap();
        symlink("missing/g.npy", files.path("astray")).unwrap();
        symlink("new/", files.path("to_folder")).unwrap();
        symlink("folder", files.path("folder_link")).unwrap();
        fs::hard_link(files.path("former.npy"), files.path("hard.npy")).unwrap();
        fs::hard_link(files.path("many.npy"), files.path("hard_input.npy")).unwrap();
        cases.extend([
            (vec!["--grad", "g.npy", "--probs", "dangling"], "same file"),
            (vec!["--grad", "second", "--probs", "dangling"], "same file"),
            (vec!["--grad", "folder/new.npy", "--probs", "folder_link/new.npy"], "same file"),
            (
                vec!["--probs", "p.npy", "--grad", "former.npy", "--per-row", "hard.npy"],
                "same file",
            ),
            (vec!["--probs", "p.npy", "--grad", "input"], "same file as the input"),
            (vec!["--probs", "p.npy", "--grad", "hard_input.npy"], "same file as the input"),
            (vec!["--probs", "p.npy", "--grad", "loop"], "links"),
            (vec!["--probs", "p.npy", "--grad", "astray"], "no folder"),
            (vec!["--probs", "p.npy", "--grad", "to_folder"], "names a folder"),
            (vec!["--probs", "p.npy", "--grad", "/dev/null"], "not a regular file"),
            (vec!["--probs", "p.npy", "--grad", "/dev/stdout"], "not a regular file"),
            (vec!["--probs", "p.npy", "--grad", "/proc/self/nothing"], ""),
        ]);
    }
    let names = files.names();
    for (outputs, reason) in cases {
        let mut command = logits();
        command
            .current_dir(files.folder.path())
            .args(["loss", "--device", "cpu", "--logits", "long.npy"]);
        let start = std::time::Instant::now();
        let output = command.args(["--targets", "many.npy"]).args(&outputs).output().unwrap();
        let line = line_of(&output);
        assert!(line.contains(reason), "{outputs:?}: {line}");
        assert_eq!(files.names(), names, "{outputs:?}");
        assert!(start.elapsed().as_secs_f32() < 2.0, "{outputs:?}");
    }
    assert_eq!(fs::read(files.path("former.npy")).unwrap(), b"former");

    // `bench` and `tune` refuse such paths too.
    for (command, option) in [(vec!["bench", "--shapes", "2x3"], "--plot"), (vec!["tune"], "--out")]
    {
        for (name, reason) in [
            ("", "a value is required"),
            ("missing/f", "no folder"),
            ("t.txt", "same file as the input"),
        ] {
            let mut call = logits();
            call.current_dir(files.folder.path())
                .args(&command)
                .args(["--device", "cpu", "--tuning", "t.txt"]);
            let line = line_of(&call.args([option, name]).output().unwrap());
            assert!(line.contains(reason), "{command:?} {name}: {line}");
            assert_eq!(files.names(), names);
        }
    }
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_modes_kept() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let files = Files::new();
    fs::create_dir(files.path("folder")).unwrap();
    symlink("folder/new.npy", files.path("dangling.npy")).unwrap();
    fs::write(files.path("folder/private.npy"), "former").unwrap();
    symlink("folder/private.npy", files.path("private.npy")).unwrap();
    symlink(files.path("private.npy"), files.path("folder/second.npy")).unwrap();
    for mode in [0o600, 0o640, 0o664] {
        fs::set_permissions(files.path("folder/private.npy"), fs::Permissions::from_mode(mode))
            .unwrap();
        let outputs =
            ["--grad", "dangling.npy", "--probs", "folder/second.npy", "--per-row", "new.npy"];
        assert!(files.loss(&outputs).output().unwrap().status.success());
        let mode_of =
            |name: &str| fs::metadata(files.path(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode_of("folder/private.npy"), mode);
        // New files have the mode that the umask gives.
        fs::write(files.path("any"), "").unwrap();
        assert_eq!(
            (mode_of("new.npy"), mode_of("folder/new.npy")),
            (mode_of("any"), mode_of("any"))
        );
        for link in ["dangling.npy", "private.npy", "folder/second.npy"] {
            assert!(fs::symlink_metadata(files.path(link)).unwrap().is_symlink(), "{link}");
        }
        assert_eq!(read(&files.path("folder/private.npy")).0, [5, 4]);
        assert_eq!(read(&files.path("folder/new.npy")).0, [5, 4]);
    }
    let names = ["any", "dangling.npy", "folder", "new.npy", "private.npy", "x.npy", "y.npy"];
    assert_eq!(files.names(), names);
    assert_eq!(fs::read_dir(files.path("folder")).unwrap().count(), 3);
}

/// A limit on the file size stands in for a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_no_file() {
    let files = Files::new();
    write(&files.path("x.npy"), &[5, 40_000], &[0.5_f32; 200_000]);
    fs::write(files.path("g.npy"), "former").unwrap();
    let names = files.names();
    for outputs in
        [&["--grad", "g.npy"][..], &["--per-row", "r.npy", "--probs", "p.npy", "--grad", "g.npy"]]
    {
        let mut command = std::process::Command::new("sh");
        command.current_dir(files.folder.path());
        // The unit is 512 or 1024 bytes, depending on the shell.
        command.args([
            "-c",
            "ulimit -f 64; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_logits"),
            "loss",
            "--device",
            "cpu",
        ]);
        let output = command
            .args(["--logits", "x.npy", "--targets", "y.npy"])
            .args(outputs)
            .output()
            .unwrap();
        assert!(line_of(&output).contains("File too large"), "{output:?}");
        assert_eq!(files.names(), names);
        assert_eq!(fs::read(files.path("g.npy")).unwrap(), b"former");
    }
}

#[cfg(unix)]
mod unix {
    use std::fs::{self, File};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    use std::{io, thread};

    use nix::sys::signal::{SigHandler, Signal};

    use super::super::files::{Files, line_of, logits, write};
    use crate::common;

    /// A call that a signal ends leaves no file, and its exit status names the signal.
    #[test]
    fn a_signal_leaves_no_file() {
        let files = Files::new();
        files.zeros("long.npy", &[500_000, 1000]);
        write(&files.path("many.npy"), &[500_000], &vec![0_i64; 500_000]);
        fs::write(files.path("p.npy"), "former").unwrap();
        let names = files.names();
        for (number, name) in [(2, "INT"), (15, "TERM"), (1, "HUP")] {
            let mut command = logits();
            command
                .current_dir(files.folder.path())
                .args(["loss", "--device", "cpu", "--logits", "long.npy"]);
            command.args(["--targets", "many.npy", "--grad", "g.npy", "--probs", "p.npy"]);
            // Background jobs of a shell without job control ignore SIGINT, and this process may be
            // one.
            let heed = || {
                for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
                    // SAFETY: the default action runs no code of this process.
                    unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
                }
                Ok(())
            };
            // SAFETY: sigaction may be called between fork and exec.
            unsafe { command.pre_exec(heed) };
            let mut child = command.stdout(Stdio::null()).spawn().unwrap();
            let start = Instant::now();
            while files.names().len() < names.len() + 2 && start.elapsed() < Duration::from_secs(60)
            {
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(
                files.names().len(),
                names.len() + 2,
                "no unfinished files after {:?}",
                start.elapsed()
            );
            thread::sleep(Duration::from_millis(50));
            let kill =
                Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
            assert!(kill.success());
            let status = child.wait().unwrap();
            assert_eq!(status.signal(), Some(number), "{status}");
            assert_eq!(files.names(), names, "SIG{name}");
            assert_eq!(fs::read(files.path("p.npy")).unwrap(), b"former");
        }
    }

    /// In a sticky folder another user's file cannot be replaced, and the error comes at once. Only
    /// root can run this.
    #[test]
    fn another_users_file_in_a_sticky_folder_is_refused() {
        use std::os::unix::fs::{PermissionsExt, chown};

        let files = Files::new();
        let folder = files.path("sticky");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(files.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(folder.join("g.npy"), "former").unwrap();
        fs::set_permissions(folder.join("g.npy"), fs::Permissions::from_mode(0o666)).unwrap();
        if chown(folder.join("g.npy"), Some(0), Some(0)).is_err() {
            crate::tier::skip("only root can become another user");
            return;
        }
        let other = 65_534;
        let as_other = |outputs: &[&str]| files.loss(outputs).uid(other).gid(other).output();
        // The binary may be in a folder that the other user cannot read.
        let Ok(output) = as_other(&["--per-row", "sticky/r.npy", "--grad", "sticky/g.npy"]) else {
            crate::tier::skip("another user cannot run the binary");
            return;
        };
        assert!(line_of(&output).contains("sticky folder"), "{output:?}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert!(as_other(&["--grad", "sticky/new.npy"]).unwrap().status.success());
    }

    /// A signal that the process inherits as ignored stays ignored, as under `nohup`.
    #[test]
    fn an_ignored_signal_stays_ignored() {
        let files = Files::new();
        files.zeros("x.npy", &[100_000, 1000]);
        write(&files.path("y.npy"), &[100_000], &vec![0_i64; 100_000]);
        let mut command = Command::new("sh");
        // The signals are sent once there are unfinished files.
        let script = "trap '' INT HUP; \"$0\" \"$@\" & \
            while ! ls -A | grep -q '^[.]logits-'; do kill -0 $! || exit 9; done; \
            kill -s INT $!; kill -s HUP $!; wait $!";
        command.current_dir(files.folder.path()).args([
            "-c",
            script,
            env!("CARGO_BIN_EXE_logits"),
            "loss",
        ]);
        command.args([
            "--device",
            "cpu",
            "--logits",
            "x.npy",
            "--targets",
            "y.npy",
            "--grad",
            "g.npy",
        ]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(files.path("g.npy").exists());
    }

    /// Returns a call of each command, that of `tune` with `tune_options`, and whether it has an
    /// output file.
    fn commands(files: &Files, tune_options: &[&str]) -> Vec<(Command, bool)> {
        let mut calls: Vec<Vec<String>> = [
            "--help",
            "--version",
            "help",
            "loss --help",
            "check --device cpu",
            "info",
            "info --json",
            "bench --device cpu --shapes 5x7 --budget 1",
            "bench --device cpu --shapes 5x7 --budget 1 --json --plot b.svg",
            "loss --device cpu --json --logits x.npy --targets y.npy --grad g.npy",
            "loss --device cpu --logits x.npy --targets y.npy",
        ]
        .iter()
        .map(|call| call.split(' ').map(str::to_owned).collect())
        .collect();
        if let Some(device) = common::gpus().first() {
            let name = format!("{}:{}", device.backend(), device.name());
            let call = [
                &["tune", "--elements", "4096", "--out", "t.txt", "--device", &name],
                tune_options,
            ]
            .concat();
            calls.push(call.into_iter().map(str::to_owned).collect());
        }
        let command = |call: Vec<String>| {
            let mut command = logits();
            command.current_dir(files.folder.path()).args(&call);
            if call[0] == "info" {
                // Without an adapter `info` measures none, which would take long.
                command.env("WGPU_BACKEND", "dx12");
            }
            (
                command,
                call.iter().any(|word| ["--plot", "--grad", "--out"].contains(&word.as_str())),
            )
        };
        calls.into_iter().map(command).collect()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_standard_output_is_an_error() {
        let files = Files::new();
        let names = files.names();
        for (mut command, _) in commands(&files, &[]) {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let output = command.stdout(full).output().unwrap();
            assert!(line_of(&output).contains("standard output: No space left"), "{command:?}");
            assert_eq!(files.names(), names, "{command:?}");
        }
    }

    #[test]
    fn a_closed_standard_output_is_no_reason_to_panic() {
        let files = Files::new();
        let names = files.names();
        for (mut command, has_output) in commands(&files, &["--json"]) {
            let (reader, writer) = io::pipe().unwrap();
            drop(reader);
            let output = command.stdout(writer).output().unwrap();
            if has_output {
                assert!(
                    line_of(&output).contains("no file was written"),
                    "{command:?}: {output:?}"
                );
            }
            let is_quiet = output.stderr.is_empty();
            assert_eq!(
                (output.status.code(), is_quiet),
                (Some(2), !has_output),
                "{command:?}: {output:?}"
            );
            assert_eq!(files.names(), names, "{command:?}");
        }
    }

    /// A reader that closes standard output after a part of the result still gets all files.
    #[test]
    fn a_standard_output_that_is_closed_after_a_line_loses_nothing() {
        use std::io::{BufRead, BufReader};

        let files = Files::new();
        for _ in 0..20 {
            let mut command = logits();
            command
                .current_dir(files.folder.path())
                .args(["loss", "--device", "cpu", "--logits", "x.npy"]);
            let mut child = command
                .args(["--targets", "y.npy", "--grad", "g.npy"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert!(line.starts_with("loss") && child.wait().unwrap().success());
            fs::remove_file(files.path("g.npy")).unwrap();
        }
    }

    /// The exit code is 2 even where standard error is full or closed.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_standard_error_is_no_reason_to_panic() {
        for arguments in
            [&["nonsense"][..], &["loss", "--logits", "none.npy", "--targets", "none.npy"]]
        {
            let full = File::options().write(true).open("/dev/full").unwrap();
            assert_eq!(logits().args(arguments).stderr(full).status().unwrap().code(), Some(2));
            let (reader, writer) = io::pipe().unwrap();
            drop(reader);
            assert_eq!(logits().args(arguments).stderr(writer).status().unwrap().code(), Some(2));
        }
    }

    /// The file that standard output is redirected to cannot be an output too.
    #[test]
    fn standard_output_is_no_place_for_an_array() {
        let files = Files::new();
        for name in ["/dev/stdout", "/dev/fd/1", "out.txt", "./out.txt"] {
            let out = File::create(files.path("out.txt")).unwrap();
            let output =
                files.loss(&["--probs", "p.npy", "--grad", name]).stdout(out).output().unwrap();
            assert!(line_of(&output).contains("standard output"), "{name}: {output:?}");
            assert_eq!(files.names(), ["out.txt", "x.npy", "y.npy"]);
        }
        let out = File::create(files.path("out.txt")).unwrap();
        let status =
            files.loss(&["--grad", "out.txt"]).stdout(Stdio::null()).stderr(out).status().unwrap();
        let said = fs::read_to_string(files.path("out.txt")).unwrap();
        assert!(
            status.code() == Some(2) && said.contains("the same file as standard error"),
            "{said}"
        );
    }
}
