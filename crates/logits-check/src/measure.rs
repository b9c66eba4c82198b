//! How far off results are.

use logits::{DType, Element};

/// What rounding to the nearest number of a type changes at most: relative to a normal number, and
/// a smaller one; and the largest number. Where there are no smaller numbers, they may be 0.
fn grain(dtype: DType) -> (f64, f64, f64) {
    match dtype {
        DType::F16 => (2.0_f64.powi(-11), 2.0_f64.powi(-25), 65_504.0),
        DType::BF16 => (2.0_f64.powi(-8), f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
        _ => (0.0, f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
    }
}

/// How far off `got` is, in units of `bound` and the rounding of its type; at most 1 is within the
/// bound. Infinite where only one of both is a number, but 0 where `wanted` is beyond what the type
/// holds, or a rounding next to that, and `got` is that infinity.
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

/// How far off: 0 where both are NaN or equal, infinite where only one is a number.
pub(crate) fn error(got: f64, wanted: f64, measure: Measure) -> f64 {
    // Below the normal numbers of f32 there is no relative precision to be had.
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
