//! Rows of logits over the range of a type, and their softmax in float64 by definition.

use logits::{DType, Element};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::tier;

/// How far the smallest logits are below the largest. exp(-86) is 4.5e-38, and the least normal f32
/// 1.2e-38.
const DEPTHS: [f64; 4] = [-20.0, -70.0, -80.0, -86.0];

/// A type of logits.
pub struct Kind<T: Element> {
    pub narrow: fn(f64) -> T,
    /// Rounds to the type of log-sum-exps and losses.
    pub narrow_row: fn(f64) -> T::Row,
    /// The largest magnitude among logits, and the least number above 0.
    ends: [f64; 2],
    /// The factors of gradients.
    factors: [f32; 4],
}

impl<T: Element> Kind<T> {
    pub fn new(narrow: fn(f64) -> T, narrow_row: fn(f64) -> T::Row) -> Self {
        let ends = match T::DTYPE {
            DType::F16 => [6e4, 2.0_f64.powi(-24)],
            DType::BF16 => [3e38, 2.0_f64.powi(-133)],
            _ => [3e38, 2.0_f64.powi(-149)],
        };
        let factors =
            if T::DTYPE == DType::F16 { [1.0, 1e-4, 1e-2, 1e4] } else { [1.0, 1e-35, 1e-20, 1e30] };
        Self { narrow, narrow_row, ends, factors }
    }
}

