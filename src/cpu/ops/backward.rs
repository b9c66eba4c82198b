//! The backward of softmax, p_j * (g_j - sum_k g_k * p_k), and of log-softmax, g_j - exp(l_j) *
//! sum_k g_k, from their results. Counterpart of `shaders/backward.wgsl`.
//!
//! A scale of the logits is a factor of the gradient alone.
//!
//! Both are computed in the type of the lanes, which rounds each term of a difference by no more
//! than a few units in the last place of that term, as PyTorch does. The rows whose terms may be
//! beyond that type although the gradient is not are computed in f64 ([`WideRows`]).

use crate::cpu::RowOperands;
use crate::cpu::rows::{Lanes, Place, Rows, Wide};
use crate::cpu::simd::{Exp, Lane, Real, Vector};
use crate::cpu::transform::{ExpBaseLanes, LogitTransform};

/// The largest number of the type is divided by this, 2^26, for the largest sum of rows that are
/// not computed in f64.
const ROOM: f64 = (1_u32 << 26) as f64;

/// Returns whether the type holds `scale` as a normal number, and `scale` times what a subnormal
/// term has lost is still subnormal.
#[inline(always)]
fn is_moderate<W: Exp>(scale: f64) -> bool {
    (W::MIN_NORMAL..=1024.0).contains(&scale.abs())
}

/// The rows that are computed in f64: all of them where the scale is not moderate, else those whose
/// sum is beyond 2^-26 of the largest number. The sums of all others are so small that neither
/// g - sum nor a product of the sum and a probability is beyond the type. The values of a row alone
/// decide.
struct WideRows<W, const N: usize> {
    /// 1 for these rows, else 0.
    flags: [W; N],
    any: bool,
}

impl<W: Exp, const N: usize> WideRows<W, N> {
    #[inline(always)]
    fn new(sums: &[f64; N], is_known: &[bool; N], scale: f64) -> Self {
        let is_moderate = is_moderate::<W>(scale);
        let mut rows = Self { flags: [W::ZERO; N], any: false };
        for row in 0..N {
            // False where the sum is NaN.
            let is_small = sums[row].abs() <= W::LARGEST_NUMBER / ROOM;
            let is_plain = is_moderate & is_known[row] & is_small;
            rows.flags[row] = if is_plain { W::ZERO } else { W::ONE };
            rows.any |= !is_plain;
        }
        rows
    }
}

/// Writes `plain` of each vector, and `wide` in the lanes of `wide_rows`.
#[inline(always)]
fn write<R: Rows<N>, const N: usize>(
    rows: &mut R,
    wide_rows: &WideRows<R::W, N>,
    plain: impl Fn(Place<'_>, Lanes<R, N>) -> Lanes<R, N> + Sync,
    wide: impl Fn(Place<'_>, Lanes<R, N>) -> Wide<R, N> + Sync,
) {
    if !wide_rows.any {
        return rows.map(plain);
    }
    let isa = rows.isa();
    rows.map(
        #[inline(always)]
        |place, x| {
            let flags: Lanes<R, N> = place.of_row(isa, &wide_rows.flags);
            let zero = Lanes::<R, N>::splat(isa, R::W::ZERO);
            let wide = Lanes::<R, N>::of_wide(isa, wide(place, x));
            flags.where_equal(zero, plain(place, x), wide)
        },
    );
}

/// Computes the backward of softmax, from probabilities p. The dot product is split into two
/// numbers of the type of the lanes, so that it is not rounded where it is next to g.
///
/// ```text
/// for each class: dot += g p
/// dot = high + low
/// for each class: out = p ((g - high) - low) scale
/// ```
#[inline(always)]
pub(in crate::cpu) fn rows<R: Rows<N>, const N: usize>(
    rows: &mut R,
    operands: &RowOperands<'_, R::W, N>,
) {
    let isa = rows.isa();
    let (scale, upstream) = (operands.transform.scale, operands.elementwise);
    let [dots] = rows.narrow_sums(
        (is_moderate::<R::W>(scale), 0.0),
        #[inline(always)]
        |place, p| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            [g * p]
        },
        #[inline(always)]
        |place, p| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            [g.wide(isa) * p.wide(isa)]
        },
    );
    let (mut high, mut low) = ([R::W::ZERO; N], [R::W::ZERO; N]);
    for row in 0..N {
        high[row] = R::W::of(dots[row]);
        low[row] = R::W::of(dots[row] - high[row].into());
    }
    write(
        rows,
        &WideRows::new(&dots, &[true; N], scale),
        #[inline(always)]
        |place, p| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            let centred = (g - place.of_row(isa, &high)) - place.of_row(isa, &low);
            p * centred * Lanes::<R, N>::splat(isa, R::W::of(scale))
        },
        #[inline(always)]
        |place, p| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            let centred = g.wide(isa) - place.of_row(isa, &dots);
            p.wide(isa) * centred * Wide::<R, N>::splat(isa, scale)
        },
    );
}

/// Computes the backward of log-softmax, from log-probabilities l. The first loop also adds
/// `excess`, the part of l above 0. Where it is at most 1, exp(l) is a number. Reading l there
/// brings it into the caches for the second loop.
///
/// ```text
/// for each class: sum += g;  excess += max(l, 0)
/// for each class: out = (g - exp(l) sum) scale
/// ```
#[inline(always)]
pub(in crate::cpu) fn log_rows<R: Rows<N>, const N: usize>(
    rows: &mut R,
    operands: &RowOperands<'_, R::W, N>,
) {
    let (isa, transform) = (rows.isa(), rows.transform());
    let (scale, upstream) = (operands.transform.scale, operands.elementwise);
    let [sums, excess] = rows.narrow_sums(
        (is_moderate::<R::W>(scale), 0.0),
        #[inline(always)]
        |place, l| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            [g, l.at_least(Lanes::<R, N>::splat(isa, R::W::ZERO))]
        },
        #[inline(always)]
        |place, l| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            [g.wide(isa), l.wide(isa).at_least(Wide::<R, N>::splat(isa, 0.0))]
        },
    );
    let (mut minus_sums, mut is_known) = ([R::W::ZERO; N], [false; N]);
    for row in 0..N {
        minus_sums[row] = R::W::of(-sums[row]);
        // False where the sum is NaN.
        is_known[row] = excess[row] <= 1.0;
    }
    // Exponentials relative to it are probabilities.
    let base = ExpBaseLanes::of_row(isa, &transform.base_of_value(R::W::ZERO));
    write(
        rows,
        &WideRows::new(&sums, &is_known, scale),
        #[inline(always)]
        |place, l| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            let p: Lanes<R, N> = transform.exp::<R::I, R::W>(isa, l, &base);
            let value = p.mul_add(place.of_row(isa, &minus_sums), g);
            value * Lanes::<R, N>::splat(isa, R::W::of(scale))
        },
        #[inline(always)]
        |place, l| {
            let g: Lanes<R, N> = place.of_element(isa, upstream);
            let p = transform.exp_or_infinity::<R::I, R::W>(isa, l, &base);
            let sum: Wide<R, N> = place.of_row(isa, &sums);
            (g.wide(isa) - p.wide(isa) * sum) * Wide::<R, N>::splat(isa, scale)
        },
    );
}
