//! [`RowSum`] against integer arithmetic, and against itself in other orders and pieces.

use super::{BLOCK_ROWS, RowSum, block_of_f32, sum_of_f64, sum_of_rows};

/// SplitMix64.
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

    /// Finite losses whose exponents are `lowest..lowest + spread`, with some zeros.
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
}

/// The algorithm as documented, in integers alone, as the shader has it.
fn reference(losses: &[f32]) -> f64 {
    let bits_of = |&loss: &f32| loss.to_bits() & 0x7fff_ffff;
    let largest = losses.iter().map(bits_of).max().unwrap_or(0);
    if largest >= 0x7f80_0000 {
        return if largest == 0x7f80_0000 { f64::INFINITY } else { f64::NAN };
    }
    let exponent_of = |bits: u32| (bits >> 23).max(1);
    let block = |losses: &[f32]| {
        let exponent = losses.iter().map(|loss| exponent_of(bits_of(loss))).max().unwrap();
        let mut sum = 0_u64;
        for loss in losses {
            let bits = bits_of(loss);
            let mantissa =
                u64::from((bits & 0x007f_ffff) | if bits >> 23 > 0 { 0x0080_0000 } else { 0 });
            let down = exponent - exponent_of(bits);
            sum += match down {
                0..=17 => mantissa << (17 - down),
                _ => {
                    let by = (down - 17).min(40);
                    let (whole, rest, half) =
                        (mantissa >> by, mantissa & ((1 << by) - 1), 1 << (by - 1));
                    whole + u64::from(rest > half || (rest == half && whole & 1 == 1))
                }
            };
        }
        assert!(sum < 1 << 51);
        (exponent, sum)
    };
    let blocks: Vec<_> = losses.chunks(BLOCK_ROWS).map(block).collect();
    let exponent = blocks.iter().map(|block| block.0).max().unwrap_or(1);
    let mut total = 0_u128;
    for (of_block, sum) in blocks {
        let down = exponent - of_block;
        total += if down >= 95 { 0 } else { (u128::from(sum) << 20) >> down };
    }
    let mut lowest = 0;
    while total >= 1 << 48 {
        (total, lowest) = (total >> 1, lowest + 1);
    }
    total as f64 * 2.0_f64.powi(exponent as i32 - 187 + lowest)
}

/// The sum in 400 bits, of which the leading ones are returned as an f64.
fn exact(losses: &[f32]) -> f64 {
    let mut words = [0_u128; 12];
    for loss in losses {
        let bits = loss.to_bits() & 0x7fff_ffff;
        let mantissa =
            u128::from((bits & 0x007f_ffff) | if bits >> 23 > 0 { 0x0080_0000 } else { 0 });
        let place = (bits >> 23).max(1) - 1;
        words[place as usize / 32] += mantissa << (place % 32);
    }
    let word = |(nth, &word): (usize, &u128)| word as f64 * 2.0_f64.powi(nth as i32 * 32 - 149);
    words.iter().enumerate().map(word).fold(0.0, |a, b| a + b)
}

fn assert_same(got: f64, wanted: f64, what: &str) {
    assert!(
        got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan()),
        "{what}: {got:e}, not {wanted:e}"
    );
}

const ROWS: [usize; 9] = [0, 1, 2, 10, 1023, 1024, 1025, 5000, 70_001];
/// The lowest exponent of losses, and how many there are.
const EXPONENTS: [(u32, u32); 9] =
    [(0, 1), (0, 2), (0, 30), (0, 255), (100, 17), (100, 20), (110, 60), (200, 55), (254, 1)];

#[test]
fn sums_are_those_of_integers() {
    let mut random = Random(1);
    for rows in ROWS {
        for (lowest, spread) in EXPONENTS {
            let losses = random.losses(rows, lowest, spread);
            let (got, what) =
                (sum_of_rows(&losses), format!("{rows} rows from {lowest} to {spread} more"));
            assert_same(got, reference(&losses), &what);
            // 2^-41 of the largest loss a row, and what the 48 bits leave out.
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
            let doubles: Vec<f64> = losses.iter().map(|&loss| f64::from(loss) / 3.0).collect();
            let (mut sum, mut of_doubles, mut at) = (RowSum::new(), RowSum::new(), 0);
            while at < rows {
                let most = [1, 10, 1024, 3000][random.below(4)];
                let end = rows.min(at + random.below(most + 1));
                sum.push(&losses[at..end]);
                of_doubles.push(&doubles[at..end]);
                at = end;
            }
            let (wanted, wanted_of_doubles) = (sum_of_rows(&losses), sum_of_rows(&doubles));
            assert_same(sum.total(), wanted, "pieces");
            assert_same(of_doubles.total(), wanted_of_doubles, "pieces of f64");

            let mut joined = Some((RowSum::new(), RowSum::new()));
            let mut at = 0;
            while at < rows {
                let end = rows.min(at + random.below(5) * BLOCK_ROWS);
                let (mut part, mut of_doubles) = (RowSum::new(), RowSum::new());
                part.push(&losses[at..end]);
                of_doubles.push(&doubles[at..end]);
                joined = joined.and_then(|(a, b)| Some((a.join(part)?, b.join(of_doubles)?)));
                at = end;
            }
            let (joined, joined_doubles) = joined.unwrap();
            assert_same(joined.total(), wanted, "parts");
            assert_same(joined_doubles.total(), wanted_of_doubles, "parts of f64");
            assert_eq!(
                joined.join(RowSum::new()).is_none(),
                !rows.is_multiple_of(BLOCK_ROWS),
                "{rows}"
            );
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
    let zero = |total: f64| assert_eq!(total.to_bits(), 0, "{total:?}");
    zero(RowSum::<f32>::new().total());
    zero(RowSum::<f64>::new().total());
    zero(sum_of_rows(&[-0.0_f32; 1500]));
    assert_eq!(sum_of_rows(&[f32::MAX; 2048]), 2048.0 * f64::from(f32::MAX));
    assert_eq!(sum_of_rows(&[f32::from_bits(1); 2048]), 2048.0 * 2.0_f64.powi(-149));
    assert_eq!(sum_of_rows(&[half::f16::ONE; 1500]), 1500.0);
    assert_eq!(sum_of_rows(&[half::bf16::ONE; 1500]), 1500.0);
    assert_eq!(block_of_f32(&[]).exponent, 1);
    assert_eq!(sum_of_f64(&[1.0; 13]), 13.0);
}
