//! The options of the loss, and their checks on the host, which settle which rows count and by what
//! their sum is divided.

use half::{bf16, f16};

use crate::problem::checked_loss::CheckedLoss;
use crate::problem::dtype::Elements;
use crate::problem::error::try_vec;
use crate::problem::logits::check_length;
use crate::problem::operands::{LossCoefficients, RowTarget};
use crate::problem::sum::sum_of_f32;
use crate::problem::targets::Kind;
use crate::problem::transform::{Transform, check_magnitude};
use crate::{Error, Shape, Targets};

/// The way in which the losses of the rows become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reduction {
    /// The losses of the counted rows are added and divided by the sum of their targets' weights
    /// (by their number, without weights). Over no counted rows the mean is NaN and the gradient is
    /// zero.
    #[default]
    Mean,
    /// The losses of the counted rows are added.
    Sum,
    /// Each row keeps its own loss, in [`Loss::per_row`](crate::Loss::per_row).
    /// [`Loss::loss`](crate::Loss::loss) is the sum of these, and the gradient is that of this sum.
    None,
}

/// The cross-entropy of softmax, and its options, which have the names and the meaning that they
/// have in PyTorch's `cross_entropy`.
///
/// With `y_j = softcap * tanh(logit_scale * x_j / softcap)` (`x_j` if neither is set) and `lse =
/// log(sum_j exp(y_j))`, a row loses `sum_j q_j * (lse - y_j)`, where `q_j = w_j * ((1 - e) * t_j +
/// e / classes)` are its labels. `t_j` is 1 for the target class and else 0, or the probability
/// given; `w` are the class weights (1 if not set) and `e` is the label smoothing (0 if not set). A
/// z-loss adds `z * lse^2`; `focal_gamma` multiplies the rest by `(1 - p_t)^gamma`. With `s`, which
/// is 1, or under a mean 1 over its divisor, times the upstream gradients, the gradient is `s *
/// (softmax(y)_j * (sum_k q_k + 2 z * lse) - q_j) * d y_j / d x_j`, where `focal_gamma` multiplies
/// the labels `q_j` by `u^gamma * (1 - gamma * p_t * log(p_t) / u)`, `u = 1 - p_t`. Under a mean
/// with class weights `z` there is `z` times the mean weight of the counted rows.
///
/// All options combine, except `focal_gamma` with label smoothing or target probabilities, for
/// every type and layout, on the CPU and on a GPU, in host memory, resident and in steps; the
/// [crate's page](crate#options-operations-types) has each with its source.
///
/// ```
/// use logits::{CrossEntropy, Device, Logits, Reduction};
/// let loss = CrossEntropy::default().ignore_index(-1).reduction(Reduction::Sum);
/// let x = [2.0, 0.0, 0.0, /* next row */ 5.0, 1.0, 0.0];
/// let out = Device::cpu().cross_entropy(&loss, Logits::new(&x, [2, 3])?, &[0_i64, -1]).loss()?;
/// assert_eq!(out.counted_rows, 1);
/// assert!((out.loss - (1.0 + 2.0 * (-2.0_f64).exp()).ln()).abs() < 1e-7);
/// # Ok::<(), logits::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    pub(crate) reduction: Reduction,
    pub(crate) ignored: Vec<i64>,
    pub(crate) weight: Option<Vec<f32>>,
    pub(crate) label_smoothing: f32,
    pub(crate) z_loss: f32,
    /// A factor of `z_loss`, which f32 may not hold: [`CrossEntropy::z_loss_factor`].
    pub(crate) z_loss_factor: f64,
    pub(crate) focal_gamma: f32,
    pub(crate) softcap: Option<f32>,
    pub(crate) logit_scale: f32,
    pub(crate) upstream_gradient: f32,
    pub(crate) upstream_gradients: Option<Vec<f32>>,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        Self {
            reduction: Reduction::Mean,
            ignored: vec![-100],
            weight: None,
            label_smoothing: 0.0,
            z_loss: 0.0,
            z_loss_factor: 1.0,
            focal_gamma: 0.0,
            softcap: None,
            logit_scale: 1.0,
            upstream_gradient: 1.0,
            upstream_gradients: None,
        }
    }
}

