//! Softmax and cross-entropy of batched logits, on any GPU through wgpu and on the CPU, with the
//! same results within stated bounds.
//!
//! ```
//! use logits::{CrossEntropy, Device, Logits};
//!
//! let device = Device::new(); // a GPU if there is one, else the CPU; `{device}` says why
//! let activations = [20.0_f32, 0.0, /* next row */ 1.0, 3.0];
//! let x = Logits::new(&activations, [2, 2])?;
//!
//! let mut gradient = [0.0; 4];
//! let loss = CrossEntropy::default();
//! let out = device.cross_entropy(&loss, x, &[0, 1]).with_gradient(&mut gradient)?;
//! println!("{device}: loss {} over {} rows", out.loss, out.counted_rows);
//! assert!((out.per_row[0] - 2.061_153_6e-9).abs() < 1e-15); // a confident row keeps its loss
//! # Ok::<(), logits::Error>(())
//! ```
//!
//! Three ways in:
//!
//! | your data | use |
//! |---|---|
//! | in host memory | the operations of [`Device`]: `device.softmax(x)` describes a call, and `.to_vec()`, `.write_to(&mut out)` or `.in_place()` runs it, each with an `_async` form |
//! | to stay on the device between calls | [`Device::upload`], and the operations of [`Resident`]: `x.softmax().run()`; its buffers stay the crate's, so a network of your own on the GPU uses a step |
//! | in buffers of your own wgpu device | `Gpu::from_wgpu`, `Gpu::prepare(..).build()`, and `BoundStep::record` into your commands |
//!
//! A *row* is one softmax: `[rows, classes]` has one for each of its `rows`. A *step* is an
//! operation prepared once and recorded into a command encoder any number of times. *Resident* data
//! stays on the device between calls.
//!
//! # Data that stays on the device
//!
//! ```
//! use logits::{CrossEntropy, Device, Logits};
//!
//! // `fastest` measures once, then sends each call over host memory to the GPU or to the CPU,
//! // whichever has the result back first; `crossovers` has the sizes from which that is the GPU.
//! let device = Device::new().fastest()?;
//! println!("{:?}", device.crossovers());
//! let x = device.upload(Logits::new(&[2.0_f32, 0.0, 1.0, 0.5, 3.0, 0.0], [2, 3])?)?;
//! let targets = device.upload_targets(&CrossEntropy::default(), [2, 3], &[0, 2])?;
//! let (loss, gradient) = x.cross_entropy_with_gradient(&targets).run()?; // nothing is read back
//! println!("loss {}", loss.read()?.loss); // 32 bytes; or read_async().await
//! let first_row = gradient.read_rows(0..1)?;
//! # assert_eq!(first_row.len(), 3);
//! # Ok::<(), logits::Error>(())
//! ```
//!
//! # When a GPU fails
//!
//! ```
//! use logits::{Device, Logits};
//!
//! let device = Device::new();
//! for adapter in device.rejected_adapters() {
//!     println!("not used: {adapter}"); // with the reason
//! }
//! let out = device.softmax(Logits::new(&[1.0_f32, 2.0], [1, 2])?).to_vec()?;
//! if let Some(reason) = out.fell_back {
//!     println!("finished on the CPU: {reason}");
//! }
//! # Ok::<(), logits::Error>(())
//! ```
//!
//! A device that was chosen automatically finishes a failed call on the CPU, and `fell_back` in the
//! result has the reason. A GPU that was chosen by name, and resident data, return [`Error::Gpu`].
//! Errors in the caller's data name the value and its place, and come before anything is written;
//! [`Error::Gpu`] and [`Error::OutOfMemory`] may come later. After any error the logits of a call
//! in place are intact. `docs/PLATFORMS.md` in the repository has a table of faults and what
//! follows.
//!
#![doc = include_str!("../docs/OPTIONS.md")]
//!
//! # What is promised
//!
//! Against float64 on the same inputs, for 1 to 1,000,003 classes, on the CPU and on a GPU, with
//! every option:
//!
//! | quantity | bound |
//! |---|---|
//! | log-sum-exp, loss, log-softmax (while a normal f32) | relative error at most 1e-6, confident rows included: `[20, 0]` with target 0 has a loss of 2.06e-9. On a GPU a class whose probability is below 1.2e-38 of the largest may be left out, so that losses and log-probabilities may be off by 1.2e-38 for each class |
//! | probability (while a normal f32) | relative error at most 2e-6; a row sums to 1 within 1e-6 |
//! | entropy (while a normal f32) | relative error at most 3e-6; its gradient: absolute error at most 2e-6 of `g max(1, log(classes))` times the steepest slope of the logit transform |
//! | gradient | absolute error at most 1e-6 of the row's scale; `p - 1` of the target is computed without cancellation |
//! | results of f16 and bf16 | the bounds above for the exact f16 or bf16 inputs, then rounded once to the nearest; gradients are within one unit in the last place of the rounded float64 gradient, except where terms cancel: under label smoothing, the z-loss or soft targets, and in the backwards of softmax and log-softmax |
//!
//! One exception: the log-sum-exps of [`Resident`] logits and of steps on a GPU have an absolute
//! error of up to 2e-7 where they are within 0.5 of 0, because the host does not recompute them.
//!
//! The bits of a row depend on the row, the options and the device (its [`Tuning`] included): not
//! on the batch, the place of the row in it, chunks or threads. Two exceptions: a draw depends on
//! the number of its row in the batch, and the gradient of a mean on the divisor of the mean.
//!
//! Special values follow PyTorch. `[0, -inf]` has softmax `[1, 0]`. A row with a NaN or `+inf`, or
//! with nothing but `-inf`, has a NaN softmax, loss and gradient, and changes no other row; its
//! log-sum-exp is NaN, `+inf` and `-inf` in these three cases. A target whose logit is `-inf` has
//! loss `+inf` and a finite gradient. The mean over no counted rows is NaN with a zero gradient;
//! over rows whose weights sum to 0 both are NaN. A soft cap makes infinite logits finite. A class
//! with label 0 and logit `-inf` makes the loss of probabilities NaN.
//!
//! # In a browser
//!
//! Compiled for wasm32, every call has its async form. A blocking call never blocks a browser's
//! thread: [`Device::new`] is the CPU and says why ([`Device::new_async`] opens a GPU). A blocking
//! call over host memory on a GPU is [`Error::Gpu`], or is done on the CPU where the device was
//! chosen automatically; a blocking `upload`, `run` or `read` of resident data, `build` or `bind`
//! of a step, and `fastest` are always [`Error::Gpu`], and [`Device::adapters`] is empty. Waits end
//! after [`Device::with_timeout`] there too. Build with `-Ctarget-feature=+simd128`, and without
//! the feature `parallel`.
//!
//! # Features
//!
//! `gpu` (default) brings wgpu, `parallel` (default) rayon, `ndarray` views of arrays; `static-dxc`
//! links Microsoft's DXC into programs for Windows, which downloads a library as it builds. The
//! binary `logits` is the package `logits-cli`.
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Plans, and much of what a request knows, are for a GPU.
#![cfg_attr(not(feature = "gpu"), allow(dead_code, unused_imports))]

