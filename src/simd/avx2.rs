//! AVX2 with FMA and F16C: sixteen float32 lanes are two registers, sixteen float64 lanes are four.

use super::Simd;
use super::math::{ONE_BITS, POWER_SHIFT, POWERS};
use super::tiles::Beside;
use super::vector::{Register, Vector};
use core::arch::x86_64::*;
use half::{bf16, f16};

/// The token of AVX2, FMA and F16C, made only by [`Avx2::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if this machine and its operating system run these instructions.
    pub(super) fn detect() -> Option<Self> {
        let runs = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("popcnt");
        runs.then_some(Self(()))
    }
}

macro_rules! avx2_register {
    ($register:ty, $float:ty, $width:literal, $($name:ident = $intrinsic:ident),+ ;
     $mul_add:ident, $neg_mul_add:ident, $power:ident, $max_lane:ident, $sum_lanes:ident, $compare:ident, $blend:ident, $and_not:ident, $and:ident, $move_mask:ident, $splat:ident, $load:ident, $store:ident) => {
        // SAFETY: only AVX2 and FMA instructions; callers prove that they run here.
        unsafe impl Register for $register {
            type Scalar = $float;
            const WIDTH: usize = $width;

            #[inline(always)]
            unsafe fn splat(value: $float) -> Self {
                // SAFETY: the caller proves that AVX2 runs here.
                unsafe { $splat(value) }
            }
            #[inline(always)]
            unsafe fn load(pointer: *const $float) -> Self {
                // SAFETY: the caller proves that AVX2 runs here and vouches for the memory.
                unsafe { $load(pointer) }
            }
            #[inline(always)]
            unsafe fn store(self, pointer: *mut $float) {
                // SAFETY: the caller proves that AVX2 runs here and vouches for the memory.
                unsafe { $store(pointer, self) }
            }
            $(
                #[inline(always)]
                unsafe fn $name(self, other: Self) -> Self {
                    // SAFETY: the caller proves that AVX2 runs here.
                    unsafe { $intrinsic(self, other) }
                }
            )+
            #[inline(always)]
            unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
                // SAFETY: the caller proves that FMA runs here.
                unsafe { $mul_add(self, factor, addend) }
            }
            #[inline(always)]
            unsafe fn neg_mul_add(self, factor: Self, addend: Self) -> Self {
                // SAFETY: the caller proves that FMA runs here.
                unsafe { $neg_mul_add(self, factor, addend) }
            }
            #[inline(always)]
            unsafe fn power(self) -> Self {
                // SAFETY: the caller proves that AVX2 runs here.
                unsafe { $power(self) }
            }
            #[inline(always)]
            unsafe fn select_less(self, other: Self, when_true: Self, otherwise: Self) -> Self {
                // SAFETY: the caller proves that AVX2 runs here.
                unsafe { $blend(otherwise, when_true, $compare::<_CMP_LT_OQ>(self, other)) }
            }
            #[inline(always)]
            unsafe fn zero_if_less(self, bound: Self, otherwise: Self) -> Self {
                // SAFETY: the caller proves that AVX2 runs here.
                unsafe { $and_not($compare::<_CMP_LT_OQ>(self, bound), otherwise) }
            }
            #[inline(always)]
            unsafe fn select_equal(self, other: Self, when_true: Self, otherwise: Self) -> Self {
                // SAFETY: the caller proves that AVX2 runs here.
                unsafe { $blend(otherwise, when_true, $compare::<_CMP_EQ_OQ>(self, other)) }
            }
            #[inline(always)]
            unsafe fn count_if_less(self, other: Self, count: Self) -> Self {
                // SAFETY: the caller proves that AVX2 runs here.
                unsafe { Register::add(count, $and($compare::<_CMP_LT_OQ>(self, other), $splat(1.0))) }
            }
            #[inline(always)]
            unsafe fn count_if_equal(self, other: Self, count: Self) -> Self {
                // SAFETY: the caller proves that AVX2 runs here.
                unsafe { Register::add(count, $and($compare::<_CMP_EQ_OQ>(self, other), $splat(1.0))) }
            }
            #[inline(always)]
            unsafe fn mask_greater(self, other: Self) -> u16 {
                // SAFETY: the caller proves that AVX2 runs here.
                unsafe { $move_mask($compare::<_CMP_GT_OQ>(self, other)) as u16 }
            }
            #[inline(always)]
            unsafe fn mask_equal(self, other: Self) -> u16 {
                // SAFETY: the caller proves that AVX2 runs here.
                unsafe { $move_mask($compare::<_CMP_EQ_OQ>(self, other)) as u16 }
            }
            #[inline(always)]
            unsafe fn max_lane(self) -> $float {
                // SAFETY: the caller proves that AVX2 runs here.
                unsafe { $max_lane(self) }
            }
            #[inline(always)]
            unsafe fn sum_lanes(self) -> $float {
                // SAFETY: the caller proves that AVX2 runs here.
                unsafe { $sum_lanes(self) }
            }
        }
    };
}

