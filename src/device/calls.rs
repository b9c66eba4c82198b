//! The operations of a device over memory of the host, each in a blocking and an async form.

use crate::ops::{check_k, draw_transform};
use crate::problem::dtype::{Elements, ElementsMut, Sealed};
use crate::problem::error::try_vec;
use crate::problem::logits::{View, check_length};
use crate::problem::operation::Op;
use crate::problem::request::{Data, Operands, Request, RowsOut};
use crate::problem::waiting::{Waiting, block_on};
use crate::{
    Accuracy, CrossEntropy, Device, Element, Error, Logits, LogitsMut, Loss, Output, Prediction, Ran, Sampling, Targets,
};

/// An operation in both its forms: declared once, so that neither can differ.
macro_rules! operations {
    ($(
        $(#[$doc:meta])*
        $name:ident / $name_async:ident [$($generic:tt)*] ($($argument:ident: $ty:ty),* $(,)?) -> $result:ty,
        |$device:ident, $waiting:ident| $body:expr;
    )*) => {
        impl Device {$(
            $(#[$doc])*
            pub fn $name<$($generic)*>(&self, $($argument: $ty),*) -> Result<$result, Error> {
                let ($device, $waiting) = (self, Waiting::Here);
                block_on($body)
            }

            #[doc = concat!("The async form of [`Device::", stringify!($name), "`].")]
            ///
            /// # Errors
            #[doc = concat!("As [`Device::", stringify!($name), "`].")]
            pub async fn $name_async<$($generic)*>(&self, $($argument: $ty),*) -> Result<$result, Error> {
                let ($device, $waiting) = (self, Waiting::Elsewhere);
                $body.await
            }
        )*}
    };
}

operations! {
    /// softmax(x)_j = exp(x_j) / sum_k exp(x_k) of each row, into `out` of as many values as the logits have, in their order.
    ///
    /// # Errors
    /// [`Error::Length`] where `out` has another length; [`Error::DType`] for f64 on an explicitly chosen GPU, and
    /// [`Error::Gpu`] where that fails; [`Error::OutOfMemory`].
    softmax / softmax_async [T: Element] (x: Logits<'_, T>, out: &mut [T]) -> Ran,
        |device, waiting| device.write_elements(Op::Softmax, x, out, waiting);

    /// [`Device::softmax`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax`].
    softmax_vec / softmax_vec_async [T: Element] (x: Logits<'_, T>) -> Output<T>,
        |device, waiting| device.new_elements(Op::Softmax, x, waiting);

    /// [`Device::softmax`] over the logits themselves.
    ///
    /// # Errors
    /// As [`Device::softmax`]; after any error the logits are intact.
    softmax_in_place / softmax_in_place_async [T: Element] (x: LogitsMut<'_, T>) -> Ran,
        |device, waiting| device.overwrite_elements(Op::Softmax, x, waiting);

    /// log softmax(x)_j = x_j - log sum_k exp(x_k) of each row, into `out` of as many values as the logits have, in their order.
    ///
    /// # Errors
    /// [`Error::Length`] where `out` has another length; [`Error::DType`] for f64 on an explicitly chosen GPU, and
    /// [`Error::Gpu`] where that fails; [`Error::OutOfMemory`].
    log_softmax / log_softmax_async [T: Element] (x: Logits<'_, T>, out: &mut [T]) -> Ran,
        |device, waiting| device.write_elements(Op::LogSoftmax, x, out, waiting);

    /// [`Device::log_softmax`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::log_softmax`].
    log_softmax_vec / log_softmax_vec_async [T: Element] (x: Logits<'_, T>) -> Output<T>,
        |device, waiting| device.new_elements(Op::LogSoftmax, x, waiting);

    /// [`Device::log_softmax`] over the logits themselves.
    ///
    /// # Errors
    /// As [`Device::log_softmax`]; after any error the logits are intact.
    log_softmax_in_place / log_softmax_in_place_async [T: Element] (x: LogitsMut<'_, T>) -> Ran,
        |device, waiting| device.overwrite_elements(Op::LogSoftmax, x, waiting);

    /// The backward of [`Device::softmax`]: `y_j * (g_j - sum_k g_k * y_k)` of each row, from its result `y` and
    /// the gradient `g` of what was made of that, both of the shape of `y`, into `out`. A [temperature](Logits::temperature) of
    /// `y` is the one that its softmax was taken at.
    ///
    /// ```
    /// use logits::{Device, Logits};
    /// let y = [0.25, 0.75];
    /// let dx = Device::cpu().softmax_backward_vec(Logits::new(&y, [1, 2])?, &[1.0, 0.0])?.values;
    /// assert_eq!(dx, [0.1875, -0.1875]);
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Device::softmax`], and [`Error::Length`] where `upstream` has another length.
    softmax_backward / softmax_backward_async [T: Element] (y: Logits<'_, T>, upstream: &[T], out: &mut [T]) -> Ran,
        |device, waiting| device.backward(Op::SoftmaxBackward, y.view(), write(y, out), T::erase(upstream), waiting);

    /// [`Device::softmax_backward`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax_backward`].
    softmax_backward_vec / softmax_backward_vec_async [T: Element] (y: Logits<'_, T>, upstream: &[T]) -> Output<T>,
        |device, waiting| async move {
            let mut values = try_vec("the gradient", y.shape().elements()?)?;
            let data = write(y, &mut values);
            let ran = device.backward(Op::SoftmaxBackward, y.view(), data, T::erase(upstream), waiting).await?;
            Ok(Output { values, fell_back: ran.fell_back })
        };

    /// [`Device::softmax_backward`] over the result that it starts from.
    ///
    /// # Errors
    /// As [`Device::softmax_backward`]; after any error `y` is intact.
    softmax_backward_in_place / softmax_backward_in_place_async [T: Element] (y: LogitsMut<'_, T>, upstream: &[T]) -> Ran,
        |device, waiting| {
            let view = y.view();
            device.backward(Op::SoftmaxBackward, view, Ok(over(y)), T::erase(upstream), waiting)
        };

    /// The backward of [`Device::log_softmax`]: `g_j - exp(y_j) * sum_k g_k` of each row, from its result `y` and
    /// the gradient `g` of what was made of that, both of the shape of `y`, into `out`. A [temperature](Logits::temperature) of
    /// `y` is the one that its softmax was taken at.
    ///
    /// ```
    /// use logits::{Device, Logits};
    /// let y = [0.25_f32.ln(), 0.75_f32.ln()];
    /// let dx = Device::cpu().log_softmax_backward_vec(Logits::new(&y, [1, 2])?, &[1.0, 0.0])?.values;
    /// assert!((dx[0] - 0.75).abs() < 1e-6 && (dx[1] + 0.75).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Device::softmax`], and [`Error::Length`] where `upstream` has another length.
    log_softmax_backward / log_softmax_backward_async [T: Element] (y: Logits<'_, T>, upstream: &[T], out: &mut [T]) -> Ran,
        |device, waiting| device.backward(Op::LogSoftmaxBackward, y.view(), write(y, out), T::erase(upstream), waiting);

    /// [`Device::log_softmax_backward`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::log_softmax_backward`].
    log_softmax_backward_vec / log_softmax_backward_vec_async [T: Element] (y: Logits<'_, T>, upstream: &[T]) -> Output<T>,
        |device, waiting| async move {
            let mut values = try_vec("the gradient", y.shape().elements()?)?;
            let data = write(y, &mut values);
            let ran = device.backward(Op::LogSoftmaxBackward, y.view(), data, T::erase(upstream), waiting).await?;
            Ok(Output { values, fell_back: ran.fell_back })
        };

    /// [`Device::log_softmax_backward`] over the result that it starts from.
    ///
    /// # Errors
    /// As [`Device::log_softmax_backward`]; after any error `y` is intact.
    log_softmax_backward_in_place / log_softmax_backward_in_place_async [T: Element] (y: LogitsMut<'_, T>, upstream: &[T]) -> Ran,
        |device, waiting| {
            let view = y.view();
            device.backward(Op::LogSoftmaxBackward, view, Ok(over(y)), T::erase(upstream), waiting)
        };

    /// log sum_j exp(x_j) of each row, into `out` of a value a row.
    ///
    /// # Errors
    /// As [`Device::softmax`].
    log_sum_exp / log_sum_exp_async [T: Element] (x: Logits<'_, T>, out: &mut [T::Row]) -> Ran,
        |device, waiting| {
            let out = T::Row::erase_mut(out);
            device.reduce_rows(Op::LogSumExp, x, out.len(), RowsOut::Values(out), Operands::default(), waiting)
        };

    /// [`Device::log_sum_exp`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax`].
    log_sum_exp_vec / log_sum_exp_vec_async [T: Element] (x: Logits<'_, T>) -> Output<T::Row>,
        |device, waiting| async move {
            let mut values: Vec<T::Row> = try_vec("log-sum-exps", x.shape().row_count())?;
            let (rows, out) = (values.len(), RowsOut::Values(T::Row::erase_mut(&mut values)));
            let ran = device.reduce_rows(Op::LogSumExp, x, rows, out, Operands::default(), waiting).await?;
            Ok(Output { values, fell_back: ran.fell_back })
        };

    /// The most likely class of each row and its probability, into `out` of a value a row; ties go to the lowest class.
    ///
    /// # Errors
    /// As [`Device::softmax`].
    predict / predict_async [T: Element] (x: Logits<'_, T>, out: &mut [Prediction]) -> Ran,
        |device, waiting| {
            device.reduce_rows(Op::Predict, x, out.len(), RowsOut::Predictions(out, 1), Operands::default(), waiting)
        };

    /// [`Device::predict`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::softmax`].
    predict_vec / predict_vec_async [T: Element] (x: Logits<'_, T>) -> Output<Prediction>,
        |device, waiting| async move {
            device.new_predictions(Op::Predict, x, 1, Operands::default(), waiting).await
        };

    /// The `k` most likely classes of each row and their probabilities, most likely first, into `out` of `k` values a row;
    /// of equally likely ones the lower class comes first. Probabilities of the other classes are never written anywhere
    /// (Milakov and Gimelshein 2018, arXiv:1805.02867). In a row whose softmax is NaN all probabilities are, and NaNs come
    /// first.
    ///
    /// ```
    /// use logits::{Device, Logits};
    /// let x = [1.0, 3.0, 3.0, -2.0];
    /// let top = Device::cpu().top_k_vec(Logits::new(&x, [1, 4])?, 3)?.values;
    /// assert_eq!(top.iter().map(|top| top.class).collect::<Vec<_>>(), [1, 2, 0]);
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Device::softmax`], and [`Error::TopK`] where `k` is 0, above 64, or above the number of classes.
    top_k / top_k_async [T: Element] (x: Logits<'_, T>, k: usize, out: &mut [Prediction]) -> Ran,
        |device, waiting| async move {
            check_k(k, x.shape().classes())?;
            let operands = Operands { k, ..Operands::default() };
            device.reduce_rows(Op::TopK, x, out.len(), RowsOut::Predictions(out, k), operands, waiting).await
        };

    /// [`Device::top_k`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::top_k`].
    top_k_vec / top_k_vec_async [T: Element] (x: Logits<'_, T>, k: usize) -> Output<Prediction>,
        |device, waiting| async move {
            check_k(k, x.shape().classes())?;
            device.new_predictions(Op::TopK, x, k, Operands { k, ..Operands::default() }, waiting).await
        };

    /// A class of each row drawn at random from its softmax, and its probability there, into `out` of a value a row; of
    /// logits under a cap, which it refuses, draw from the log-softmax. In a
    /// row whose softmax is NaN the probability is, and the class is that of [`Device::predict`].
    ///
    /// # Errors
    /// As [`Device::softmax`], and [`Error::OptionValue`].
    sample / sample_async [T: Element] (sampling: &Sampling, x: Logits<'_, T>, out: &mut [Prediction]) -> Ran,
        |device, waiting| async move {
            let operands = Operands { draws: sampling.draws()?, ..Operands::default() };
            device.reduce_rows(Op::Sample, x, out.len(), RowsOut::Predictions(out, 1), operands, waiting).await
        };

    /// [`Device::sample`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::sample`].
    sample_vec / sample_vec_async [T: Element] (sampling: &Sampling, x: Logits<'_, T>) -> Output<Prediction>,
        |device, waiting| async move {
            let operands = Operands { draws: sampling.draws()?, ..Operands::default() };
            device.new_predictions(Op::Sample, x, 1, operands, waiting).await
        };

    /// How many of the counted rows have their target among the `k` most likely classes; of targets that are probabilities,
    /// the most probable class. What is ignored is an option of the loss.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// let x = Logits::new(&[1.0, 3.0, 2.0, 0.0, 5.0, 4.0], [2, 3])?;
    /// let of = |k| Device::cpu().accuracy(&CrossEntropy::default(), x, &[2, 1], k);
    /// assert_eq!((of(1)?.accuracy(), of(2)?.accuracy()), (0.5, 1.0));
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Device::cross_entropy`] and [`Device::top_k`].
    accuracy / accuracy_async ['t, T: Element] (
        loss: &CrossEntropy, x: Logits<'_, T>, targets: impl Into<Targets<'t>>, k: usize,
    ) -> Accuracy,
        |device, waiting| {
            let targets = targets.into();
            async move {
                check_k(k, x.shape().classes())?;
                let prepared = loss.prepare(x.shape(), targets)?;
                let op = if k == 1 { Op::Predict } else { Op::TopK };
                let x = x.as_seen_by(loss)?;
                let top = device.new_predictions(op, x, k, Operands { k, ..Operands::default() }, waiting).await?;
                Ok(prepared.accuracy(&top.values, k, top.fell_back))
            }
        };

    /// The loss alone; the equation stands at [`CrossEntropy`].
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::TargetOutOfRange`], [`Error::Probability`], [`Error::Weight`],
    /// [`Error::UpstreamGradient`] or [`Error::OptionValue`] before any work; else as [`Device::softmax`].
    cross_entropy / cross_entropy_async ['t, T: Element] (
        loss: &CrossEntropy, x: Logits<'_, T>, targets: impl Into<Targets<'t>>,
    ) -> Loss<T::Row>,
        |device, waiting| device.loss::<T>(loss, Op::CrossEntropy, x.view(), Ok(read(x)), targets.into(), waiting);

    /// The loss and, in the same step, its gradient with respect to the logits, into `gradient` of as many values, in their
    /// order.
    ///
    /// # Errors
    /// As [`Device::cross_entropy`]; nothing is written before everything has been checked.
    cross_entropy_grad / cross_entropy_grad_async ['t, T: Element] (
        loss: &CrossEntropy, x: Logits<'_, T>, targets: impl Into<Targets<'t>>, gradient: &mut [T],
    ) -> Loss<T::Row>,
        |device, waiting| {
            device.loss::<T>(loss, Op::CrossEntropyGrad, x.view(), write(x, gradient), targets.into(), waiting)
        };

    /// [`Device::cross_entropy_grad`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::cross_entropy_grad`].
    cross_entropy_grad_vec / cross_entropy_grad_vec_async ['t, T: Element] (
        loss: &CrossEntropy, x: Logits<'_, T>, targets: impl Into<Targets<'t>>,
    ) -> (Loss<T::Row>, Vec<T>),
        |device, waiting| {
            let targets = targets.into();
            async move {
                let mut gradient = try_vec("the gradient", x.shape().elements()?)?;
                let data = write(x, &mut gradient);
                let loss = device.loss::<T>(loss, Op::CrossEntropyGrad, x.view(), data, targets, waiting).await?;
                Ok((loss, gradient))
            }
        };

    /// [`Device::cross_entropy_grad`] with the gradient written over the logits.
    ///
    /// # Errors
    /// As [`Device::cross_entropy_grad`]; after any error the logits are intact.
    cross_entropy_grad_in_place / cross_entropy_grad_in_place_async ['t, T: Element] (
        loss: &CrossEntropy, x: LogitsMut<'_, T>, targets: impl Into<Targets<'t>>,
    ) -> Loss<T::Row>,
        |device, waiting| {
            let view = x.view();
            device.loss::<T>(loss, Op::CrossEntropyGrad, view, Ok(over(x)), targets.into(), waiting)
        };

    /// The gradient of a loss from the log-sum-exps of its rows, such as a forward has saved, without reducing the rows
    /// again: those of logits [as the loss sees them](Logits::as_seen_by). It is no better than they are: an f32 log-sum-exp of
    /// 20 leaves probabilities with a relative error of 1e-6.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// let (device, loss) = (Device::cpu(), CrossEntropy::default());
    /// let x = Logits::new(&[1.0_f32, 3.0, 2.0, 0.0], [2, 2])?;
    /// let saved = device.log_sum_exp_vec(x)?.values;
    /// let gradient = device.cross_entropy_backward_vec(&loss, x, &[0, 1], &saved)?.values;
    /// let (_, fused) = device.cross_entropy_grad_vec(&loss, x, &[0, 1])?;
    /// assert!(gradient.iter().zip(&fused).all(|(a, b)| (a - b).abs() < 1e-6));
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Device::cross_entropy_grad`], and [`Error::Length`] where there is not one log-sum-exp a row.
    cross_entropy_backward / cross_entropy_backward_async ['t, T: Element] (
        loss: &CrossEntropy, x: Logits<'_, T>, targets: impl Into<Targets<'t>>, log_sum_exps: &[T::Row], out: &mut [T],
    ) -> Ran,
        |device, waiting| {
            device.loss_backward(loss, x.view(), write(x, out), targets.into(), T::Row::erase(log_sum_exps), waiting)
        };

    /// [`Device::cross_entropy_backward`] into a new `Vec`.
    ///
    /// # Errors
    /// As [`Device::cross_entropy_backward`].
    cross_entropy_backward_vec / cross_entropy_backward_vec_async ['t, T: Element] (
        loss: &CrossEntropy, x: Logits<'_, T>, targets: impl Into<Targets<'t>>, log_sum_exps: &[T::Row],
    ) -> Output<T>,
        |device, waiting| {
            let (targets, saved) = (targets.into(), T::Row::erase(log_sum_exps));
            async move {
                let mut values = try_vec("the gradient", x.shape().elements()?)?;
                let data = write(x, &mut values);
                let ran = device.loss_backward(loss, x.view(), data, targets, saved, waiting).await?;
                Ok(Output { values, fell_back: ran.fell_back })
            }
        };

    /// [`Device::cross_entropy_backward`] with the gradient written over the logits.
    ///
    /// # Errors
    /// As [`Device::cross_entropy_backward`]; after any error the logits are intact.
    cross_entropy_backward_in_place / cross_entropy_backward_in_place_async ['t, T: Element] (
        loss: &CrossEntropy, x: LogitsMut<'_, T>, targets: impl Into<Targets<'t>>, log_sum_exps: &[T::Row],
    ) -> Ran,
        |device, waiting| {
            let view = x.view();
            device.loss_backward(loss, view, Ok(over(x)), targets.into(), T::Row::erase(log_sum_exps), waiting)
        };
}

impl Device {
    async fn loss<T: Element>(
        &self,
        loss: &CrossEntropy,
        op: Op,
        view: View,
        data: Result<Data<'_>, Error>,
        targets: Targets<'_>,
        waiting: Waiting,
    ) -> Result<Loss<T::Row>, Error> {
        let data = data?;
        let prepared = loss.prepare(view.shape, targets)?;
        let mut per_row: Vec<T::Row> = try_vec("losses", view.shape.row_count())?;
        let out = RowsOut::Values(T::Row::erase_mut(&mut per_row));
        let ran = self.run(Request::new(op, view, data, prepared.operands(view.transform)?, out), waiting).await?;
        Ok(prepared.reduce(per_row, ran.fell_back))
    }

    async fn loss_backward(
        &self,
        loss: &CrossEntropy,
        view: View,
        data: Result<Data<'_>, Error>,
        targets: Targets<'_>,
        log_sum_exps: Elements<'_>,
        waiting: Waiting,
    ) -> Result<Ran, Error> {
        let data = data?;
        let prepared = loss.prepare(view.shape, targets)?;
        check_length("log-sum-exps", view.shape.row_count(), log_sum_exps.len())?;
        let operands = Operands { log_sum_exps: Some(log_sum_exps), ..prepared.operands(view.transform)? };
        self.run(Request::new(Op::CrossEntropyBackward, view, data, operands, RowsOut::None), waiting).await
    }

    async fn backward(
        &self,
        op: Op,
        view: View,
        data: Result<Data<'_>, Error>,
        upstream: Elements<'_>,
        waiting: Waiting,
    ) -> Result<Ran, Error> {
        let data = data?;
        check_length("upstream gradients", view.shape.elements()?, upstream.len())?;
        let transform = view.transform.without_cap("not set: what comes back through it is another step")?;
        let operands = Operands { transform, upstream_gradient: Some(upstream), ..Operands::default() };
        self.run(Request::new(op, view, data, operands, RowsOut::None), waiting).await
    }

    async fn reduce_rows<T: Element>(
        &self,
        op: Op,
        x: Logits<'_, T>,
        length: usize,
        out: RowsOut<'_>,
        operands: Operands<'_>,
        waiting: Waiting,
    ) -> Result<Ran, Error> {
        let view = x.view();
        check_length("out", view.shape.row_count().saturating_mul(operands.k.max(1)), length)?;
        let operands = Operands { transform: draw_transform(op, view.transform)?, ..operands };
        self.run(Request::new(op, view, read(x), operands, out), waiting).await
    }

    async fn new_predictions<T: Element>(
        &self,
        op: Op,
        x: Logits<'_, T>,
        each: usize,
        operands: Operands<'_>,
        waiting: Waiting,
    ) -> Result<Output<Prediction>, Error> {
        let mut values = try_vec("predictions", x.shape().row_count().saturating_mul(each))?;
        let (length, out) = (values.len(), RowsOut::Predictions(&mut values, each));
        let ran = self.reduce_rows(op, x, length, out, operands, waiting).await?;
        Ok(Output { values, fell_back: ran.fell_back })
    }

    async fn write_elements<T: Element>(
        &self,
        op: Op,
        x: Logits<'_, T>,
        out: &mut [T],
        waiting: Waiting,
    ) -> Result<Ran, Error> {
        let (view, data) = (x.view(), write(x, out)?);
        let operands = Operands { transform: view.transform, ..Operands::default() };
        self.run(Request::new(op, view, data, operands, RowsOut::None), waiting).await
    }

    async fn new_elements<T: Element>(&self, op: Op, x: Logits<'_, T>, waiting: Waiting) -> Result<Output<T>, Error> {
        let mut values = try_vec("the result", x.shape().elements()?)?;
        let ran = self.write_elements(op, x, &mut values, waiting).await?;
        Ok(Output { values, fell_back: ran.fell_back })
    }

    async fn overwrite_elements<T: Element>(
        &self,
        op: Op,
        x: LogitsMut<'_, T>,
        waiting: Waiting,
    ) -> Result<Ran, Error> {
        let (view, data) = (x.view(), over(x));
        let operands = Operands { transform: view.transform, ..Operands::default() };
        self.run(Request::new(op, view, data, operands, RowsOut::None), waiting).await
    }
}

fn read<T: Element>(x: Logits<'_, T>) -> Data<'_> {
    Data::Read { input: x.elements(), stride: x.view().stride }
}

fn write<'a, T: Element>(x: Logits<'a, T>, output: &'a mut [T]) -> Result<Data<'a>, Error> {
    check_length("out", x.shape().elements()?, output.len())?;
    let output: ElementsMut<'a> = T::erase_mut(output);
    Ok(Data::Write { input: x.elements(), stride: x.view().stride, output })
}

fn over<T: Element>(x: LogitsMut<'_, T>) -> Data<'_> {
    let stride = x.view().stride;
    Data::Over { data: x.into_elements(), stride }
}
