//! The options of sampling, and its random numbers.

use crate::Error;

/// The options with which one class of each row is drawn from its softmax. The draw is the class
/// with the largest `y_j + g_j`, where `g` is Gumbel noise (the Gumbel-max trick: Gumbel, 1954).
/// The noise is computed from a counter, so that a seed gives the same draws on every device.
///
/// The temperature is that of the logits: [`Logits::temperature`](crate::Logits::temperature). The
/// noise of a class depends on the seed, the step, the row and the class alone (Threefry-2x32, 20
/// rounds: Salmon et al., 2011); rows 2^32 apart share it.
///
/// ```
/// use logits::{Device, Logits, Sampling};
/// let x = [1.0, 3.0, 2.0, -4.0];
/// let sampling = Sampling::new(7).top_k(2).top_p(0.95);
/// let x = Logits::new(&x, [1, 4])?.temperature(0.8)?;
/// let draw = Device::cpu().sample(&sampling.step(12), x).to_vec()?.values[0];
/// assert!(draw.class == 1 || draw.class == 2);
/// # Ok::<(), logits::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    seed: u64,
    step: u64,
    top_k: usize,
    top_p: f32,
}

impl Sampling {
    /// Returns options that draw from all classes, with the noise of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed, step: 0, top_k: usize::MAX, top_p: 1.0 }
    }

    /// Sets the number of the draw under this seed, such as the number of the token; 0 if not set.
    /// Two calls with the same seed and step use the same noise: change the step for each call.
    #[must_use]
    pub const fn step(mut self, step: u64) -> Self {
        self.step = step;
        self
    }

    /// Draws only from the `k` most likely classes, and from classes as likely as the last of them
    /// (Fan et al., 2018). `k` is at least 1.
    #[must_use]
    pub const fn top_k(mut self, k: usize) -> Self {
        self.top_k = k;
        self
    }

    /// Draws only from the fewest most likely classes that together have at least the probability
    /// `p` at the temperature of the logits, and from classes as likely as the last of them
    /// (Holtzman et al., 2020). `p` is above 0, and at most 1. With [`Sampling::top_k`] too,
    /// probabilities are those among the classes that it leaves.
    #[must_use]
    pub const fn top_p(mut self, p: f32) -> Self {
        self.top_p = p;
        self
    }

    pub(crate) fn draws(&self) -> Result<Draws, Error> {
        if self.top_k == 0 {
            return Err(Error::OptionValue { option: "top_k", value: 0.0, range: "at least 1" });
        }
        let (option, value) = ("top_p", self.top_p);
        if !(value > 0.0 && value <= 1.0) {
            return Err(Error::OptionValue { option, value, range: "above 0 and at most 1" });
        }
        let top_k = u32::try_from(self.top_k).unwrap_or(u32::MAX);
        Ok(Draws { seed: halves(self.seed), step: halves(self.step), top_k, top_p: self.top_p })
    }
}

/// The checked options, as parameters of the kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Draws {
    /// The seed: its low half, then its high half.
    pub(crate) seed: [u32; 2],
    /// The step, in the same order.
    pub(crate) step: [u32; 2],
    /// `u32::MAX` for all classes.
    pub(crate) top_k: u32,
    /// 1 for all classes.
    pub(crate) top_p: f32,
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

impl Draws {
    /// Returns the key of the noise of this step; the counter is the class and the row.
    pub(crate) fn key(&self) -> [u32; 2] {
        threefry(self.seed, self.step)
    }
}

/// Returns the random bits of `counter` under `key`, by Threefry-2x32 with 20 rounds.
pub(crate) fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1bd1_1bda];
    let [mut a, mut b] = [counter[0].wrapping_add(keys[0]), counter[1].wrapping_add(keys[1])];
    for round in 0..5 {
        for rotation in ROTATIONS[round % 2] {
            a = a.wrapping_add(b);
            b = b.rotate_left(rotation) ^ a;
        }
        a = a.wrapping_add(keys[(round + 1) % 3]);
        b = b.wrapping_add(keys[(round + 2) % 3]).wrapping_add(round as u32 + 1);
    }
    [a, b]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123, the authors' library.
    #[test]
    fn threefry_is_threefry() {
        assert_eq!(threefry([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry([u32::MAX; 2], [u32::MAX; 2]), [0x1cb9_96fc, 0xbb00_2be7]);
        let (key, counter) = ([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]);
        assert_eq!(threefry(key, counter), [0xc492_3a9c, 0x483d_f7a0]);
    }
}