/// See [`Bits::power`](super::math::Bits::power).
///
/// # Safety
/// - AVX2 runs here.
#[inline(always)]
unsafe fn power_ps(sum: __m256) -> __m256 {
    // SAFETY: the caller proves that AVX2 runs here; the table holds twice eight entries.
    unsafe {
        let bits = _mm256_castps_si256(sum);
        let low = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(POWERS.as_ptr().cast()), bits);
        let high = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(POWERS.as_ptr().add(8).cast()), bits);
        // The lookups know three bits of the index; the fourth, moved to the sign, chooses between them.
        let choice = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(bits));
        let powers = _mm256_blendv_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high), choice);
        let octaves = _mm256_slli_epi32::<{ POWER_SHIFT as i32 }>(bits);
        _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(powers), octaves))
    }
}

/// See [`Bits::power`](super::math::Bits::power).
///
/// # Safety
/// - AVX2 runs here.
#[inline(always)]
unsafe fn power_pd(sum: __m256d) -> __m256d {
    // SAFETY: the caller proves that AVX2 runs here.
    unsafe {
        let octaves = _mm256_slli_epi64::<52>(_mm256_castpd_si256(sum));
        _mm256_castsi256_pd(_mm256_add_epi64(_mm256_set1_epi64x(ONE_BITS as i64), octaves))
    }
}

/// One lane from all, the upper half onto the lower.
macro_rules! reduction {
    ($name:ident, $register:ty, $float:ty, $low:ident, $high:ident, $method:ident, [$($swap:ident),*], $first:ident) => {
        /// # Safety
        /// - AVX2 runs here.
        #[inline(always)]
        unsafe fn $name(lanes: $register) -> $float {
            // SAFETY: the caller proves that AVX2 runs here.
            unsafe {
                let half = $method($low(lanes), $high::<1>(lanes));
                $(let half = $method(half, $swap(half, half));)*
                $first(half)
            }
        }
    };
}
reduction!(
    max_ps,
    __m256,
    f32,
    _mm256_castps256_ps128,
    _mm256_extractf128_ps,
    _mm_max_ps,
    [_mm_movehl_ps, odd_ps],
    _mm_cvtss_f32
);
reduction!(
    sum_ps,
    __m256,
    f32,
    _mm256_castps256_ps128,
    _mm256_extractf128_ps,
    _mm_add_ps,
    [_mm_movehl_ps, odd_ps],
    _mm_cvtss_f32
);
reduction!(
    max_pd,
    __m256d,
    f64,
    _mm256_castpd256_pd128,
    _mm256_extractf128_pd,
    _mm_max_pd,
    [_mm_unpackhi_pd],
    _mm_cvtsd_f64
);
reduction!(
    sum_pd,
    __m256d,
    f64,
    _mm256_castpd256_pd128,
    _mm256_extractf128_pd,
    _mm_add_pd,
    [_mm_unpackhi_pd],
    _mm_cvtsd_f64
);

/// The second lane of each pair in the place of the first.
///
/// # Safety
/// - AVX2 runs here.
#[inline(always)]
unsafe fn odd_ps(lanes: __m128, _same: __m128) -> __m128 {
    // SAFETY: the caller proves that AVX2 runs here.
    unsafe { _mm_movehdup_ps(lanes) }
}

avx2_register!(
    __m256, f32, 8,
    add = _mm256_add_ps, sub = _mm256_sub_ps, mul = _mm256_mul_ps, div = _mm256_div_ps, max = _mm256_max_ps;
    _mm256_fmadd_ps, _mm256_fnmadd_ps, power_ps, max_ps, sum_ps,
    _mm256_cmp_ps, _mm256_blendv_ps, _mm256_andnot_ps, _mm256_and_ps, _mm256_movemask_ps, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps
);
avx2_register!(
    __m256d, f64, 4,
    add = _mm256_add_pd, sub = _mm256_sub_pd, mul = _mm256_mul_pd, div = _mm256_div_pd, max = _mm256_max_pd;
    _mm256_fmadd_pd, _mm256_fnmadd_pd, power_pd, max_pd, sum_pd,
    _mm256_cmp_pd, _mm256_blendv_pd, _mm256_andnot_pd, _mm256_and_pd, _mm256_movemask_pd, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd
);

