//! Every method of every vector, at each level of this machine, against the same in plain Rust:
//! numbers of all kinds go in, and the same bits must come out (any NaN for a NaN).

use std::ops::{Add, Div, Mul, Sub};

use super::exp::exp_of;
use super::vector::Lane;
use super::*;

/// The operands of one round.
struct Operands<W> {
    a: [W; LANES],
    b: [W; LANES],
    c: [W; LANES],
    /// `c` without NaN.
    best: [W; LANES],
    wide: [f64; LANES],
    rows: [[W; LANES]; LANES],
    /// Rows that are folded to their largest elements.
    numbers: [[W; LANES]; LANES],
    count: usize,
    places: [u8; LANES],
    /// A multiple of the exponential's argument, and what is to be added to it.
    x: [W; LANES],
    base: ExpBase<W>,
}

/// The bits of the results of a method.
type Results = Vec<(&'static str, Vec<u64>)>;

/// The two types, in plain Rust.
trait Plain:
    Exp + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    fn from_random(bits: u64) -> Self;
    /// Returns the bits; the same for every NaN.
    fn bits(self) -> u64;
    fn one_rounding(self, b: Self, c: Self) -> Self;
    fn shifted(self) -> Self;
}

macro_rules! plain {
    ($ty:ident, $bits:ident, $shift:literal) => {
        impl Plain for $ty {
            fn from_random(bits: u64) -> Self {
                Self::from_bits(bits as $bits)
            }

            fn bits(self) -> u64 {
                if self.is_nan() { u64::MAX } else { self.to_bits().into() }
            }

            fn one_rounding(self, b: Self, c: Self) -> Self {
                self.mul_add(b, c)
            }

            fn shifted(self) -> Self {
                Self::from_bits(self.to_bits() << $shift)
            }
        }
    };
}
plain!(f32, u32, 23);
plain!(f64, u64, 52);

/// A number whose multiply-add rounds once, or twice.
#[derive(Clone, Copy)]
struct One<W, const IS_FUSED: bool>(W);

macro_rules! operators {
    ($($trait:ident $method:ident),*) => {$(
        impl<W: Plain, const IS_FUSED: bool> $trait for One<W, IS_FUSED> {
            type Output = Self;

            fn $method(self, other: Self) -> Self {
                Self(self.0.$method(other.0))
            }
        }
    )*};
}
operators!(Add add, Sub sub, Mul mul, Div div);

impl<W: Plain, const IS_FUSED: bool> Lane for One<W, IS_FUSED> {
    const IS_FUSED: bool = IS_FUSED;

    fn mul_add(self, b: Self, c: Self) -> Self {
        if IS_FUSED { Self(self.0.one_rounding(b.0, c.0)) } else { self * b + c }
    }

    fn at_least(self, low: Self) -> Self {
        if self.0 < low.0 { low } else { self }
    }

    fn at_most(self, high: Self) -> Self {
        if self.0 > high.0 { high } else { self }
    }

    fn power(self) -> Self {
        Self(self.0.shifted())
    }
}

