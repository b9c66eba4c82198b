//! What an instruction set is to the loops.

use super::vector::{LANES, Vector};

/// An instruction set, proved to be there.
pub(in crate::cpu) trait Isa: Copy + Send + Sync {
    type F32: Vector<Self, W = f32>;
    type F64: Vector<Self, W = f64>;
    /// Runs `work`, which must be inlined, compiled for these instructions. In a function that is
    /// not inlined this makes one copy of the code for each level and type, where inlining makes
    /// one in each caller, which was a sixth of the crate's machine code.
    fn vectorize<R>(self, work: impl FnOnce() -> R) -> R;
    fn load_f16(self, bits: &[u16; LANES]) -> Self::F32;
    fn load_bf16(self, bits: &[u16; LANES]) -> Self::F32;
    fn store_f16(self, x: Self::F32) -> [u16; LANES];
    fn store_bf16(self, x: Self::F32) -> [u16; LANES];
    /// Writes past the caches, where there is an instruction for it.
    ///
    /// # Safety
    /// `to` is writable, for nothing but this, and a multiple of 64, or of the size of the values.
    unsafe fn stream<const BYTES: usize>(self, to: *mut u8, values: &[u8; BYTES]);

    /// Puts what was streamed before what is written after, for other threads.
    #[inline(always)]
    fn fence(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 has the instruction.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}
