//! The operations of a device over memory of the host.
//!
//! A method such as [`Device::softmax`] only describes a call. The call runs when its destination
//! is named: a new `Vec`, memory of the caller, or the logits themselves. Each destination has a
//! blocking and an async form, written once for all operations.

use std::marker::PhantomData;

use crate::ops::Op;
use crate::ops::Request;
use crate::ops::{check_k, draw_transform};
use crate::problem::dtype::{Elements, Sealed};
use crate::problem::error::try_vec;
use crate::problem::logits::{View, check_length};
use crate::problem::loss::check_upstream_gradients;
use crate::problem::operands::{Data, Operands, RowsOut};
use crate::problem::waiting::{Waiting, block_on};
use crate::{
    Accuracy, CrossEntropy, Device, Element, Error, Logits, LogitsMut, Loss, Output, Prediction,
    ResultValue, Sampling, Targets,
};

/// Logits of a call: [`Logits`], which are read, or [`LogitsMut`], which the result may overwrite.
/// No other type implements it.
pub trait LogitsSource: sealed::Source {
    /// The type of the logits.
    type Element: Element;
}

impl<T: Element> LogitsSource for Logits<'_, T> {
    type Element = T;
}

impl<T: Element> LogitsSource for LogitsMut<'_, T> {
    type Element = T;
}

mod sealed {
    pub trait Source {}
    impl<T: crate::Element> Source for crate::Logits<'_, T> {}
    impl<T: crate::Element> Source for crate::LogitsMut<'_, T> {}
}

/// The inputs of a call beside the logits.
#[derive(Clone, Copy, Debug, Default)]
struct Inputs<'c> {
    /// The loss and its targets.
    loss: Option<(&'c CrossEntropy, Targets<'c>)>,
    upstream: Option<Elements<'c>>,
    log_sum_exps: Option<Elements<'c>>,
    /// One factor of the gradient for each row.
    row_upstream: Option<&'c [f32]>,
    sampling: Option<&'c Sampling>,
    k: Option<usize>,
}

impl Inputs<'_> {
    /// Predictions of each row.
    fn predictions_per_row(&self) -> usize {
        self.k.unwrap_or(1)
    }

    /// Checks the options that do not depend on where the result goes.
    fn check(&self, classes: usize) -> Result<(), Error> {
        if let Some(k) = self.k {
            check_k(k, classes)?;
        }
        self.sampling.map_or(Ok(()), |sampling| sampling.draws().map(drop))
    }

    /// Validates the inputs against the logits, then runs the operation.
    async fn run(
        &self,
        device: &Device,
        op: Op,
        view: View,
        (data, rows_out): (Data<'_>, RowsOut<'_>),
        waiting: Waiting,
    ) -> Result<Output<()>, Error> {
        let prepared;
        let mut operands = Operands { k: self.k.unwrap_or(0), ..Operands::default() };
        if let Some((loss, targets)) = self.loss {
            prepared = loss.prepare(view.shape, targets)?;
            if let Some(values) = self.log_sum_exps {
                check_length("log-sum-exps", view.shape.row_count(), values.len())?;
            }
            operands =
                Operands { log_sum_exps: self.log_sum_exps, ..prepared.operands(view.transform)? };
        } else if let Some(upstream) = self.upstream {
            check_length("upstream gradients", view.shape.elements()?, upstream.len())?;
            operands.transform =
                view.transform.without_cap("not set: the gradient of a cap is another step")?;
            operands.upstream_gradient = Some(upstream);
        } else {
            if let Some(sampling) = self.sampling {
                operands.draws = sampling.draws()?;
            }
            if let Some(factors) = self.row_upstream {
                check_upstream_gradients(view.shape, factors)?;
                operands.coefficients.row_upstream = Some(factors);
            }
            operands.transform = draw_transform(op, view.transform)?;
        }
        device.run(Request::new(op, view, data, operands, rows_out), waiting).await
    }
}

/// A call of an operation on the logits `X`, [`Logits`] or [`LogitsMut`], whose result are values
/// of the type `R`: one for each logit, in their order, or one for each row, or `k` for each row.
/// It does nothing until a destination is named.
#[derive(Clone, Copy, Debug)]
#[must_use = "a call does nothing until its destination is named"]
pub struct Call<'c, X, R> {
    device: &'c Device,
    op: Op,
    x: X,
    inputs: Inputs<'c>,
    value: PhantomData<R>,
}