/// A generator of all kinds of numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns any bits, or a small number, or a special one.
    fn number<W: Plain>(&mut self) -> W {
        let (kind, bits) = (self.next() % 4, self.next());
        let small = (bits % 17) as f64 - 8.0;
        let specials = [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            0.0,
            -0.0,
            W::MIN_NORMAL / 8.0,
            W::MIN_NORMAL / -16.0,
            1.0,
        ];
        match kind {
            0 => W::from_random(bits),
            1 => W::of(small),
            2 => W::of((bits as f64 / u64::MAX as f64 - 0.5) * 32.0),
            _ => W::of(specials[(bits % 8) as usize]),
        }
    }

    /// Returns an f64 that is beyond f32, or next to a number of that type or half way between two.
    fn wide(&mut self) -> f64 {
        let near = f64::from(self.number::<f32>()).to_bits();
        let bits = self.next();
        match bits % 4 {
            0 => f64::from_bits(bits),
            1 => f64::from_bits(near ^ (1 << 28)),
            2 => f64::from_bits(near ^ ((bits >> 8) & 0x3fff_ffff)),
            _ => f64::from_bits(near),
        }
    }

    fn operands<W: Plain>(&mut self) -> Operands<W> {
        let finite = |x: W, otherwise: W| if x.is_number() { x } else { otherwise };
        let c = std::array::from_fn(|_| self.number());
        let max = finite(self.number(), W::ZERO);
        Operands {
            a: std::array::from_fn(|_| self.number()),
            b: std::array::from_fn(|_| self.number()),
            c,
            best: c.map(|c| finite(c, W::ONE)),
            wide: std::array::from_fn(|_| self.wide()),
            rows: std::array::from_fn(|_| std::array::from_fn(|_| self.number())),
            numbers: std::array::from_fn(|_| {
                std::array::from_fn(|_| finite(self.number(), -W::ONE))
            }),
            count: self.next() as usize % (LANES + 1),
            places: std::array::from_fn(|_| (self.next() % LANES as u64) as u8),
            x: std::array::from_fn(|_| {
                // The larger exponents are those that are not 0.
                let below = W::of((self.next() % 4096) as f64 / -32.0);
                if self.next().is_multiple_of(8) { self.number() } else { max + below }
            }),
            base: W::exp_base(max),
        }
    }
}

/// Returns what the methods give at a level.
#[inline(always)]
fn found<I: Isa, W: Plain>(isa: I, operands: &Operands<W>) -> Results {
    let load = |values: &[W; LANES]| W::V::<I>::load(isa, values);
    let all = |value| W::V::<I>::splat(isa, value);
    let bits = |vector: W::V<I>| vector.array().map(W::bits).to_vec();
    let both = |(x, y): (W::V<I>, W::V<I>)| [bits(x), bits(y)].concat();
    let [a, b, c] = [load(&operands.a), load(&operands.b), load(&operands.c)];
    let rows = |rows: &[[W; LANES]; LANES]| {
        let mut vectors = [a; LANES];
        for row in 0..LANES {
            vectors[row] = load(&rows[row]);
        }
        vectors
    };
    let best = load(&operands.best);
    let ExpBase { offset, wide_offset, rounding_bias, underflow, log_power } = operands.base;
    let base = ExpBase {
        offset: all(offset),
        wide_offset,
        rounding_bias: all(rounding_bias),
        underflow: all(underflow),
        log_power,
    };
    let x = load(&operands.x);
    let (e, of_a) = (W::V::<I>::exp(isa, x, &base), W::V::<I>::exp(isa, a, &base));
    let wide = I::F64::load(isa, &operands.wide);
    vec![
        ("array", bits(a)),
        ("splat", bits(all(operands.a[0]))),
        ("add", bits(a + b)),
        ("sub", bits(a - b)),
        ("mul", bits(a * b)),
        ("div", bits(a / b)),
        ("mul_add", bits(Lane::mul_add(a, b, c))),
        ("at_least", bits(a.at_least(best))),
        ("at_most", bits(a.at_most(best))),
        ("power", bits(a.power())),
        ("larger", bits(a.larger(best))),
        ("where_equal", bits(a.where_equal(b, c, best))),
        ("equal", vec![a.equal(b).into()]),
        ("interleave", both(a.interleave(b))),
        ("deinterleave", both(a.deinterleave(b))),
        ("wide", a.wide(isa).array().map(f64::bits).to_vec()),
        ("of_wide", bits(W::V::<I>::of_wide(isa, wide))),
        ("first_lanes", bits(a.first_lanes(isa, operands.count, b))),
        ("spread", bits(W::V::<I>::spread(isa, &operands.a, &operands.places))),
        ("paired 8", both(a.paired::<8>(isa, b))),
        ("paired 4", both(a.paired::<4>(isa, b))),
        ("paired 2", both(a.paired::<2>(isa, b))),
        ("paired 1", both(a.paired::<1>(isa, b))),
        ("fold_rows", bits(W::V::<I>::fold_rows(isa, rows(&operands.rows), |x, y| x + y))),
        (
            "largest of fold_rows",
            bits(W::V::<I>::fold_rows(isa, rows(&operands.numbers), |x, y| x.larger(y))),
        ),
        ("total", vec![load(&operands.rows[0]).total().bits()]),
        ("largest", vec![load(&operands.numbers[0]).largest().bits()]),
        ("exp", bits(e)),
        ("exp of anything", bits(of_a)),
    ]
}

