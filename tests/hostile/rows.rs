//! Rows of logits over the whole range of f32. Kinds of rows repeat with other numbers.

/// Numbers that are the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Returns a number from 0 to 1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Returns a number from `-most` to `most`.
    pub fn within(&mut self, most: f32) -> f32 {
        (2.0 * self.unit() - 1.0) * most
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[(self.next() % all.len() as u64) as usize]
    }
}

type Fill = fn(&mut Random, &mut [f32]);

fn around(random: &mut Random, x: &mut [f32], middle: f32, most: f32) {
    x.iter_mut().for_each(|x| *x = middle + random.within(most));
}

fn somewhere(random: &mut Random, x: &[f32]) -> usize {
    ((random.unit() * x.len() as f32) as usize).min(x.len() - 1)
}

/// Rows whose losses have a finite sum.
const REGULAR: [(&str, Fill); 17] = [
    ("ordinary", |random, x| around(random, x, 0.0, 8.0)),
    ("[20, 0, ...]", |_, x| {
        x.fill(0.0);
        x[0] = 20.0;
    }),
    ("confident", |random, x| {
        around(random, x, 0.0, 0.5);
        x[0] = 8.0 + 76.0 * random.unit();
    }),
    ("two confident", |random, x| {
        around(random, x, -3.0, 2.0);
        let top = 10.0 + 30.0 * random.unit();
        x[0] = top;
        let at = somewhere(random, x);
        x[at] = top + random.within(0.01);
    }),
    ("equal", |random, x| {
        let value = random.within(20.0);
        x.fill(value);
    }),
    ("zeros of both signs", |random, x| {
        x.iter_mut().for_each(|x| *x = random.one_of(&[0.0, -0.0]))
    }),
    ("across 256", |random, x| around(random, x, 256.0, 4.0)),
    ("across -256", |random, x| around(random, x, -256.0, 4.0)),
    ("across 256, one far above", |random, x| {
        around(random, x, 254.0, 3.0);
        let at = somewhere(random, x);
        x[at] = 290.0 + random.within(40.0);
    }),
    ("wide", |random, x| around(random, x, 0.0, 100.0)),
    ("a few far above the others", |random, x| {
        let depth = random.one_of(&[-20.0, -60.0, -80.0, -86.0]);
        around(random, x, depth, 0.05);
        let few = (x.len() / 2).min(3);
        x[..few].fill(0.0);
    }),
    ("down to 86 below the largest", |random, x| {
        around(random, x, 3.0, 43.0);
        let at = somewhere(random, x);
        x[at] = 46.0;
    }),
    ("log-sum-exp about 0", |random, x| {
        let middle = -(x.len() as f32).ln();
        around(random, x, middle, 0.1);
    }),
    ("near a large number", |random, x| {
        let middle = random.one_of(&[1e3, -1e3, 1e4, -1e4, 1e5]);
        around(random, x, middle, 4.0);
    }),
    ("large", |random, x| around(random, x, 0.0, 1e4)),
    ("tiny", |random, x| around(random, x, 0.0, 1e-30)),
    ("subnormal", |random, x| around(random, x, 0.0, 1e-39)),
];

/// Rows whose losses may be infinite, NaN or beyond f32.
const IRREGULAR: [(&str, Fill); 11] = [
    ("huge", |random, x| around(random, x, 0.0, 3e38)),
    ("near a huge number", |random, x| {
        let middle = random.one_of(&[3e38, -3e38, 1e30, -1e20]);
        x.iter_mut()
            .for_each(|x| *x = random.one_of(&[middle, middle * 0.999_999_9, middle * 0.5]));
    }),
    ("a huge one", |random, x| {
        around(random, x, 0.0, 8.0);
        let at = somewhere(random, x);
        x[at] = random.one_of(&[3e38, -3e38, 1e20, -1e20]);
    }),
    ("huge of both signs", |random, x| {
        x.iter_mut().for_each(|x| *x = random.one_of(&[3e38, -3e38, 0.0]))
    }),
    ("an infinity below", |random, x| {
        around(random, x, 0.0, 8.0);
        let at = somewhere(random, x);
        x[at] = f32::NEG_INFINITY;
    }),
    ("one beside infinities below", |random, x| {
        x.fill(f32::NEG_INFINITY);
        let at = somewhere(random, x);
        x[at] = random.within(300.0);
    }),
    ("huge and an infinity below", |random, x| {
        around(random, x, 0.0, 3e38);
        x[0] = f32::NEG_INFINITY;
    }),
    ("a NaN", |random, x| {
        around(random, x, 0.0, 8.0);
        let at = somewhere(random, x);
        x[at] = random.one_of(&[f32::NAN, -f32::NAN]);
    }),
    ("an infinity", |random, x| {
        around(random, x, 0.0, 8.0);
        let at = somewhere(random, x);
        x[at] = f32::INFINITY;
    }),
    ("infinities below", |_, x| x.fill(f32::NEG_INFINITY)),
    ("an infinity and a NaN", |random, x| {
        around(random, x, 0.0, 8.0);
        x[0] = f32::INFINITY;
        let last = x.len() - 1;
        x[last] = f32::NAN;
    }),
];

/// A row, its kind, and its target.
pub struct Row {
    pub x: Vec<f32>,
    pub kind: &'static str,
    /// None if the row is not counted.
    pub target: Option<usize>,
}

/// Returns `count` rows, each kind in turn.
pub fn rows(count: usize, classes: usize, only_regular: bool) -> Vec<Row> {
    let mut random = Random::new(classes as u64);
    let irregular = IRREGULAR.into_iter().filter(|_| !only_regular);
    let kinds: Vec<_> = REGULAR.into_iter().chain(irregular).collect();
    (0..count)
        .map(|row| {
            let (kind, fill) = kinds[row % kinds.len()];
            let mut x = vec![0.0; classes];
            fill(&mut random, &mut x);
            // Every second target is class 0, which is likely to be the largest.
            let turn = row / kinds.len();
            let target = if turn.is_multiple_of(2) { 0 } else { (turn * 7 + row) % classes };
            Row { x, kind, target: (row % 37 != 36).then_some(target) }
        })
        .collect()
}