impl<'c, X, R> Call<'c, X, R> {
    fn new(device: &'c Device, op: Op, x: X, inputs: Inputs<'c>) -> Self {
        Self { device, op, x, inputs, value: PhantomData }
    }
}

impl<T: Element, R: ResultValue> Call<'_, Logits<'_, T>, R> {
    /// Runs the call and returns the result in a new `Vec`.
    ///
    /// # Errors
    /// [`Error::DType`] for f64 on an explicitly chosen GPU, and [`Error::Gpu`] where that fails;
    /// [`Error::OutOfMemory`]; [`Error::SimdLevel`] where `LOGITS_SIMD` names a level that this
    /// machine lacks; and the errors of the operation.
    pub fn to_vec(self) -> Result<Output<Vec<R>>, Error> {
        block_on(self.vec(Waiting::Here))
    }

    /// The async form of [`Call::to_vec`].
    ///
    /// # Errors
    /// Fails as [`Call::to_vec`] does.
    pub async fn to_vec_async(self) -> Result<Output<Vec<R>>, Error> {
        self.vec(Waiting::Elsewhere).await
    }

    /// Runs the call and writes the result into `out`, which has as many values as the result.
    ///
    /// # Errors
    /// Fails as [`Call::to_vec`] does, and with [`Error::Length`] where `out` has another length.
    pub fn write_to(self, out: &mut [R]) -> Result<Output<()>, Error> {
        block_on(self.write(out, Waiting::Here))
    }

    /// The async form of [`Call::write_to`].
    ///
    /// # Errors
    /// Fails as [`Call::write_to`] does.
    pub async fn write_to_async(self, out: &mut [R]) -> Result<Output<()>, Error> {
        self.write(out, Waiting::Elsewhere).await
    }

    /// Checks the options and returns the number of values of the result.
    fn length(&self) -> Result<usize, Error> {
        let shape = self.x.shape();
        self.inputs.check(shape.classes())?;
        if self.op.spec().writes_elements {
            return shape.elements();
        }
        Ok(shape.row_count().saturating_mul(self.inputs.predictions_per_row()))
    }

    async fn vec(self, waiting: Waiting) -> Result<Output<Vec<R>>, Error> {
        let mut values = try_vec("the result", self.length()?)?;
        let Output { fell_back, .. } = self.write(&mut values, waiting).await?;
        Ok(Output { values, fell_back })
    }

    async fn write(self, out: &mut [R], waiting: Waiting) -> Result<Output<()>, Error> {
        check_length("out", self.length()?, out.len())?;
        let Self { device, op, x, inputs, .. } = self;
        let (input, stride) = (x.elements(), x.view().stride);
        let result = match R::rows_out(out, inputs.predictions_per_row()) {
            RowsOut::Values(output) if op.spec().writes_elements => {
                (Data::Write { input, stride, output }, RowsOut::None)
            }
            rows_out => (Data::Read { input, stride }, rows_out),
        };
        inputs.run(device, op, x.view(), result, waiting).await
    }
}

impl<T: Element> Call<'_, LogitsMut<'_, T>, T> {
    /// Runs the call and writes the result over the logits. After any error the logits are intact.
    ///
    /// # Errors
    /// Fails as [`Call::to_vec`] does.
    pub fn in_place(self) -> Result<Output<()>, Error> {
        block_on(self.overwrite(Waiting::Here))
    }

    /// The async form of [`Call::in_place`].
    ///
    /// # Errors
    /// Fails as [`Call::in_place`] does.
    pub async fn in_place_async(self) -> Result<Output<()>, Error> {
        self.overwrite(Waiting::Elsewhere).await
    }

    async fn overwrite(self, waiting: Waiting) -> Result<Output<()>, Error> {
        let Self { device, op, x, inputs, .. } = self;
        let view = x.view();
        inputs.run(device, op, view, (overwrite(x), RowsOut::None), waiting).await
    }
}

/// A loss of logits and targets, alone or with its gradient. It does nothing until one of its
/// methods is called.
#[derive(Clone, Copy, Debug)]
#[must_use = "a call does nothing until one of its methods is called"]
pub struct LossCall<'c, X> {
    device: &'c Device,
    loss: &'c CrossEntropy,
    x: X,
    targets: Targets<'c>,
}