/// Returns what the methods have to give.
fn wanted<W: Plain, const IS_FUSED: bool>(operands: &Operands<W>) -> Results {
    let Operands { a, b, c, best, .. } = operands;
    let each = |value: &dyn Fn(usize) -> W| (0..LANES).map(|lane| value(lane).bits()).collect();
    let one = |value: W| One::<W, IS_FUSED>(value);
    let larger = |x: W, best: W| if x > best { x } else { best };
    let joined: Vec<W> = [*a, *b].concat();
    let of_joined =
        |lane: &dyn Fn(usize) -> usize| (0..2 * LANES).map(|at| joined[lane(at)].bits()).collect();
    let paired = |step: usize| {
        of_joined(&|at| {
            let (lane, is_across) = (at % LANES, at / LANES == 1);
            let vector = if lane & step == 0 { 0 } else { LANES };
            vector + if is_across { lane ^ step } else { lane }
        })
    };
    // Rows are folded by lanes that are eight apart, then four, two and one. Where the number of
    // the row has that bit, the later lanes come first.
    let fold = |row: usize, lanes: &[W; LANES], with: &dyn Fn(W, W) -> W| {
        let mut lanes = lanes.to_vec();
        for step in [8, 4, 2, 1] {
            let (early, late) = lanes.split_at(step);
            lanes = (0..step)
                .map(|at| match row & step {
                    0 => with(early[at], late[at]),
                    _ => with(late[at], early[at]),
                })
                .collect();
        }
        lanes[0]
    };
    let tree = |lanes: &[W; LANES], with: &dyn Fn(W, W) -> W| {
        let mut lanes = lanes.to_vec();
        while lanes.len() > 1 {
            lanes = lanes.chunks(2).map(|pair| with(pair[0], pair[1])).collect();
        }
        lanes[0]
    };
    let add = |x: W, y: W| x + y;
    let Operands { rows, numbers, x, base, .. } = operands;
    let ExpBase { offset, wide_offset, rounding_bias, underflow, log_power } = *base;
    let base = ExpBase {
        offset: one(offset),
        wide_offset,
        rounding_bias: one(rounding_bias),
        underflow: one(underflow),
        log_power,
    };
    let exp = |x: W| exp_of(one, one(x), &base).0;
    vec![
        ("array", each(&|lane| a[lane])),
        ("splat", each(&|_| a[0])),
        ("add", each(&|lane| a[lane] + b[lane])),
        ("sub", each(&|lane| a[lane] - b[lane])),
        ("mul", each(&|lane| a[lane] * b[lane])),
        ("div", each(&|lane| a[lane] / b[lane])),
        ("mul_add", each(&|lane| Lane::mul_add(one(a[lane]), one(b[lane]), one(c[lane])).0)),
        ("at_least", each(&|lane| if a[lane] < best[lane] { best[lane] } else { a[lane] })),
        ("at_most", each(&|lane| if a[lane] > best[lane] { best[lane] } else { a[lane] })),
        ("power", each(&|lane| a[lane].shifted())),
        ("larger", each(&|lane| larger(a[lane], best[lane]))),
        ("where_equal", each(&|lane| if a[lane] == b[lane] { c[lane] } else { best[lane] })),
        ("equal", vec![(0..LANES).map(|lane| u64::from(a[lane] == b[lane]) << lane).sum()]),
        ("interleave", of_joined(&|at| at / 2 + at % 2 * LANES)),
        ("deinterleave", of_joined(&|at| at % LANES * 2 + at / LANES)),
        ("wide", a.map(|a| Plain::bits(Into::<f64>::into(a))).to_vec()),
        ("of_wide", operands.wide.map(|wide| W::of(wide).bits()).to_vec()),
        ("first_lanes", each(&|lane| if lane < operands.count { a[lane] } else { b[lane] })),
        ("spread", each(&|lane| a[usize::from(operands.places[lane])])),
        ("paired 8", paired(8)),
        ("paired 4", paired(4)),
        ("paired 2", paired(2)),
        ("paired 1", paired(1)),
        ("fold_rows", each(&|row| fold(row, &rows[row], &add))),
        ("largest of fold_rows", each(&|row| fold(row, &numbers[row], &larger))),
        ("total", vec![tree(&rows[0], &add).bits()]),
        ("largest", vec![tree(&numbers[0], &larger).bits()]),
        ("exp", each(&|lane| exp(x[lane]))),
        ("exp of anything", each(&|lane| exp(a[lane]))),
    ]
}

