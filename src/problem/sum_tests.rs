//! [`RowSum`] against integer arithmetic, and against itself in other orders and pieces.

use super::{BLOCK_ROWS, RowSum, block_of_f32, sum_of_f64, sum_of_rows};
use crate::Error;

/// The random number generator SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Returns finite losses whose exponents are `lowest..lowest + spread`, with some zeros.
    fn losses(&mut self, rows: usize, lowest: u32, spread: u32) -> Vec<f32> {
        let one = |random: &mut Self| {
            let exponent = (lowest + random.below(spread as usize) as u32).min(254);
            // Few bits make ties of rounding frequent.
            let keep = if random.below(3) == 0 { !0 << random.below(24) } else { !0 };
            let bits = (exponent << 23) | (random.next() as u32 & keep & 0x007f_ffff);
            if random.below(20) == 0 { [0.0, -0.0][random.below(2)] } else { f32::from_bits(bits) }
        };
        (0..rows).map(|_| one(self)).collect()
    }

    /// Negates about one in `of` values.
    fn signed(&mut self, mut values: Vec<f32>, of: usize) -> Vec<f32> {
        values.iter_mut().filter(|_| self.below(of) == 0).for_each(|value| *value = -*value);
        values
    }
}

/// Sums by the algorithm as documented, in integers alone, as the shader does.
fn reference(losses: &[f32]) -> f64 {
    let bits_of = |&loss: &f32| loss.to_bits() & 0x7fff_ffff;
    let largest = losses.iter().map(bits_of).max().unwrap_or(0);
    if largest >= 0x7f80_0000 {
        return if largest == 0x7f80_0000 { f64::INFINITY } else { f64::NAN };
    }
    let exponent_of = |bits: u32| (bits >> 23).max(1);
    let block = |losses: &[f32]| {
        let exponent = losses.iter().map(|loss| exponent_of(bits_of(loss))).max().unwrap();
        let mut sum = 0_i64;
        for loss in losses {
            let bits = bits_of(loss);
            let mantissa =
                i64::from((bits & 0x007f_ffff) | if bits >> 23 > 0 { 0x0080_0000 } else { 0 });
            let down = exponent - exponent_of(bits);
            let sign = if loss.is_sign_negative() { -1 } else { 1 };
            sum += sign
                * match down {
                    0..=17 => mantissa << (17 - down),
                    _ => {
                        let by = (down - 17).min(40);
                        let (whole, rest, half) =
                            (mantissa >> by, mantissa & ((1 << by) - 1), 1 << (by - 1));
                        whole + i64::from(rest > half || (rest == half && whole & 1 == 1))
                    }
                };
        }
        assert!(sum.abs() < 1 << 51);
        (exponent, sum)
    };
    let blocks: Vec<_> = losses.chunks(BLOCK_ROWS).map(block).collect();
    let exponent = blocks.iter().map(|block| block.0).max().unwrap_or(1);
    let mut total = 0_i128;
    for (of_block, sum) in blocks {
        let down = exponent - of_block;
        // A division rounds towards 0.
        total += if down >= 95 { 0 } else { (i128::from(sum) << 20) / (1 << down) };
    }
    let mut lowest = 0;
    while total.abs() >= 1 << 48 {
        (total, lowest) = (total / 2, lowest + 1);
    }
    total as f64 * 2.0_f64.powi(exponent as i32 - 187 + lowest)
}

/// Sums in 400 bits, and returns the leading ones as an f64.
fn exact(losses: &[f32]) -> f64 {
    let mut words = [0_i128; 12];
    for loss in losses {
        let bits = loss.to_bits() & 0x7fff_ffff;
        let mantissa =
            i128::from((bits & 0x007f_ffff) | if bits >> 23 > 0 { 0x0080_0000 } else { 0 });
        let place = (bits >> 23).max(1) - 1;
        let sign = if loss.is_sign_negative() { -1 } else { 1 };
        words[place as usize / 32] += sign * (mantissa << (place % 32));
    }
    let word = |(nth, &word): (usize, &i128)| word as f64 * 2.0_f64.powi(nth as i32 * 32 - 149);
    words.iter().enumerate().map(word).fold(0.0, |a, b| a + b)
}