/// The largest halves of 256, sixteen lanes of them, of either format: see [`larger_half`](super::math::larger_half).
///
/// # Safety
/// - AVX2 runs here.
/// - `pointer` is readable for 256 halves.
#[inline(always)]
unsafe fn max_halves(pointer: *const u16) -> __m256i {
    // SAFETY: the caller proves that AVX2 runs here and vouches for the memory.
    unsafe {
        let first = _mm256_loadu_si256(pointer.cast());
        let (mut signed, mut unsigned) = (first, first);
        for index in 1..16 {
            let halves = _mm256_loadu_si256(pointer.add(16 * index).cast());
            signed = _mm256_max_epi16(signed, halves);
            unsigned = _mm256_min_epu16(unsigned, halves);
        }
        larger_halves(signed, unsigned)
    }
}

/// Where the largest as signed integers is not negative it is the largest; else the smallest unsigned is.
///
/// # Safety
/// - AVX2 runs here.
#[inline(always)]
pub(super) unsafe fn larger_halves(signed: __m256i, unsigned: __m256i) -> __m256i {
    // SAFETY: the caller proves that AVX2 runs here.
    unsafe { _mm256_blendv_epi8(signed, unsigned, _mm256_srai_epi16::<15>(signed)) }
}

impl Simd for Avx2 {
    type F32 = Vector<__m256, 2>;
    type F64 = Vector<__m256d, 4>;
    type Panels32 = Beside<1>;
    type Panels64 = Beside<1>;

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
        let [low, high] = narrow.registers();
        // SAFETY: `self` is the token.
        unsafe {
            Vector::from_registers([
                _mm256_cvtps_pd(_mm256_castps256_ps128(low)),
                _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(low)),
                _mm256_cvtps_pd(_mm256_castps256_ps128(high)),
                _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(high)),
            ])
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
        unsafe {
            Vector::from_registers([
                _mm256_cvtph_ps(_mm_loadu_si128(pointer.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(pointer.add(8).cast())),
            ])
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, pointer: *const bf16) -> Self::F32 {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(pointer.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(pointer.add(8).cast()));
            Vector::from_registers([
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ])
        }
    }
    #[inline(always)]
    unsafe fn max_f16(self, pointer: *const f16) -> Self::F32 {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe {
            let halves = max_halves(pointer.cast());
            let (low, high) = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            Vector::from_registers([_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)])
        }
    }
    #[inline(always)]
    unsafe fn max_bf16(self, pointer: *const bf16) -> Self::F32 {
        // SAFETY: `self` is the token; the caller vouches for the memory.
        unsafe {
            let halves = max_halves(pointer.cast());
            let low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(halves));
            let high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(halves));
            Vector::from_registers([
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ])
        }
    }
    #[inline(always)]
    fn prefetch(self, pointer: *const u8) {
        // SAFETY: `self` is the token; a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(pointer.cast()) }
    }
    #[inline(always)]
    unsafe fn transpose(self, source: *const u32, stride: usize, target: *mut u32) {
        for quarter in 0..4 {
            let (row, column) = (quarter / 2 * 8, quarter % 2 * 8);
            // SAFETY: `self` is the token; the caller vouches for the memory.
            unsafe { transpose_8(source.add(row * stride + column), stride, target.add(column * 16 + row)) };
        }
    }
}

/// Transposes eight rows of eight words to places sixteen words apart.
///
/// # Safety
/// - AVX2 runs here.
/// - `source` is readable for eight words at each of eight rows, `target` writable likewise.
#[inline(always)]
unsafe fn transpose_8(source: *const u32, stride: usize, target: *mut u32) {
    // SAFETY: the caller proves that AVX2 runs here and vouches for the memory.
    unsafe {
        let mut rows = [_mm256_setzero_si256(); 8];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = _mm256_loadu_si256(source.add(i * stride).cast());
        }
        let mut pairs = rows;
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        let mut fours = rows;
        for i in 0..2 {
            fours[4 * i] = _mm256_unpacklo_epi64(pairs[4 * i], pairs[4 * i + 2]);
            fours[4 * i + 1] = _mm256_unpackhi_epi64(pairs[4 * i], pairs[4 * i + 2]);
            fours[4 * i + 2] = _mm256_unpacklo_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
            fours[4 * i + 3] = _mm256_unpackhi_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
        }
        for j in 0..4 {
            let (upper, lower) = (fours[j], fours[4 + j]);
            let low = _mm256_permute2x128_si256::<0x20>(upper, lower);
            let high = _mm256_permute2x128_si256::<0x31>(upper, lower);
            _mm256_storeu_si256(target.add(j * 16).cast(), low);
            _mm256_storeu_si256(target.add((4 + j) * 16).cast(), high);
        }
    }
}