impl CrossEntropy {
    /// Sets how the losses of the rows become one number; [`Reduction::Mean`] if not set.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits, Reduction};
    /// // Two rows of two classes, equally likely: each loses ln 2.
    /// let x = Logits::new(&[0.0_f32; 4], [2, 2])?;
    /// let loss = CrossEntropy::default().reduction(Reduction::Sum);
    /// let out = Device::cpu().cross_entropy(&loss, x, &[0, 1]).loss()?;
    /// assert!((out.loss - 2.0 * std::f64::consts::LN_2).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    #[must_use]
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// Sets the target that marks a row as not counted; -100 if not set. Such a row has a loss and
    /// a gradient of 0 and is left out of the mean.
    ///
    /// As in PyTorch, the gradient of such a row is NaN where its softmax is NaN (a logit is NaN or
    /// `+inf`, or all are `-inf`).
    #[must_use]
    pub fn ignore_index(mut self, index: i64) -> Self {
        self.ignored = vec![index];
        self
    }

    /// Sets several targets that mark a row as not counted, such as padding of more than one kind:
    /// [`CrossEntropy::ignore_index`]. Without any index every row counts.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// // Two rows of two classes, equally likely: each loses ln 2.
    /// let x = Logits::new(&[0.0_f32; 4], [2, 2])?;
    /// let loss = CrossEntropy::default().ignore_indices([-100, -1]);
    /// assert_eq!(Device::cpu().cross_entropy(&loss, x, &[-1, 1]).loss()?.counted_rows, 1);
    /// # Ok::<(), logits::Error>(())
    /// ```
    #[must_use]
    pub fn ignore_indices(mut self, indices: impl Into<Vec<i64>>) -> Self {
        self.ignored = indices.into();
        self
    }

    /// Sets one weight for each class, which multiplies the loss of the rows that have the class as
    /// target. Weights are finite and not negative; weights of any size have a mean, subnormal ones
    /// included. A step (`Gpu::prepare`) whose reduction is a mean adds weights in f32 on the
    /// device: it refuses weights below 2^-64 and above 2^64, except 0, with
    /// [`Error::OptionValue`].
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// // Two rows of two classes, equally likely: each loses ln 2.
    /// let x = Logits::new(&[0.0_f32; 4], [2, 2])?;
    /// let loss = CrossEntropy::default().weight([3.0, 1.0]);
    /// let out = Device::cpu().cross_entropy(&loss, x, &[0, 1]).loss()?;
    /// assert!((out.loss - std::f64::consts::LN_2).abs() < 1e-6); // a mean over 3 + 1
    /// assert!((f64::from(out.per_row[0]) - 3.0 * std::f64::consts::LN_2).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    #[must_use]
    pub fn weight(mut self, weight: impl Into<Vec<f32>>) -> Self {
        self.weight = Some(weight.into());
        self
    }

    /// Sets the part of each target that is spread evenly over all classes, from 0 (the default) to
    /// 1 (Szegedy et al. 2016, arXiv:1512.00567). As in PyTorch the part of each class is
    /// multiplied by the weight of that class, and a mean still divides by the weights of the
    /// targets alone. A row with a logit of `-inf` then has an infinite loss, whatever its target.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// let loss = CrossEntropy::default().label_smoothing(0.2);
    /// let out = Device::cpu().cross_entropy(&loss, Logits::new(&[2.0_f32, 0.0], [1, 2])?, &[0]).loss()?;
    /// let log_sum_exp = (2.0_f64.exp() + 1.0).ln();
    /// assert!((out.loss - (0.9 * (log_sum_exp - 2.0) + 0.1 * log_sum_exp)).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    #[must_use]
    pub fn label_smoothing(mut self, smoothing: f32) -> Self {
        self.label_smoothing = smoothing;
        self
    }

