//! The self-test of an adapter: a GPU that computes wrongly is not used.
//!
//! One workgroup (`shaders/self_test.wgsl`) writes how its threads are numbered, what they exchange
//! and what they add up to. Each thread computes the loss and the gradient of one row with the
//! functions of the kernels: pairs of f32, exponentials, a cap, smoothed labels, rows in workgroup
//! memory, 16-bit types. The module is small, because a driver compiles it whenever a process opens
//! its first device.
//!
//! An adapter whose subgroups fail is used without them; an adapter that fails without them too is
//! rejected. The verdict is kept for the life of the process.

use std::sync::Mutex;
use std::time::Duration;

use bytemuck::{bytes_of, cast_slice, pod_collect_to_vec};
use half::f16;
use wgpu::{
    AdapterInfo, BindGroupDescriptor, BindGroupEntry, BufferUsages, CommandEncoderDescriptor,
};

use super::context::{Gpu, GpuContext};
use super::failure::{GpuError, lock};
use super::params::KernelOptions;
use super::staging::StagedArray;
use crate::plan::WORKGROUP;
use crate::problem::limits::CallLimits;
use crate::problem::operands::{LossCoefficients, Operands};
use crate::problem::transform::Transform;
use crate::problem::waiting::Waiting;
use crate::{DType, Error};

/// The verdict on an adapter: `None` if all is right, the reason if its subgroups are not used, or
/// why it is rejected.
pub(super) type Verdict = Result<Option<String>, Unfit>;

/// Why an adapter is not used.
#[derive(Clone, Debug)]
pub(super) struct Unfit {
    pub(super) reason: String,
    /// Whether results were wrong; if not, the test could not be made, for instance because memory
    /// was short.
    is_wrong: bool,
}

impl Unfit {
    fn wrong(check: &str, found: String) -> Self {
        Self { reason: format!("the self-test found it wrong: {check}: {found}"), is_wrong: true }
    }
}

impl From<GpuError> for Unfit {
    fn from(error: GpuError) -> Self {
        Self { reason: format!("the self-test failed: {}", error.reason), is_wrong: false }
    }
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self { reason: format!("the self-test failed: {error}"), is_wrong: false }
    }
}

/// Tests an adapter, once a process. If only its subgroups fail, `gpu` becomes one without them.
pub(super) async fn judge(gpu: &mut Gpu, info: &AdapterInfo) -> Verdict {
    static VERDICTS: Mutex<Vec<(String, Verdict)>> = Mutex::new(Vec::new());
    let verdicts = || lock(&VERDICTS);
    let AdapterInfo { name, vendor, device, device_pci_bus_id, driver_info, backend, .. } = info;
    let adapter = format!("{backend:?} {name} {vendor} {device} {device_pci_bus_id} {driver_info}");
    #[cfg(test)]
    let adapter = format!("{adapter} {:?}", super::pipelines::BROKEN.get());
    let known =
        verdicts().iter().find(|(of, _)| *of == adapter).map(|(_, verdict)| verdict.clone());
    if let Some(verdict) = known {
        if let Ok(Some(_)) = verdict {
            *gpu = gpu.without_subgroups();
        }
        return verdict;
    }
    let (verdict, is_final) = match run(gpu).await {
        Ok(()) => (Ok(None), true),
        Err(first) if gpu.has_subgroups() => {
            let plain = gpu.without_subgroups();
            match run(&plain).await {
                Ok(()) => {
                    *gpu = plain;
                    (Ok(Some(format!("{}; used without subgroups", first.reason))), first.is_wrong)
                }
                // If both ways fail, the first reason is reported.
                Err(second) => (Err(first.clone()), first.is_wrong && second.is_wrong),
            }
        }
        Err(unfit) => {
            let is_final = unfit.is_wrong;
            (Err(unfit), is_final)
        }
    };
    // A test that could not be made is tried again: there may be memory enough then.
    if is_final {
        verdicts().push((adapter, verdict.clone()));
    }
    verdict
}

/// Tests a GPU. Natively it waits on this thread, as opening a device does.
pub(super) async fn run(gpu: &Gpu) -> Result<(), Unfit> {
    let context = gpu.current().await?;
    let rows = rows();
    let threads = compute(&context, &rows).await?;
    check_threads(&threads, context.kernels.subgroup)?;
    check_rows(&threads, &rows)
}

/// Words that a thread writes.
const WORDS: usize = 8;
/// The results of a thread, one a word.
type Thread = [u32; WORDS];

const CAP: f64 = 64.0;
const ON_VALUE: f64 = 0.875;
const OFF_VALUE: f64 = 0.0625;

/// Returns a row of two logits for each thread; class 0 is the target.
fn rows() -> Vec<[f32; 2]> {
    let some =
        [[20.0, 0.0], [7.0, 7.0], [0.0, 0.0], [0.0, 20.0], [-60_000.0, 60_000.0], [6e-8, -6e-8]];
    let others =
        (0..WORKGROUP as u16).map(|nth| [f32::from(nth % 31) - 15.0, f32::from(nth % 17) - 8.0]);
    some.into_iter()
        .chain(others)
        .take(WORKGROUP as usize)
        .map(|row| row.map(|x| f16::from_f32(x).to_f32()))
        .collect()
}

