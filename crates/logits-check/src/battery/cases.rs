//! The battery: shapes around every border between kernels, filled with values that break softmax.

use logits::Reduction;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::Options;
use crate::oracle::{Expected, Labels};

/// One batch, and the options to take its loss with.
pub struct Case {
    /// The name of the values that the logits are filled with.
    pub fill: &'static str,
    /// Rows of the batch.
    pub rows: usize,
    /// Classes of a row.
    pub classes: usize,
    /// The logits, row by row.
    pub logits: Vec<f32>,
    /// The target of each row, or [`IGNORED`].
    pub targets: Vec<i64>,
    /// The options of the loss.
    pub options: Options,
}

/// The target of rows that do not count.
pub const IGNORED: i64 = -100;

impl Case {
    /// The logits of a row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.logits[row * self.classes..][..self.classes]
    }

    /// The loss and its gradient as the oracle computes them.
    pub fn expected(&self) -> Expected {
        let wide = |row: usize| self.row(row).iter().copied().map(f64::from).collect();
        let rows: Vec<Vec<f64>> = (0..self.rows).map(wide).collect();
        let labels: Vec<Labels<'_>> = self.targets.iter().copied().map(Labels::Class).collect();
        self.options.expected(&rows, &labels)
    }

    /// The name of the batch in a report.
    pub(super) fn name(&self) -> String {
        format!("{}x{} {}", self.rows, self.classes, self.fill)
    }

    /// The name of a row in a report.
    pub(super) fn row_name(&self, row: usize) -> String {
        format!("{}, row {row}", self.name())
    }

    /// The name of an element in a report.
    pub(super) fn element_name(&self, row: usize, class: usize) -> String {
        format!("{} class {class}", self.row_name(row))
    }
}

