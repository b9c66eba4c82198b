//! The types that logits may have in memory, and slices of any of them.

use half::{bf16, f16};

/// The type of logits as a value, which describes buffers as [`Element`] describes slices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// `f32`.
    #[default]
    F32,
    /// [`half::f16`](struct@f16): IEEE 754's binary16, largest 65,504.
    F16,
    /// [`half::bf16`](struct@bf16): the upper half of an `f32`.
    BF16,
    /// `f64`, on the CPU alone.
    F64,
}

impl DType {
    /// Returns the bytes of a value.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F64 => "f64",
        })
    }
}

pub(crate) use sealed::Sealed;

mod sealed {
    pub trait Sealed {
        fn erase(values: &[Self]) -> super::Elements<'_>
        where
            Self: Sized;
        fn erase_mut(values: &mut [Self]) -> super::ElementsMut<'_>
        where
            Self: Sized;
    }
}
/// A type that logits may have in memory. Arithmetic is in `f32`, and in `f64` for `f64`; a result
/// is rounded once, to nearest, ties to even.
pub trait Element:
    sealed::Sealed + bytemuck::Pod + Default + PartialEq + std::fmt::Debug + Into<f64> + Send + Sync
{
    /// The type of the value of a row, such as its loss: `f64` for `f64`, else `f32`.
    type Row: Element;
    /// The type as a value.
    const DTYPE: DType;
}

/// A slice of any of the types.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    #[allow(missing_docs)]
    F32(&'a [f32]),
    #[allow(missing_docs)]
    F16(&'a [f16]),
    #[allow(missing_docs)]
    BF16(&'a [bf16]),
    #[allow(missing_docs)]
    F64(&'a [f64]),
}

/// A slice of any of the types, to write to.
#[derive(Debug)]
pub enum ElementsMut<'a> {
    #[allow(missing_docs)]
    F32(&'a mut [f32]),
    #[allow(missing_docs)]
    F16(&'a mut [f16]),
    #[allow(missing_docs)]
    BF16(&'a mut [bf16]),
    #[allow(missing_docs)]
    F64(&'a mut [f64]),
}

/// Implements [`Element`] for a primitive type.
macro_rules! element {
    ($ty:ident as $variant:ident with $row:ident) => {
        impl sealed::Sealed for $ty {
            fn erase(values: &[Self]) -> Elements<'_> {
                Elements::$variant(values)
            }
            fn erase_mut(values: &mut [Self]) -> ElementsMut<'_> {
                ElementsMut::$variant(values)
            }
        }
        impl Element for $ty {
            type Row = $row;
            const DTYPE: DType = DType::$variant;
        }
    };
}

element!(f32 as F32 with f32);
element!(f16 as F16 with f32);
element!(bf16 as BF16 with f32);
element!(f64 as F64 with f64);

/// Evaluates `$body` with `$values` bound to the slice of `$elements`, whatever its type.
macro_rules! with_values {
    ($elements:expr, $values:ident => $body:expr) => {
        match $elements {
            Self::F32($values) => $body,
            Self::F16($values) => $body,
            Self::BF16($values) => $body,
            Self::F64($values) => $body,
        }
    };
}

/// Rounds to f32 so that rounding the result to a half type is correct: to the neighbour whose last
/// bit is 1 where `value` is not an f32 (Boldo and Melquiond, Emulation of FMA and correctly
/// rounded sums, 2008). `half` itself drops bits of an f64 before it rounds.
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || value.is_nan() {
        return nearest;
    }
    let is_above = f64::from(nearest).abs() > value.abs();
    f32::from_bits((nearest.to_bits() - u32::from(is_above)) | 1)
}

impl<'a> Elements<'a> {
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::BF16(_) => DType::BF16,
            Self::F64(_) => DType::F64,
        }
    }

    pub(crate) fn len(&self) -> usize {
        with_values!(self, values => values.len())
    }

    /// Returns the bytes of `length` values, from value number `start` on.
    pub(crate) fn bytes(&self, start: usize, length: usize) -> &'a [u8] {
        with_values!(self, values => bytemuck::cast_slice(&values[start..start + length]))
    }

    /// Returns value number `place`.
    pub(crate) fn at(&self, place: usize) -> f64 {
        fn at<T: Element>(values: &[T], place: usize) -> f64 {
            values[place].into()
        }
        with_values!(self, values => at(values, place))
    }

    /// Returns the first `at` values and the rest.
    pub(crate) fn split_at(self, at: usize) -> (Self, Self) {
        with_values!(self, values => {
            let (first, rest) = values.split_at(at);
            (Sealed::erase(first), Sealed::erase(rest))
        })
    }

    /// Returns the values of a range.
    pub(crate) fn range(self, range: std::ops::Range<usize>) -> Self {
        with_values!(self, values => Sealed::erase(&values[range]))
    }
}

