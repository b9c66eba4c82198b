//! The devices that the tests run on.

#![allow(dead_code)] // each test binary uses its own part

use std::io::Write;

use logits::{Device, DeviceChoice};

/// Every GPU of this machine, software included. Without one the reason is printed, and it is a failure where
/// `LOGITS_REQUIRE_GPU=1` promises one.
pub fn gpus() -> Vec<Device> {
    let mut devices = Vec::new();
    let mut reasons = Vec::new();
    for adapter in Device::adapters() {
        let choice = DeviceChoice::Named(format!("{}:{}", adapter.backend, adapter.name));
        match Device::open(&choice) {
            Ok(device) => devices.push(device),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    if devices.is_empty() {
        let reason = if cfg!(feature = "gpu") { "no adapter" } else { "built without the feature `gpu`" };
        // Past the capture of the test harness: a skip is to be seen. Nothing is lost where stderr is closed.
        let _ = writeln!(std::io::stderr(), "SKIPPED on a GPU: {reason} {reasons:?}");
        let required = std::env::var("LOGITS_REQUIRE_GPU").is_ok_and(|value| value == "1");
        assert!(!(required && cfg!(feature = "gpu")), "LOGITS_REQUIRE_GPU=1, but: {reason} {reasons:?}");
    }
    devices
}

/// The CPU and every GPU.
pub fn devices() -> Vec<Device> {
    let mut devices = vec![Device::cpu()];
    devices.extend(gpus());
    devices
}
