//! AVX512-BF16: VDPBF16PS multiplies pairs of bfloat16 and adds both to a float32 sum.
//!
//! The odd product goes in first, then the even one, each as a fused multiply-add rounded to nearest; subnormal operands
//! and results count as 0 (Intel SDM, VDPBF16PS). `plain.rs` says the same in a loop.

use super::block::{Beside, Multiply, Panels};
use super::{Product, Tiles};
use crate::simd::Simd;
use crate::simd::avx512::Avx512;
use crate::simd::vector::Vector;
use core::arch::x86_64::*;
use half::bf16;

/// The token of AVX512-BF16, made only by [`Avx512Bf16::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    /// The token, if this machine and its operating system run these instructions.
    pub(in crate::simd) fn detect() -> Option<Self> {
        let lanes = Avx512::detect()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self(lanes))
    }
}

impl Tiles for Avx512Bf16 {
    type Operand = bf16;
    type Sum = f32;

    fn multiply(self, product: Product<'_, bf16, f32>) {
        // SAFETY: the token was made by detection, so its instructions run here.
        unsafe { multiply(self, product) }
    }
}

#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
fn multiply(token: Avx512Bf16, product: Product<'_, bf16, f32>) {
    Beside::<4>::multiply(token, product);
}

impl Multiply for Avx512Bf16 {
    type Operand = bf16;
    type Sum = f32;
    type Sums = Vector<__m512, 1>;
    type Step = __m512i;

    #[inline(always)]
    fn zero(self) -> Self::Sums {
        self.0.splat_f32(0.0)
    }
    #[inline(always)]
    unsafe fn load_sums(self, pointer: *const f32) -> Self::Sums {
        // SAFETY: the caller vouches for the memory.
        unsafe { self.0.load_f32(pointer) }
    }
    #[inline(always)]
    unsafe fn load(self, pointer: *const bf16) -> __m512i {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe { _mm512_loadu_si512(pointer.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(self, pointer: *const bf16) -> __m512i {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe { _mm512_set1_epi32(pointer.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    fn step(self, left: __m512i, right: __m512i, sums: Self::Sums) -> Self::Sums {
        let [sums] = sums.registers();
        // SAFETY: `self` is the token; both types are 64 bytes of any bits.
        unsafe {
            let (left, right) =
                (std::mem::transmute::<__m512i, __m512bh>(left), std::mem::transmute::<__m512i, __m512bh>(right));
            Vector::from_registers([_mm512_dpbf16_ps(sums, left, right)])
        }
    }
}