fn check<W: Plain>(rounds: usize) {
    let mut random = Random(7);
    for _ in 0..rounds {
        let operands = random.operands::<W>();
        let (fused, rounded) = (wanted::<W, true>(&operands), wanted::<W, false>(&operands));
        for level in available() {
            let (found, is_fused) = at_level!(level, isa => fused_and_found(isa, &operands));
            let wanted = if is_fused { &fused } else { &rounded };
            assert_eq!(found.len(), wanted.len());
            for ((method, found), (_, wanted)) in found.iter().zip(wanted) {
                // Which of two zeros these return depends on the instruction set.
                let is_x86 = cfg!(any(target_arch = "x86", target_arch = "x86_64"));
                let any_zero = !is_x86
                    && level.name() != "portable"
                    && ["at_least", "at_most"].contains(method);
                let kept = |bits: &u64| {
                    let zero = Plain::bits(-W::ZERO);
                    if any_zero && *bits == zero { W::ZERO.bits() } else { *bits }
                };
                let [found, wanted]: [Vec<u64>; 2] =
                    [found, wanted].map(|bits| bits.iter().map(kept).collect());
                assert_eq!(found, wanted, "{method} at {level:?}");
            }
        }
    }
}

#[inline(always)]
fn fused_and_found<I: Isa, W: Plain>(isa: I, operands: &Operands<W>) -> (Results, bool) {
    (found(isa, operands), W::V::<I>::IS_FUSED)
}

#[test]
fn vectors_of_f32_give_the_same_bits_at_each_level() {
    check::<f32>(if crate::tier::is_full() { 100_000 } else { 2_000 });
}

#[test]
fn vectors_of_f64_give_the_same_bits_at_each_level() {
    check::<f64>(if crate::tier::is_full() { 100_000 } else { 2_000 });
}

#[test]
fn a_streamed_vector_is_written_whole() {
    #[repr(align(128))]
    struct Lines([u8; 256]);

    #[inline(always)]
    fn stream<I: Isa, const BYTES: usize>(isa: I, to: &mut Lines, values: &[u8; BYTES]) {
        let Some(to) = to.0.first_chunk_mut() else { unreachable!("{BYTES} of 256 bytes") };
        // SAFETY: the buffer starts at a multiple of 128, and the fence follows.
        unsafe { isa.stream(to, values) };
        isa.fence();
    }

    fn check<const BYTES: usize>() {
        for level in available() {
            let values = std::array::from_fn(|at| at as u8 ^ 0x5a);
            let mut lines = Lines([0; 256]);
            at_level!(level, isa => stream::<_, BYTES>(isa, &mut lines, &values));
            let (written, rest) = lines.0.split_at(BYTES);
            assert_eq!(written, values, "{level:?}");
            assert!(rest.iter().all(|&byte| byte == 0), "{level:?}");
        }
    }
    check::<32>();
    check::<64>();
    check::<128>();
}

#[test]
fn avx512_needs_no_more_than_its_oldest_processors_have() {
    #[cfg(target_arch = "x86_64")]
    {
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        assert_eq!(available().iter().any(|level| level.name() == "avx512"), has_all);
    }
}