impl<T: Element> LossCall<'_, Logits<'_, T>> {
    /// Computes the loss alone.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::TargetOutOfRange`], [`Error::Probability`], [`Error::Weight`],
    /// [`Error::UpstreamGradient`], [`Error::OptionValue`] or [`Error::SimdLevel`] before any work;
    /// [`Error::DType`] for f64 on an explicitly chosen GPU, and [`Error::Gpu`] where that fails;
    /// [`Error::OutOfMemory`].
    pub fn loss(self) -> Result<Loss<T::Row>, Error> {
        block_on(self.alone(Waiting::Here))
    }

    /// The async form of [`LossCall::loss`].
    ///
    /// # Errors
    /// Fails as [`LossCall::loss`] does.
    pub async fn loss_async(self) -> Result<Loss<T::Row>, Error> {
        self.alone(Waiting::Elsewhere).await
    }

    /// Computes the loss and, in the same step, its gradient with respect to the logits, which goes
    /// into `gradient` of as many values, in their order.
    ///
    /// # Errors
    /// Fails as [`LossCall::loss`] does; nothing is written before everything has been checked.
    pub fn with_gradient(self, gradient: &mut [T]) -> Result<Loss<T::Row>, Error> {
        block_on(self.into_gradient(gradient, Waiting::Here))
    }

    /// The async form of [`LossCall::with_gradient`].
    ///
    /// # Errors
    /// Fails as [`LossCall::with_gradient`] does.
    pub async fn with_gradient_async(self, gradient: &mut [T]) -> Result<Loss<T::Row>, Error> {
        self.into_gradient(gradient, Waiting::Elsewhere).await
    }

    /// [`LossCall::with_gradient`] into a new `Vec`.
    ///
    /// # Errors
    /// Fails as [`LossCall::with_gradient`] does.
    pub fn with_gradient_vec(self) -> Result<(Loss<T::Row>, Vec<T>), Error> {
        block_on(self.gradient_vec(Waiting::Here))
    }

    /// The async form of [`LossCall::with_gradient_vec`].
    ///
    /// # Errors
    /// Fails as [`LossCall::with_gradient_vec`] does.
    pub async fn with_gradient_vec_async(self) -> Result<(Loss<T::Row>, Vec<T>), Error> {
        self.gradient_vec(Waiting::Elsewhere).await
    }

    /// Counts the rows whose target is among the `k` most likely classes; a target that is a
    /// distribution counts as its most probable class. Options of the loss say which rows are
    /// ignored.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// let (device, loss) = (Device::cpu(), CrossEntropy::default());
    /// let x = Logits::new(&[1.0, 3.0, 2.0, 0.0, 5.0, 4.0], [2, 3])?;
    /// let call = device.cross_entropy(&loss, x, &[2, 1]);
    /// assert_eq!((call.accuracy(1)?.accuracy(), call.accuracy(2)?.accuracy()), (0.5, 1.0));
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails as [`LossCall::loss`] does, and with [`Error::TopK`] where `k` is 0, above 64, or
    /// above the number of classes.
    pub fn accuracy(self, k: usize) -> Result<Accuracy, Error> {
        block_on(self.count(k, Waiting::Here))
    }

    /// The async form of [`LossCall::accuracy`].
    ///
    /// # Errors
    /// Fails as [`LossCall::accuracy`] does.
    pub async fn accuracy_async(self, k: usize) -> Result<Accuracy, Error> {
        self.count(k, Waiting::Elsewhere).await
    }

    async fn alone(self, waiting: Waiting) -> Result<Loss<T::Row>, Error> {
        let data = read(self.x);
        self.run(Op::CrossEntropy, self.x.view(), data, waiting).await
    }

    async fn into_gradient(
        self,
        gradient: &mut [T],
        waiting: Waiting,
    ) -> Result<Loss<T::Row>, Error> {
        let data = write(self.x, gradient)?;
        self.run(Op::CrossEntropyGrad, self.x.view(), data, waiting).await
    }

    async fn gradient_vec(self, waiting: Waiting) -> Result<(Loss<T::Row>, Vec<T>), Error> {
        let mut gradient = try_vec("the gradient", self.x.shape().elements()?)?;
        let loss = self.into_gradient(&mut gradient, waiting).await?;
        Ok((loss, gradient))
    }

    async fn count(self, k: usize, waiting: Waiting) -> Result<Accuracy, Error> {
        let Self { device, loss, x, targets } = self;
        check_k(k, x.shape().classes())?;
        let prepared = loss.prepare(x.shape(), targets)?;
        let x = x.as_seen_by(loss)?;
        let top = if k == 1 { device.predict(x) } else { device.top_k(x, k) };
        let Output { values, fell_back } = top.vec(waiting).await?;
        Ok(prepared.accuracy(&values, k, fell_back))
    }
}