    /// Sets the factor of the squared log-sum-exp of each counted row, which is added to its loss
    /// and keeps logits from drifting (PaLM, arXiv:2204.02311, used 1e-4). The factor is not
    /// negative, and 0 if not set. A mean divides this term by the number of counted rows, whatever
    /// their weights; in [`Loss::per_row`](crate::Loss::per_row) the term is scaled so that the
    /// rows still sum to the loss times the total weight.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// // Two rows of two classes, equally likely: each loses ln 2.
    /// let x = Logits::new(&[0.0_f32; 4], [2, 2])?;
    /// let out = Device::cpu().cross_entropy(&CrossEntropy::default().z_loss(0.1), x, &[0, 1]).loss()?;
    /// assert!((out.loss - (std::f64::consts::LN_2 + 0.1 * std::f64::consts::LN_2.powi(2))).abs() < 1e-6);
    /// # Ok::<(), logits::Error>(())
    /// ```
    #[must_use]
    pub fn z_loss(mut self, factor: f32) -> Self {
        self.z_loss = factor;
        self
    }

    /// Multiplies the z-loss of every row by `factor`, in f64. The sum over a part of a batch with
    /// a mean takes the mean weight of the whole batch, and then has the bits of a call for the
    /// whole.
    #[doc(hidden)]
    #[must_use]
    pub fn z_loss_factor(mut self, factor: f64) -> Self {
        self.z_loss_factor = factor;
        self
    }

    /// Multiplies the loss of each row by `(1 - p_t)^gamma`, where `p_t` is the probability of its
    /// target: the focal loss `-w_t (1 - p_t)^gamma log p_t` of Lin et al. 2017 (arXiv:1708.02002,
    /// which used 2), in which rows that are predicted well weigh little. `gamma` is finite and not
    /// negative, and 0, which is off, if not set. A mean still divides by the weights of the
    /// targets, and a z-loss is added as it is. Targets are classes: `gamma` above 0 fails with
    /// [`Error::OptionValue`] beside label smoothing or target probabilities.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Error, Logits, Targets};
    /// let loss = CrossEntropy::default().focal_gamma(2.0);
    /// let logits = [3.0_f32.ln(), 0.0]; // p = 0.75, 0.25
    /// let x = Logits::new(&logits, [1, 2])?;
    /// let device = Device::cpu();
    /// let out = device.cross_entropy(&loss, x, &[0]).loss()?;
    /// assert!((out.loss + 0.25_f64.powi(2) * 0.75_f64.ln()).abs() < 1e-7);
    ///
    /// let smoothed = loss.clone().label_smoothing(0.1);
    /// assert!(matches!(device.cross_entropy(&smoothed, x, &[0]).loss(), Err(Error::OptionValue { .. })));
    /// let soft = Targets::probabilities(&[0.5_f32, 0.5]);
    /// assert!(matches!(device.cross_entropy(&loss, x, soft).loss(), Err(Error::OptionValue { .. })));
    /// # Ok::<(), logits::Error>(())
    /// ```
    #[must_use]
    pub fn focal_gamma(mut self, gamma: f32) -> Self {
        self.focal_gamma = gamma;
        self
    }

    /// Bounds the logits smoothly to `(-cap, cap)`: `cap * tanh(x / cap)` takes the place of x,
    /// infinities included (Gemma 2, arXiv:2408.00118). The cap is between 1e-9 and 1e9; there is
    /// none if not set.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// let (loss, x) = (CrossEntropy::default().softcap(30.0), [40.0, -10.0]);
    /// let out = Device::cpu().cross_entropy(&loss, Logits::new(&x, [1, 2])?, &[1]).loss()?;
    /// let y = x.map(|x: f32| 30.0 * (f64::from(x) / 30.0).tanh());
    /// assert!((out.loss - (1.0 + (y[0] - y[1]).exp()).ln()).abs() < 1e-5);
    /// # Ok::<(), logits::Error>(())
    /// ```
    #[must_use]
    pub fn softcap(mut self, cap: f32) -> Self {
        self.softcap = Some(cap);
        self
    }

