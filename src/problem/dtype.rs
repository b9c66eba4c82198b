//! The types that logits may have in memory, and slices that have forgotten which.

use half::{bf16, f16};

/// The types that logits may have, by name: what [`Element`] is to a slice, this is to a buffer.
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
    /// Bytes of a value.
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
/// A type that logits may have in memory. Arithmetic is in `f32`, and in `f64` for `f64`; a result is rounded once, to the
/// nearest value of the type, of two the even one.
pub trait Element:
    sealed::Sealed + bytemuck::Pod + Default + PartialEq + std::fmt::Debug + Into<f64> + Send + Sync
{
    /// The type of what there is one of a row, such as its loss: `f32`, for `f64` `f64`.
    type Row: Element;
    /// The type by name.
    const DTYPE: DType;
}

/// The value of a type that is nearest to an f64.
macro_rules! round {
    (f32, $value:expr) => {
        ($value) as f32
    };
    (f64, $value:expr) => {
        $value
    };
    ($half:ident, $value:expr) => {
        $half::from_f64($value)
    };
}

macro_rules! elements {
    ($($ty:ident as $variant:ident with $row:ident),*) => {
        /// Values of any of the types.
        #[derive(Clone, Copy, Debug)]
        pub enum Elements<'a> { $(#[allow(missing_docs)] $variant(&'a [$ty])),* }

        /// The same to write to.
        #[derive(Debug)]
        pub enum ElementsMut<'a> { $(#[allow(missing_docs)] $variant(&'a mut [$ty])),* }

        $(
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
        )*

        impl<'a> Elements<'a> {
            pub(crate) fn dtype(&self) -> DType {
                match self { $(Self::$variant(_) => DType::$variant),* }
            }

            pub(crate) fn len(&self) -> usize {
                match self { $(Self::$variant(values) => values.len()),* }
            }

            /// What is held from `start` on, `length` values of it.
            pub(crate) fn bytes(&self, start: usize, length: usize) -> &'a [u8] {
                match self { $(Self::$variant(values) => bytemuck::cast_slice(&values[start..start + length])),* }
            }

            /// The value at a place.
            pub(crate) fn at(&self, place: usize) -> f64 {
                match self { $(Self::$variant(values) => f64::from(values[place])),* }
            }

            pub(crate) fn split_at(self, at: usize) -> (Self, Self) {
                match self { $(Self::$variant(values) => {
                    let (a, b) = values.split_at(at);
                    (Self::$variant(a), Self::$variant(b))
                }),* }
            }
        }

        impl<'a> ElementsMut<'a> {
            pub(crate) fn dtype(&self) -> DType {
                match self { $(Self::$variant(_) => DType::$variant),* }
            }

            /// Multiplies every value by `factor`.
            pub(crate) fn scale(&mut self, factor: f64) {
                match self { $(Self::$variant(values) => {
                    values.iter_mut().for_each(|value| *value = round!($ty, f64::from(*value) * factor));
                }),* }
            }

            pub(crate) fn len(&self) -> usize {
                match self { $(Self::$variant(values) => values.len()),* }
            }

            pub(crate) fn bytes_len(&self) -> usize {
                match self { $(Self::$variant(values) => size_of_val(*values)),* }
            }

            pub(crate) fn as_read(&self) -> Elements<'_> {
                match self { $(Self::$variant(values) => Elements::$variant(values)),* }
            }

            pub(crate) fn reborrow(&mut self) -> ElementsMut<'_> {
                match self { $(Self::$variant(values) => ElementsMut::$variant(values)),* }
            }

            /// What is held from `start` on, `length` values of it.
            pub(crate) fn bytes(&mut self, start: usize, length: usize) -> &mut [u8] {
                match self { $(Self::$variant(values) => bytemuck::cast_slice_mut(&mut values[start..start + length])),* }
            }

            /// As `split_at_mut`, of a place beyond the end as of the end.
            pub(crate) fn split_at(self, at: usize) -> (Self, Self) {
                match self { $(Self::$variant(values) => {
                    let at = at.min(values.len());
                    let (a, b) = values.split_at_mut(at);
                    (Self::$variant(a), Self::$variant(b))
                }),* }
            }
        }
    };
}

elements!(f32 as F32 with f32, f16 as F16 with f32, bf16 as BF16 with f32, f64 as F64 with f64);