impl<T: Element> LossCall<'_, LogitsMut<'_, T>> {
    /// Computes the loss and its gradient, and writes the gradient over the logits. After any error
    /// the logits are intact.
    ///
    /// # Errors
    /// Fails as [`LossCall::with_gradient`] does.
    pub fn with_gradient_in_place(self) -> Result<Loss<T::Row>, Error> {
        block_on(self.overwrite(Waiting::Here))
    }

    /// The async form of [`LossCall::with_gradient_in_place`].
    ///
    /// # Errors
    /// Fails as [`LossCall::with_gradient_in_place`] does.
    pub async fn with_gradient_in_place_async(self) -> Result<Loss<T::Row>, Error> {
        self.overwrite(Waiting::Elsewhere).await
    }

    async fn overwrite(self, waiting: Waiting) -> Result<Loss<T::Row>, Error> {
        let Self { device, loss, x, targets } = self;
        let view = x.view();
        let data = overwrite(x);
        LossCall { device, loss, x: (), targets }
            .run(Op::CrossEntropyGrad, view, data, waiting)
            .await
    }
}

impl<X> LossCall<'_, X> {
    async fn run<S: Element>(
        &self,
        op: Op,
        view: View,
        data: Data<'_>,
        waiting: Waiting,
    ) -> Result<Loss<S>, Error> {
        let prepared = self.loss.prepare(view.shape, self.targets)?;
        let mut per_row: Vec<S> = try_vec("losses", view.shape.row_count())?;
        let out = RowsOut::Values(S::erase_mut(&mut per_row));
        let request = Request::new(op, view, data, prepared.operands(view.transform)?, out);
        let Output { fell_back, .. } = self.device.run(request, waiting).await?;
        Ok(prepared.reduce(per_row, fell_back))
    }
}