    /// Sets the factor that multiplies every logit, before a soft cap; 1 if not set. Its magnitude
    /// is between 1e-9 and 1e9.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// let (loss, x) = (CrossEntropy::default().logit_scale(0.5), [4.0, 1.0]);
    /// let (out, gradient) = Device::cpu().cross_entropy(&loss, Logits::new(&x, [1, 2])?, &[0]).with_gradient_vec()?;
    /// let other = 1.0 / (1.0 + 1.5_f64.exp());
    /// assert!((out.loss + (1.0 - other).ln()).abs() < 1e-6);
    /// assert!((f64::from(gradient[1]) - 0.5 * other).abs() < 1e-6); // through the scale
    /// # Ok::<(), logits::Error>(())
    /// ```
    #[must_use]
    pub fn logit_scale(mut self, scale: f32) -> Self {
        self.logit_scale = scale;
        self
    }

    /// Sets one factor for each row, which multiplies the gradient of that row beside
    /// [`CrossEntropy::upstream_gradient`]: the gradient of a later result with respect to
    /// [`Loss::per_row`](crate::Loss::per_row). The factors are finite. They do not change the
    /// loss.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits, Reduction};
    /// let loss = CrossEntropy::default().reduction(Reduction::None).upstream_gradients([2.0, 0.0]);
    /// let x = Logits::new(&[0.0, 0.0, 1.0, 5.0], [2, 2])?;
    /// let (_, gradient) = Device::cpu().cross_entropy(&loss, x, &[0, 1]).with_gradient_vec()?;
    /// assert_eq!(gradient, [-1.0, 1.0, 0.0, 0.0]);
    /// # Ok::<(), logits::Error>(())
    /// ```
    #[must_use]
    pub fn upstream_gradients(mut self, factors: impl Into<Vec<f32>>) -> Self {
        self.upstream_gradients = Some(factors.into());
        self
    }

    /// Sets the factor that multiplies every gradient: the gradient of a later result with respect
    /// to this loss, or a loss scale. The factor is finite, and 1 if not set. It does not change
    /// the loss.
    ///
    /// ```
    /// use logits::{CrossEntropy, Device, Logits};
    /// // Two rows of two classes, equally likely: each loses ln 2.
    /// let x = Logits::new(&[0.0_f32; 4], [2, 2])?;
    /// let loss = CrossEntropy::default().upstream_gradient(8.0);
    /// let (_, gradient) = Device::cpu().cross_entropy(&loss, x, &[0, 1]).with_gradient_vec()?;
    /// assert_eq!(gradient, [-2.0, 2.0, 2.0, -2.0]);
    /// # Ok::<(), logits::Error>(())
    /// ```
    #[must_use]
    pub fn upstream_gradient(mut self, factor: f32) -> Self {
        self.upstream_gradient = factor;
        self
    }

