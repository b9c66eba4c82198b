//! The trait of instruction sets, which the inner loops are generic over.

use super::vector::{LANES, Vector};

/// An instruction set. A value of the type proves that this machine has it.
pub(in crate::cpu) trait Isa: Copy + Send + Sync {
    type F32: Vector<Self, W = f32>;
    type F64: Vector<Self, W = f64>;
    /// Runs `work`, which must be inlined, compiled for these instructions. Called in a function
    /// that is not inlined, it makes one copy of the code for each level and type; inlining made
    /// one in each caller, which was a sixth of the crate's machine code.
    fn vectorize<R>(self, work: impl FnOnce() -> R) -> R;
    fn load_f16(self, bits: &[u16; LANES]) -> Self::F32;
    fn load_bf16(self, bits: &[u16; LANES]) -> Self::F32;
    fn store_f16(self, x: Self::F32) -> [u16; LANES];
    fn store_bf16(self, x: Self::F32) -> [u16; LANES];
    /// Writes `values` to `to`, past the caches where there is an instruction for it.
    ///
    /// # Safety
    /// The address of `to` is a multiple of 64 or of `BYTES`. The thread calls [`Isa::fence`]
    /// before another thread reads or writes `to`.
    unsafe fn stream<const BYTES: usize>(self, to: &mut [u8; BYTES], values: &[u8; BYTES]);

    /// Orders all streamed stores of this thread before its later stores, as other threads see
    /// them.
    #[inline(always)]
    fn fence(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 has the instruction.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}
