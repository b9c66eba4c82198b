//! The sum of the losses of rows: one algorithm for host calls, resident data, prepared steps and
//! the command line. On all of these paths, equal losses have a sum with the same bits.
//!
//! # f32
//!
//! A block is 1,024 rows, counted from the first row of the batch; the last block may be shorter.
//! No loss is negative; values that a caller pushes to a [`RowSum`] may be.
//!
//! Level 1 sums a block. `E` is the largest biased exponent in the block, at least 1 (the exponent
//! of subnormal numbers). Every loss is rounded to a multiple of the quantum `2^(E - 127 - 40)`,
//! half to even, and the multiples, integers up to 2^41, are added exactly:
//!
//! ```text
//! N = sum_rows round(loss_row / 2^(E - 167))                       below 2^51
//! ```
//!
//! A sum of integers does not depend on the order of rows, lanes or threads. A loss whose exponent
//! is at least `E - 17` is not rounded at all. Rounding adds an error of at most 2^-41 of the
//! largest magnitude a row.
//!
//! Level 2 sums the blocks. `E2` is the largest `E` of all blocks, and `trunc` rounds towards 0:
//!
//! ```text
//! T = sum_blocks trunc(N_block * 2^20 / 2^(E2 - E_block))         below 2^93, of up to 2^22 blocks
//! total = T * 2^(E2 - 187), of which the 48 highest bits are kept
//! ```
//!
//! A device has the 48 bits as two f32, whose sum in f64 is the total of the host. A total that is
//! beyond f32 is infinite on a device, and finite on the host.
//!
//! ```text
//! for block in losses.chunks(1024):
//!     E = max(1, largest exponent of block)
//!     N = 0
//!     for loss in block:
//!         N += round_half_to_even(loss / 2^(E - 167))
//!     blocks.push(E, N)
//! E2 = largest E of blocks
//! T = 0
//! for (E, N) in blocks:
//!     T += sign(N) * ((abs(N) << 20) >> (E2 - E))
//! total = highest_bits(T, 48) * 2^(E2 - 187)
//! ```
//!
//! One NaN makes the total NaN, and so do infinities of both signs; otherwise one infinity makes it
//! infinite.
//!
//! [`block_of_f32`] is the twin of `sum_losses` in `shaders/totals.wgsl`, [`total_of_blocks`] of
//! `total_losses`. The shader sums losses alone, and so ignores signs.
//!
//! # f64
//!
//! A block is summed in f64, in eight lanes, and the sums of blocks are added in order. f64 losses
//! exist on the CPU alone.

use crate::problem::dtype::Elements;
use crate::{DType, Element, Error};

/// Rows of a block. `GROUP_ROWS` of `shaders/totals.wgsl` must be the same number.
pub(crate) const BLOCK_ROWS: usize = 1024;
/// Bits between the exponent of a block's largest loss and that of its quantum.
const QUANTUM_BITS: i32 = 40;
/// Bits that `T` has below the quantum of the block with the largest exponent.
const TOTAL_BITS: u32 = 20;
/// Bits of a total: those of two f32.
const KEPT_BITS: u32 = 48;