impl<'a> ElementsMut<'a> {
    pub(crate) fn dtype(&self) -> DType {
        self.as_read().dtype()
    }

    /// Multiplies every value by `factor` and rounds the product to the nearest value of the type.
    pub(crate) fn scale(&mut self, factor: f64) {
        fn scale<T: Element>(values: &mut [T], factor: f64, round: fn(f64) -> T) {
            values.iter_mut().for_each(|value| *value = round((*value).into() * factor));
        }
        match self {
            Self::F32(values) => scale(values, factor, |value| value as f32),
            Self::F16(values) => scale(values, factor, |value| f16::from_f32(to_odd(value))),
            Self::BF16(values) => scale(values, factor, |value| bf16::from_f32(to_odd(value))),
            Self::F64(values) => scale(values, factor, |value| value),
        }
    }

    pub(crate) fn len(&self) -> usize {
        with_values!(self, values => values.len())
    }

    pub(crate) fn bytes_len(&self) -> usize {
        with_values!(self, values => size_of_val(*values))
    }

    pub(crate) fn as_read(&self) -> Elements<'_> {
        with_values!(self, values => Sealed::erase(values))
    }

    /// Sets value number `place` to the nearest value of the type.
    pub(crate) fn set(&mut self, place: usize, value: f64) {
        match self {
            Self::F32(values) => values[place] = value as f32,
            Self::F16(values) => values[place] = f16::from_f32(to_odd(value)),
            Self::BF16(values) => values[place] = bf16::from_f32(to_odd(value)),
            Self::F64(values) => values[place] = value,
        }
    }

    pub(crate) fn reborrow(&mut self) -> ElementsMut<'_> {
        with_values!(self, values => Sealed::erase_mut(values))
    }

    /// Returns the bytes of `length` values, from value number `start` on.
    pub(crate) fn bytes(&mut self, start: usize, length: usize) -> &mut [u8] {
        with_values!(self, values => bytemuck::cast_slice_mut(&mut values[start..start + length]))
    }

    /// Returns the first `at` values and the rest, which is empty where there are no more than
    /// `at`.
    pub(crate) fn split_at(self, at: usize) -> (Self, Self) {
        with_values!(self, values => {
            let (first, rest) = values.split_at_mut(at.min(values.len()));
            (Sealed::erase_mut(first), Sealed::erase_mut(rest))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values beside every tie between two halves are rounded away from it, and ties to even.
    #[test]
    fn an_f64_is_rounded_to_the_nearest_half() {
        fn check<T: Element>(of_bits: fn(u16) -> T, erase: fn(&mut [T]) -> ElementsMut<'_>) {
            for bits in 0..0x7bff_u16 {
                let (low, high): (f64, f64) = (of_bits(bits).into(), of_bits(bits + 1).into());
                if !high.is_finite() {
                    break;
                }
                let tie = (low + high) / 2.0;
                let even = if bits % 2 == 0 { low } else { high };
                for (value, wanted) in [(tie.next_down(), low), (tie, even), (tie.next_up(), high)]
                {
                    for sign in [1.0, -1.0] {
                        let mut halves = [of_bits(0)];
                        erase(&mut halves).set(0, sign * value);
                        assert_eq!(halves[0].into(), sign * wanted, "{value:e}");
                    }
                }
            }
        }
        check(f16::from_bits, Sealed::erase_mut);
        check(bf16::from_bits, Sealed::erase_mut);
    }
}
