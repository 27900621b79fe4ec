//! AVX-512: sixteen float32 lanes are one register, sixteen float64 lanes are two.

use super::Simd;
use super::vector::{Register, Vector};
use core::arch::x86_64::*;
use half::{bf16, f16};

/// The token of AVX-512 (F, BW, DQ, VL) with FMA, made only by [`Avx512::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

impl Avx512 {
    /// The token, if this machine and its operating system run these instructions.
    pub(super) fn detect() -> Option<Self> {
        let runs = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && super::avx2::Avx2::detect().is_some();
        runs.then_some(Self(()))
    }
}

macro_rules! avx512_register {
    ($register:ty, $float:ty, $width:literal, $suffix:ident, $mask:ty, $shift:literal,
     $($name:ident = $intrinsic:ident),+ ; $to_bits:ident, $from_bits:ident, $shift_left:ident, $add_bits:ident,
     $compare:ident, $blend:ident, $splat:ident, $load:ident, $store:ident) => {
        // SAFETY: only AVX-512 instructions; callers prove that they run here.
        unsafe impl Register for $register {
            type Scalar = $float;
            const WIDTH: usize = $width;

            #[inline(always)]
            unsafe fn splat(value: $float) -> Self {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { $splat(value) }
            }
            #[inline(always)]
            unsafe fn load(pointer: *const $float) -> Self {
                // SAFETY: the caller proves that AVX-512 runs here and vouches for the memory.
                unsafe { $load(pointer) }
            }
            #[inline(always)]
            unsafe fn store(self, pointer: *mut $float) {
                // SAFETY: the caller proves that AVX-512 runs here and vouches for the memory.
                unsafe { $store(pointer, self) }
            }
            $(
                #[inline(always)]
                unsafe fn $name(self, other: Self) -> Self {
                    // SAFETY: the caller proves that AVX-512 runs here.
                    unsafe { $intrinsic(self, other) }
                }
            )+
            avx512_register!(@fused $suffix);
            #[inline(always)]
            unsafe fn add_exponent(self, shifted: Self) -> Self {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { $from_bits($add_bits($to_bits(self), $shift_left::<$shift>($to_bits(shifted)))) }
            }
            #[inline(always)]
            unsafe fn select_less(self, other: Self, when_true: Self, otherwise: Self) -> Self {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { $blend($compare::<_CMP_LT_OQ>(self, other), otherwise, when_true) }
            }
            #[inline(always)]
            unsafe fn select_equal(self, other: Self, when_true: Self, otherwise: Self) -> Self {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { $blend($compare::<_CMP_EQ_OQ>(self, other), otherwise, when_true) }
            }
            #[inline(always)]
            unsafe fn mask_greater(self, other: Self) -> u16 {
                // SAFETY: the caller proves that AVX-512 runs here.
                u16::from(unsafe { $compare::<_CMP_GT_OQ>(self, other) })
            }
            #[inline(always)]
            unsafe fn mask_equal(self, other: Self) -> u16 {
                // SAFETY: the caller proves that AVX-512 runs here.
                u16::from(unsafe { $compare::<_CMP_EQ_OQ>(self, other) })
            }
        }
    };
    (@fused ps) => { avx512_register!(@fused_with _mm512_fmadd_ps, _mm512_fnmadd_ps); };
    (@fused pd) => { avx512_register!(@fused_with _mm512_fmadd_pd, _mm512_fnmadd_pd); };
    (@fused_with $mul_add:ident, $neg_mul_add:ident) => {
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: the caller proves that AVX-512 runs here.
            unsafe { $mul_add(self, factor, addend) }
        }
        #[inline(always)]
        unsafe fn neg_mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: the caller proves that AVX-512 runs here.
            unsafe { $neg_mul_add(self, factor, addend) }
        }
    };
}
avx512_register!(
    __m512, f32, 16, ps, u16, 23,
    add = _mm512_add_ps, sub = _mm512_sub_ps, mul = _mm512_mul_ps, div = _mm512_div_ps, max = _mm512_max_ps;
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_slli_epi32, _mm512_add_epi32,
    _mm512_cmp_ps_mask, _mm512_mask_blend_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps
);
avx512_register!(
    __m512d, f64, 8, pd, u8, 52,
    add = _mm512_add_pd, sub = _mm512_sub_pd, mul = _mm512_mul_pd, div = _mm512_div_pd, max = _mm512_max_pd;
    _mm512_castpd_si512, _mm512_castsi512_pd, _mm512_slli_epi64, _mm512_add_epi64,
    _mm512_cmp_pd_mask, _mm512_mask_blend_pd, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd
);

impl Simd for Avx512 {
    type F32 = Vector<__m512, 1>;
    type F64 = Vector<__m512d, 2>;

    #[inline(always)]
    fn splat_f32(self, value: f32) -> Self::F32 {
        // SAFETY: `self` is the token.
        unsafe { Vector::splat(value) }
    }
    #[inline(always)]
    fn splat_f64(self, value: f64) -> Self::F64 {
        // SAFETY: `self` is the token.
        unsafe { Vector::splat(value) }
    }
    #[inline(always)]
    fn widen(self, narrow: Self::F32) -> Self::F64 {
        let [all] = narrow.registers();
        // SAFETY: `self` is the token.
        unsafe {
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(all));
            let high = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(all));
            Vector::from_registers([low, high])
        }
    }
    #[inline(always)]
    unsafe fn load_f32(self, pointer: *const f32) -> Self::F32 {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe { Vector::load(pointer) }
    }
    #[inline(always)]
    unsafe fn load_f64(self, pointer: *const f64) -> Self::F64 {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe { Vector::load(pointer) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, pointer: *const f16) -> Self::F32 {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe { Vector::from_registers([_mm512_cvtph_ps(_mm256_loadu_si256(pointer.cast()))]) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, pointer: *const bf16) -> Self::F32 {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(pointer.cast()));
            Vector::from_registers([_mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))])
        }
    }
    #[inline(always)]
    fn prefetch(self, pointer: *const u8) {
        // SAFETY: `self` is the token; a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(pointer.cast()) }
    }
}