/// The sum of the losses of rows, or of the weights of their targets, as
/// [`Loss::loss`](crate::Loss::loss) has it. Values of any sign can be summed.
///
/// Values are pushed in the order of the rows, in pieces of any length: the total has the same bits
/// as that of a batch of all the rows, if the losses of the rows have the same bits. They do on one
/// GPU model with one driver and [`Tuning`](crate::Tuning), and on CPUs with AVX-512, AVX2 or NEON;
/// not where a call has fallen back, or a [`fastest`](crate::Device::fastest) device sends small
/// batches elsewhere. Threads cut the rows at multiples of 1,024 and [`join`](Self::join) their
/// sums; another machine sends its [`Loss::per_row`](crate::Loss::per_row), to be pushed in order.
/// Parts use [`Reduction::Sum`](crate::Reduction::Sum), for a mean scales the z-loss of its own
/// batch. The mean is the total divided by the number of counted rows or, with class weights, by
/// the sum of the weights of their targets: push `weight[target]` of each row, and 0 for an ignored
/// one, to another `RowSum`. With class weights and a z-loss together that is not the mean of a
/// call, which divides the z-loss by the number of counted rows.
///
/// A `RowSum` keeps 16 bytes for every 1,024 rows, and up to 1,023 values of a block that is not
/// full yet.
///
/// ```
/// use logits::{CrossEntropy, Device, Logits, Reduction, RowSum};
///
/// let logits: Vec<f32> = (0..9000).map(|place| (place % 17) as f32).collect();
/// let (loss, device) = (CrossEntropy::default().reduction(Reduction::Sum), Device::cpu());
/// let whole = device.cross_entropy(&loss, Logits::new(&logits, [3000, 3])?, &[1; 3000]).loss()?;
///
/// let mut sum = RowSum::new();
/// for batch in logits.chunks(3 * 700) {
///     let rows = batch.len() / 3;
///     let out = device.cross_entropy(&loss, Logits::new(batch, [rows, 3])?, &vec![1; rows]).loss()?;
///     sum.push(&out.per_row)?;
/// }
/// assert_eq!(sum.total(), whole.loss);
/// # Ok::<(), logits::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct RowSum<S = f32> {
    blocks: Vec<Block>,
    /// The values after the last whole block.
    open: Vec<S>,
}

/// The sum of a block.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// `E` for f32; 0 for f64.
    exponent: i32,
    /// For f32, `N` times the quantum, which is exact; NaN or infinite where a value is.
    sum: f64,
}

impl<S: Element> RowSum<S> {
    /// Returns the sum of no rows, which is 0.
    #[must_use]
    pub fn new() -> Self {
        Self { blocks: Vec::new(), open: Vec::new() }
    }

    /// Adds the values of the next rows. One NaN makes the total NaN, and so do infinities of both
    /// signs; otherwise an infinity makes it infinite.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; the sum is then as it was before.
    pub fn push(&mut self, values: &[S]) -> Result<(), Error> {
        let missing = if self.open.is_empty() { 0 } else { BLOCK_ROWS - self.open.len() };
        let (first, rest) = values.split_at(missing.min(values.len()));
        let (blocks, rest) = rest.as_chunks::<BLOCK_ROWS>();
        // Memory comes first. Nothing below allocates.
        reserve(&mut self.blocks, blocks.len() + usize::from(!first.is_empty()))?;
        if !(first.is_empty() && rest.is_empty()) {
            let missing = BLOCK_ROWS - self.open.len();
            reserve(&mut self.open, missing)?;
        }
        self.open.extend_from_slice(first);
        if self.open.len() == BLOCK_ROWS {
            self.blocks.push(block_of(&self.open));
            self.open.clear();
        }
        self.blocks.extend(blocks.iter().map(|block| block_of(block)));
        self.open.extend_from_slice(rest);
        Ok(())
    }

