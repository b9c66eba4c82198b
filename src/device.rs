//! The front door: a device, chosen once and explained, and the operations on it.

use std::fmt;
use std::sync::Arc;

use crate::error::try_vec;
#[cfg(feature = "gpu")]
use crate::gpu::{self, Gpu};
use crate::job::{Data, Job, Op, RowTarget, RowsOut};
use crate::logits::check_length;
use crate::{
    Adapter, CrossEntropy, DeviceChoice, Error, Logits, LogitsMut, Loss, PassedOver, Prediction, Shape, Targets, cpu,
};

/// A place to compute: a GPU or the CPU. Cheap to clone, and shared freely between threads.
///
/// An automatically chosen GPU that fails in the middle of a call has its work finished on the CPU, and the result says
/// so in `fell_back`. An explicitly chosen one returns [`Error::Gpu`] instead.
#[derive(Clone, Debug)]
pub struct Device(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: Place,
    reason: String,
    passed_over: Vec<PassedOver>,
    #[cfg(feature = "gpu")]
    may_fall_back: bool,
}

#[derive(Debug)]
pub(crate) enum Place {
    Cpu,
    #[cfg(feature = "gpu")]
    Gpu(Gpu),
}

/// How a call that writes into the caller's memory went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ran {
    /// Why the CPU finished what a GPU was chosen for; `None` where the chosen device did it all.
    pub fell_back: Option<String>,
}

/// The result of a call that allocates it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Output<T> {
    /// The values, row after row.
    pub values: Vec<T>,
    /// As in [`Ran`].
    pub fell_back: Option<String>,
}

impl Default for Device {
    fn default() -> Self {
        Self::new()
    }
}

impl Device {
    /// A hardware GPU if there is one, else the CPU; never fails.
    ///
    /// `WGPU_BACKEND` (a list such as `vulkan,gl`) limits the backends looked at, and `WGPU_ADAPTER_NAME` takes only
    /// adapters whose name holds that text. Software adapters (llvmpipe, SwiftShader, WARP) are passed over unless so
    /// named, for the CPU path is faster than they are.
    #[must_use]
    pub fn new() -> Self {
        #[cfg(feature = "gpu")]
        match gpu::open(&DeviceChoice::Auto) {
            Ok(opened) => Self::on_gpu(opened, true),
            Err(refused) => Self::on_cpu(refused.reason, refused.passed_over),
        }
        #[cfg(not(feature = "gpu"))]
        Self::on_cpu("built without the feature `gpu`".to_owned(), Vec::new())
    }

    /// The CPU, whatever else there is.
    #[must_use]
    pub fn cpu() -> Self {
        Self::on_cpu("asked for".to_owned(), Vec::new())
    }

    /// The best adapter of any kind, software included; the environment variables of [`Device::new`] hold here too.
    ///
    /// # Errors
    /// [`Error::NoGpu`] where there is none, or none that can run the kernels.
    pub fn gpu() -> Result<Self, Error> {
        Self::open(&DeviceChoice::Gpu)
    }

    /// The device chosen.
    ///
    /// # Errors
    /// [`Error::NoGpu`] where a GPU was asked for and none fits. [`DeviceChoice::Auto`] and [`DeviceChoice::Cpu`] never
    /// fail.
    pub fn open(choice: &DeviceChoice) -> Result<Self, Error> {
        let wanted = match choice {
            DeviceChoice::Auto => return Ok(Self::new()),
            DeviceChoice::Cpu => return Ok(Self::cpu()),
            DeviceChoice::Gpu => "gpu",
            DeviceChoice::Named(name) => name,
        };
        #[cfg(feature = "gpu")]
        {
            gpu::open(choice).map(|opened| Self::on_gpu(opened, false)).map_err(|refused| {
                let mut reason = refused.reason;
                for adapter in &refused.passed_over {
                    reason.push_str(&format!("; {adapter}"));
                }
                Error::NoGpu { wanted: wanted.to_owned(), reason }
            })
        }
        #[cfg(not(feature = "gpu"))]
        Err(Error::NoGpu { wanted: wanted.to_owned(), reason: "built without the feature `gpu`".to_owned() })
    }

    fn on_cpu(reason: String, passed_over: Vec<PassedOver>) -> Self {
        Self(Arc::new(Inner {
            place: Place::Cpu,
            reason,
            passed_over,
            #[cfg(feature = "gpu")]
            may_fall_back: false,
        }))
    }

    #[cfg(feature = "gpu")]
    pub(crate) fn on_gpu(opened: gpu::Opened, may_fall_back: bool) -> Self {
        let gpu::Opened { gpu, reason, passed_over } = opened;
        Self(Arc::new(Inner { place: Place::Gpu(gpu), reason, passed_over, may_fall_back }))
    }