fn assert_same(got: f64, wanted: f64, what: &str) {
    assert!(
        got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan()),
        "{what}: {got:e}, not {wanted:e}"
    );
}

const ROWS: [usize; 9] = [0, 1, 2, 10, 1023, 1024, 1025, 5000, 70_001];
/// The lowest exponent of losses, and the number of exponents.
const EXPONENTS: [(u32, u32); 9] =
    [(0, 1), (0, 2), (0, 30), (0, 255), (100, 17), (100, 20), (110, 60), (200, 55), (254, 1)];

#[test]
fn sums_are_those_of_integers() {
    let mut random = Random(1);
    for rows in ROWS {
        for (lowest, spread) in EXPONENTS {
            let losses = random.losses(rows, lowest, spread);
            for of in [1, 2, 30] {
                let signed = random.signed(losses.clone(), of);
                let what = format!("one of {of} negative, {rows} rows from {lowest}");
                let got = sum_of_rows(&signed);
                assert_same(got, reference(&signed), &what);
                let most: f64 =
                    signed.iter().map(|&value| f64::from(value.abs()) * 2.0_f64.powi(-40)).sum();
                let largest = signed.iter().fold(0.0, |a: f32, &b| a.max(b.abs()));
                let most = most + f64::from(largest) * rows as f64 * 2.0_f64.powi(-40);
                let exact = exact(&signed);
                assert!((got - exact).abs() <= most, "{what}: {got:e}, exactly {exact:e}");
                let negated: Vec<f32> = signed.iter().map(|value| -value).collect();
                assert_eq!(sum_of_rows(&negated), -got, "{what}");
            }
            let (got, what) =
                (sum_of_rows(&losses), format!("{rows} rows from {lowest} to {spread} more"));
            assert_same(got, reference(&losses), &what);
            // The bound: 2^-40 of the largest loss for each row, and the bits beyond the 48.
            let (exact, largest) = (exact(&losses), losses.iter().fold(0.0, |a: f32, &b| a.max(b)));
            let most =
                f64::from(largest) * rows as f64 * 2.0_f64.powi(-40) + exact * 2.0_f64.powi(-46);
            assert!((got - exact).abs() <= most, "{what}: {got:e}, exactly {exact:e}");
            if spread <= 17 && rows <= BLOCK_ROWS {
                // No loss is rounded: the total is the exact sum, of which 48 bits are kept.
                assert!(got <= exact && (exact - got) <= exact * 2.0_f64.powi(-47), "{what}");
            }
        }
    }
}

#[test]
fn a_total_is_two_f32() {
    let mut random = Random(2);
    for (lowest, spread) in EXPONENTS {
        let total = sum_of_rows(&random.losses(3000, lowest, spread));
        let (bits, size) = (total.to_bits(), f64::from(f32::MAX));
        let high = f64::from_bits(bits & !((1 << 29) - 1));
        // The 24 upper bits, and the 24 next.
        assert!(
            high > size
                || (f64::from(high as f32) == high
                    && f64::from((total - high) as f32) == total - high)
        );
    }
}

#[test]
fn order_within_a_block_does_not_matter() {
    let mut random = Random(3);
    for (lowest, spread) in EXPONENTS {
        let mut losses = random.losses(5000, lowest, spread);
        let wanted = sum_of_rows(&losses);
        for _ in 0..5 {
            for block in losses.chunks_mut(BLOCK_ROWS) {
                for last in (1..block.len()).rev() {
                    block.swap(last, random.below(last + 1));
                }
            }
            assert_same(sum_of_rows(&losses), wanted, "shuffled");
        }
    }
}