/// Runs the self-test's kernel; returns the words of each thread.
async fn compute(context: &GpuContext, rows: &[[f32; 2]]) -> Result<Vec<Thread>, GpuError> {
    // A browser's thread must not wait.
    let waiting = if cfg!(target_arch = "wasm32") { Waiting::Elsewhere } else { Waiting::Here };
    let call = CallLimits { timeout: Duration::from_secs(30), waiting, ..CallLimits::default() };
    let halves: Vec<f16> = rows.as_flattened().iter().map(|&x| f16::from_f32(x)).collect();
    let operands = Operands {
        transform: Transform { scale: 1.0, softcap: Some(CAP) },
        coefficients: LossCoefficients {
            on_value: ON_VALUE,
            off_value: OFF_VALUE,
            ..LossCoefficients::default()
        },
        ..Operands::default()
    };
    let params = KernelOptions::of_request(DType::F16, &operands).params();
    let results = size_of::<Thread>() * WORKGROUP as usize;
    let (staged, mapped) = context
        .guarded(|| {
            let staged = StagedArray::new(context, results as u64, true, true)?;
            let mapped = staged.map_for_writing().into_iter().collect();
            Ok((staged, mapped))
        })
        .await?;
    context.poller.settle(None, mapped, call).await?;
    let (submission, mapped) = context
        .guarded(|| {
            // The first word, a subgroup's width, is never 0, so a place that no thread writes is
            // found.
            staged.write(|mut view| view.copy_from_slice(&vec![0; results]))?;
            let params = context.filled(BufferUsages::UNIFORM, bytes_of(&params))?;
            let logits = context.filled(BufferUsages::STORAGE, cast_slice(&halves))?;
            let pipeline = context.kernels.self_test(&context.device);
            let part = staged.part();
            let group = context.device.create_bind_group(&BindGroupDescriptor {
                label: Some("logits self-test"),
                layout: &pipeline.get_bind_group_layout(0),
                entries: &[
                    BindGroupEntry { binding: 0, resource: params.as_entire_binding() },
                    BindGroupEntry { binding: 2, resource: logits.as_entire_binding() },
                    BindGroupEntry { binding: 5, resource: part.buffer.as_entire_binding() },
                ],
            });
            let mut encoder = context
                .device
                .create_command_encoder(&CommandEncoderDescriptor { label: Some("logits") });
            staged.record_upload(&mut encoder);
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&pipeline);
                pass.set_bind_group(0, &group, &[]);
                pass.dispatch_workgroups(1, 1, 1);
            }
            staged.record_readback(&mut encoder);
            let submission = context.queue.submit([encoder.finish()]);
            Ok((submission, staged.map_for_reading().into_iter().collect()))
        })
        .await?;
    context.poller.settle(Some(submission), mapped, call).await?;
    let threads = context.guarded(|| Ok(pod_collect_to_vec(&staged.view()?))).await?;
    context.pool.give(staged.into_buffers(), call.half());
    Ok(threads)
}

/// Checks the numbers of the threads, subgroups of at least `least` threads, and the reduction.
fn check_threads(threads: &[Thread], least: u32) -> Result<(), Unfit> {
    if let Some(thread) = threads.iter().position(|words| words[0] == 0) {
        return Err(Unfit::wrong("threads by subgroup", format!("none has number {thread}")));
    }
    let width = threads[0][0];
    // Every partial sum is exact in a pair of f32.
    let total =
        [f64::from(WORKGROUP * (WORKGROUP - 1) / 2), f64::from(WORKGROUP) * 2_f64.powi(-30)];
    for (thread, &[seen, near, high, low, ..]) in (0..).zip(threads) {
        if seen != width || !width.is_power_of_two() || !(least..=WORKGROUP).contains(&width) {
            let found = format!(
                "{seen} at thread {thread}, {width} at thread 0, where {least} is the least that was promised"
            );
            return Err(Unfit::wrong("size of subgroups", found));
        }
        let wanted = match width {
            1 => thread,
            2 => 2 * (thread & !1) + 1,
            _ => 4 * (thread & !3) + 6,
        };
        if near != wanted {
            let found =
                format!("thread {thread} and those beside it add up to {near}, not {wanted}");
            return Err(Unfit::wrong("exchange within a subgroup", found));
        }
        let sum = [high, low].map(|bits| f64::from(f32::from_bits(bits)));
        if sum != total {
            let found = format!("thread {thread} has {sum:?}, not {total:?}");
            return Err(Unfit::wrong("sum over a workgroup", found));
        }
    }
    Ok(())
}

/// Checks losses and gradients against float64.
fn check_rows(threads: &[Thread], rows: &[[f32; 2]]) -> Result<(), Unfit> {
    for (&[.., loss, smoothed, gradient, _], row) in threads.iter().rev().zip(rows) {
        let check = |what: &str, found: f64, wanted: f64, bound: f64| match (found - wanted).abs()
            <= bound
        {
            true => Ok(()),
            // A NaN is within no bound.
            false => {
                Err(Unfit::wrong(what, format!("{found:e} for the logits {row:?}, not {wanted:e}")))
            }
        };
        let y = row.map(|x| CAP * (f64::from(x) / CAP).tanh());
        let d = y[1] - y[0];
        let wanted = ON_VALUE * (d.max(0.0) + (-d.abs()).exp().ln_1p());
        check("loss", f32::from_bits(loss).into(), wanted, 1e-6 * wanted)?;
        check(
            "smoothed loss",
            f32::from_bits(smoothed).into(),
            OFF_VALUE * d.abs(),
            1e-6 * OFF_VALUE * d.abs(),
        )?;
        let p = 1.0 / (1.0 + (-d).exp());
        for (bits, wanted) in [(gradient as u16, -p), ((gradient >> 16) as u16, p)] {
            // The error of rounding to the nearest f16, normal or subnormal.
            let bound = (wanted.abs() / 2047.0).max(3e-8);
            check("gradient in 16 bits", f16::from_bits(bits).to_f64(), wanted, bound)?;
        }
    }
    Ok(())
}