/// The name of a kind of rows, and the function that fills a row, from a depth or from the ends of
/// the type.
type Fill<E> = (&'static str, fn(&mut StdRng, &mut [f64], E));

/// Rows with their smallest logits at a depth.
const AT_DEPTHS: [Fill<f64>; 4] = [
    ("a few at 0, the others at", |rng, x, depth| {
        let few = (x.len() / 2).min(3);
        x[few..].fill_with(|| depth + rng.random_range(-0.05..0.05));
    }),
    ("one far from 0, the others below it by", |rng, x, depth| {
        let top = rng.random_range(-300.0..300.0);
        x.fill_with(|| top + depth + rng.random_range(-0.5..0.5));
        let at = rng.random_range(0..x.len());
        x[at] = top;
    }),
    ("anywhere down to", |rng, x, depth| {
        x.fill_with(|| rng.random_range(depth..0.0));
        let at = rng.random_range(0..x.len());
        x[at] = 0.5;
    }),
    // Every logit is a new maximum.
    ("rising from", |rng, x, depth| {
        let step = depth / x.len() as f64;
        (0_u32..)
            .zip(x.iter_mut())
            .for_each(|(j, x)| *x = depth - step * (f64::from(j) + rng.random_range(0.0..1.0)));
    }),
];

/// Rows without a depth. A fill gets the largest magnitude of its type and its least number above
/// 0.
const OTHERS: [Fill<[f64; 2]>; 8] = [
    ("the others at the least normal number", |rng, x, _| {
        let top = rng.random_range(-3.0..3.0);
        x.fill_with(|| top + rng.random_range(-87.3..-86.5));
        let at = rng.random_range(0..x.len());
        x[at] = top;
    }),
    ("the others below all normal numbers", |rng, x, _| {
        x.fill_with(|| rng.random_range(-110.0..-88.0));
        let at = rng.random_range(0..x.len());
        x[at] = 0.0;
    }),
    ("of both signs at the largest magnitude", |rng, x, [most, _]| {
        x.fill_with(|| [most, most * (1.0 - 1e-7), most * 0.5, 0.0, -most][rng.random_range(0..5)]);
    }),
    ("below 0 at the largest magnitude", |rng, x, [most, _]| {
        x.fill_with(|| -most * [1.0, 1.0 - 1e-7][rng.random_range(0..2)]);
    }),
    ("subnormal numbers", |rng, x, [_, least]| {
        x.fill_with(|| least * f64::from(rng.random_range(-9000..9000)))
    }),
    ("subnormal numbers, every second one 80 lower", |rng, x, [_, least]| {
        x.fill_with(|| least * f64::from(rng.random_range(-9000..9000)));
        x.iter_mut().skip(1).step_by(2).for_each(|x| *x -= 80.0);
    }),
    ("a log-sum-exp next to 0", |rng, x, _| {
        let middle = -(x.len() as f64).ln();
        x.fill_with(|| middle + rng.random_range(-1e-3..1e-3));
    }),
    ("equal", |_, x, _| x.fill(-1.3)),
];

/// Returns the sum of the terms as a rounded sum and what that has lost (Neumaier).
fn sum_in_two(terms: impl Iterator<Item = f64>) -> [f64; 2] {
    terms.fold([0.0; 2], |[sum, rest], term| {
        let next = sum + term;
        let lost = if sum.abs() >= term.abs() { (sum - next) + term } else { (term - next) + sum };
        [next, rest + lost]
    })
}

/// Returns the sum of the terms, rounded once.
pub fn sum_of(terms: impl Iterator<Item = f64>) -> f64 {
    let [sum, rest] = sum_in_two(terms);
    sum + rest
}

/// Returns exp(a - b), where the difference may have been rounded.
fn exp_of_difference(a: f64, b: f64) -> f64 {
    let d = a - b;
    // The rounding error of `d` (Knuth); 0 where `d` is so far below 0 that the exponential is 0.
    let lost = if d < -1000.0 { 0.0 } else { (a - (d + (a - d))) + ((a - d) - b) };
    let e = d.exp();
    e + e * lost
}

/// One row of a batch, in float64.
pub struct Row {
    pub kind: String,
    pub x: Vec<f64>,
    /// Its first largest logit.
    pub top: usize,
    /// The sum of exp(x - largest) over all classes except `top`.
    pub others: f64,
    pub log_sum_exp: f64,
    pub p: Vec<f64>,
    pub target: usize,
}

impl Row {
    fn new(kind: String, x: Vec<f64>, nth: usize) -> Self {
        let top = (0..x.len()).fold(0, |top, j| if x[j] > x[top] { j } else { top });
        let mut p: Vec<f64> = x.iter().map(|&x_j| exp_of_difference(x_j, x[top])).collect();
        let others = sum_of(p[..top].iter().chain(&p[top + 1..]).copied());
        let mut log_sum_exp = x[top] + others.ln_1p();
        // Next to 0 the two have cancelled, so it is the logarithm of the whole sum. The largest
        // terms come first, for the others not to be what a sum next to 1 loses.
        if log_sum_exp.abs() < 0.5 {
            let below = x[..top].iter().chain(&x[top + 1..]);
            let largest = [-1.0, x[top].exp()].into_iter();
            log_sum_exp = sum_of(largest.chain(below.map(|x_j| x_j.exp()))).ln_1p();
        }
        p.iter_mut().for_each(|p| *p /= 1.0 + others);
        let target = [top, x.len() - 1, nth * 7919 % x.len()][nth % 3];
        Self { kind, x, top, others, log_sum_exp, p, target }
    }

    pub fn log_p(&self, class: usize) -> f64 {
        (self.x[class] - self.x[self.top]) - self.others.ln_1p()
    }

    /// -sum p log p, of which no term is negative.
    pub fn entropy(&self) -> f64 {
        sum_of((0..self.x.len()).map(|class| self.p[class] * -self.log_p(class)))
    }

    /// p - 1 of the class, from the other classes.
    pub fn less_one(&self, class: usize) -> f64 {
        let beside: f64 =
            if class == self.top { self.others / (1.0 + self.others) } else { 1.0 - self.p[class] };
        -beside
    }
}

/// A batch of rows of every kind.
pub struct Batch<T: Element> {
    pub kind: Kind<T>,
    pub classes: usize,
    pub rows: Vec<Row>,
    pub x: Vec<T>,
    pub targets: Vec<u32>,
    /// The values that upstream gradients are multiples of, repeated.
    pub noise: Vec<f64>,
}

impl<T: Element> Batch<T> {
    pub fn new(kind: Kind<T>, classes: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(classes as u64);
        let mut rows = Vec::new();
        let mut add = |name: String, x: &[f64]| {
            // The logits rounded to the type.
            let x = x.iter().map(|&x| (kind.narrow)(x).into()).collect();
            rows.push(Row::new(name, x, rows.len()));
        };
        for (nth, (name, fill)) in AT_DEPTHS.into_iter().enumerate() {
            for (turn, depth) in DEPTHS.into_iter().enumerate() {
                // By default every second one of the widest rows, which take as long as all others.
                if !tier::is_full() && classes > 100_000 && (nth + turn) % 2 == 0 {
                    continue;
                }
                let mut x = vec![0.0; classes];
                fill(&mut rng, &mut x, depth);
                add(format!("{name} {depth}"), &x);
            }
        }
        for (name, fill) in OTHERS {
            let mut x = vec![0.0; classes];
            fill(&mut rng, &mut x, kind.ends);
            add(name.to_owned(), &x);
        }
        let x = rows.iter().flat_map(|row| &row.x).map(|&x| (kind.narrow)(x)).collect();
        let targets = rows.iter().map(|row| row.target as u32).collect();
        let noise = (0..251).map(|_| rng.random_range(-1.0..1.0)).collect();
        Self { kind, classes, rows, x, targets, noise }
    }

    /// The factors of gradients; for wide rows by default 1 and the least.
    pub fn factors(&self) -> &[f32] {
        let is_quick = self.classes > 10_000 && !tier::is_full();
        if is_quick { &self.kind.factors[..2] } else { &self.kind.factors }
    }

    pub fn shape(&self) -> [usize; 2] {
        [self.rows.len(), self.classes]
    }
}