#[test]
fn pieces_and_parts_have_the_sum_of_the_whole() {
    let mut random = Random(4);
    for rows in ROWS {
        for (lowest, spread) in EXPONENTS {
            let losses = random.losses(rows, lowest, spread);
            let losses = random.signed(losses, 5);
            let doubles: Vec<f64> = losses.iter().map(|&loss| f64::from(loss) / 3.0).collect();
            let (mut sum, mut of_doubles, mut at) = (RowSum::new(), RowSum::new(), 0);
            while at < rows {
                let most = [1, 10, 1024, 3000][random.below(4)];
                let end = rows.min(at + random.below(most + 1));
                sum.push(&losses[at..end]).unwrap();
                of_doubles.push(&doubles[at..end]).unwrap();
                at = end;
            }
            let (wanted, wanted_of_doubles) = (sum_of_rows(&losses), sum_of_rows(&doubles));
            assert_same(sum.total(), wanted, "pieces");
            assert_same(of_doubles.total(), wanted_of_doubles, "pieces of f64");

            let (mut joined, mut joined_doubles) = (RowSum::new(), RowSum::new());
            let mut at = 0;
            while at < rows {
                let end = rows.min(at + random.below(5) * BLOCK_ROWS);
                let (mut part, mut of_doubles) = (RowSum::new(), RowSum::new());
                part.push(&losses[at..end]).unwrap();
                of_doubles.push(&doubles[at..end]).unwrap();
                joined.join(&part).unwrap();
                joined_doubles.join(&of_doubles).unwrap();
                at = end;
            }
            assert_same(joined.total(), wanted, "parts");
            assert_same(joined_doubles.total(), wanted_of_doubles, "parts of f64");
            let refused = (!rows.is_multiple_of(BLOCK_ROWS)).then_some(Error::PartOfBlock { rows });
            joined.join(&RowSum::new()).unwrap();
            assert_eq!(joined.join(&sum).err(), refused, "{rows}");
        }
    }
}

#[test]
fn special_values_are_kept() {
    for rows in [1, 1024, 3000] {
        for at in [0, rows / 2, rows - 1] {
            let mut losses = vec![1.0_f32; rows];
            losses[at] = f32::INFINITY;
            assert_eq!(sum_of_rows(&losses), f64::INFINITY);
            losses[0] = f32::NAN;
            assert!(sum_of_rows(&losses).is_nan());
            losses[at] = 0.0;
            losses[rows - 1] = f32::NAN;
            assert!(sum_of_rows(&losses).is_nan());
        }
    }
    // Infinities of both signs, in one block and in two, also in parts.
    for (at, other) in [(3, 5), (3, 2500), (2999, 10)] {
        let mut losses = vec![1.0_f32; 3000];
        losses[at] = f32::NEG_INFINITY;
        assert_eq!(sum_of_rows(&losses), f64::NEG_INFINITY);
        losses[other] = f32::INFINITY;
        assert!(sum_of_rows(&losses).is_nan());
        let mut sum = RowSum::new();
        losses.chunks(700).for_each(|losses| sum.push(losses).unwrap());
        assert!(sum.total().is_nan());
    }
    let zero = |total: f64| assert_eq!(total.to_bits(), 0, "{total:?}");
    zero(RowSum::<f32>::new().total());
    zero(RowSum::<f64>::new().total());
    zero(sum_of_rows(&[-0.0_f32; 1500]));
    zero(sum_of_rows(&[1.0_f32, -1.0]));
    assert_eq!(sum_of_rows(&[-1.0_f32, -0.5, 2.0, -3.0]), -2.5);
    assert_eq!(sum_of_rows(&[half::f16::NEG_ONE; 1500]), -1500.0);
    assert_eq!(sum_of_rows(&[f32::MAX; 2048]), 2048.0 * f64::from(f32::MAX));
    assert_eq!(sum_of_rows(&[f32::from_bits(1); 2048]), 2048.0 * 2.0_f64.powi(-149));
    assert_eq!(sum_of_rows(&[half::f16::ONE; 1500]), 1500.0);
    assert_eq!(sum_of_rows(&[half::bf16::ONE; 1500]), 1500.0);
    assert_eq!(block_of_f32(&[]).exponent, 1);
    assert_eq!(sum_of_f64(&[1.0; 13]), 13.0);
}