    /// Adds the sum of the rows that follow, which another thread may have computed.
    ///
    /// # Errors
    /// [`Error::PartOfBlock`] where `self` does not have a multiple of 1,024 rows and `later` has
    /// rows, since the blocks of `later` would not be those of the whole; [`Error::OutOfMemory`].
    /// The sum is then as it was before.
    ///
    /// ```
    /// use logits::{Error, RowSum};
    /// let losses: Vec<f32> = (0..5000).map(|row| row as f32 / 3.0).collect();
    /// let sum_of = |losses: &[f32]| {
    ///     let mut sum = RowSum::new();
    ///     sum.push(losses).map(|()| sum)
    /// };
    /// let (first, second) = losses.split_at(2 * 1024);
    /// let (mut joined, mut whole) = (sum_of(first)?, sum_of(&losses)?);
    /// joined.join(&sum_of(second)?)?;
    /// assert_eq!(joined.total(), whole.total());
    /// assert_eq!(whole.join(&joined), Err(Error::PartOfBlock { rows: 5000 }));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn join(&mut self, later: &Self) -> Result<(), Error> {
        if later.blocks.is_empty() && later.open.is_empty() {
            return Ok(());
        }
        if !self.open.is_empty() {
            let rows = self.blocks.len().saturating_mul(BLOCK_ROWS).saturating_add(self.open.len());
            return Err(Error::PartOfBlock { rows });
        }
        reserve(&mut self.blocks, later.blocks.len())?;
        if !later.open.is_empty() {
            reserve(&mut self.open, BLOCK_ROWS)?;
        }
        self.blocks.extend_from_slice(&later.blocks);
        self.open.extend_from_slice(&later.open);
        Ok(())
    }

    /// Returns the sum of all rows so far.
    #[must_use]
    pub fn total(&self) -> f64 {
        let open = (!self.open.is_empty()).then(|| block_of(&self.open));
        let blocks = self.blocks.iter().copied().chain(open);
        match S::DTYPE {
            DType::F64 => blocks.fold(0.0, |total, block| total + block.sum),
            _ => {
                let exponents = blocks.clone().map(|block| block.exponent);
                total_of_blocks(exponents.max().unwrap_or(1), blocks)
            }
        }
    }
}

/// Makes room for `more` values. A vector at least doubles when it grows, so that many pushes make
/// few copies.
fn reserve<T>(values: &mut Vec<T>, more: usize) -> Result<(), Error> {
    let bytes = values.len().saturating_add(more).saturating_mul(size_of::<T>());
    let refused = |_| Error::OutOfMemory { what: "the sums of blocks of rows", bytes };
    values.try_reserve(more).map_err(refused)
}

/// Returns the sum of the values of a batch. It allocates nothing, because memory may be short at
/// the end of a call.
pub(crate) fn sum_of_rows<S: Element>(values: &[S]) -> f64 {
    match S::erase(values) {
        Elements::F32(values) => {
            let blocks = values.chunks(BLOCK_ROWS).map(block_of_f32);
            total_of_blocks(exponent_of(largest_magnitude(values)), blocks)
        }
        Elements::F64(values) => values.chunks(BLOCK_ROWS).map(sum_of_f64).fold(0.0, |a, b| a + b),
        Elements::F16(values) => sum_of_f32(values.len(), |row| values[row].to_f32()),
        Elements::BF16(values) => sum_of_f32(values.len(), |row| values[row].to_f32()),
    }
}

/// Returns the sum of `value` of `rows` rows. It allocates nothing.
pub(crate) fn sum_of_f32(rows: usize, value: impl Fn(usize) -> f32) -> f64 {
    let largest = (0..rows).map(&value).fold(0.0, larger_magnitude);
    let mut block = [0.0; BLOCK_ROWS];
    let blocks = (0..rows).step_by(BLOCK_ROWS).map(|start| {
        let block = &mut block[..BLOCK_ROWS.min(rows - start)];
        block.iter_mut().enumerate().for_each(|(nth, to)| *to = value(start + nth));
        block_of_f32(block)
    });
    total_of_blocks(exponent_of(largest), blocks)
}

/// Sums up to [`BLOCK_ROWS`] values.
fn block_of<S: Element>(values: &[S]) -> Block {
    fn widened<H: Element>(values: &[H], widen: fn(H) -> f32) -> Block {
        let mut wide = [0.0; BLOCK_ROWS];
        wide.iter_mut().zip(values).for_each(|(to, &value)| *to = widen(value));
        block_of_f32(&wide[..values.len().min(BLOCK_ROWS)])
    }
    match S::erase(values) {
        Elements::F32(values) => block_of_f32(values),
        Elements::F64(values) => Block { exponent: 0, sum: sum_of_f64(values) },
        Elements::F16(values) => widened(values, half::f16::to_f32),
        Elements::BF16(values) => widened(values, half::bf16::to_f32),
    }
}

