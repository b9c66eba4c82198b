//! The device: a GPU or the CPU, the reason why it was chosen, and the operations on it.

pub(crate) mod calls;
mod offload;
pub(crate) mod resident;
pub(crate) mod stopwatch;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::DType;
use crate::device::offload::Costs;
use crate::gpu::{self, Gpu};
use crate::ops::{Op, Operation, Request};
use crate::plan::ExecutionPlan;
use crate::problem::limits::CallLimits;
use crate::problem::operands::Data;
use crate::problem::waiting::{Waiting, block_on};
use crate::{Adapter, Crossover, DeviceChoice, Error, RejectedAdapter, Shape, Tuning, cpu};

/// A GPU or the CPU, which computes the operations. It is cheap to clone, and can be shared between
/// threads, except in a browser, where wgpu's types stay on the thread that made them.
///
/// If an automatically chosen GPU fails during a call, the CPU finishes the call, and the result
/// says so in `fell_back`. An explicitly chosen GPU returns [`Error::Gpu`] instead. Either way the
/// next call works: a lost GPU is opened again.
///
/// Every call that waits for a GPU has an async form, `_async`, which does not block the thread
/// that polls it; computation on the CPU happens within that poll.
#[derive(Clone, Debug)]
pub struct Device(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    place: Place,
    reason: String,
    rejected_adapters: Vec<RejectedAdapter>,
    limits: CallLimits,
    may_fall_back: bool,
    /// The measured costs of calls on this GPU and on the CPU, if each call goes to the faster of
    /// the two; else `None`.
    costs: Option<Costs>,
}

#[derive(Clone, Debug)]
pub(crate) enum Place {
    Cpu,
    Gpu(Gpu),
}

/// The result of a call, and how it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output<V> {
    /// The values, row after row; `()` where the call wrote them into the caller's memory.
    pub values: V,
    /// The reason why the CPU finished a call that a GPU was chosen for, or why the GPU computed it
    /// in smaller chunks than planned; `None` where the call ran as planned.
    pub fell_back: Option<String>,
}

impl Default for Device {
    fn default() -> Self {
        Self::new()
    }
}

impl Device {
    /// Opens a hardware GPU if there is one, else returns the CPU; never fails. In a browser it
    /// always returns the CPU: [`Device::new_async`] opens a GPU there.
    ///
    /// `WGPU_BACKEND` (a list such as `vulkan,gl`) limits the backends that are examined, and
    /// `WGPU_ADAPTER_NAME` allows only adapters whose name contains that text. Software adapters
    /// (llvmpipe, SwiftShader, WARP) are rejected unless named there, because the CPU path is
    /// faster.
    #[must_use]
    pub fn new() -> Self {
        block_on(async { Ok(Self::new_async().await) })
            .unwrap_or_else(|error| Self::on_cpu(error.to_string(), Vec::new()))
    }

    /// The async form of [`Device::new`].
    pub async fn new_async() -> Self {
        match gpu::open(&DeviceChoice::Auto).await {
            Ok(opened) => Self::on_gpu(opened, true),
            Err(refused) => Self::on_cpu(refused.reason, refused.rejected_adapters),
        }
    }

    /// Returns the same device, except that each call over host memory goes to this GPU or to the
    /// CPU, whichever is expected to have the result in host memory first, transfers included:
    /// `Device::new().fastest()`. The costs are measured in this call, in a fraction of a second;
    /// [`Device::crossovers`] returns the resulting batch sizes. A device that is the CPU stays as
    /// it is.
    ///
    /// The device that computes an operation may then depend on the size of its batch, and so may
    /// the last bits of a row.
    ///
    /// # Errors
    /// [`Error::Gpu`] or [`Error::SimdLevel`] where measuring fails.
    pub fn fastest(self) -> Result<Self, Error> {
        block_on(self.measured(Waiting::Here))
    }

    /// The async form of [`Device::fastest`].
    ///
    /// # Errors
    /// Fails as [`Device::fastest`] does.
    pub async fn fastest_async(self) -> Result<Self, Error> {
        self.measured(Waiting::Elsewhere).await
    }

