//! The devices that the tests run on.

use std::io::Write;
use std::sync::OnceLock;

use logits::{Device, DeviceChoice};

/// Every GPU of this machine, software included, opened once for all tests. Without one the reason is printed, and it is a
/// failure where `LOGITS_REQUIRE_GPU=1` promises one.
pub fn gpus() -> Vec<Device> {
    static GPUS: OnceLock<Result<Vec<Device>, String>> = OnceLock::new();
    match GPUS.get_or_init(open_gpus) {
        Ok(devices) => devices.clone(),
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
