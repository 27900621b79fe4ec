//! AVX-512: sixteen float32 lanes are one register, sixteen float64 lanes are two.

use super::Simd;
use super::avx2::larger_halves;
use super::math::{ONE_BITS, POWER_SHIFT, POWERS};
use super::tiles::Beside;
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
    ($register:ty, $float:ty, $width:literal, $suffix:ident, $mask:ty,
     $($name:ident = $intrinsic:ident),+ ; $power:ident, $low:ident, $high:ident, $compare:ident, $blend:ident, $keep:ident, $add_where:ident, $splat:ident, $load:ident, $store:ident) => {
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
            unsafe fn power(self) -> Self {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { $power(self) }
            }
            #[inline(always)]
            unsafe fn select_less(self, other: Self, when_true: Self, otherwise: Self) -> Self {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { $blend($compare::<_CMP_LT_OQ>(self, other), otherwise, when_true) }
            }
            #[inline(always)]
            unsafe fn zero_if_less(self, bound: Self, otherwise: Self) -> Self {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { $keep($compare::<_CMP_NLT_UQ>(self, bound), otherwise) }
            }
            #[inline(always)]
            unsafe fn select_equal(self, other: Self, when_true: Self, otherwise: Self) -> Self {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { $blend($compare::<_CMP_EQ_OQ>(self, other), otherwise, when_true) }
            }
            #[inline(always)]
            unsafe fn count_if_less(self, other: Self, count: Self) -> Self {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { $add_where(count, $compare::<_CMP_LT_OQ>(self, other), count, $splat(1.0)) }
            }
            #[inline(always)]
            unsafe fn count_if_equal(self, other: Self, count: Self) -> Self {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { $add_where(count, $compare::<_CMP_EQ_OQ>(self, other), count, $splat(1.0)) }
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
            #[inline(always)]
            unsafe fn max_lane(self) -> $float {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { Register::max($low(self), $high::<1>(self)).max_lane() }
            }
            #[inline(always)]
            unsafe fn sum_lanes(self) -> $float {
                // SAFETY: the caller proves that AVX-512 runs here.
                unsafe { Register::add($low(self), $high::<1>(self)).sum_lanes() }
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

/// See [`Bits::power`](super::math::Bits::power).
///
/// # Safety
/// - AVX-512 runs here.
#[inline(always)]
unsafe fn power_ps(sum: __m512) -> __m512 {
    // SAFETY: the caller proves that AVX-512 runs here; the table holds sixteen entries.
    unsafe {
        let bits = _mm512_castps_si512(sum);
        let powers = _mm512_permutexvar_epi32(bits, _mm512_loadu_si512(POWERS.as_ptr().cast()));
        _mm512_castsi512_ps(_mm512_sub_epi32(powers, _mm512_slli_epi32::<POWER_SHIFT>(bits)))
    }
}

/// See [`Bits::power`](super::math::Bits::power).
///
/// # Safety
/// - AVX-512 runs here.
#[inline(always)]
unsafe fn power_pd(sum: __m512d) -> __m512d {
    // SAFETY: the caller proves that AVX-512 runs here.
    unsafe {
        let octaves = _mm512_slli_epi64::<52>(_mm512_castpd_si512(sum));
        _mm512_castsi512_pd(_mm512_add_epi64(_mm512_set1_epi64(ONE_BITS as i64), octaves))
    }
}

avx512_register!(
    __m512, f32, 16, ps, u16,
    add = _mm512_add_ps, sub = _mm512_sub_ps, mul = _mm512_mul_ps, div = _mm512_div_ps, max = _mm512_max_ps;
    power_ps, _mm512_castps512_ps256, _mm512_extractf32x8_ps, _mm512_cmp_ps_mask, _mm512_mask_blend_ps, _mm512_maskz_mov_ps, _mm512_mask_add_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps
);
avx512_register!(
    __m512d, f64, 8, pd, u8,
    add = _mm512_add_pd, sub = _mm512_sub_pd, mul = _mm512_mul_pd, div = _mm512_div_pd, max = _mm512_max_pd;
    power_pd, _mm512_castpd512_pd256, _mm512_extractf64x4_pd, _mm512_cmp_pd_mask, _mm512_mask_blend_pd, _mm512_maskz_mov_pd, _mm512_mask_add_pd, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd
);

/// The largest halves of 256, sixteen lanes of them, of either format: see [`larger_half`](super::math::larger_half).
///
/// # Safety
/// - AVX-512 runs here.
/// - `pointer` is readable for 256 halves.
#[inline(always)]
unsafe fn max_halves(pointer: *const u16) -> __m256i {
    // SAFETY: the caller proves that AVX-512 runs here and vouches for the memory.
    unsafe {
        let first = _mm512_loadu_si512(pointer.cast());
        let (mut signed, mut unsigned) = (first, first);
        for index in 1..8 {
            let halves = _mm512_loadu_si512(pointer.add(32 * index).cast());
            signed = _mm512_max_epi16(signed, halves);
            unsigned = _mm512_min_epu16(unsigned, halves);
        }
        let signed = _mm256_max_epi16(_mm512_castsi512_si256(signed), _mm512_extracti64x4_epi64::<1>(signed));
        let unsigned = _mm256_min_epu16(_mm512_castsi512_si256(unsigned), _mm512_extracti64x4_epi64::<1>(unsigned));
        larger_halves(signed, unsigned)
    }
}

impl Simd for Avx512 {
    type F32 = Vector<__m512, 1>;
    type F64 = Vector<__m512d, 2>;
    type Panels32 = Beside<4>;
    type Panels64 = Beside<2>;

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
    unsafe fn max_f16(self, pointer: *const f16) -> Self::F32 {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe { Vector::from_registers([_mm512_cvtph_ps(max_halves(pointer.cast()))]) }
    }
    #[inline(always)]
    unsafe fn max_bf16(self, pointer: *const bf16) -> Self::F32 {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(max_halves(pointer.cast()));
            Vector::from_registers([_mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))])
        }
    }
    #[inline(always)]
    fn prefetch(self, pointer: *const u8) {
        // SAFETY: `self` is the token; a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(pointer.cast()) }
    }
    #[inline(always)]
    unsafe fn transpose(self, source: *const u32, stride: usize, target: *mut u32) {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm512_loadu_si512(source.add(i * stride).cast());
            }
            // Words, pairs of words, then quarters: afterwards vector 4 i + j holds column 4 q + j of its quarter q.
            let mut pairs = rows;
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
            }
            let mut fours = rows;
            for i in 0..4 {
                fours[4 * i] = _mm512_unpacklo_epi64(pairs[4 * i], pairs[4 * i + 2]);
                fours[4 * i + 1] = _mm512_unpackhi_epi64(pairs[4 * i], pairs[4 * i + 2]);
                fours[4 * i + 2] = _mm512_unpacklo_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
                fours[4 * i + 3] = _mm512_unpackhi_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
            }
            for j in 0..4 {
                let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
                let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
                let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
                let columns = [
                    _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even),
                    _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd),
                    _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even),
                    _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd),
                ];
                for (quarter, column) in columns.into_iter().enumerate() {
                    _mm512_storeu_si512(target.add((4 * quarter + j) * 16).cast(), column);
                }
            }
        }
    }
}