    async fn measured(self, waiting: Waiting) -> Result<Self, Error> {
        if self.is_gpu() {
            // `Costs::measure` makes calls of this device; costs of an earlier measurement would
            // send some of them to the CPU.
            let device = self.with(|inner| inner.costs = None);
            let costs = Some(Costs::measure(&device, waiting).await?);
            return Ok(device.with(|inner| inner.costs = costs));
        }
        Ok(self)
    }

    /// Returns the number of bytes of logits from which each operation is expected to be faster on
    /// the GPU, as [`Device::fastest`] has measured; empty where it has not.
    #[must_use]
    pub fn crossovers(&self) -> Vec<Crossover> {
        if let Some(costs) = &self.0.costs {
            return costs.crossovers();
        }
        Vec::new()
    }

    /// Returns a device on `gpu`, a wgpu device of the caller, for operations over host memory. It
    /// counts as explicitly chosen.
    #[cfg(feature = "gpu")]
    #[must_use]
    pub fn on(gpu: &Gpu) -> Self {
        let opened = gpu::Opened {
            gpu: gpu.clone(),
            reason: "given by the caller".to_owned(),
            rejected_adapters: Vec::new(),
        };
        Self::on_gpu(opened, false)
    }

    /// Limits the GPU memory of a call over host memory to `bytes`, half of which is kept for the
    /// next call: 512 MiB if not set. Larger batches are computed in parts. Less than 16 MiB counts
    /// as 16 MiB, so that parts have at least 1 MiB.
    #[must_use]
    pub fn with_memory_budget(self, bytes: u64) -> Self {
        self.with(|inner| inner.limits.memory_budget = bytes)
    }

    /// Returns the numbers that the GPU's kernels are shaped by; `None` on the CPU.
    #[must_use]
    pub fn tuning(&self) -> Option<Tuning> {
        match &self.0.place {
            Place::Cpu => None,
            Place::Gpu(gpu) => Some(gpu.tuning()),
        }
    }

    /// Returns the same device with GPU kernels shaped by `tuning`; the CPU stays as it is.
    /// Resident data stays with the device that it was uploaded to.
    ///
    /// # Errors
    /// [`Error::Tuning`] where a number is out of range.
    pub fn with_tuning(self, tuning: Tuning) -> Result<Self, Error> {
        tuning.check()?;
        if let Place::Gpu(gpu) = &self.0.place {
            let tuned = gpu.with_tuning(tuning)?;
            return Ok(self.with(|inner| inner.place = Place::Gpu(tuned)));
        }
        Ok(self)
    }

    /// Applies the tuning in a file that `logits tune` has written, as [`Device::with_tuning`]
    /// does.
    ///
    /// # Errors
    /// [`Error::Tuning`] where the file cannot be read or holds no valid tuning.
    pub fn with_tuning_file(self, path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let named =
            |reason: String| Error::Tuning { reason: format!("{}: {reason}", path.display()) };
        let text = crate::plan::tuning::read(path).map_err(|error| named(error.to_string()))?;
        match text.parse() {
            Ok(tuning) => self.with_tuning(tuning),
            Err(Error::Tuning { reason }) => Err(named(reason)),
            Err(error) => Err(error),
        }
    }

    /// Sets the time after which a GPU that has not finished one part of a call counts as hung:
    /// five minutes if not set. Work on a hung GPU cannot be cancelled: dropping its device then
    /// takes at most half a second, and leaks the resources of the GPU.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        self.with(|inner| inner.limits.timeout = timeout)
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Returns the CPU, without looking for a GPU.
    #[must_use]
    pub fn cpu() -> Self {
        Self::on_cpu("asked for".to_owned(), Vec::new())
    }

    /// Opens the best adapter of any kind, software included. The environment variables of
    /// [`Device::new`] apply here too.
    ///
    /// # Errors
    /// [`Error::NoGpu`] where there is none, or none that can run the kernels.
    pub fn gpu() -> Result<Self, Error> {
        Self::open(&DeviceChoice::Gpu)
    }

