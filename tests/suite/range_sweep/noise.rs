//! The noise of draws in float64: Gumbel's, from 32 bits that Threefry-2x32 makes of the seed, the
//! row and the class.

/// Twenty rounds (Salmon et al., 2011).
fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1bd1_1bda];
    let (mut a, mut b) = (counter[0].wrapping_add(keys[0]), counter[1].wrapping_add(keys[1]));
    for round in 0..20 {
        a = a.wrapping_add(b);
        b = b.rotate_left([13, 15, 26, 6, 17, 29, 16, 24][round % 8]) ^ a;
        if round % 4 == 3 {
            let nth = round / 4 + 1;
            a = a.wrapping_add(keys[nth % 3]);
            b = b.wrapping_add(keys[(nth + 1) % 3]).wrapping_add(nth as u32);
        }
    }
    [a, b]
}

/// The noise of one row in the first step of a seed.
pub struct Noise {
    key: [u32; 2],
    row: u32,
}

impl Noise {
    pub fn new(seed: u32, row: usize) -> Self {
        Self { key: threefry([seed, 0], [0, 0]), row: row as u32 }
    }

    pub fn of(&self, class: usize) -> f64 {
        let [bits, _] = threefry(self.key, [class as u32, self.row]);
        let v = f64::from(bits.max(1)) / 4_294_967_296.0;
        -(-(-v).ln_1p()).ln()
    }
}