    /// The adapter's name, or `CPU`.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.0.place {
            Place::Cpu => "CPU",
            #[cfg(feature = "gpu")]
            Place::Gpu(gpu) => gpu.name(),
        }
    }

    /// `vulkan`, `metal`, `dx12`, `gl`, `webgpu` or `cpu`.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        match &self.0.place {
            Place::Cpu => "cpu",
            #[cfg(feature = "gpu")]
            Place::Gpu(gpu) => gpu.backend(),
        }
    }

    /// Whether the operations run on a GPU, software adapters included.
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        !matches!(self.0.place, Place::Cpu)
    }

    /// Why this device was chosen.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// The adapters that were looked at and not taken, each with its reason.
    #[must_use]
    pub fn passed_over(&self) -> &[PassedOver] {
        &self.0.passed_over
    }

    pub(crate) fn place(&self) -> &Place {
        &self.0.place
    }

    /// Every adapter on this machine that `WGPU_BACKEND` lets through, in the order in which they would be tried.
    #[must_use]
    pub fn adapters() -> Vec<Adapter> {
        #[cfg(feature = "gpu")]
        return gpu::list();
        #[cfg(not(feature = "gpu"))]
        Vec::new()
    }

    /// softmax(x)_j = exp(x_j) / sum_k exp(x_k) of each row, into `out` of `rows * classes` values, row after row.
    ///
    /// # Errors
    /// [`Error::Length`] where `out` has another length; [`Error::Gpu`] where an explicitly chosen GPU fails.
    pub fn softmax(&self, x: Logits<'_>, out: &mut [f32]) -> Result<Ran, Error> {
        self.write_elements(Op::Softmax, x, out)
    }

    /// [`Device::softmax`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax`], and [`Error::OutOfMemory`].
    pub fn softmax_vec(&self, x: Logits<'_>) -> Result<Output<f32>, Error> {
        self.new_elements(Op::Softmax, x)
    }

    /// [`Device::softmax`] over the logits themselves.
    ///
    /// # Errors
    /// [`Error::Gpu`] where an explicitly chosen GPU fails; the logits are then intact.
    pub fn softmax_in_place(&self, x: LogitsMut<'_>) -> Result<Ran, Error> {
        self.overwrite_elements(Op::Softmax, x)
    }

    /// log softmax(x)_j = x_j - log sum_k exp(x_k) of each row, into `out` of `rows * classes` values, row after row.
    ///
    /// # Errors
    /// As [`Device::softmax`].
    pub fn log_softmax(&self, x: Logits<'_>, out: &mut [f32]) -> Result<Ran, Error> {
        self.write_elements(Op::LogSoftmax, x, out)
    }

    /// [`Device::log_softmax`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax_vec`].
    pub fn log_softmax_vec(&self, x: Logits<'_>) -> Result<Output<f32>, Error> {
        self.new_elements(Op::LogSoftmax, x)
    }

    /// [`Device::log_softmax`] over the logits themselves.
    ///
    /// # Errors
    /// As [`Device::softmax_in_place`].
    pub fn log_softmax_in_place(&self, x: LogitsMut<'_>) -> Result<Ran, Error> {
        self.overwrite_elements(Op::LogSoftmax, x)
    }

    /// log sum_j exp(x_j) of each row, into `out` of `rows` values.
    ///
    /// # Errors
    /// As [`Device::softmax`].
    pub fn log_sum_exp(&self, x: Logits<'_>, out: &mut [f32]) -> Result<Ran, Error> {
        check_length("out", x.shape().row_count(), out.len())?;
        self.run(Op::LogSumExp, x.shape(), read(x), &[], RowsOut::Values(out))
    }

    /// [`Device::log_sum_exp`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax_vec`].
    pub fn log_sum_exp_vec(&self, x: Logits<'_>) -> Result<Output<f32>, Error> {
        let mut values = try_vec("log-sum-exps", x.shape().row_count())?;
        let ran = self.log_sum_exp(x, &mut values)?;
        Ok(Output { values, fell_back: ran.fell_back })
    }

    /// The most likely class of each row and its probability, into `out` of `rows` values; ties go to the lowest class.
    ///
    /// # Errors
    /// As [`Device::softmax`].
    pub fn predict(&self, x: Logits<'_>, out: &mut [Prediction]) -> Result<Ran, Error> {
        check_length("out", x.shape().row_count(), out.len())?;
        self.run(Op::Predict, x.shape(), read(x), &[], RowsOut::Predictions(out))
    }

    /// [`Device::predict`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax_vec`].
    pub fn predict_vec(&self, x: Logits<'_>) -> Result<Output<Prediction>, Error> {
        let mut values = try_vec("predictions", x.shape().row_count())?;
        let ran = self.predict(x, &mut values)?;
        Ok(Output { values, fell_back: ran.fell_back })
    }

    /// The loss alone; the equation stands at [`CrossEntropy`].
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::TargetOutOfRange`], [`Error::Weight`] or [`Error::OptionValue`] before any work;
    /// [`Error::Gpu`] where an explicitly chosen GPU fails.
    pub fn cross_entropy<'t>(
        &self,
        loss: &CrossEntropy,
        x: Logits<'_>,
        targets: impl Into<Targets<'t>>,
    ) -> Result<Loss, Error> {
        self.loss(loss, Op::CrossEntropy, x.shape(), read(x), targets.into())
    }

    /// The loss and, in the same step, its gradient with respect to the logits, into `gradient` of `rows * classes`
    /// values, row after row.
    ///
    /// # Errors
    /// As [`Device::cross_entropy`]; nothing is written before everything has been checked.
    pub fn cross_entropy_grad<'t>(
        &self,
        loss: &CrossEntropy,
        x: Logits<'_>,
        targets: impl Into<Targets<'t>>,
        gradient: &mut [f32],
    ) -> Result<Loss, Error> {
        let (shape, data) = (x.shape(), write(x, gradient)?);
        self.loss(loss, Op::CrossEntropyGrad, shape, data, targets.into())
    }

    /// [`Device::cross_entropy_grad`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::cross_entropy_grad`], and [`Error::OutOfMemory`].
    pub fn cross_entropy_grad_vec<'t>(
        &self,
        loss: &CrossEntropy,
        x: Logits<'_>,
        targets: impl Into<Targets<'t>>,
    ) -> Result<(Loss, Vec<f32>), Error> {
        let mut gradient = try_vec("the gradient", x.shape().elements()?)?;
        let loss = self.cross_entropy_grad(loss, x, targets, &mut gradient)?;
        Ok((loss, gradient))
    }

    /// [`Device::cross_entropy_grad`] with the gradient written over the logits.
    ///
    /// # Errors
    /// As [`Device::cross_entropy_grad`]; after any error the logits are intact.
    pub fn cross_entropy_grad_in_place<'t>(
        &self,
        loss: &CrossEntropy,
        x: LogitsMut<'_>,
        targets: impl Into<Targets<'t>>,
    ) -> Result<Loss, Error> {
        let (shape, data) = (x.shape(), over(x));
        self.loss(loss, Op::CrossEntropyGrad, shape, data, targets.into())
    }

    fn loss(
        &self,
        loss: &CrossEntropy,
        op: Op,
        shape: Shape,
        data: Data<'_>,
        targets: Targets<'_>,
    ) -> Result<Loss, Error> {
        let prepared = loss.prepare(shape, targets)?;
        let mut per_row = try_vec("losses", shape.row_count())?;
        let ran = self.run(op, shape, data, &prepared.rows, RowsOut::Values(&mut per_row))?;
        Ok(prepared.reduce(per_row, ran.fell_back))
    }

    fn write_elements(&self, op: Op, x: Logits<'_>, out: &mut [f32]) -> Result<Ran, Error> {
        let (shape, data) = (x.shape(), write(x, out)?);
        self.run(op, shape, data, &[], RowsOut::None)
    }

    fn new_elements(&self, op: Op, x: Logits<'_>) -> Result<Output<f32>, Error> {
        let mut values = try_vec("the result", x.shape().elements()?)?;
        let ran = self.write_elements(op, x, &mut values)?;
        Ok(Output { values, fell_back: ran.fell_back })
    }

    fn overwrite_elements(&self, op: Op, x: LogitsMut<'_>) -> Result<Ran, Error> {
        let (shape, data) = (x.shape(), over(x));
        self.run(op, shape, data, &[], RowsOut::None)
    }

    fn run(
        &self,
        op: Op,
        shape: Shape,
        data: Data<'_>,
        targets: &[RowTarget],
        rows_out: RowsOut<'_>,
    ) -> Result<Ran, Error> {
        let job = Job { op, shape, data, targets, rows_out };
        if shape.row_count() == 0 {
            return Ok(Ran::default());
        }
        match &self.0.place {
            Place::Cpu => cpu::run(job),
            #[cfg(feature = "gpu")]
            Place::Gpu(gpu) => {
                let mut job = job;
                if let Err(error) = gpu.run(job.reborrow()) {
                    if !self.0.may_fall_back {
                        return Err(error);
                    }
                    cpu::run(job);
                    return Ok(Ran { fell_back: Some(error.to_string()) });
                }
            }
        }
        Ok(Ran::default())
    }
}

fn read(x: Logits<'_>) -> Data<'_> {
    let (input, stride) = x.parts();
    Data::Read { input, stride }
}

fn write<'a>(x: Logits<'a>, output: &'a mut [f32]) -> Result<Data<'a>, Error> {
    let (input, stride) = x.parts();
    check_length("out", x.shape().elements()?, output.len())?;
    Ok(Data::Write { input, stride, output })
}

fn over(x: LogitsMut<'_>) -> Data<'_> {
    let (data, stride) = x.into_parts();
    Data::Over { data, stride }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.place {
            Place::Cpu => write!(f, "CPU: {}", self.reason())?,
            #[cfg(feature = "gpu")]
            Place::Gpu(gpu) => write!(f, "{} ({}): {}", gpu.name(), gpu.backend(), self.reason())?,
        }
        for (nth, adapter) in self.passed_over().iter().enumerate() {
            write!(f, "{}{adapter}", if nth == 0 { "; passed over: " } else { "; " })?;
        }
        Ok(())
    }
}
