//! How much of the sweeps runs. Shared with the unit tests of the library.

/// Whether `LOGITS_FULL=1` asks for every sweep in full. Without it the tests that take long run the part of their sweep that they
/// name.
pub fn is_full() -> bool {
    std::env::var("LOGITS_FULL").is_ok_and(|value| value == "1")
}