impl Device {
    /// softmax(x)_j = exp(x_j) / sum_k exp(x_k) of each row.
    ///
    /// ```
    /// use logits::{Device, Logits};
    /// let p = Device::cpu().softmax(Logits::new(&[0.0_f32, 3.0_f32.ln()], [1, 2])?).to_vec()?.values;
    /// assert!((p[0] - 0.25).abs() < 1e-6 && (p[1] - 0.75).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    pub fn softmax<X: LogitsSource>(&self, x: X) -> Call<'_, X, X::Element> {
        Call::new(self, Op::Softmax, x, Inputs::default())
    }

    /// log softmax(x)_j = x_j - log sum_k exp(x_k) of each row.
    pub fn log_softmax<X: LogitsSource>(&self, x: X) -> Call<'_, X, X::Element> {
        Call::new(self, Op::LogSoftmax, x, Inputs::default())
    }

    /// The backward of [`Device::softmax`]: `y_j * (g_j - sum_k g_k * y_k)` of each row, from its
    /// result `y` and the gradient `g` = `upstream` of the loss with respect to `y`, both of the
    /// shape of `y`. A [temperature](Logits::temperature) of `y` is the one that its softmax was
    /// taken at.
    ///
    /// ```
    /// use logits::{Device, Logits};
    /// let y = [0.25, 0.75];
    /// let dx = Device::cpu().softmax_backward(Logits::new(&y, [1, 2])?, &[1.0, 0.0]).to_vec()?.values;
    /// assert_eq!(dx, [0.1875, -0.1875]);
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// Running the call fails with [`Error::Length`] where `upstream` has another length, and with
    /// [`Error::OptionValue`] where a cap is set.
    pub fn softmax_backward<'c, X: LogitsSource>(
        &'c self,
        y: X,
        upstream: &'c [X::Element],
    ) -> Call<'c, X, X::Element> {
        let inputs = Inputs { upstream: Some(X::Element::erase(upstream)), ..Inputs::default() };
        Call::new(self, Op::SoftmaxBackward, y, inputs)
    }

    /// The backward of [`Device::log_softmax`]: `g_j - exp(y_j) * sum_k g_k` of each row, from its
    /// result `y` and the gradient `g` = `upstream` of the loss with respect to `y`, both of the
    /// shape of `y`. A [temperature](Logits::temperature) of `y` is the one that its softmax was
    /// taken at.
    ///
    /// ```
    /// use logits::{Device, Logits};
    /// let y = [0.25_f32.ln(), 0.75_f32.ln()];
    /// let dx = Device::cpu().log_softmax_backward(Logits::new(&y, [1, 2])?, &[1.0, 0.0]).to_vec()?.values;
    /// assert!((dx[0] - 0.75).abs() < 1e-6 && (dx[1] + 0.75).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// Running the call fails as a call of [`Device::softmax_backward`] does.
    pub fn log_softmax_backward<'c, X: LogitsSource>(
        &'c self,
        y: X,
        upstream: &'c [X::Element],
    ) -> Call<'c, X, X::Element> {
        let inputs = Inputs { upstream: Some(X::Element::erase(upstream)), ..Inputs::default() };
        Call::new(self, Op::LogSoftmaxBackward, y, inputs)
    }

    /// log sum_k exp(x_k) of each row; f64 for f64 logits, else f32.
    pub fn log_sum_exp<'c, T: Element>(
        &'c self,
        x: Logits<'c, T>,
    ) -> Call<'c, Logits<'c, T>, T::Row> {
        Call::new(self, Op::LogSumExp, x, Inputs::default())
    }

    /// The entropy of the softmax of each row, in nats: `H = -sum_k p_k log p_k` with
    /// `p = softmax(x)`, from 0 to log(classes); f64 for f64 logits, else f32. A class with a logit
    /// of `-inf` adds nothing, and a row whose softmax is NaN has the entropy NaN.
    ///
    /// ```
    /// use logits::{Device, Logits};
    /// let x = Logits::new(&[0.0_f32, 0.0, 50.0, 0.0], [2, 2])?;
    /// let entropies = Device::cpu().entropy(x).to_vec()?.values;
    /// assert!((entropies[0] - 2.0_f32.ln()).abs() < 1e-6 && entropies[1] < 1e-19);
    /// # Ok::<(), logits::Error>(())
    /// ```
    pub fn entropy<'c, T: Element>(&'c self, x: Logits<'c, T>) -> Call<'c, Logits<'c, T>, T::Row> {
        Call::new(self, Op::Entropy, x, Inputs::default())
    }

    /// The gradient of `sum_i upstream_i H_i` with respect to the logits, where `H_i` is the
    /// [entropy](Device::entropy) of row `i`: `-upstream_i p_j (log p_j + H_i)`, times the
    /// derivative of the logits' [temperature](Logits::temperature), scale and cap. `upstream` has
    /// one finite value for each row: in a loss with an entropy bonus, the negative factor of the
    /// bonus, divided by the rows of a mean. A class with a logit of `-inf` has the gradient 0, and
    /// a row whose softmax is NaN has NaN.
    ///
    /// ```
    /// use logits::{Device, Logits};
    /// let logits = [0.0_f32, 3.0_f32.ln()]; // p = 0.25, 0.75
    /// let x = Logits::new(&logits, [1, 2])?;
    /// let dx = Device::cpu().entropy_backward(x, &[1.0]).to_vec()?.values;
    /// let expected = 0.25 * 0.75 * 3.0_f32.ln();
    /// assert!((dx[0] - expected).abs() < 1e-6 && (dx[1] + expected).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// Running the call fails with [`Error::Length`] where there is not one value for each row, and
    /// with [`Error::UpstreamGradient`] where one is not finite.
    pub fn entropy_backward<'c, X: LogitsSource>(
        &'c self,
        x: X,
        upstream: &'c [f32],
    ) -> Call<'c, X, X::Element> {
        let inputs = Inputs { row_upstream: Some(upstream), ..Inputs::default() };
        Call::new(self, Op::EntropyBackward, x, inputs)
    }

    /// The most likely class of each row and its probability; of equally likely classes the lowest.
    pub fn predict<'c, T: Element>(
        &'c self,
        x: Logits<'c, T>,
    ) -> Call<'c, Logits<'c, T>, Prediction> {
        Call::new(self, Op::Predict, x, Inputs::default())
    }

    /// The `k` most likely classes of each row and their probabilities, most likely first; of
    /// equally likely classes the lower comes first. Probabilities of the other classes are never
    /// written anywhere (Milakov and Gimelshein 2018, arXiv:1805.02867). In a row whose softmax is
    /// NaN all probabilities are NaN, and NaN logits come first.
    ///
    /// ```
    /// use logits::{Device, Logits};
    /// let x = [1.0, 3.0, 3.0, -2.0];
    /// let top = Device::cpu().top_k(Logits::new(&x, [1, 4])?, 3).to_vec()?.values;
    /// assert_eq!(top.iter().map(|top| top.class).collect::<Vec<_>>(), [1, 2, 0]);
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// Running the call fails with [`Error::TopK`] where `k` is 0, above 64, or above the number of
    /// classes.
    pub fn top_k<'c, T: Element>(
        &'c self,
        x: Logits<'c, T>,
        k: usize,
    ) -> Call<'c, Logits<'c, T>, Prediction> {
        let inputs = Inputs { k: Some(k), ..Inputs::default() };
        Call::new(self, Op::TopK, x, inputs)
    }

    /// A class of each row drawn at random from its softmax, and its probability in the whole
    /// softmax at the temperature of the logits, whatever top-k and top-p leave out. Logits
    /// under a cap are refused: draw from their log-softmax. In a row whose softmax is NaN the
    /// probability is NaN, and the class is that of [`Device::predict`].
    ///
    /// Running the call fails with [`Error::OptionValue`] where an option is out of range, and
    /// where the logits are under a cap or have a negative scale.
    pub fn sample<'c, T: Element>(
        &'c self,
        sampling: &'c Sampling,
        x: Logits<'c, T>,
    ) -> Call<'c, Logits<'c, T>, Prediction> {
        let inputs = Inputs { sampling: Some(sampling), ..Inputs::default() };
        Call::new(self, Op::Sample, x, inputs)
    }

    /// The cross-entropy of logits and targets; the equation is given at [`CrossEntropy`].
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// let (device, loss) = (Device::cpu(), CrossEntropy::default());
    /// let logits = [0.0_f32, 3.0_f32.ln()];
    /// let x = Logits::new(&logits, [1, 2])?;
    /// let (loss, gradient) = device.cross_entropy(&loss, x, &[0]).with_gradient_vec()?;
    /// assert!((loss.loss - 4.0_f64.ln()).abs() < 1e-6 && (gradient[0] + 0.75).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    pub fn cross_entropy<'c, X: LogitsSource>(
        &'c self,
        loss: &'c CrossEntropy,
        x: X,
        targets: impl Into<Targets<'c>>,
    ) -> LossCall<'c, X> {
        LossCall { device: self, loss, x, targets: targets.into() }
    }

    /// The gradient of a loss from the log-sum-exps of its rows, such as a forward has saved,
    /// without reducing the rows again. They are those of the logits [as the loss sees
    /// them](Logits::as_seen_by). The gradient is as accurate as they are: an f32 log-sum-exp of 20
    /// leaves probabilities with a relative error of 1e-6.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// let (device, loss) = (Device::cpu(), CrossEntropy::default());
    /// let x = Logits::new(&[1.0_f32, 3.0, 2.0, 0.0], [2, 2])?;
    /// let saved = device.log_sum_exp(x).to_vec()?.values;
    /// let gradient = device.cross_entropy_backward(&loss, x, &[0, 1], &saved).to_vec()?.values;
    /// let (_, fused) = device.cross_entropy(&loss, x, &[0, 1]).with_gradient_vec()?;
    /// assert!(gradient.iter().zip(&fused).all(|(a, b)| (a - b).abs() < 1e-6));
    /// # Ok::<(), logits::Error>(())
    /// ```
    ///
    /// Running the call fails as [`LossCall::loss`] does, and with [`Error::Length`] where there is
    /// not one log-sum-exp a row.
    pub fn cross_entropy_backward<'c, X: LogitsSource>(
        &'c self,
        loss: &'c CrossEntropy,
        x: X,
        targets: impl Into<Targets<'c>>,
        log_sum_exps: &'c [<X::Element as Element>::Row],
    ) -> Call<'c, X, X::Element> {
        let log_sum_exps = Some(<X::Element as Element>::Row::erase(log_sum_exps));
        let inputs =
            Inputs { loss: Some((loss, targets.into())), log_sum_exps, ..Inputs::default() };
        Call::new(self, Op::CrossEntropyBackward, x, inputs)
    }
}

fn read<T: Element>(x: Logits<'_, T>) -> Data<'_> {
    Data::Read { input: x.elements(), stride: x.view().stride }
}

fn write<'a, T: Element>(x: Logits<'a, T>, output: &'a mut [T]) -> Result<Data<'a>, Error> {
    check_length("out", x.shape().elements()?, output.len())?;
    Ok(Data::Write { input: x.elements(), stride: x.view().stride, output: T::erase_mut(output) })
}

fn overwrite<T: Element>(x: LogitsMut<'_, T>) -> Data<'_> {
    let stride = x.view().stride;
    Data::Over { data: x.into_elements(), stride }
}
