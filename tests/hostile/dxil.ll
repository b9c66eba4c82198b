; What a CPU has in place of a GPU's own functions. `dxil.rs` puts this after each kernel.

; A handle is the address of a buffer.
define internal i32* @word(%dx.types.Handle %buffer, i32 %bytes, i32 %word) alwaysinline {
  %start = extractvalue %dx.types.Handle %buffer, 0
  %offset = zext i32 %bytes to i64
  %first = getelementptr i8, i8* %start, i64 %offset
  %words = bitcast i8* %first to i32*
  %place = getelementptr i32, i32* %words, i32 %word
  ret i32* %place
}

; FirstbitHi counts from the highest bit; -1 where there is none.
define internal i32 @first_bit_high(i32 %x) alwaysinline {
  %zeros = call i32 @llvm.ctlz.i32(i32 %x, i1 false)
  %is_zero = icmp eq i32 %x, 0
  %place = select i1 %is_zero, i32 -1, i32 %zeros
  ret i32 %place
}

declare i32 @llvm.ctlz.i32(i32, i1)
declare float @llvm.fabs.f32(float)
declare float @llvm.rint.f32(float)
declare float @llvm.maxnum.f32(float, float)
declare float @llvm.minnum.f32(float, float)
declare i32 @llvm.smax.i32(i32, i32)
declare i32 @llvm.smin.i32(i32, i32)
declare i32 @llvm.umax.i32(i32, i32)
declare i32 @llvm.umin.i32(i32, i32)
declare void @dxil_barrier()