    /// Checks the options against the shape.
    pub(crate) fn check(&self, shape: Shape) -> Result<(), Error> {
        let (option, value) = ("upstream_gradient", self.upstream_gradient);
        if !value.is_finite() {
            return Err(Error::OptionValue { option, value, range: "finite" });
        }
        let (option, value) = ("label_smoothing", self.label_smoothing);
        if !(0.0..=1.0).contains(&value) {
            return Err(Error::OptionValue { option, value, range: "between 0 and 1" });
        }
        for (option, value) in [("z_loss", self.z_loss), ("focal_gamma", self.focal_gamma)] {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::OptionValue { option, value, range: "finite and not negative" });
            }
        }
        self.check_focal_targets(self.label_smoothing > 0.0)?;
        self.check_transform()?;
        if let Some(factors) = &self.upstream_gradients {
            check_upstream_gradients(shape, factors)?;
        }
        if let Some(weight) = &self.weight {
            check_length("weights", shape.classes(), weight.len())?;
            for (class, &value) in weight.iter().enumerate() {
                if !value.is_finite() || value < 0.0 {
                    return Err(Error::Weight { class, value });
                }
            }
        }
        Ok(())
    }

    /// Returns the coefficients of the kernels for `counted_rows` rows whose targets weigh
    /// `total_weight` together; both are 1 where a device counts the rows itself.
    pub(crate) fn coefficients(
        &self,
        classes: usize,
        total_weight: f64,
        counted_rows: usize,
    ) -> LossCoefficients<'_> {
        let is_mean = self.reduction == Reduction::Mean;
        let divisor = if is_mean { total_weight } else { 1.0 };
        let z_loss = f64::from(self.z_loss)
            * self.z_loss_factor
            * if is_mean { total_weight / counted_rows.max(1) as f64 } else { 1.0 };
        let factor = f64::from(self.upstream_gradient) / divisor;
        let smoothing = f64::from(self.label_smoothing);
        let weight = self.weight.as_deref();
        let class_weight = weight
            .map_or(classes as f64, |weight| weight.iter().map(|&weight| f64::from(weight)).sum());
        LossCoefficients {
            weight,
            class_weight,
            factor,
            off_value: smoothing / classes as f64,
            on_value: 1.0 - smoothing,
            z_loss,
            focal_gamma: self.focal_gamma.into(),
            row_upstream: self.upstream_gradients.as_deref(),
        }
    }

    /// Returns the transform of logits to which `of_logits` has been applied, as this loss sees
    /// them.
    pub(crate) fn transform(&self, of_logits: Transform) -> Result<Transform, Error> {
        self.check_transform()?;
        of_logits.then(self.logit_scale, self.softcap)
    }

    /// Refuses a focal loss of targets that are spread over several classes.
    fn check_focal_targets(&self, are_spread: bool) -> Result<(), Error> {
        let (option, value) = ("focal_gamma", self.focal_gamma);
        if value > 0.0 && are_spread {
            let range = "0 with label smoothing or target probabilities";
            return Err(Error::OptionValue { option, value, range });
        }
        Ok(())
    }

    fn check_transform(&self) -> Result<(), Error> {
        if let Some(cap) = self.softcap {
            check_magnitude("softcap", cap, false)?;
        }
        check_magnitude("logit_scale", self.logit_scale, true)
    }

    /// Checks options and targets against the shape, and finds the target and the weight of each
    /// row.
    pub(crate) fn prepare<'a>(
        &'a self,
        shape: Shape,
        targets: Targets<'a>,
    ) -> Result<CheckedLoss<'a>, Error> {
        let (rows, classes) = (shape.row_count(), shape.classes());
        let indices = match targets.0 {
            Kind::Classes(indices) => indices,
            Kind::Probabilities(values) => {
                check_length("target probabilities", shape.elements()?, values.len())?;
                self.check(shape)?;
                self.check_focal_targets(true)?;
                check_probabilities(shape, values)?;
                let (rows, counted_rows) = (Vec::new(), shape.row_count());
                let (soft_targets, total_weight, unit) = (Some(values), counted_rows as f64, 1.0);
                return Ok(CheckedLoss {
                    loss: self,
                    shape,
                    weight: None,
                    rows,
                    soft_targets,
                    counted_rows,
                    total_weight,
                    unit,
                });
            }
        };
        check_length("targets", rows, indices.len())?;
        self.check(shape)?;
        let mut rows: Vec<RowTarget> = try_vec("targets", rows)?;
        // In most calls no ignored index could be a class.
        let classes_ignored = self
            .ignored
            .iter()
            .any(|&index| usize::try_from(index).is_ok_and(|index| index < classes));
        let mut counted_rows = 0;
        indices.for_each(classes, |row, target, is_class| {
            if (!is_class || classes_ignored)
                && self.ignored.iter().any(|&index| i128::from(index) == target)
            {
                return Ok(());
            }
            if !is_class {
                return Err(Error::TargetOutOfRange {
                    row,
                    target,
                    classes,
                    ignored: self.ignored.clone(),
                });
            }
            counted_rows += 1;
            // Shape::elements has seen that a class fits 32 bits.
            rows[row].class = target as u32;
            Ok(())
        })?;
        let mut total_weight = counted_rows as f64;
        if let Some(weight) = &self.weight {
            for row in rows.iter_mut().filter(|row| !row.is_ignored()) {
                row.weight = weight[row.class as usize];
            }
            // A row that does not count has its place among the rows, and no weight.
            total_weight =
                sum_of_f32(
                    rows.len(),
                    |row| if rows[row].is_ignored() { 0.0 } else { rows[row].weight },
                );
        }
        let (mut weight, mut unit) = (None, 1.0);
        if self.reduction == Reduction::Mean && total_weight > 0.0 {
            unit = self.unit_of_mean(total_weight, counted_rows);
        }
        if unit != 1.0 {
            weight = self.weight.as_deref().map(|weight| multiplied(weight, unit)).transpose()?;
            rows.iter_mut().for_each(|row| row.weight = (f64::from(row.weight) * unit) as f32);
            total_weight *= unit;
        }
        Ok(CheckedLoss {
            loss: self,
            shape,
            weight,
            rows,
            soft_targets: None,
            counted_rows,
            total_weight,
            unit,
        })
    }

    /// Returns the power of two that multiplies weights under a mean over `counted_rows` rows that
    /// weigh `total_weight` together; it is 1 for ordinary weights.
    fn unit_of_mean(&self, total_weight: f64, counted_rows: usize) -> f64 {
        let Some(weight) = &self.weight else { return 1.0 };
        let of_all = || f64::from(weight.iter().copied().fold(0.0, f32::max));
        // Label smoothing uses the weights of classes that are no row's target.
        let largest = if self.label_smoothing > 0.0 { of_all() } else { total_weight };
        weight_unit(total_weight, counted_rows as f64, self.upstream_gradient.into(), largest)
    }

    /// Copies the options, with weights multiplied by `unit`.
    pub(crate) fn kept(&self, unit: f64) -> Result<Self, Error> {
        let copy = |values: &Option<Vec<f32>>, unit| {
            values.as_deref().map(|values| multiplied(values, unit)).transpose()
        };
        let (weight, upstream_gradients) =
            (copy(&self.weight, unit)?, copy(&self.upstream_gradients, 1.0)?);
        Ok(Self { ignored: self.ignored.clone(), weight, upstream_gradients, ..*self })
    }

    /// Refuses targets that are probabilities beside a focal loss, and weights whose sum over the
    /// rows of a step, or the reciprocal of that sum, may leave the normal numbers of f32.
    pub(crate) fn check_in_step(&self, is_soft: bool) -> Result<(), Error> {
        self.check_focal_targets(is_soft)?;
        // A mean over probabilities is one over rows.
        let is_summed = self.reduction == Reduction::Mean && !is_soft;
        let mut weights = self.weight.iter().flatten().filter(|_| is_summed);
        match weights.find(|&&weight| {
            weight != 0.0 && !(2.0_f32.powi(-64)..=2.0_f32.powi(64)).contains(&weight)
        }) {
            None => Ok(()),
            Some(&value) => {
                let range =
                    "0 or between 2^-64 and 2^64 under a mean in a step, which adds them in f32";
                Err(Error::OptionValue { option: "weight", value, range })
            }
        }
    }
}

