//! Measures the errors of results.

use logits::{DType, Element};

/// Returns the relative rounding error of a type, its absolute error near 0 (subnormal numbers
/// other than f16's may be flushed), and its largest number.
fn grain(dtype: DType) -> (f64, f64, f64) {
    match dtype {
        DType::F16 => (2.0_f64.powi(-11), 2.0_f64.powi(-24), 65_504.0),
        DType::BF16 => (2.0_f64.powi(-8), f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
        _ => (0.0, f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
    }
}

/// Returns the error of `got` in units of `bound` and the rounding of its type; at most 1 is within
/// the bound. It is infinite if only one of the two is a number, but 0 if `wanted` is beyond the
/// largest number of the type, or within a rounding of that, and `got` is the infinity of its sign.
pub fn excess<T: Element>(got: T, wanted: f64, bound: f64) -> f64 {
    let (unit, least, most) = grain(T::DTYPE);
    let got: f64 = got.into();
    let is_beyond =
        got.is_infinite() && wanted.abs() >= most * (1.0 - 1e-5) && got.signum() == wanted.signum();
    if got == wanted || is_beyond || (got.is_nan() && wanted.is_nan()) {
        0.0
    } else if !got.is_finite() || !wanted.is_finite() {
        f64::INFINITY
    } else {
        (got - wanted).abs() / (bound + unit * wanted.abs() + least)
    }
}

/// The size that an error is relative to.
#[derive(Clone, Copy)]
pub(crate) enum Measure {
    /// The expected value.
    Relative,
    /// This scale, a positive number.
    OfScale(f64),
}

/// Returns the error of `got`: 0 if both are NaN or equal, infinite if only one is a number.
pub(crate) fn error(got: f64, wanted: f64, measure: Measure) -> f64 {
    // Below the normal numbers of f32 no result has relative precision.
    let smallest = f64::from(f32::MIN_POSITIVE);
    if got == wanted || (got.is_nan() && wanted.is_nan()) {
        0.0
    } else if !got.is_finite() || !wanted.is_finite() {
        // Beyond the largest f32 infinity is the right answer.
        if got.is_infinite()
            && wanted.abs() > f64::from(f32::MAX)
            && got.signum() == wanted.signum()
        {
            0.0
        } else {
            f64::INFINITY
        }
    } else {
        match measure {
            Measure::OfScale(scale) => (got - wanted).abs() / scale,
            Measure::Relative if wanted.abs() < smallest => {
                if got.abs() <= smallest {
                    0.0
                } else {
                    f64::INFINITY
                }
            }
            Measure::Relative => ((got - wanted) / wanted).abs(),
        }
    }
}
