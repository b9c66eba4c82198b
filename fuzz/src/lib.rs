//! Turns bytes into inputs: shapes, and logits of every kind.

use arbitrary::{Result, Unstructured};
use logits::{Element, Shape};
use logits_check::{Batch, excess, noise};

/// The most elements of a batch, so that a run takes a millisecond.
const MOST: usize = 1 << 15;

/// Ends the process if the environment asks for a SIMD level that this machine lacks.
pub fn require_level() {
    if let Err(error) = logits::simd_level() {
        eprintln!("{error}");
        std::process::exit(2);
    }
}

/// Makes a batch in memory, with a gap after each block that must be neither read nor written.
///
/// # Errors
/// If the bytes run out within a value.
pub fn batch<T: Element>(u: &mut Unstructured<'_>, narrow: fn(f64) -> T) -> Result<Batch<T>> {
    let shape = shape(u)?;
    let block = shape.classes() * shape.inner();
    let stride = block + if shape.inner() == 1 { usize::from(u.arbitrary::<u8>()? % 5) } else { 0 };
    let mut values = vec![narrow(f64::NAN); stride * shape.outer()];
    let (seed, spread, shift): (u32, u8, i8) = (u.arbitrary()?, u.arbitrary()?, u.arbitrary()?);
    for whole in values.chunks_mut(stride) {
        for (at, value) in whole[..block].iter_mut().enumerate() {
            *value = narrow(
                noise(seed as usize, at) * f64::from(spread) * 0.25 + f64::from(shift) * 8.0,
            );
        }
    }
    let elements = shape.row_count() * shape.classes();
    for _ in 0..u.arbitrary::<u8>()? % 32 {
        if elements == 0 {
            break;
        }
        let at = u.int_in_range(0..=elements - 1)?;
        let value = special(u)?;
        // Some rows are set as a whole.
        let row = if u.ratio(1, 8)? { shape.classes() } else { 1 };
        for nth in 0..row {
            let at = (at + nth * shape.inner()).min(elements - 1);
            values[at / block * stride + at % block] = narrow(value);
        }
    }
    Ok(Batch { shape, stride, values })
}

fn shape(u: &mut Unstructured<'_>) -> Result<Shape> {
    // Numbers of classes near those at which loops change.
    let near = [1, 16, 32, 128, 4096, 8192, 20_000];
    let classes = match u.arbitrary::<u8>()? % 4 {
        0 => usize::from(u.arbitrary::<u16>()?) % MOST,
        1 => (near[usize::from(u.arbitrary::<u8>()?) % near.len()]
            + usize::from(u.arbitrary::<u8>()? % 7))
        .saturating_sub(3),
        _ => usize::from(u.arbitrary::<u8>()? % 70),
    }
    .max(1);
    let inner = if u.ratio(1, 3)? { 1 + usize::from(u.arbitrary::<u8>()? % 70) } else { 1 }
        .min(MOST / classes)
        .max(1);
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

/// Fails unless a result is within `error` of `wanted`, plus the rounding of its type.
#[track_caller]
pub fn assert_near<T: Element>(got: T, wanted: f64, error: f64, what: &str) {
    assert!(
        excess(got, wanted, error) <= 1.0,
        "{what}: {:e} for {wanted:e}, of {:?}",
        got.into(),
        T::DTYPE
    );
}