/// Computes level 1 in f64 alone, which SSE2 has too. Adding `1.5 * 2^52` quanta to a loss rounds
/// it to a multiple of the quantum, half to even, because the sum is between 2^52 and 2^53 quanta,
/// where the f64 numbers are these multiples. Subtracting is exact, and so is every partial sum, in
/// any order.
fn block_of_f32(losses: &[f32]) -> Block {
    let exponent = exponent_of(largest_magnitude(losses));
    let bias = 1.5 * power_of_two(exponent - 127 - QUANTUM_BITS + 52);
    let mut sums = [0.0; 8];
    let (eights, rest) = losses.as_chunks::<8>();
    for eight in eights {
        for (sum, &loss) in sums.iter_mut().zip(eight) {
            *sum += (f64::from(loss) + bias) - bias;
        }
    }
    for (sum, &loss) in sums.iter_mut().zip(rest) {
        *sum += (f64::from(loss) + bias) - bias;
    }
    Block { exponent, sum: sums.iter().fold(0.0, |a, b| a + b) }
}

/// Returns the larger of `a`, which is not negative, and the magnitude of `b`; `a` where `b` is
/// NaN.
fn larger_magnitude(a: f32, b: f32) -> f32 {
    // This comparison is one instruction, unlike `f32::max`.
    if b.abs() > a { b.abs() } else { a }
}

/// Returns the largest magnitude, or 0 without losses; NaN is left out.
fn largest_magnitude(losses: &[f32]) -> f32 {
    let mut lanes = [0.0; 16];
    let (sixteens, rest) = losses.as_chunks::<16>();
    for sixteen in sixteens {
        for (lane, &loss) in lanes.iter_mut().zip(sixteen) {
            *lane = larger_magnitude(*lane, loss);
        }
    }
    rest.iter().chain(&lanes).copied().fold(0.0, larger_magnitude)
}

/// Returns the biased exponent of a number that is not negative; 1 for subnormal numbers and 0.
fn exponent_of(value: f32) -> i32 {
    ((value.to_bits() >> 23) as i32).max(1)
}

/// Computes level 2. `exponent` is `E2`, which has no effect where a value is NaN or infinite.
fn total_of_blocks(exponent: i32, blocks: impl Iterator<Item = Block>) -> f64 {
    let (mut total, mut not_finite) = (0_i128, 0.0);
    for block in blocks {
        if !block.sum.is_finite() {
            not_finite += block.sum;
            continue;
        }
        let multiple = (block.sum * power_of_two(127 + QUANTUM_BITS - block.exponent)) as i128;
        let down = (exponent - block.exponent) as u32;
        let part = (multiple.abs() << TOTAL_BITS).checked_shr(down).unwrap_or(0);
        total += part * multiple.signum();
    }
    if not_finite != 0.0 {
        return not_finite;
    }
    let size = total.unsigned_abs();
    let surplus = (u128::BITS - size.leading_zeros()).saturating_sub(KEPT_BITS);
    // At most 48 bits, so the conversion is exact.
    let kept = (size >> surplus << surplus) as f64
        * power_of_two(exponent - 127 - QUANTUM_BITS - TOTAL_BITS as i32);
    if total < 0 { -kept } else { kept }
}

/// Returns 2 to the power of `exponent`, which is a normal f64.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// Adds in eight lanes, so that no addition waits for the one before it.
fn sum_of_f64(losses: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (eights, rest) = losses.as_chunks::<8>();
    for eight in eights {
        sums.iter_mut().zip(eight).for_each(|(sum, loss)| *sum += loss);
    }
    sums.iter_mut().zip(rest).for_each(|(sum, loss)| *sum += loss);
    sums.iter().fold(0.0, |a, b| a + b)
}

#[cfg(test)]
#[path = "sum_tests.rs"]
mod tests;
