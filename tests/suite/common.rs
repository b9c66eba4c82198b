//! The devices that the tests run on.

use std::io::Write;
use std::sync::{Mutex, OnceLock, PoisonError};

use logits::{Device, DeviceChoice};

use crate::tier;

/// How often each adapter is opened. Software compiles and runs what one device is given on one thread, so tests that run at the
/// same time are given two of them.
pub const OPENED: usize = 2;

/// Which of the [`OPENED`] devices of each adapter a test uses: one that the fewest other tests use.
struct Turn(usize);

static USERS: Mutex<[usize; OPENED]> = Mutex::new([0; OPENED]);

thread_local! {
    /// Each test has a thread.
    static TURN: Turn = {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (0..OPENED).min_by_key(|&turn| users[turn]).unwrap();
        users[turn] += 1;
        Turn(turn)
    };
}

impl Drop for Turn {
    fn drop(&mut self) {
        USERS.lock().unwrap_or_else(PoisonError::into_inner)[self.0] -= 1;
    }
}

/// One value a turn, made by the first test that asks for it.
pub fn shared<T: Clone>(values: &[OnceLock<T>; OPENED], new: impl FnOnce() -> T) -> T {
    TURN.with(|turn| values[turn.0].get_or_init(new).clone())
}

/// Every GPU of this machine, software included, opened [`OPENED`] times for all tests. Without one the reason is printed, and it is
/// a failure where `LOGITS_REQUIRE_GPU=1` promises one.
pub fn gpus() -> Vec<Device> {
    static GPUS: [OnceLock<Result<Vec<Device>, String>>; OPENED] = [const { OnceLock::new() }; OPENED];
    match shared(&GPUS, open_gpus) {
        Ok(devices) => devices,
        Err(reason) => {
            // Past the capture of the test harness: a skip is to be seen. Nothing is lost where stderr is closed.
            let _ = writeln!(std::io::stderr(), "SKIPPED on a GPU: {reason}");
            let required = std::env::var("LOGITS_REQUIRE_GPU").is_ok_and(|value| value == "1") && cfg!(feature = "gpu");
            assert!(!required, "LOGITS_REQUIRE_GPU=1, but: {reason}");
            Vec::new()
        }
    }
}

fn open_gpus() -> Result<Vec<Device>, String> {
    let mut devices = Vec::new();
    let mut reasons = Vec::new();
    for adapter in Device::adapters() {
        let choice = DeviceChoice::Named(format!("{}:{}", adapter.backend, adapter.name));
        match Device::open(&choice) {
            Ok(device) => devices.push(device),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    match devices.is_empty() {
        false => Ok(devices),
        true if cfg!(feature = "gpu") => Err(format!("no adapter {reasons:?}")),
        true => Err("built without the feature `gpu`".to_owned()),
    }
}

/// The CPU and every GPU.
pub fn devices() -> Vec<Device> {
    let mut devices = vec![Device::cpu()];
    devices.extend(gpus());
    devices
}

/// How much of a sweep a device runs. For most cases a GPU's driver compiles a pipeline, which takes Mesa half a second, and the
/// kernels of two adapters are the same text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// All of it: the CPU, and every device where `LOGITS_FULL=1` is set.
    All,
    /// A sample that holds every pair of values: the first GPU.
    Pairs,
    /// A sample that holds every value: any other GPU.
    Values,
}

/// How much of a sweep `device` runs.
pub fn share(device: &Device) -> Share {
    let is_first = gpus().first().is_some_and(|first| is_same(device, first));
    match device.is_gpu() && !tier::is_full() {
        false => Share::All,
        true if is_first => Share::Pairs,
        true => Share::Values,
    }
}

fn is_same(a: &Device, b: &Device) -> bool {
    (a.name(), a.backend()) == (b.name(), b.backend())
}

/// The cases that `device` runs, with their indices: all of them on the CPU, every `step`th from `first` on on the first GPU, and
/// every `2 * step`th on any other GPU.
pub fn in_turn<C, const N: usize>(
    device: &Device,
    first: usize,
    step: usize,
    cases: [C; N],
) -> impl Iterator<Item = (usize, C)> {
    let step = match share(device) {
        Share::All => 1,
        Share::Pairs => step,
        Share::Values => 2 * step,
    };
    cases.into_iter().enumerate().filter(move |(nth, _)| nth % step == first % step)
}
