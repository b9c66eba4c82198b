//! Vectors in plain Rust: arrays, and loops over them that the compiler may vectorize.

use half::{bf16, f16};

use super::exp::{ExpBase, exp_of};
use super::isa::Isa;
use super::vector::{LANES, Lane, Vector};

/// Plain Rust, which every machine runs.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Portable;

#[derive(Clone, Copy)]
#[repr(align(64))]
pub(in crate::cpu) struct Array<W>([W; LANES]);

/// Returns the vector of `value` of each lane.
#[inline(always)]
fn each<W: Copy + Default>(value: impl Fn(usize) -> W) -> Array<W> {
    let mut out = [W::default(); LANES];
    for lane in 0..LANES {
        out[lane] = value(lane);
    }
    Array(out)
}

impl Isa for Portable {
    type F32 = Array<f32>;
    type F64 = Array<f64>;

    #[inline(always)]
    fn vectorize<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }

    #[inline(always)]
    fn load_f16(self, bits: &[u16; LANES]) -> Array<f32> {
        each(|lane| f16::from_bits(bits[lane]).to_f32())
    }

    #[inline(always)]
    fn load_bf16(self, bits: &[u16; LANES]) -> Array<f32> {
        each(|lane| bf16::from_bits(bits[lane]).to_f32())
    }

    #[inline(always)]
    fn store_f16(self, x: Array<f32>) -> [u16; LANES] {
        each(|lane| f16::from_f32(x.0[lane]).to_bits()).0
    }

    #[inline(always)]
    fn store_bf16(self, x: Array<f32>) -> [u16; LANES] {
        each(|lane| bf16::from_f32(x.0[lane]).to_bits()).0
    }

    #[inline(always)]
    unsafe fn stream<const BYTES: usize>(self, to: &mut [u8; BYTES], values: &[u8; BYTES]) {
        *to = *values;
    }
}

macro_rules! arrays {
    ($ty:ident, $bits:ident, $shift:literal) => {
        impl Lane for $ty {
            const IS_FUSED: bool = false;

            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                self * b + c
            }

            #[inline(always)]
            fn at_least(self, low: Self) -> Self {
                if self < low { low } else { self }
            }

            #[inline(always)]
            fn at_most(self, high: Self) -> Self {
                if self > high { high } else { self }
            }

            #[inline(always)]
            fn power(self) -> Self {
                Self::from_bits(self.to_bits() << $shift)
            }
        }

        impl Vector<Portable> for Array<$ty> {
            type W = $ty;

            #[inline(always)]
            fn splat(_: Portable, value: $ty) -> Self {
                Self([value; LANES])
            }

            #[inline(always)]
            fn load(_: Portable, values: &[$ty; LANES]) -> Self {
                Self(*values)
            }

            #[inline(always)]
            fn array(self) -> [$ty; LANES] {
                self.0
            }

            #[inline(always)]
            fn larger(self, best: Self) -> Self {
                each(|lane| if self.0[lane] > best.0[lane] { self.0[lane] } else { best.0[lane] })
            }

            #[inline(always)]
            fn where_equal(self, value: Self, then: Self, otherwise: Self) -> Self {
                each(
                    |lane| {
                        if self.0[lane] == value.0[lane] { then.0[lane] } else { otherwise.0[lane] }
                    },
                )
            }

            #[inline(always)]
            fn equal(self, value: Self) -> u32 {
                let mut bits = 0;
                for lane in 0..LANES {
                    bits |= u32::from(self.0[lane] == value.0[lane]) << lane;
                }
                bits
            }

            #[inline(always)]
            fn interleave(self, other: Self) -> (Self, Self) {
                let lane =
                    |lane: usize| if lane % 2 == 0 { self.0[lane / 2] } else { other.0[lane / 2] };
                (each(lane), each(|at| lane(at + LANES)))
            }

            #[inline(always)]
            fn deinterleave(self, other: Self) -> (Self, Self) {
                let lane =
                    |lane: usize| if lane < LANES { self.0[lane] } else { other.0[lane - LANES] };
                (each(|at| lane(2 * at)), each(|at| lane(2 * at + 1)))
            }

            #[inline(always)]
            fn wide(self, _: Portable) -> Array<f64> {
                each(|lane| self.0[lane].into())
            }

            #[inline(always)]
            fn of_wide(_: Portable, wide: Array<f64>) -> Self {
                each(|lane| wide.0[lane] as $ty)
            }

            #[inline(always)]
            fn first_lanes(self, _: Portable, count: usize, otherwise: Self) -> Self {
                each(|lane| if lane < count { self.0[lane] } else { otherwise.0[lane] })
            }

            #[inline(always)]
            fn spread(_: Portable, values: &[$ty; LANES], places: &[u8; LANES]) -> Self {
                each(|lane| values[usize::from(places[lane]) % LANES])
            }

            // Each lane goes through all steps in turn, a loop that compilers can vectorize.
            #[inline(always)]
            fn exp(_: Portable, x: Self, base: &ExpBase<Self>) -> Self {
                each(|lane| exp_of(|value: $ty| value, x.0[lane], &base.lane(lane)))
            }
        }
    };
}
arrays!(f32, u32, 23);
arrays!(f64, u64, 52);

impl<W: Copy> ExpBase<Array<W>> {
    #[inline(always)]
    fn lane(&self, lane: usize) -> ExpBase<W> {
        let Self { offset, wide_offset, rounding_bias, underflow, log_power } = self;
        ExpBase {
            offset: offset.0[lane],
            wide_offset: *wide_offset,
            rounding_bias: rounding_bias.0[lane],
            underflow: underflow.0[lane],
            log_power: *log_power,
        }
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident),*) => {$(
        impl<W: Copy + Default + std::ops::$trait<Output = W>> std::ops::$trait for Array<W> {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                each(|lane| self.0[lane].$method(other.0[lane]))
            }
        }
    )*};
}
operators!(Add add, Sub sub, Mul mul, Div div);

impl<W: Copy + Default + Lane> Lane for Array<W> {
    const IS_FUSED: bool = false;

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        each(|lane| self.0[lane].mul_add(b.0[lane], c.0[lane]))
    }

    #[inline(always)]
    fn at_least(self, low: Self) -> Self {
        each(|lane| self.0[lane].at_least(low.0[lane]))
    }

    #[inline(always)]
    fn at_most(self, high: Self) -> Self {
        each(|lane| self.0[lane].at_most(high.0[lane]))
    }

    #[inline(always)]
    fn power(self) -> Self {
        each(|lane| self.0[lane].power())
    }
}
