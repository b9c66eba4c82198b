//! The devices that the tests run on.

use std::sync::{Mutex, OnceLock, PoisonError};

use logits::{Device, DeviceChoice};

use crate::tier;

/// How many devices each adapter is opened as. A software driver compiles and runs the work of one
/// device on one thread; with two devices, two tests compile at once.
pub const DEVICES_PER_ADAPTER: usize = 2;

/// The index of the device of each adapter that a test uses: one with the fewest other users.
struct Slot(usize);

static USERS: Mutex<[usize; DEVICES_PER_ADAPTER]> = Mutex::new([0; DEVICES_PER_ADAPTER]);

thread_local! {
    /// libtest runs each test in a thread of its own.
    static SLOT: Slot = {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (0..DEVICES_PER_ADAPTER).min_by_key(|&slot| users[slot]).unwrap_or(0);
        users[slot] += 1;
        Slot(slot)
    };
}

impl Drop for Slot {
    fn drop(&mut self) {
        USERS.lock().unwrap_or_else(PoisonError::into_inner)[self.0] -= 1;
    }
}

/// Returns the value of this test's slot; the first test of a slot calls `new`.
pub fn shared<T: Clone>(values: &[OnceLock<T>; DEVICES_PER_ADAPTER], new: impl FnOnce() -> T) -> T {
    SLOT.with(|slot| values[slot.0].get_or_init(new).clone())
}

/// Returns every GPU of this machine, software included, opened [`DEVICES_PER_ADAPTER`] times for
/// all tests. Without one it prints the reason, and fails if `LOGITS_REQUIRE_GPU=1` promises one.
pub fn gpus() -> Vec<Device> {
    static GPUS: [OnceLock<Result<Vec<Device>, String>>; DEVICES_PER_ADAPTER] =
        [const { OnceLock::new() }; DEVICES_PER_ADAPTER];
    match shared(&GPUS, open_gpus) {
        Ok(devices) => devices,
        Err(reason) => {
            assert!(!tier::requires_gpu(), "LOGITS_REQUIRE_GPU=1, but: {reason}");
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
            Err(error) => {
                tier::skip(&error.to_string());
                reasons.push(error.to_string());
            }
        }
    }
    if !devices.is_empty() {
        return Ok(devices);
    }
    let reason = match cfg!(feature = "gpu") {
        true => format!("no adapter {reasons:?}"),
        false => "built without the feature `gpu`".to_owned(),
    };
    tier::skip(&reason);
    Err(reason)
}

/// The CPU and every GPU.
pub fn devices() -> Vec<Device> {
    let mut devices = vec![Device::cpu()];
    devices.extend(gpus());
    devices
}

/// The share of a sweep that a device runs. For most cases a GPU's driver compiles a pipeline,
/// which takes Mesa a quarter of a second to four seconds, and the kernels of two adapters are the
/// same text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// All of it: the CPU, and every device if `LOGITS_FULL=1` is set.
    All,
    /// A sample that holds every pair of values: the first GPU.
    Pairs,
    /// Every value of each option once, or a few cases: any other GPU.
    Values,
}

/// Returns the share of a sweep that `device` runs.
pub fn share(device: &Device) -> Share {
    if !device.is_gpu() || tier::is_full() {
        return Share::All;
    }
    match gpus().first() {
        Some(first) if is_same(device, first) => Share::Pairs,
        _ => Share::Values,
    }
}

fn is_same(a: &Device, b: &Device) -> bool {
    (a.name(), a.backend()) == (b.name(), b.backend())
}

/// Returns the cases that `device` runs, with their indices: those whose index is `first` modulo a
/// step, which is 1 on the CPU, `step` on the first GPU and `2 * step` on any other.
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
