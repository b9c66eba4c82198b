//! Pairwise covering arrays: few cases in which every value of an option meets every value of every other option.
//!
//! The loss's nine options have 3,456 combinations, and a driver compiles a pipeline or two for most of them. A fault that
//! takes two options to show is found by any set of cases that holds every pair of values, and few dozen cases do. [`sample`]
//! picks them greedily, as AETG does (Cohen, Dalal, Fredman and Patton 1997, "The AETG system"), from all cases instead of
//! from random candidates:
//!
//! ```text
//! missing = every pair of values of two axes that any case holds
//! until missing is empty:
//!     take the case that holds most of missing, of equal ones the first
//!     missing -= its pairs
//! ```

use std::collections::HashSet;

use logits::Device;

use crate::tier;

/// Every combination of `sizes[axis]` values of each axis.
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

/// Which of `cases` a device runs: all of them where [`tier::is_full`] asks for that; else a [`sample`], and on the CPU all that
/// are not `large`, too.
pub fn cases(device: &Device, cases: &[Vec<usize>], large: impl Fn(&[usize]) -> bool) -> Vec<usize> {
    let sample = sample(cases);
    let is_taken = |&nth: &usize| tier::is_full() || (!device.is_gpu() && !large(&cases[nth])) || sample.contains(&nth);
    (0..cases.len()).filter(is_taken).collect()
}

/// Which of `cases`, each a value on every axis, hold together every pair of values that any of them holds.
pub fn sample(cases: &[Vec<usize>]) -> Vec<usize> {
    let mut missing: HashSet<Pair> = cases.iter().flat_map(|case| pairs(case)).collect();
    let mut taken = Vec::new();
    while !missing.is_empty() {
        let gain = |case: &Vec<usize>| pairs(case).filter(|pair| missing.contains(pair)).count();
        let Some(best) = (0..cases.len()).rev().max_by_key(|&nth| gain(&cases[nth])) else { break };
        for pair in pairs(&cases[best]) {
            missing.remove(&pair);
        }
        taken.push(best);
    }
    taken
}

/// Two axes, each with a value.
type Pair = [(usize, usize); 2];

fn pairs(case: &[usize]) -> impl Iterator<Item = Pair> {
    let place = |axis: usize| (axis, case[axis]);
    (0..case.len()).flat_map(move |b| (0..b).map(move |a| [place(a), place(b)]))
}

#[test]
fn a_sample_holds_every_pair() {
    for sizes in [vec![2, 2], vec![3, 1, 4], vec![4, 2, 3, 2, 2, 3, 3, 2, 2], vec![2; 10]] {
        // Without a fifth of the cases, as where one option excludes another.
        for is_whole in [true, false] {
            let mut cases = product(&sizes);
            cases.retain(|case| is_whole || (case[0] + 2 * case[1]) % 5 != 1);
            let taken = sample(&cases);
            // Counted in another way than `sample` does.
            for b in 0..sizes.len() {
                for (a, x, y) in
                    (0..b).flat_map(|a| product(&[sizes[a], sizes[b]]).into_iter().map(move |v| (a, v[0], v[1])))
                {
                    let holds = |case: &Vec<usize>| case[a] == x && case[b] == y;
                    let (wanted, got) = (cases.iter().any(holds), taken.iter().any(|&nth| holds(&cases[nth])));
                    assert_eq!(got, wanted, "{x} of axis {a} with {y} of axis {b} in {sizes:?}");
                }
            }
            let mut longest = sizes.clone();
            longest.sort_unstable();
            let least = longest.iter().rev().take(2).product::<usize>();
            println!("{sizes:?}: {} of {} cases; no fewer than {least} can do", taken.len(), cases.len());
            assert!(taken.len() <= 2 * least + 4);
        }
    }
}
