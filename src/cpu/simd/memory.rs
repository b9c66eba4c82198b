//! Loads logits of every type into vectors, and stores vectors as that type.

use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::isa::Isa;
use super::vector::{LANES, Real, Vector};
use crate::Element;
use crate::problem::dtype::{Elements, ElementsMut};

/// Bytes of a cache line.
pub(in crate::cpu) const CACHE_LINE: usize = 64;

/// A type of logits, with the type that they are computed in.
pub(in crate::cpu) trait Number: Element<Row = Self::Wide> {
    type Wide: Real;
    /// The lowest value, -inf.
    const LOWEST: Self;
    /// The highest value, +inf.
    const HIGHEST: Self;
    fn widen(self) -> Self::Wide;
    fn narrow(value: Self::Wide) -> Self;
    fn load<I: Isa>(isa: I, values: &[Self; LANES]) -> <Self::Wide as Real>::V<I>;
    fn store<I: Isa>(isa: I, value: <Self::Wide as Real>::V<I>) -> [Self; LANES];
    /// Writes `values` to `to`, past the caches where there is an instruction for it.
    ///
    /// # Safety
    /// The promise of [`Isa::stream`]: the address of `to` is a multiple of 64 bytes, or of its
    /// size, and the thread calls [`Isa::fence`] before another thread reads or writes `to`.
    unsafe fn stream<I: Isa>(isa: I, to: &mut [Self; LANES], values: [Self; LANES]);
}

macro_rules! streamed {
    ($bytes:literal) => {
        #[inline(always)]
        unsafe fn stream<I: Isa>(isa: I, to: &mut [Self; LANES], values: [Self; LANES]) {
            // SAFETY: the caller's promise, which is the same.
            unsafe { isa.stream::<$bytes>(bytemuck::cast_mut(to), bytemuck::cast_ref(&values)) }
        }
    };
}

macro_rules! wide {
    ($ty:ty, $vector:ident, $bytes:literal) => {
        impl Number for $ty {
            streamed!($bytes);
            type Wide = $ty;
            const LOWEST: Self = <$ty>::NEG_INFINITY;
            const HIGHEST: Self = <$ty>::INFINITY;

            #[inline(always)]
            fn widen(self) -> $ty {
                self
            }

            #[inline(always)]
            fn narrow(value: $ty) -> $ty {
                value
            }

            #[inline(always)]
            fn load<I: Isa>(isa: I, values: &[$ty; LANES]) -> I::$vector {
                Vector::load(isa, values)
            }

            #[inline(always)]
            fn store<I: Isa>(_: I, value: I::$vector) -> [$ty; LANES] {
                value.array()
            }
        }
    };
}
wide!(f32, F32, 64);
wide!(f64, F64, 128);

macro_rules! half {
    ($ty:ty, $load:ident, $store:ident) => {
        impl Number for $ty {
            streamed!(32);
            type Wide = f32;
            const LOWEST: Self = <$ty>::NEG_INFINITY;
            const HIGHEST: Self = <$ty>::INFINITY;

            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }

            #[inline(always)]
            fn narrow(value: f32) -> Self {
                Self::from_f32(value)
            }

            #[inline(always)]
            fn load<I: Isa>(isa: I, values: &[Self; LANES]) -> I::F32 {
                isa.$load(bytemuck::cast_ref(values))
            }

            #[inline(always)]
            fn store<I: Isa>(isa: I, value: I::F32) -> [Self; LANES] {
                bytemuck::cast(isa.$store(value))
            }
        }
    };
}
half!(f16, load_f16, store_f16);
half!(bf16, load_bf16, store_bf16);

/// Converts elements to the type that they are computed in.
#[inline(never)]
pub(in crate::cpu) fn load_all<I: Isa, T: Number>(isa: I, from: &[T], to: &mut [T::Wide]) {
    isa.vectorize(
        #[inline(always)]
        || {
            let ((vectors, rest), (to, to_rest)) = (from.as_chunks(), to.as_chunks_mut());
            // for each vector:  to = from, converted
            for (to, from) in to.iter_mut().zip(vectors) {
                *to = T::load(isa, from).array();
            }
            to_rest.iter_mut().zip(rest).for_each(|(to, from)| *to = from.widen());
        },
    );
}

