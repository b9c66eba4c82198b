//! Targets: the class that each row should have been.

mod sealed {
    pub trait Sealed {}
}

/// An integer that can name a class.
pub trait ClassIndex: sealed::Sealed + Copy {
    #[doc(hidden)]
    fn targets(values: &[Self]) -> Targets<'_>;
}

macro_rules! class_indices {
    ($($integer:ty => $variant:ident),*) => {
        /// The targets of a batch: one class index a row, of any integer type, borrowed.
        ///
        /// Made from a slice, an array or a `Vec`; whether each index is a class of the logits is checked by the
        /// operation, which knows their shape and the ignored index.
        #[derive(Clone, Copy, Debug)]
        pub struct Targets<'a>(Indices<'a>);

        #[derive(Clone, Copy, Debug)]
        enum Indices<'a> { $($variant(&'a [$integer])),* }

        impl Targets<'_> {
            /// How many rows have a target.
            #[must_use]
            pub fn len(&self) -> usize {
                match self.0 { $(Indices::$variant(values) => values.len()),* }
            }

            /// Whether there are none.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Every target in order, widened so that no type's value is lost.
            pub(crate) fn for_each<E>(&self, mut visit: impl FnMut(usize, i128) -> Result<(), E>) -> Result<(), E> {
                match self.0 {
                    $(Indices::$variant(values) => {
                        values.iter().enumerate().try_for_each(|(row, &value)| visit(row, value as i128))
                    })*
                }
            }
        }

        $(
            impl sealed::Sealed for $integer {}
            impl ClassIndex for $integer {
                fn targets(values: &[Self]) -> Targets<'_> {
                    Targets(Indices::$variant(values))
                }
            }
        )*
    };
}

class_indices!(
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, usize => Usize, isize => Isize
);

impl<'a, I: ClassIndex> From<&'a [I]> for Targets<'a> {
    fn from(values: &'a [I]) -> Self {
        I::targets(values)
    }
}

impl<'a, I: ClassIndex, const N: usize> From<&'a [I; N]> for Targets<'a> {
    fn from(values: &'a [I; N]) -> Self {
        I::targets(values)
    }
}

impl<'a, I: ClassIndex> From<&'a Vec<I>> for Targets<'a> {
    fn from(values: &'a Vec<I>) -> Self {
        I::targets(values)
    }
}