/// Returns the power of two that weights are multiplied by under a mean, and that the losses of
/// rows are divided by afterwards: the one nearest to 1 with which neither `total` (what the
/// counted rows weigh) nor `upstream / total` is near the ends of f32. Where there is none, the
/// mean weight is brought near 1. `largest`, the largest weight that is used, keeps it from growing
/// beyond f32.
#[doc(hidden)]
#[must_use]
pub fn weight_unit(total: f64, counted_rows: f64, upstream: f64, largest: f64) -> f64 {
    let of_mean = -(total / counted_rows).log2();
    let total = total.log2();
    let (mut least, mut most) = (-64.0 - total, 100.0 - total);
    if upstream != 0.0 {
        let factor = upstream.abs().log2() - total;
        // Gradients are no normal numbers anyway where the factor is small for a mean weight of 1.
        (least, most) = (least.max(factor - 100.0), most.min((factor + 120.0).max(of_mean)));
    }
    let (least, most) = (least.ceil(), most.floor());
    let exponent = if least <= most { 0.0_f64.clamp(least, most) } else { of_mean.floor() };
    // An f64 has no larger power of two than 2^1023.
    exponent.min((100.0 - largest.log2().ceil()).max(0.0)).min(1023.0).exp2()
}

/// Multiplies weights by a power of two. Those that are used stay finite.
fn multiplied(weight: &[f32], unit: f64) -> Result<Vec<f32>, Error> {
    let mut scaled = try_vec("the weights", weight.len())?;
    let times = |weight: f32| (f64::from(weight) * unit).min(f64::from(f32::MAX)) as f32;
    scaled.iter_mut().zip(weight).for_each(|(to, &weight)| *to = times(weight));
    Ok(scaled)
}