/// Converts values to the type of elements, and writes them past the caches where `streams` is set.
/// The caller that sets it calls [`Isa::fence`] after the last of its rows and pieces:
/// `RowTask::contiguous_rows` for a task, `LongRow::write` for a piece that threads share.
#[inline(never)]
pub(in crate::cpu) fn store_all<I: Isa, T: Number>(
    isa: I,
    from: &[T::Wide],
    to: &mut [T],
    streams: bool,
) {
    isa.vectorize(
        #[inline(always)]
        || {
            // Elements before the first place that a vector can be streamed to.
            let alignment = size_of::<[T; LANES]>().min(CACHE_LINE);
            let head = if streams { to.as_ptr().align_offset(alignment).min(to.len()) } else { 0 };
            let ((to_head, to), (head, from)) = (to.split_at_mut(head), from.split_at(head));
            let ((to, to_rest), (vectors, rest)) = (to.as_chunks_mut(), from.as_chunks());
            // for each vector from the first aligned place on:  to = from, converted
            to_head.iter_mut().zip(head).for_each(|(to, &from)| *to = T::narrow(from));
            for (to, from) in to.iter_mut().zip(vectors) {
                let values = T::store(isa, Vector::load(isa, from));
                if streams {
                    // SAFETY: `to` is whole vectors after an aligned place. The caller that set
                    // `streams` calls the fence.
                    unsafe { T::stream(isa, to, values) };
                } else {
                    *to = values;
                }
            }
            to_rest.iter_mut().zip(rest).for_each(|(to, &from)| *to = T::narrow(from));
        },
    );
}

/// Converts halves to f32, and returns them.
pub(super) fn widen_halves<'b, I: Isa>(
    isa: I,
    from: Elements<'_>,
    to: &'b mut [MaybeUninit<f32>],
) -> &'b mut [f32] {
    #[inline(never)]
    fn of<'b, I: Isa, T: Number<Wide = f32>>(
        isa: I,
        from: &[T],
        to: &'b mut [MaybeUninit<f32>],
    ) -> &'b mut [f32] {
        let to = &mut to[..from.len()];
        isa.vectorize(
            #[inline(always)]
            || {
                let ((vectors, rest), (to, to_rest)) =
                    (from.as_chunks(), to.as_chunks_mut::<LANES>());
                for (to, from) in to.iter_mut().zip(vectors) {
                    let values = T::load(isa, from).array();
                    to.iter_mut().zip(values).for_each(|(to, value)| _ = to.write(value));
                }
                to_rest.iter_mut().zip(rest).for_each(|(to, from)| _ = to.write(from.widen()));
            },
        );
        // SAFETY: `to` is as long as `from`, so the loops above have written all of its elements.
        unsafe { &mut *(std::ptr::from_mut(to) as *mut [f32]) }
    }
    match from {
        Elements::F16(from) => of(isa, from, to),
        Elements::BF16(from) => of(isa, from, to),
        Elements::F32(_) | Elements::F64(_) => {
            debug_assert!(false, "{} elements are no halves", from.dtype());
            &mut []
        }
    }
}

/// Converts f32 values to halves.
pub(super) fn narrow_to_halves<I: Isa>(isa: I, from: &[f32], to: ElementsMut<'_>, streams: bool) {
    match to {
        ElementsMut::F16(to) => store_all(isa, from, to, streams),
        ElementsMut::BF16(to) => store_all(isa, from, to, streams),
        ElementsMut::F32(_) | ElementsMut::F64(_) => {
            debug_assert!(false, "{} elements are no halves", to.dtype());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{at_level, available};

    #[inline(always)]
    fn loaded<I: Isa, T: Number>(isa: I, values: &[T; LANES]) -> [T::Wide; LANES] {
        T::load(isa, values).array()
    }

    #[inline(always)]
    fn stored<I: Isa, T: Number>(isa: I, values: &[T::Wide; LANES]) -> [T; LANES] {
        T::store(isa, Vector::load(isa, values))
    }

    /// Every half converts to f32, and f32s of all kinds to halves, as in the crate `half`.
    #[test]
    fn halves_come_and_go_as_everywhere() {
        fn check<T: Number<Wide = f32>>(of_bits: fn(u16) -> T, bits: fn(T) -> u16) {
            for level in available() {
                for start in (0..=u16::MAX).step_by(LANES) {
                    let halves = std::array::from_fn(|lane| of_bits(start + lane as u16));
                    let found = at_level!(level, isa => loaded(isa, &halves));
                    for (half, found) in halves.iter().zip(found) {
                        let wanted = half.widen();
                        let same = found.to_bits() == wanted.to_bits()
                            || (found.is_nan() && wanted.is_nan());
                        assert!(same, "{level:?}: {found} for {wanted}");
                    }
                }
                // A prime step reaches every exponent and every way to round.
                let floats: Vec<f32> = (0..=u32::MAX).step_by(1009).map(f32::from_bits).collect();
                for x in floats.as_chunks::<LANES>().0 {
                    let found: [T; LANES] = at_level!(level, isa => stored(isa, x));
                    for (&x, found) in x.iter().zip(found) {
                        let wanted = T::narrow(x);
                        let both_nan = x.is_nan() && found.widen().is_nan();
                        assert!(
                            bits(found) == bits(wanted) || both_nan,
                            "{level:?}: {found:?} for {wanted:?}, of {x}"
                        );
                    }
                }
            }
        }
        check(f16::from_bits, f16::to_bits);
        check(bf16::from_bits, bf16::to_bits);
    }
}
