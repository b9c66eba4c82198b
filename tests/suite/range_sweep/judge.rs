//! The errors of results, in units of the promised bounds.

use logits::{DType, Device, Element};

/// The least normal f32.
pub const LEAST: f64 = f32::MIN_POSITIVE as f64;

/// The numbers of a type: digits of the mantissa, the exponent of the least normal number, and the
/// largest number.
#[derive(Clone, Copy)]
struct Numbers {
    digits: i32,
    lowest: i32,
    most: f64,
}

fn numbers(dtype: DType) -> Numbers {
    match dtype {
        DType::F16 => Numbers { digits: 11, lowest: -14, most: 65_504.0 },
        DType::BF16 => Numbers { digits: 8, lowest: -126, most: 3.389e38 },
        DType::F64 => Numbers { digits: 53, lowest: -1022, most: f64::MAX },
        _ => Numbers { digits: 24, lowest: -126, most: f64::from(f32::MAX) },
    }
}

/// The promised bound of a quantity.
#[derive(Clone, Copy)]
pub enum Bound {
    /// The error is at most this fraction of the value.
    Relative(f64),
    /// The error is at most this fraction of a scale.
    Scaled(f64),
    /// The result is the same, with an error of 0.
    Same,
}

/// The worst error of a quantity that an operation has on a device.
pub struct Worst {
    quantity: &'static str,
    bound: Bound,
    dtype: DType,
    /// The numbers of `dtype`.
    numbers: Numbers,
    /// The error in units of the allowed error.
    error: f64,
    place: String,
}

impl Worst {
    /// Starts with no error, for results of type `T`. For f64 the bound is 1e-13.
    pub fn new<T: Element>(quantity: &'static str, bound: Bound) -> Self {
        let of_type = |bound: f64| if T::DTYPE == DType::F64 { 1e-13 } else { bound };
        let bound = match bound {
            Bound::Relative(bound) => Bound::Relative(of_type(bound)),
            Bound::Scaled(bound) => Bound::Scaled(of_type(bound)),
            Bound::Same => Bound::Same,
        };
        Self {
            quantity,
            bound,
            dtype: T::DTYPE,
            numbers: numbers(T::DTYPE),
            error: 0.0,
            place: String::new(),
        }
    }

    /// Notes a result. A scaled error is relative to `scale`. A result may be off by `lost`,
    /// because a GPU may take numbers for 0 that are no normal f32. A result that is no normal
    /// number itself may have an error of the least normal number.
    pub fn note(
        &mut self,
        got: f64,
        wanted: f64,
        scale: f64,
        lost: f64,
        place: impl FnOnce() -> String,
    ) {
        let least = if self.dtype == DType::F64 { f64::MIN_POSITIVE } else { LEAST };
        let allowed =
            lost + match self.bound {
                Bound::Relative(bound) => bound * wanted.abs(),
                Bound::Scaled(bound) => bound * scale,
                Bound::Same => 0.0,
            } + if wanted.abs() < least { least } else { 0.0 };
        let off = (got - wanted).abs();
        // Nearly all results are no worse than an earlier one.
        if got == wanted || off <= self.error * allowed {
            return;
        }
        let error = (off - self.rounding(wanted.abs() + allowed)).max(0.0) / allowed;
        let error = if error.is_nan() { f64::INFINITY } else { error };
        if error > self.error && !self.is_beyond(got, wanted) {
            (self.error, self.place) = (error, format!("{}: {got:e} for {wanted:e}", place()));
        }
    }

    /// Returns how far rounding to the type may move a result near `at`: a 16-bit result is rounded
    /// once more, and a result of any type where it is subnormal.
    fn rounding(&self, at: f64) -> f64 {
        let Numbers { digits, lowest, .. } = self.numbers;
        let is_half = matches!(self.dtype, DType::F16 | DType::BF16);
        let exponent = if is_half { exponent(at).max(lowest) } else { lowest };
        power_of_two(exponent - digits) * (1.0 + 1e-6)
    }

    /// Whether both are beyond the largest number of the type, or next to it.
    fn is_beyond(&self, got: f64, wanted: f64) -> bool {
        let Numbers { digits, most, .. } = self.numbers;
        let unit = power_of_two(1 - digits);
        let is_largest =
            wanted.abs() >= most * (1.0 - unit) && got.abs() >= most * (1.0 - 2.0 * unit);
        is_largest && got.is_sign_negative() == wanted.is_sign_negative()
    }
}

/// Returns the exponent of a normal f64, or -1023 for a subnormal one.
fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

/// Returns 2^exponent where that is a normal f64, else 0.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023).max(0) as u64) << 52)
}

/// The findings on a device.
pub struct Report {
    device: String,
    is_gpu: bool,
    /// The worst errors, each with the name of its operation.
    worst: Vec<(&'static str, Worst)>,
}

impl Report {
    pub fn new(device: &Device) -> Self {
        let level = logits::simd_level().unwrap_or("none");
        let name =
            if device.is_gpu() { device.backend().to_owned() } else { format!("CPU, {level}") };
        Self { device: name, is_gpu: device.is_gpu(), worst: Vec::new() }
    }

    /// Returns what may be lost where a term that is no normal number is taken for 0.
    pub fn lost(&self) -> f64 {
        if self.is_gpu { LEAST } else { 0.0 }
    }

    /// Adds the worst error of an operation on logits of a type.
    pub fn add<T: Element>(&mut self, operation: &'static str, worst: Worst) {
        let worst = Worst { dtype: T::DTYPE, ..worst };
        let is_same = |(known, other): &&mut (&'static str, Worst)| {
            *known == operation && other.quantity == worst.quantity && other.dtype == worst.dtype
        };
        match self.worst.iter_mut().find(is_same) {
            Some((_, known)) if known.error >= worst.error => {}
            Some((_, known)) => *known = worst,
            None => self.worst.push((operation, worst)),
        }
    }

    /// Prints a line of a table for each quantity, and returns those that are out of bounds.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        println!(
            "| device | operation | type | quantity | bound | worst, of that | where |\n|---|---|---|---|---|---|---|"
        );
        for (operation, Worst { quantity, bound, dtype, error, place, .. }) in &self.worst {
            let bound = match bound {
                Bound::Relative(bound) => format!("{bound:.0e}"),
                Bound::Scaled(bound) => format!("{bound:.0e} of the scale"),
                Bound::Same => "the same".to_owned(),
            };
            println!(
                "| {} | {operation} | {dtype} | {quantity} | {bound} | {error:.2} | {place} |",
                self.device
            );
        }
        let failed = self.worst.iter().filter(|(_, worst)| worst.error > 1.0);
        let text = |(operation, worst): &(&str, Worst)| {
            let Worst { quantity, dtype, error, place, .. } = worst;
            format!(
                "{operation} of {dtype} on {}: {quantity}, {error:.2} of its bound, {place}",
                self.device
            )
        };
        failed.map(text).collect()
    }
}
