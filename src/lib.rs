//! Softmax and cross-entropy of batched logits, on any GPU through wgpu and on the CPU with the
//! same answers.
//!
//! ```
//! use logits::{CrossEntropy, Device, Logits};
//!
//! let device = Device::new(); // a GPU if there is one, else the CPU; `{device}` says which and why
//! let activations = [20.0_f32, 0.0, /* next row */ 1.0, 3.0];
//! let x = Logits::new(&activations, [2, 2])?;
//!
//! let mut gradient = [0.0; 4];
//! let out = device.cross_entropy(&CrossEntropy::default(), x, &[0, 1]).with_gradient(&mut gradient)?;
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
//! | to stay on the device between calls | [`Device::upload`], and the operations of [`Resident`]: `x.softmax().run()` |
//! | in buffers of your own wgpu device | `Gpu::from_wgpu`, `Gpu::prepare(..).build()`, and `BoundStep::record` into your commands |
//!
//! # Options, operations, types
//!
//! Every row holds for f32, f16, bf16 (but in `logits loss`) and, on the CPU alone, f64; for rows
//! next to each other, with gaps, and for `[outer, classes, inner]`; on the CPU and on a GPU
//! ("all": in host memory, resident, in a step, and with `logits loss` where it takes the option).
//! Types differ in what is rounded: arithmetic is in f32 (with f64 or pairs of f32 where sums are
//! at stake) and a result is rounded once, to the nearest, of two the even one; for f64 it is in
//! f64.
//!
//! | option or operation | what it means | equation | paths | source |
//! |---|---|---|---|---|
//! | `softmax`, `log_softmax` | probabilities, and their logarithms | `p_j = exp(y_j - lse)`, `y_j - lse` | all | PyTorch |
//! | `log_sum_exp` | | `lse = log sum_j exp(y_j)` | all but `logits loss` | PyTorch |
//! | `Logits::temperature` | of any operation | `y = x / T` | all but `logits loss` | Hinton et al. 2015, arXiv:1503.02531 |
//! | `CrossEntropy` | the loss | `sum_j q_j (lse - y_j)`, `q_j = w_j ((1 - e) t_j + e / classes)` | all | PyTorch |
//! | `cross_entropy`, `with_gradient` | and its gradient, in the same step | `s (p_j (sum_k q_k + 2 z lse) - q_j) dy_j/dx_j` | all | PyTorch's autograd; Liger |
//! | `reduction` | mean, sum, none | mean: over `sum w_t` of the counted rows; of probabilities, over the rows | all | PyTorch |
//! | `ignore_index`, `ignore_indices` | targets that do not count | loss and gradient 0 | all; a step knows 16 | PyTorch; Burn's `pad_tokens` |
//! | `weight` | of each class, of any size from 0 | `w_j` | all; a step with a mean takes 0 and 2^-64 to 2^64 | PyTorch |
//! | `label_smoothing` | spread over the classes | `e` | all | PyTorch; arXiv:1512.00567 |
//! | `Targets::probabilities` | soft targets | `t_j` | all; on a GPU as f32 | PyTorch |
//! | `z_loss` | keeps logits from drifting | `z lse^2` of each counted row, under a mean over their number | all | PaLM, arXiv:2204.02311; Liger |
//! | `logit_scale` | before the cap | `y = a x` | all | CLIP, arXiv:2103.00020 |
//! | `softcap` | bounds the logits; infinities too | `y = c tanh(a x / c)` | all | Gemma 2, arXiv:2408.00118; Liger |
//! | `Logits::as_seen_by` | any other operation after that scale and cap | the same `y` | all | |
//! | `upstream_gradient`, `upstream_gradients` | factors on gradients, of all rows and of each | in `s` | all but `logits loss` | PyTorch's autograd |
//! | `cross_entropy_backward` | the gradient from saved log-sum-exps | the same, with the `lse` given | all but `logits loss` | FlashAttention's backward, arXiv:2205.14135; Liger |
//! | `softmax_backward` | from its result | `p_j (g_j - sum_k g_k p_k)` | all but `logits loss` | PyTorch |
//! | `log_softmax_backward` | from its result | `g_j - exp(l_j) sum_k g_k` | all but `logits loss` | PyTorch |
//! | `predict` | the most likely class, of equal ones the lowest | `argmax_j y_j` | all but `logits loss` | PyTorch's `argmax` |
//! | `top_k` | the k most likely, k up to 64; ties to the lower class | | all; `--top-k` | arXiv:1805.02867 |
//! | `accuracy` | targets among those | | host memory, `logits loss` | |
//! | `RowSum` | sums `Loss::per_row` over batches, threads or machines to the bits of one call | | host memory, `logits loss` | |
//! | `perplexity`, in every loss | | `exp(mean loss)` | all; of a step, from its `Summary` | |
//! | `sample` | a class drawn, the same on every device | `argmax_j y_j + g_j`, `g` Gumbel's | all but `logits loss`; not under a cap | Gumbel 1954; Threefry: Salmon et al. 2011 |
//! | `Sampling::top_k`, `top_p` | from the most likely alone | | as `sample` | arXiv:1805.04833; arXiv:1904.09751 |
//!
//! # What is promised
//!
//! Against float64 on the same inputs, for 1 to 1,000,003 classes, on CPU and GPU alike, with every
//! option:
//!
//! | quantity | bound |
//! |---|---|
//! | log-sum-exp, loss, log-softmax (while a normal f32) | relative error at most 1e-6; on a GPU a class whose probability is below 1.2e-38 of the largest may be left out |
//! | probability (while a normal f32) | relative error at most 2e-6; a row sums to 1 within 1e-6 |
//! | gradient | absolute error at most 1e-6 of the row's scale, `p - 1` of the target without cancellation |
//! | results of half types | those, rounded once to the nearest; gradients within one unit in the last place, except where label smoothing, the z-loss or soft targets make terms cancel |
//!
//! But for one thing: the log-sum-exps of [`Resident`] logits and of steps on a GPU, whose logits
//! nobody can look at again in float64, are off by up to 2e-7 absolute where they are within 0.5 of
//! 0.
//!
//! A row's bits depend on that row, the options and the device (its [`Tuning`] included) alone: not
//! on the batch, its place there, chunks or threads. But a draw depends on the number of its row in
//! the batch, and the gradient of a mean on its divisor.
//!
//! Special values follow PyTorch. `[0, -inf]` has softmax `[1, 0]`. A row with a NaN or `+inf`, or
//! of nothing but `-inf`, has a NaN softmax, loss and gradient, and no other row is touched by it;
//! its log-sum-exp is NaN, `+inf` and `-inf` in these three cases. A target whose logit is `-inf`
//! has loss `+inf` and a finite gradient. The mean over no counted rows is NaN with a zero
//! gradient; over rows whose weights sum to 0 both are NaN. A soft cap makes numbers of infinities.
//! A class with label 0 and logit `-inf` makes the loss of probabilities NaN.
//!
//! # In a browser
//!
//! Compiled for wasm32, everything is there in its async form. A blocking call never blocks a
//! browser's thread. [`Device::new`] is the CPU and says why ([`Device::new_async`] opens a GPU). A
//! blocking call over host memory on a GPU is [`Error::Gpu`], or is done on the CPU where the
//! device was chosen automatically; a blocking `upload`, `run` or `read` of resident data, `build`
//! or `bind` of a step, and `fastest` are always [`Error::Gpu`], and [`Device::adapters`] is empty.
//! Waits end after [`Device::with_timeout`] there too. Build with `-Ctarget-feature=+simd128`, and
//! without the feature `parallel`.
//!
//! # Features
//!
//! `gpu` (default) brings wgpu, `parallel` (default) rayon, `ndarray` views of arrays; `static-dxc`
//! links Microsoft's DXC into programs for Windows. The binary `logits` is the package
//! `logits-cli`.
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
#[doc(hidden)]
pub use plan::Traffic;
pub use plan::{ExecutionPlan, PassWork, PlannedPass, Tuning};
pub use problem::adapter::{Adapter, Crossover, DeviceChoice, RejectedAdapter};
pub use problem::dtype::{DType, Element};
pub use problem::error::Error;
pub use problem::logits::{Logits, LogitsMut};
#[doc(hidden)]
pub use problem::loss::weight_unit;
pub use problem::loss::{Accuracy, CrossEntropy, Loss, Reduction};
pub use problem::operation::Operation;
pub use problem::request::Prediction;
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