type Fill = (&'static str, fn(&mut StdRng, usize, usize) -> f32);

/// Values by row and class.
const FILLS: [Fill; 11] = [
    ("normal", |rng, _, _| normal(rng)),
    ("wide", |rng, _, _| 40.0 * normal(rng)),
    ("confident", |rng, row, class| {
        normal(rng) + if class == row * 7 { 17.0 + (row % 16) as f32 } else { 0.0 }
    }),
    ("far from 0", |rng, row, _| (if row.is_multiple_of(2) { 3e4 } else { -3e4 }) + normal(rng)),
    ("ties", |rng, _, _| rng.random_range(-2..=2) as f32),
    ("all equal", |_, row, _| row as f32 * 0.37 - 1.0),
    ("extreme", |rng, _, _| normal(rng) * 10.0_f32.powi(rng.random_range(-44..=38))),
    ("log-sum-exp near 0", |rng, _, _| normal(rng) * 1e-3),
    ("special", |rng, _, _| normal(rng)),
    (
        "deep",
        |rng, row, class| if (class + row) % 97 < 3 { 0.0 } else { rng.random_range(-86.0..-20.0) },
    ),
    ("subnormal", |rng, _, _| rng.random_range(-9000..=9000) as f32 * f32::from_bits(1)),
];

/// The shapes of the battery, from one element to a million classes and 300,000 rows.
pub const SHAPES: [(usize, usize); 24] = [
    (1, 1),
    (5, 1),
    (1, 2),
    (3, 7),
    (9, 8),
    (9, 9),
    (33, 10),
    (300, 16),
    (70, 17),
    (50, 100),
    (64, 129),
    (19, 257),
    (9, 1000),
    (7, 2047),
    (7, 2048),
    (7, 2049),
    (5, 4099),
    (3, 32_000),
    (2, 131_072),
    (2, 131_073),
    (2, 262_144),
    (3, 1_000_003),
    (300_000, 3),
    (70_000, 10),
];

/// Returns every fill of a shape, or only some if it is large, so that the battery takes seconds.
pub fn of_shape(rows: usize, classes: usize) -> impl Iterator<Item = Case> {
    let elements = rows * classes;
    let is_quick = move |name| match name {
        "normal" | "confident" | "special" => true,
        // Equal maxima in different segments of a split row.
        "ties" => elements < 1_000_000,
        _ => elements < 200_000,
    };
    FILLS
        .iter()
        .enumerate()
        .filter(move |(_, (name, _))| is_quick(name))
        .map(move |(nth, fill)| build(nth, *fill, rows, classes))
}

fn build(nth: usize, (name, fill): Fill, rows: usize, classes: usize) -> Case {
    let mut rng = StdRng::seed_from_u64((rows * 31 + classes * 7 + nth) as u64);
    let mut logits: Vec<f32> = Vec::with_capacity(rows * classes);
    for row in 0..rows {
        logits.extend((0..classes).map(|class| fill(&mut rng, row, class)));
    }
    let mut targets: Vec<i64> = (0..rows).map(|_| rng.random_range(0..classes as i64)).collect();
    match name {
        "confident" => {
            // A target on the large logit, next to it, and ignored.
            for (row, target) in targets.iter_mut().enumerate() {
                match row % 4 {
                    0 | 1 if row * 7 < classes => *target = (row * 7) as i64,
                    2 => *target = IGNORED,
                    _ => {}
                }
            }
        }
        "log-sum-exp near 0" => {
            // max + log(classes) is within 1e-3 of 0.
            let shift = (classes as f32).ln();
            logits.iter_mut().for_each(|x| *x -= shift);
        }
        "special" => specials(&mut logits, &mut targets, classes),
        _ => {}
    }
    let options = options(nth, name, rows, classes);
    Case { fill: name, rows, classes, logits, targets, options }
}

/// The options that the loss of a fill is taken with.
fn options(nth: usize, fill: &str, rows: usize, classes: usize) -> Options {
    let weights = || (0..classes).map(|class| (class % 5) as f32 * 0.5 + 0.25).collect();
    Options {
        ignored: vec![IGNORED],
        weight: (nth % 4 == 2).then(weights),
        // Smoothing is tried with weights and without; special values are tried with it and
        // without.
        label_smoothing: match fill {
            "wide" | "extreme" => 0.1,
            "confident" => 0.25,
            "all equal" => 1.0,
            "special" if classes % 2 == 1 => 0.1,
            _ => 0.0,
        },
        z_loss: match fill {
            "confident" | "ties" | "far from 0" => 1e-2,
            "special" if rows % 2 == 1 => 1e-2,
            _ => 0.0,
        },
        reduction: [Reduction::Sum, Reduction::Mean, Reduction::None][nth % 3],
        upstream: if nth.is_multiple_of(2) { 1.0 } else { -2.5 },
        ..Options::default()
    }
}

/// Fills rows with one of the special values each in turn, and every fourth row with none.
fn specials(logits: &mut [f32], targets: &mut [i64], classes: usize) {
    let infinity = f32::INFINITY;
    for (row, (x, target)) in logits.chunks_exact_mut(classes).zip(targets).enumerate() {
        let middle = classes / 2;
        match row % 12 {
            0 => x[middle] = f32::NAN,
            1 => x[classes - 1] = f32::from_bits(0xffc0_0001), // a negative NaN, as 0/0 is on x86
            2 => x[middle] = infinity,
            4 => x.fill(-infinity),
            5 => {
                x[middle] = -infinity;
                *target = middle as i64;
            }
            6 => {
                x.fill(-infinity);
                x[middle] = 1.5;
            }
            8 => {
                x[0] = infinity;
                x[classes - 1] = f32::NAN;
            }
            9 => {
                x.fill(f32::NAN);
                *target = IGNORED;
            }
            10 => {
                // -0 and 0 tie, among subnormal numbers.
                x.fill(-0.0);
                x[middle] = 0.0;
                x[classes - 1] = f32::from_bits(7);
            }
            _ => {}
        }
    }
}

fn normal(rng: &mut StdRng) -> f32 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}
