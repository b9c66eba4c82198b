//! What bytes become: shapes, logits of every kind, and how near to float64 a result has to be.

use arbitrary::{Result, Unstructured};
use logits::{DType, Element, Shape};

/// Elements of a batch at most, for a run to take a millisecond.
const MOST: usize = 1 << 15;

/// Ends where the environment asks for a SIMD level that this machine lacks.
pub fn require_level() {
    if let Err(error) = logits::simd_level() {
        eprintln!("{error}");
        std::process::exit(2);
    }
}

/// A batch in memory, with a gap after each block that must be neither read nor written.
pub struct Batch<T> {
    pub shape: Shape,
    pub stride: usize,
    pub values: Vec<T>,
}

impl<T: Element> Batch<T> {
    /// # Errors
    /// Where bytes run out in the midst of a value.
    pub fn new(u: &mut Unstructured<'_>, narrow: fn(f64) -> T) -> Result<Self> {
        let shape = shape(u)?;
        let stride = block(shape) + if shape.inner() == 1 { usize::from(u.arbitrary::<u8>()? % 5) } else { 0 };
        let mut values = vec![narrow(f64::NAN); stride * shape.outer()];
        let (seed, spread, shift): (u32, u8, i8) = (u.arbitrary()?, u.arbitrary()?, u.arbitrary()?);
        for whole in values.chunks_mut(stride) {
            for (at, value) in whole[..block(shape)].iter_mut().enumerate() {
                *value = narrow(noise(seed, at) * f64::from(spread) * 0.25 + f64::from(shift) * 8.0);
            }
        }
        let elements = shape.row_count() * shape.classes();
        for _ in 0..u.arbitrary::<u8>()? % 32 {
            if elements == 0 {
                break;
            }
            let at = u.int_in_range(0..=elements - 1)?;
            let value = special(u)?;
            // Now and then a whole row.
            let row = if u.ratio(1, 8)? { shape.classes() } else { 1 };
            for nth in 0..row {
                let at = (at + nth * shape.inner()).min(elements - 1);
                values[at / block(shape) * stride + at % block(shape)] = narrow(value);
            }
        }
        Ok(Self { shape, stride, values })
    }

    /// Elements from one block to the next, without the gap.
    pub fn block(&self) -> usize {
        block(self.shape)
    }

    /// The logits of a row.
    pub fn row(&self, row: usize) -> Vec<f64> {
        (0..self.shape.classes()).map(|class| self.values[self.place(self.stride, row, class)].into()).collect()
    }

    /// Where an element stands, if blocks start so far apart.
    pub fn place(&self, stride: usize, row: usize, class: usize) -> usize {
        let inner = self.shape.inner();
        row / inner * stride + class * inner + row % inner
    }

    /// The same without gaps.
    pub fn dense(&self) -> Vec<T> {
        self.values.chunks(self.stride).flat_map(|whole| whole[..self.block()].iter().copied()).collect()
    }
}

fn block(shape: Shape) -> usize {
    shape.classes() * shape.inner()
}

/// Between -1 and 1, in no order.
pub fn noise(seed: u32, at: usize) -> f64 {
    let mixed = (at as u32 ^ seed).wrapping_mul(0x9e37_79b9);
    let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x85eb_ca6b);
    f64::from((mixed ^ (mixed >> 13)) >> 8) / f64::from(1 << 23) - 1.0
}

fn shape(u: &mut Unstructured<'_>) -> Result<Shape> {
    // Around where loops change.
    let near = [1, 16, 32, 128, 4096, 8192, 20_000];
    let classes = match u.arbitrary::<u8>()? % 4 {
        0 => usize::from(u.arbitrary::<u16>()?) % MOST,
        1 => (near[usize::from(u.arbitrary::<u8>()?) % near.len()] + usize::from(u.arbitrary::<u8>()? % 7))
            .saturating_sub(3),
        _ => usize::from(u.arbitrary::<u8>()? % 70),
    }
    .max(1);
    let inner = if u.ratio(1, 3)? { 1 + usize::from(u.arbitrary::<u8>()? % 70) } else { 1 }.min(MOST / classes).max(1);
    let outer = usize::from(u.arbitrary::<u8>()?).min(MOST / (classes * inner));
    Ok(Shape::new(outer, classes, inner))
}

fn special(u: &mut Unstructured<'_>) -> Result<f64> {
    Ok(match u.arbitrary::<u8>()? % 8 {
        0 => f64::NEG_INFINITY,
        1 => f64::INFINITY,
        2 => f64::NAN,
        3 => f64::from(f32::from_bits(u.arbitrary()?)),
        4 => f64::from(f32::MAX),
        5 => -0.0,
        _ => f64::from(u.arbitrary::<i16>()?) / 64.0,
    })
}

/// Whether the softmax of a row has a value.
pub fn is_regular(y: &[f64]) -> bool {
    let top = y.iter().fold(f64::NEG_INFINITY, |top, &y| top.max(y));
    y.iter().all(|y| !y.is_nan()) && top.is_finite()
}

/// The largest, and log(sum of exp(y - largest)).
pub fn log_sum_exp(y: &[f64]) -> (f64, f64) {
    let top = (0..y.len()).fold(0, |top, at| if y[at] > y[top] { at } else { top });
    let others: f64 = (0..y.len()).filter(|&at| at != top).map(|at| (y[at] - y[top]).exp()).sum();
    (y[top], others.ln_1p())
}

/// A unit in the last place of a type, relative, and the least of its numbers.
fn grain(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F16 => (2.0_f64.powi(-11), 2.0_f64.powi(-24)),
        DType::BF16 => (2.0_f64.powi(-8), f64::from(f32::MIN_POSITIVE)),
        _ => (0.0, f64::from(f32::MIN_POSITIVE)),
    }
}

/// Fails unless a result is within so much of what was wanted, beside the rounding of its type.
#[track_caller]
pub fn assert_near<T: Element>(got: T, wanted: f64, error: f64, what: &str) {
    let (unit, least) = grain(T::DTYPE);
    let got: f64 = got.into();
    // Beyond what the type holds, and a rounding next to that.
    let most = match T::DTYPE {
        DType::F16 => 65_504.0,
        _ => f64::from(f32::MAX),
    };
    let is_same = got == wanted || (got.is_nan() && wanted.is_nan());
    let is_beyond = got.is_infinite() && wanted.abs() >= most * (1.0 - 1e-5) && got.signum() == wanted.signum();
    let is_near = (got - wanted).abs() <= error + unit * wanted.abs() + least;
    assert!(is_same || is_beyond || is_near, "{what}: {got:e} for {wanted:e}, of {:?}", T::DTYPE);
}
