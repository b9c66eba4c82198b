//! Pairwise covering arrays: few cases in which every value of an option meets every value of every
//! other option.
//!
//! The loss's nine options have 3,456 combinations, and a driver compiles a pipeline or two for
//! most of them. A fault that takes two options to show is found by any set of cases that holds
//! every pair of values, and a few dozen cases suffice. [`sample`] picks them greedily, as AETG
//! does (Cohen, Dalal, Fredman and Patton 1997, "The AETG system"), from all cases instead of from
//! random candidates:
//!
//! ```text
//! missing = every pair of values of two axes that any case holds
//! until missing is empty:
//!     take the case that holds most of missing, of equal ones the first
//!     missing -= its pairs
//! ```

use std::collections::HashSet;

use logits::Device;

use crate::common::{self, Share};
use crate::tier;

/// Returns every combination of `sizes[axis]` values of each axis.
pub fn product(sizes: &[usize]) -> Vec<Vec<usize>> {
    let count = sizes.iter().product();
    let case = |mut nth: usize| {
        let digit = |&size: &usize| {
            let value = nth % size;
            nth /= size;
            value
        };
        sizes.iter().map(digit).collect()
    };
    (0..count).map(case).collect()
}

/// Returns which of `cases` a device runs, by [`common::share`]: all of them, or a [`sample`] of
/// pairs or of single values. The CPU takes no more than a sample of those that are `large`.
pub fn cases(
    device: &Device,
    cases: &[Vec<usize>],
    large: impl Fn(&[usize]) -> bool,
) -> Vec<usize> {
    match common::share(device) {
        Share::Values => sample(cases, 1),
        Share::Pairs => sample(cases, 2),
        Share::All if tier::is_full() => (0..cases.len()).collect(),
        Share::All => {
            let sample = sample(cases, 2);
            (0..cases.len()).filter(|nth| !large(&cases[*nth]) || sample.contains(nth)).collect()
        }
    }
}

/// Returns which of `cases`, each a value on every axis, together hold every value that any case
/// holds (`strength` 1), or every pair of values (`strength` 2).
pub fn sample(cases: &[Vec<usize>], strength: usize) -> Vec<usize> {
    let mut missing: HashSet<Pair> = cases.iter().flat_map(|case| pairs(case, strength)).collect();
    let mut taken = Vec::new();
    while !missing.is_empty() {
        let gain =
            |case: &Vec<usize>| pairs(case, strength).filter(|pair| missing.contains(pair)).count();
        let Some(best) = (0..cases.len()).rev().max_by_key(|&nth| gain(&cases[nth])) else { break };
        for pair in pairs(&cases[best], strength) {
            missing.remove(&pair);
        }
        taken.push(best);
    }
    taken
}

/// Two axes, each with a value; a value alone is a pair with itself.
type Pair = [(usize, usize); 2];

fn pairs(case: &[usize], strength: usize) -> impl Iterator<Item = Pair> {
    let place = |axis: usize| (axis, case[axis]);
    let partners = move |b: usize| if strength == 1 { b..b + 1 } else { 0..b };
    (0..case.len()).flat_map(move |b| partners(b).map(move |a| [place(a), place(b)]))
}

#[test]
fn a_sample_holds_every_pair() {
    for sizes in [vec![2, 2], vec![3, 1, 4], vec![4, 2, 3, 2, 2, 3, 3, 2, 2], vec![2; 10]] {
        // All cases, and all but a fifth, as if one option excluded another.
        for is_whole in [true, false] {
            let mut cases = product(&sizes);
            cases.retain(|case| is_whole || (case[0] + 2 * case[1]) % 5 != 1);
            let taken = sample(&cases, 2);
            // Pairs are counted in another way than by `sample`.
            for b in 0..sizes.len() {
                for (a, x, y) in (0..b).flat_map(|a| {
                    product(&[sizes[a], sizes[b]]).into_iter().map(move |v| (a, v[0], v[1]))
                }) {
                    let holds = |case: &Vec<usize>| case[a] == x && case[b] == y;
                    let (wanted, got) =
                        (cases.iter().any(holds), taken.iter().any(|&nth| holds(&cases[nth])));
                    assert_eq!(got, wanted, "{x} of axis {a} with {y} of axis {b} in {sizes:?}");
                }
            }
            let mut longest = sizes.clone();
            longest.sort_unstable();
            let least = longest.iter().rev().take(2).product::<usize>();
            println!(
                "{sizes:?}: {} of {} cases; no fewer than {least} can do",
                taken.len(),
                cases.len()
            );
            assert!(taken.len() <= 2 * least + 4);
            // Every value is held, by the smallest possible number of cases.
            let taken = sample(&cases, 1);
            for (axis, value) in
                cases.iter().flatten().enumerate().map(|(at, &value)| (at % sizes.len(), value))
            {
                assert!(
                    taken.iter().any(|&nth| cases[nth][axis] == value),
                    "{value} of axis {axis} in {sizes:?}"
                );
            }
            assert!(taken.len() <= longest.last().map_or(0, |most| most + 2));
        }
    }
}
