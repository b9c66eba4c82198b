//! Every integration test, in one binary: each adapter is opened once, and its compiled pipelines
//! are shared by all tests.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod battery;
mod bits;
mod common;
mod covering;
mod decisions;
#[cfg(feature = "gpu")]
mod engine;
mod errors;
mod every_operation;
mod layouts;
mod options;
mod plans;
#[cfg(all(target_os = "linux", feature = "gpu"))]
mod process;
mod properties;
mod pytorch;
mod range_sweep;
mod ranges;
mod resident;
mod tier;
mod weights;