/// Checks that there is one upstream gradient for each row, and that it is finite.
pub(crate) fn check_upstream_gradients(shape: Shape, factors: &[f32]) -> Result<(), Error> {
    check_length("upstream gradients", shape.row_count(), factors.len())?;
    match factors.iter().enumerate().find(|(_, factor)| !factor.is_finite()) {
        Some((row, &value)) => Err(Error::UpstreamGradient { row, value }),
        None => Ok(()),
    }
}

fn check_probabilities(shape: Shape, values: Elements<'_>) -> Result<(), Error> {
    // -0 counts as 0. Halves are compared by their bits, which compilers vectorize.
    let bad = match values {
        Elements::F32(values) => first_bad(values, |value| (0.0..=f32::MAX).contains(&value)),
        Elements::F64(values) => {
            first_bad(values, |value| (0.0..=f64::from(f32::MAX)).contains(&value))
        }
        Elements::F16(values) => first_bad(values, |value| {
            value.to_bits() <= f16::MAX.to_bits() || value.to_bits() == f16::NEG_ZERO.to_bits()
        }),
        Elements::BF16(values) => first_bad(values, |value| {
            value.to_bits() <= bf16::MAX.to_bits() || value.to_bits() == bf16::NEG_ZERO.to_bits()
        }),
    };
    let Some(at) = bad else { return Ok(()) };
    let (outer, within) = (at / shape.block(), at % shape.block());
    let (class, row) = (within / shape.inner(), outer * shape.inner() + within % shape.inner());
    Err(Error::Probability { row, class, value: values.at(at) })
}

/// Returns the place of the first value that is not good. The threads share the values.
fn first_bad<T: Copy + Sync>(
    values: &[T],
    is_good: impl Fn(T) -> bool + Copy + Sync,
) -> Option<usize> {
    /// Values that are checked without a branch for each.
    const CHUNK: usize = 256;
    /// The largest number of parts that threads share.
    const PARTS: usize = 32;
    /// The least number of values of a part, unless there are fewer.
    const PART_VALUES: usize = 32 * 1024;
    let length = values.len().div_ceil(PARTS).max(PART_VALUES).next_multiple_of(CHUNK);
    let mut found = [None; PARTS];
    let parts = values.len().div_ceil(length);
    crate::cpu::for_each(&mut found[..parts], &|part, found| {
        let start = part * length;
        let values = &values[start..values.len().min(start + length)];
        let chunk = values
            .chunks(CHUNK)
            .position(|chunk| !chunk.iter().fold(true, |good, &value| good & is_good(value)));
        *found = chunk.and_then(|chunk| {
            let at = chunk * CHUNK;
            let place = values[at..].iter().position(|&value| !is_good(value));
            place.map(|place| start + at + place)
        });
    });
    found.into_iter().flatten().next()
}