    /// Opens the device that `choice` asks for.
    ///
    /// # Errors
    /// [`Error::NoGpu`] where a GPU was asked for and none fits. [`DeviceChoice::Auto`] and
    /// [`DeviceChoice::Cpu`] never fail.
    pub fn open(choice: &DeviceChoice) -> Result<Self, Error> {
        block_on(Self::open_async(choice))
    }

    /// The async form of [`Device::open`].
    ///
    /// # Errors
    /// Fails as [`Device::open`] does.
    pub async fn open_async(choice: &DeviceChoice) -> Result<Self, Error> {
        let wanted = match choice {
            DeviceChoice::Auto => return Ok(Self::new_async().await),
            DeviceChoice::Cpu => return Ok(Self::cpu()),
            DeviceChoice::Gpu => "gpu",
            DeviceChoice::Named(name) => name,
        };
        match gpu::open(choice).await {
            Ok(opened) => Ok(Self::on_gpu(opened, false)),
            Err(refused) => {
                let mut reason = refused.reason;
                for adapter in &refused.rejected_adapters {
                    reason.push_str(&format!("; {adapter}"));
                }
                Err(Error::NoGpu { wanted: wanted.to_owned(), reason })
            }
        }
    }

    fn on_cpu(reason: String, rejected_adapters: Vec<RejectedAdapter>) -> Self {
        Self(Arc::new(Inner {
            place: Place::Cpu,
            reason,
            rejected_adapters,
            limits: CallLimits::default(),
            may_fall_back: false,
            costs: None,
        }))
    }

    pub(crate) fn on_gpu(opened: gpu::Opened, may_fall_back: bool) -> Self {
        let gpu::Opened { gpu, reason, rejected_adapters } = opened;
        let (place, limits) = (Place::Gpu(gpu), CallLimits::default());
        Self(Arc::new(Inner {
            place,
            reason,
            rejected_adapters,
            limits,
            may_fall_back,
            costs: None,
        }))
    }

