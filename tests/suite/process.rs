//! A fork of a process that has opened a GPU.

use std::process::Command;
use std::time::{Duration, Instant};

use logits::{Device, DeviceChoice, Error, Logits};

use crate::common;

unsafe extern "C" {
    safe fn fork() -> i32;
    safe fn _exit(status: i32) -> !;
    fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
    safe fn kill(process: i32, signal: i32) -> i32;
}

/// Other tests' threads may hold a lock at the time of the fork, so the test runs alone in a
/// process.
#[test]
fn a_fork_computes_on_the_cpu() {
    if common::gpus().is_empty() {
        return;
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.args(["--exact", "process::forks_alone", "--ignored", "--test-threads=1"]);
    let output = alone.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "a_fork_computes_on_the_cpu runs it"]
fn forks_alone() {
    for gpu in common::gpus() {
        let device =
            Device::open(&DeviceChoice::Named(format!("{}:{}", gpu.backend(), gpu.name())))
                .unwrap();
        let logits = vec![0.5_f32; 300 * 1000];
        let x = Logits::new(&logits, [300, 1000]).unwrap();
        // The GPU has been used, and the CPU's threads and the thread that waits for the GPU run.
        let wanted = Device::cpu().softmax(x).to_vec().unwrap();
        pollster::block_on(device.softmax(x).to_vec_async()).unwrap();
        let resident = device.upload(x).unwrap();
        let child = fork();
        assert!(child >= 0, "no fork");
        if child == 0 {
            let is_refused = matches!(device.softmax(x).to_vec(), Err(Error::Gpu { reason, .. }) if reason.contains("forked"))
                && matches!(resident.softmax().run().map(drop), Err(Error::Gpu { .. }));
            let is_computed = Device::cpu().softmax(x).to_vec().is_ok_and(|out| out == wanted);
            // Neither drop may hang.
            drop((resident, device));
            _exit(if is_refused && is_computed { 0 } else { 1 + i32::from(is_refused) });
        }
        let (start, mut status) = (Instant::now(), 0);
        let waited = loop {
            // SAFETY: `status` is a live i32 that nothing else uses, and `waitpid` writes one i32
            // to it.
            match unsafe { waitpid(child, &mut status, 1) } {
                0 if start.elapsed() > Duration::from_secs(60) => {
                    kill(child, 9);
                    panic!("a fork hangs on {device}");
                }
                0 => std::thread::sleep(Duration::from_millis(10)),
                waited => break waited,
            }
        };
        assert_eq!((waited, status), (child, 0), "on {device}");
        // The parent can still use the GPU.
        assert_eq!(resident.read().unwrap(), logits);
    }
}
