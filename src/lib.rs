//! Softmax and cross-entropy of batched logits, on any GPU through wgpu and on the CPU with the same answers.
//!
//! ```
//! use logits::{CrossEntropy, Device, Logits};
//!
//! let device = Device::new(); // a GPU if there is one, else the CPU; `{device}` says which and why
//! let activations = [20.0_f32, 0.0, /* next row */ 1.0, 3.0];
//! let x = Logits::new(&activations, [2, 2])?;
//!
//! let mut gradient = [0.0; 4];
//! let out = device.cross_entropy_grad(&CrossEntropy::default(), x, &[0, 1], &mut gradient)?;
//! println!("{device}: loss {} over {} rows", out.loss, out.counted_rows);
//! assert!((out.per_row[0] - 2.061_153_6e-9).abs() < 1e-15); // a confident row keeps its loss
//! # Ok::<(), logits::Error>(())
//! ```
//!
//! Three ways in:
//!
//! | your data | use |
//! |---|---|
//! | in host memory | the operations of [`Device`], blocking or `_async` |
//! | to stay on the device between calls | [`Device::upload`], and the operations of [`Resident`] |
//! | in buffers of your own wgpu device | `Gpu::from_wgpu`, `Gpu::prepare`, and `BoundStep::record` into your commands |
//!
//! # What is promised
//!
//! Against float64 on the same f32 inputs, for 1 to 1,000,003 classes, on CPU and GPU alike:
//!
//! | quantity | bound |
//! |---|---|
//! | log-sum-exp, loss, log-softmax | relative error at most 1e-6 |
//! | probability (while a normal f32) | relative error at most 2e-6; a row sums to 1 within 1e-6 |
//! | gradient | absolute error at most 1e-6 of the row's scale, `p - 1` of the target without cancellation |
//!
//! But for one thing: the log-sum-exps of [`Resident`] logits and of steps on a GPU, whose logits nobody can look at
//! again in float64, are off by up to 2e-7 absolute where they are next to 0.
//!
//! A row's bits depend on that row and on the device alone: not on the batch, its place there, chunks or threads.
//!
//! Special values follow PyTorch. `[0, -inf]` has softmax `[1, 0]`. A row with a NaN or `+inf`, or of nothing but
//! `-inf`, has a NaN softmax, loss and gradient, and no other row is touched by it; its log-sum-exp is NaN, `+inf` and
//! `-inf` in these three cases. A target whose logit is `-inf` has loss `+inf` and a finite gradient. The mean over no
//! counted rows is NaN with a zero gradient; over rows whose weights sum to 0 both are NaN.
//!
//! # Features
//!
//! `gpu` (default) brings wgpu, `parallel` (default) rayon, `cli` the binary `logits`.
#![warn(missing_docs)]

#[cfg(feature = "ndarray")]
mod arrays;
mod choice;
mod cpu;
mod device;
mod elements;
mod error;
#[cfg(feature = "gpu")]
mod gpu;
mod job;
mod logits;
mod loss;
mod operations;
#[cfg(feature = "gpu")]
mod placement;
#[cfg(feature = "gpu")]
mod plan;
mod resident;
mod sampling;
mod settings;
mod shape;
mod stopwatch;
mod targets;
mod waiting;

pub use choice::{Adapter, Crossover, DeviceChoice, PassedOver};
pub use device::{Device, Output, Ran};
pub use elements::{DType, Element};
pub use error::Error;
#[cfg(feature = "gpu")]
pub use gpu::{BoundStep, Gpu, Operation, Step, StepBuffers, StepLayout, Summary};
pub use half;
pub use job::Prediction;
pub use logits::{Logits, LogitsMut};
pub use loss::{Accuracy, CrossEntropy, Loss, Reduction};
pub use resident::{ReducedLoss, Resident, ResidentLoss, ResidentRows, ResidentTargets};
pub use sampling::Sampling;
pub use shape::Shape;
#[doc(hidden)]
pub use stopwatch::{Stopwatch, Timed};
pub use targets::{ClassIndex, Targets};
/// The wgpu that this crate is built with, so that an engine can use the same.
#[cfg(feature = "gpu")]
pub use wgpu;

// With wgpu, as it speaks of engines too.
#[cfg(all(doctest, feature = "gpu"))]
#[doc = include_str!("../README.md")]
mod readme {}