    /// Returns the name of the adapter, or `CPU`.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.0.place {
            Place::Cpu => "CPU",
            Place::Gpu(gpu) => gpu.name(),
        }
    }

    /// Returns the backend: `vulkan`, `metal`, `dx12`, `gl`, `webgpu` or `cpu`.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        match &self.0.place {
            Place::Cpu => "cpu",
            Place::Gpu(gpu) => gpu.backend(),
        }
    }

    /// Returns whether the operations run on a GPU, software adapters included.
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        !matches!(self.0.place, Place::Cpu)
    }

    /// Returns the reason why this device was chosen.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// Returns the adapters that were examined and not used, each with its reason.
    #[must_use]
    pub fn rejected_adapters(&self) -> &[RejectedAdapter] {
        &self.0.rejected_adapters
    }

    pub(crate) fn place(&self) -> &Place {
        &self.0.place
    }

    /// Runs a checked request on this device, or on the CPU.
    pub(crate) async fn run(
        &self,
        request: Request<'_>,
        waiting: Waiting,
    ) -> Result<Output<()>, Error> {
        if request.rows() == 0 {
            return Ok(Output::default());
        }
        match &self.0.place {
            Place::Cpu => cpu::run(request)?,
            // Before the cost model: whether f64 is refused must not depend on the size of a call.
            Place::Gpu(gpu) if request.dtype() == DType::F64 => {
                let error = Error::DType { dtype: DType::F64, adapter: gpu.name().to_owned() };
                if !self.0.may_fall_back {
                    return Err(error);
                }
                cpu::run(request)?;
                return Ok(Output { values: (), fell_back: Some(error.to_string()) });
            }
            Place::Gpu(_) if self.prefers_cpu(request.op, request.shape) => cpu::run(request)?,
            Place::Gpu(gpu) => {
                let mut request = request;
                // The CPU may have to finish a call in place that a GPU has begun. Any error of the
                // CPU path must come before that.
                let ready = match &request.data {
                    Data::Over { .. } if self.0.may_fall_back => Some(cpu::Ready::new(&request)?),
                    _ => None,
                };
                match gpu.run(&mut request, !self.0.may_fall_back, self.limits(waiting)).await {
                    Ok(note) => return Ok(Output { values: (), fell_back: note }),
                    Err(failed) if !self.0.may_fall_back => return Err(failed.error),
                    Err(failed) => {
                        let rest = request.after(failed.rows_done);
                        match ready {
                            Some(ready) => ready.finish(rest)?,
                            None => cpu::run(rest)?,
                        }
                        return Ok(Output {
                            values: (),
                            fell_back: Some(failed.error.to_string()),
                        });
                    }
                }
            }
        }
        Ok(Output::default())
    }

    fn prefers_cpu(&self, op: Op, shape: Shape) -> bool {
        self.0.costs.as_ref().is_some_and(|costs| costs.prefer_cpu(op, shape))
    }

    /// Returns which kernel this device runs for an operation over logits of a shape and type, and
    /// what that moves. Nothing is compiled, allocated or run; the rules are those that a call
    /// uses.
    ///
    /// Options have their defaults. On a GPU the passes are those over data on the device, as
    /// `Gpu::prepare(..).build()` plans them: a mean loss weighs its targets and adds up its rows
    /// there. A call over host memory has the same kernels, in [`ExecutionPlan::parts`] parts, and
    /// the host adds up the losses. If a call would be computed on the CPU in place of the GPU,
    /// the plan is that of the CPU.
    ///
    /// ```
    /// use logits::{DType, Device, Operation};
    /// let plan = Device::cpu().plan(Operation::Softmax, [16_384, 1000], DType::BF16)?;
    /// assert_eq!((plan.strategy, plan.lanes), ("one long row", 16));
    /// assert_eq!(plan.bytes_needed, 2 * 2 * 16_384 * 1000); // read once, written once
    /// println!("{plan}"); // a table of all of it
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ZeroClasses`]; [`Error::ShapeTooLarge`], also for more than 4096 passes over rows;
    /// [`Error::TopK`] or [`Error::OptionValue`] for the operation; [`Error::DType`] for f64 on a
    /// GPU that was chosen explicitly; [`Error::Gpu`] if the GPU cannot do it; [`Error::SimdLevel`]
    /// on the CPU.
    pub fn plan(
        &self,
        operation: Operation,
        shape: impl Into<Shape>,
        dtype: DType,
    ) -> Result<ExecutionPlan, Error> {
        let shape = shape.into();
        shape.elements()?;
        match &self.0.place {
            Place::Gpu(gpu) if !self.calls_cpu(operation.op(), shape, dtype) => {
                gpu.plan(operation, shape, dtype, self.limits(Waiting::Here))
            }
            Place::Cpu | Place::Gpu(_) => cpu::plan(operation, shape, dtype),
        }
    }

    /// Whether [`Device::run`] has the CPU do a call, although there is a GPU.
    fn calls_cpu(&self, op: Op, shape: Shape, dtype: DType) -> bool {
        match dtype {
            DType::F64 => self.0.may_fall_back,
            _ => self.prefers_cpu(op, shape),
        }
    }

    /// Returns the limits of a call that waits as `waiting` says.
    pub(crate) fn limits(&self, waiting: Waiting) -> CallLimits {
        CallLimits { waiting, ..self.0.limits }
    }

    /// Returns every adapter on this machine that `WGPU_BACKEND` allows, in the order in which they
    /// would be tried.
    #[must_use]
    pub fn adapters() -> Vec<Adapter> {
        block_on(async { Ok(Self::adapters_async().await) }).unwrap_or_default()
    }

    /// The async form of [`Device::adapters`].
    pub async fn adapters_async() -> Vec<Adapter> {
        gpu::list().await
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.place {
            Place::Cpu => write!(f, "CPU: {}", self.reason())?,
            Place::Gpu(gpu) => write!(f, "{} ({}): {}", gpu.name(), gpu.backend(), self.reason())?,
        }
        for (nth, adapter) in self.rejected_adapters().iter().enumerate() {
            write!(f, "{}{adapter}", if nth == 0 { "; rejected: " } else { "; " })?;
        }
        Ok(())
    }
}
