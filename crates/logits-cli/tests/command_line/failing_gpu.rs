//! The command line on a GPU that fails.

use serde_json::Value;

use crate::layer::{DEVICE_LOST, FOREVER, Kind, above_layer, found_or_skipped};

/// `logits info` prints the devices and the failure if the best GPU is lost while it is measured.
#[test]
fn info_tells_of_a_gpu_that_fails_while_it_is_measured() {
    let Some((layer, adapter)) = found_or_skipped() else { return };
    // The self-test of the adapter has fewer submissions.
    let fault = format!("{} 12 {FOREVER} {DEVICE_LOST}", Kind::Submit as i32);
    let info = |more: &[&str]| {
        let mut command = above_layer(env!("CARGO_BIN_EXE_logits"), layer, adapter);
        let output = command.arg("info").args(more).env("LOGITS_FAULT", &fault).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        // The validation layer, if it is loaded, writes to standard output too.
        String::from_utf8(output.stdout).unwrap()
    };
    let said = info(&[]);
    assert!(said.contains("was not measured: ") && said.contains("lost"), "{said}");
    let said = info(&["--json"]);
    let json: Value =
        serde_json::from_str(said.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    assert_eq!((&json["placement"], json["cpu_threads"].is_u64()), (&Value::Null, true));
    assert!(json["placement_error"].as_str().unwrap().contains("lost"), "{json}");
}
