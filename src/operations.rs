//! The operations of a device over memory of the host, each in a blocking and an async form.

use crate::error::try_vec;
use crate::job::{Data, Job, Op, RowsOut};
use crate::logits::check_length;
use crate::loss::Prepared;
use crate::waiting::{Waiting, block_on};
use crate::{CrossEntropy, Device, Error, Logits, LogitsMut, Loss, Output, Prediction, Ran, Shape, Targets};

/// An operation in both its forms: declared once, so that neither can differ.
macro_rules! operations {
    ($(
        $(#[$doc:meta])*
        $name:ident / $name_async:ident<$($generic:lifetime),*>($($argument:ident: $ty:ty),* $(,)?) -> $result:ty,
        |$device:ident, $waiting:ident| $body:expr;
    )*) => {
        impl Device {$(
            $(#[$doc])*
            pub fn $name<$($generic),*>(&self, $($argument: $ty),*) -> Result<$result, Error> {
                let ($device, $waiting) = (self, Waiting::Here);
                block_on($body)
            }

            #[doc = concat!("The async form of [`Device::", stringify!($name), "`].")]
            ///
            /// # Errors
            #[doc = concat!("As [`Device::", stringify!($name), "`].")]
            pub async fn $name_async<$($generic),*>(&self, $($argument: $ty),*) -> Result<$result, Error> {
                let ($device, $waiting) = (self, Waiting::Elsewhere);
                $body.await
            }
        )*}
    };
}

operations! {
    /// softmax(x)_j = exp(x_j) / sum_k exp(x_k) of each row, into `out` of `rows * classes` values, row after row.
    ///
    /// # Errors
    /// [`Error::Length`] where `out` has another length; [`Error::Gpu`] where an explicitly chosen GPU fails.
    softmax / softmax_async<>(x: Logits<'_>, out: &mut [f32]) -> Ran,
        |device, waiting| device.write_elements(Op::Softmax, x, out, waiting);

    /// [`Device::softmax`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax`], and [`Error::OutOfMemory`].
    softmax_vec / softmax_vec_async<>(x: Logits<'_>) -> Output<f32>,
        |device, waiting| device.new_elements(Op::Softmax, x, waiting);

    /// [`Device::softmax`] over the logits themselves.
    ///
    /// # Errors
    /// [`Error::Gpu`] where an explicitly chosen GPU fails; the logits are then intact.
    softmax_in_place / softmax_in_place_async<>(x: LogitsMut<'_>) -> Ran,
        |device, waiting| device.overwrite_elements(Op::Softmax, x, waiting);

    /// log softmax(x)_j = x_j - log sum_k exp(x_k) of each row, into `out` of `rows * classes` values, row after row.
    ///
    /// # Errors
    /// As [`Device::softmax`].
    log_softmax / log_softmax_async<>(x: Logits<'_>, out: &mut [f32]) -> Ran,
        |device, waiting| device.write_elements(Op::LogSoftmax, x, out, waiting);

    /// [`Device::log_softmax`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax_vec`].
    log_softmax_vec / log_softmax_vec_async<>(x: Logits<'_>) -> Output<f32>,
        |device, waiting| device.new_elements(Op::LogSoftmax, x, waiting);

    /// [`Device::log_softmax`] over the logits themselves.
    ///
    /// # Errors
    /// As [`Device::softmax_in_place`].
    log_softmax_in_place / log_softmax_in_place_async<>(x: LogitsMut<'_>) -> Ran,
        |device, waiting| device.overwrite_elements(Op::LogSoftmax, x, waiting);

    /// log sum_j exp(x_j) of each row, into `out` of `rows` values.
    ///
    /// # Errors
    /// As [`Device::softmax`].
    log_sum_exp / log_sum_exp_async<>(x: Logits<'_>, out: &mut [f32]) -> Ran,
        |device, waiting| device.reduce_rows(Op::LogSumExp, x, out.len(), RowsOut::Values(out), waiting);

    /// [`Device::log_sum_exp`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax_vec`].
    log_sum_exp_vec / log_sum_exp_vec_async<>(x: Logits<'_>) -> Output<f32>,
        |device, waiting| async move {
            let mut values = try_vec("log-sum-exps", x.shape().row_count())?;
            let (rows, out) = (values.len(), RowsOut::Values(&mut values));
            let ran = device.reduce_rows(Op::LogSumExp, x, rows, out, waiting).await?;
            Ok(Output { values, fell_back: ran.fell_back })
        };

    /// The most likely class of each row and its probability, into `out` of `rows` values; ties go to the lowest class.
    ///
    /// # Errors
    /// As [`Device::softmax`].
    predict / predict_async<>(x: Logits<'_>, out: &mut [Prediction]) -> Ran,
        |device, waiting| device.reduce_rows(Op::Predict, x, out.len(), RowsOut::Predictions(out), waiting);

    /// [`Device::predict`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax_vec`].
    predict_vec / predict_vec_async<>(x: Logits<'_>) -> Output<Prediction>,
        |device, waiting| async move {
            let mut values = try_vec("predictions", x.shape().row_count())?;
            let (rows, out) = (values.len(), RowsOut::Predictions(&mut values));
            let ran = device.reduce_rows(Op::Predict, x, rows, out, waiting).await?;
            Ok(Output { values, fell_back: ran.fell_back })
        };

    /// The loss alone; the equation stands at [`CrossEntropy`].
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::TargetOutOfRange`], [`Error::Weight`] or [`Error::OptionValue`] before any work;
    /// [`Error::Gpu`] where an explicitly chosen GPU fails.
    cross_entropy / cross_entropy_async<'t>(
        loss: &CrossEntropy, x: Logits<'_>, targets: impl Into<Targets<'t>>,
    ) -> Loss,
        |device, waiting| device.loss(loss, Op::CrossEntropy, x.shape(), Ok(read(x)), targets.into(), waiting);

    /// The loss and, in the same step, its gradient with respect to the logits, into `gradient` of `rows * classes`
    /// values, row after row.
    ///
    /// # Errors
    /// As [`Device::cross_entropy`]; nothing is written before everything has been checked.
    cross_entropy_grad / cross_entropy_grad_async<'t>(
        loss: &CrossEntropy, x: Logits<'_>, targets: impl Into<Targets<'t>>, gradient: &mut [f32],
    ) -> Loss,
        |device, waiting| {
            device.loss(loss, Op::CrossEntropyGrad, x.shape(), write(x, gradient), targets.into(), waiting)
        };

    /// [`Device::cross_entropy_grad`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::cross_entropy_grad`], and [`Error::OutOfMemory`].
    cross_entropy_grad_vec / cross_entropy_grad_vec_async<'t>(
        loss: &CrossEntropy, x: Logits<'_>, targets: impl Into<Targets<'t>>,
    ) -> (Loss, Vec<f32>),
        |device, waiting| {
            let targets = targets.into();
            async move {
                let mut gradient = try_vec("the gradient", x.shape().elements()?)?;
                let data = write(x, &mut gradient);
                let loss = device.loss(loss, Op::CrossEntropyGrad, x.shape(), data, targets, waiting).await?;
                Ok((loss, gradient))
            }
        };

    /// [`Device::cross_entropy_grad`] with the gradient written over the logits.
    ///
    /// # Errors
    /// As [`Device::cross_entropy_grad`]; after any error the logits are intact.
    cross_entropy_grad_in_place / cross_entropy_grad_in_place_async<'t>(
        loss: &CrossEntropy, x: LogitsMut<'_>, targets: impl Into<Targets<'t>>,
    ) -> Loss,
        |device, waiting| {
            let shape = x.shape();
            device.loss(loss, Op::CrossEntropyGrad, shape, Ok(over(x)), targets.into(), waiting)
        };
}

impl Device {
    async fn loss(
        &self,
        loss: &CrossEntropy,
        op: Op,
        shape: Shape,
        data: Result<Data<'_>, Error>,
        targets: Targets<'_>,
        waiting: Waiting,
    ) -> Result<Loss, Error> {
        let data = data?;
        let prepared = loss.prepare(shape, targets)?;
        let mut per_row = try_vec("losses", shape.row_count())?;
        let out = RowsOut::Values(&mut per_row);
        let ran = self.run(job(op, shape, data, Some(&prepared), out), waiting).await?;
        Ok(prepared.reduce(per_row, ran.fell_back))
    }

    async fn reduce_rows(
        &self,
        op: Op,
        x: Logits<'_>,
        length: usize,
        out: RowsOut<'_>,
        waiting: Waiting,
    ) -> Result<Ran, Error> {
        check_length("out", x.shape().row_count(), length)?;
        self.run(job(op, x.shape(), read(x), None, out), waiting).await
    }

    async fn write_elements(&self, op: Op, x: Logits<'_>, out: &mut [f32], waiting: Waiting) -> Result<Ran, Error> {
        let (shape, data) = (x.shape(), write(x, out)?);
        self.run(job(op, shape, data, None, RowsOut::None), waiting).await
    }

    async fn new_elements(&self, op: Op, x: Logits<'_>, waiting: Waiting) -> Result<Output<f32>, Error> {
        let mut values = try_vec("the result", x.shape().elements()?)?;
        let ran = self.write_elements(op, x, &mut values, waiting).await?;
        Ok(Output { values, fell_back: ran.fell_back })
    }

    async fn overwrite_elements(&self, op: Op, x: LogitsMut<'_>, waiting: Waiting) -> Result<Ran, Error> {
        let (shape, data) = (x.shape(), over(x));
        self.run(job(op, shape, data, None, RowsOut::None), waiting).await
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

pub(crate) fn job<'a>(
    op: Op,
    shape: Shape,
    data: Data<'a>,
    prepared: Option<&'a Prepared<'_>>,
    rows_out: RowsOut<'a>,
) -> Job<'a> {
    let targets = prepared.map_or(&[][..], |prepared| &prepared.rows);
    Job { op, shape, data, targets, scaling: prepared.map(Prepared::scaling).unwrap_or_default(), rows_out }
}
