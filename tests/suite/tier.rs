//! The environment variables that the tests read. The unit tests of the library include this file.

use std::io::Write;

/// Whether every sweep runs in full: `LOGITS_FULL=1`.
pub fn is_full() -> bool {
    is_set("LOGITS_FULL")
}

/// Whether a test that finds no adapter fails: `LOGITS_REQUIRE_GPU=1`, in a build that can find
/// one.
pub fn requires_gpu() -> bool {
    cfg!(feature = "gpu") && is_set("LOGITS_REQUIRE_GPU")
}

fn is_set(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "1")
}

/// Prints that something is not tested, past the capture of the test harness. A closed stderr is
/// ignored.
pub fn skip(reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED on a GPU: {reason}");
}
