//! What kernels stand on: sixteen virtual lanes, written for each instruction set.
//!
//! In: pointers checked by [`lent`], scalars. Out: vectors of sixteen lanes whose every operation gives the same bits on
//! every instruction set. A token such as [`Avx512`] is made only by its `detect`; holding a token, or a vector made
//! through one, is the proof that its instructions run here, so kernels need no `unsafe`.
#![allow(unsafe_code)] // one of the two places; each block names the fact that makes it sound

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod control;
mod element;
#[cfg(test)]
mod emulated;
mod isa;
pub(crate) mod lent;
pub(crate) mod math;
mod scalar;
pub(crate) mod tiles;
mod vector;

#[cfg(feature = "python")]
pub(crate) use control::rounds_to_nearest;
pub(crate) use control::with_default_control;
pub use element::{Element, Float};
pub use isa::Isa;
pub(crate) use isa::{Bf16Tiles, Job};

/// Virtual lanes of every vector; part of the numeric contract.
pub(crate) const LANES: usize = 16;

/// A token for one instruction set: its vectors, and how they come from memory.
///
/// Loads take any alignment.
pub trait Simd: Copy + Send + Sync {
    /// Sixteen lanes of float32.
    type F32: Lanes<Scalar = f32>;
    /// Sixteen lanes of float64.
    type F64: Lanes<Scalar = f64>;

    /// How many panels a product of float32 takes at a time.
    type Panels32: tiles::Panels;
    /// How many panels a product of float64 takes at a time.
    type Panels64: tiles::Panels;

    /// Every lane `value`.
    fn splat_f32(self, value: f32) -> Self::F32;
    /// Every lane `value`.
    fn splat_f64(self, value: f64) -> Self::F64;
    /// The same sixteen values in float64.
    fn widen(self, narrow: Self::F32) -> Self::F64;
    /// # Safety
    /// - `pointer` is readable for sixteen elements.
    unsafe fn load_f32(self, pointer: *const f32) -> Self::F32;
    /// # Safety
    /// - `pointer` is readable for sixteen elements.
    unsafe fn load_f64(self, pointer: *const f64) -> Self::F64;
    /// # Safety
    /// - `pointer` is readable for sixteen elements.
    unsafe fn load_f16(self, pointer: *const half::f16) -> Self::F32;
    /// # Safety
    /// - `pointer` is readable for sixteen elements.
    unsafe fn load_bf16(self, pointer: *const half::bf16) -> Self::F32;
    /// The largest of 256 elements, lane by lane: lane `i` is that of columns `i`, `i + 16`, ... A NaN counts as larger
    /// than infinity or not at all.
    ///
    /// # Safety
    /// - `pointer` is readable for 256 elements.
    unsafe fn max_f16(self, pointer: *const half::f16) -> Self::F32;
    /// As [`Simd::max_f16`].
    ///
    /// # Safety
    /// - `pointer` is readable for 256 elements.
    unsafe fn max_bf16(self, pointer: *const half::bf16) -> Self::F32;
    /// Asks for the cache line at `pointer`, which may be any address.
    fn prefetch(self, pointer: *const u8);
    /// Transposes sixteen rows of sixteen words, `stride` words from one row to the next, into 256 words in a row.
    ///
    /// # Safety
    /// - `source` is readable for sixteen words at each of sixteen rows.
    /// - `target` is writable for 256 words and apart from them.
    #[inline(always)]
    unsafe fn transpose(self, source: *const u32, stride: usize, target: *mut u32) {
        for row in 0..LANES {
            for column in 0..LANES {
                // SAFETY: the caller vouches for both.
                unsafe {
                    target.add(column * LANES + row).write_unaligned(source.add(row * stride + column).read_unaligned())
                };
            }
        }
    }
}

/// Sixteen lanes of one type. Fused where named so; comparisons are false where a lane is NaN.
pub trait Lanes: Copy {
    /// The type of one lane.
    type Scalar: Float;

    /// A vector of the same kind, every lane `value`.
    fn fill(self, value: Self::Scalar) -> Self;
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `addend - self * factor`, rounded once.
    fn neg_mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger of the two; `other` where they do not compare.
    fn max(self, other: Self) -> Self;
    /// A power of two from the low bits of a sum, see [`math::Bits::power`].
    fn power(self) -> Self;
    /// `when_true` where `self < other`, else `otherwise`.
    fn select_less(self, other: Self, when_true: Self, otherwise: Self) -> Self;
    /// 0 where `self < bound`, else `otherwise`.
    fn zero_if_less(self, bound: Self, otherwise: Self) -> Self;
    /// `when_true` where `self == other`, else `otherwise`.
    fn select_equal(self, other: Self, when_true: Self, otherwise: Self) -> Self;
    /// `count + 1` where `self < other`, else `count`.
    fn count_if_less(self, other: Self, count: Self) -> Self;
    /// `count + 1` where `self == other`, else `count`.
    fn count_if_equal(self, other: Self, count: Self) -> Self;
    /// Bit `i` is set where lane `i` of `self` is greater.
    fn mask_greater(self, other: Self) -> u16;
    /// Bit `i` is set where lane `i` is equal.
    fn mask_equal(self, other: Self) -> u16;
    /// The largest lane; there is no NaN among them.
    fn max_lane(self) -> Self::Scalar;
    /// The sum of sixteen lanes, halves onto halves: the order is part of the numeric contract.
    fn sum_lanes(self) -> Self::Scalar;
    /// The sixteen values.
    fn to_array(self) -> [Self::Scalar; LANES];
}