mod cpu;
mod device;
#[cfg(feature = "gpu")]
mod gpu;
#[cfg(not(feature = "gpu"))]
#[path = "gpu_absent.rs"]
mod gpu;
mod ops;
mod plan;
mod problem;
#[cfg(test)]
#[path = "../tests/suite/tier.rs"]
#[cfg_attr(not(feature = "gpu"), allow(dead_code))] // the rest is about adapters
mod tier;

pub use cpu::simd_level;
pub use device::calls::{Call, LogitsSource, LossCall};
pub use device::resident::calls::ResidentCall;
pub use device::resident::{Resident, ResidentLoss, ResidentRows, ResidentTargets, ResultValue};
#[doc(hidden)]
pub use device::stopwatch::Stopwatch;
pub use device::{Device, Output};
#[cfg(feature = "gpu")]
pub use gpu::{BoundStep, Gpu, Step, StepBuffers, StepBuilder, Summary};
/// The `half` that this crate is built with: `f16` and `bf16`.
pub use half;
pub use ops::Operation;
#[doc(hidden)]
pub use plan::Traffic;
pub use plan::{ExecutionPlan, PassWork, PlannedPass, Tuning};
pub use problem::adapter::{Adapter, Crossover, DeviceChoice, RejectedAdapter};
pub use problem::checked_loss::{Accuracy, Loss};
pub use problem::dtype::{DType, Element};
pub use problem::error::Error;
pub use problem::logits::{Logits, LogitsMut};
#[doc(hidden)]
pub use problem::loss::weight_unit;
pub use problem::loss::{CrossEntropy, Reduction};
pub use problem::operands::Prediction;
pub use problem::sampling::Sampling;
pub use problem::shape::Shape;
pub use problem::sum::RowSum;
pub use problem::targets::{ClassIndex, Targets};
#[doc(hidden)]
pub use problem::waiting::Reading;
/// The wgpu that this crate is built with, so that an engine can use the same.
#[cfg(feature = "gpu")]
pub use wgpu;

// With wgpu, as it speaks of engines too.
#[cfg(all(doctest, feature = "gpu"))]
#[doc = include_str!("../README.md")]
mod readme {}
