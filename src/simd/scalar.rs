//! Plain Rust: one lane to a register. It runs everywhere and defines what the others must give.

use super::Simd;
use super::math::{Bits, larger_half};
use super::tiles::Beside;
use super::vector::{Register, Vector};
use half::{bf16, f16};

/// The token of plain Rust, which needs no proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scalar;

macro_rules! scalar_register {
    ($float:ty) => {
        // SAFETY: plain Rust only; the pointers are the caller's duty.
        unsafe impl Register for $float {
            type Scalar = $float;
            const WIDTH: usize = 1;

            #[inline(always)]
            unsafe fn splat(value: $float) -> Self {
                value
            }
            #[inline(always)]
            unsafe fn load(pointer: *const $float) -> Self {
                // SAFETY: the caller vouches for the memory.
                unsafe { pointer.read_unaligned() }
            }
            #[inline(always)]
            unsafe fn store(self, pointer: *mut $float) {
                // SAFETY: the caller vouches for the memory.
                unsafe { pointer.write_unaligned(self) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                self - other
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                self * other
            }
            #[inline(always)]
            unsafe fn div(self, other: Self) -> Self {
                self / other
            }
            #[inline(always)]
            unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
                <$float>::mul_add(self, factor, addend)
            }
            #[inline(always)]
            unsafe fn neg_mul_add(self, factor: Self, addend: Self) -> Self {
                <$float>::mul_add(-self, factor, addend)
            }
            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self {
                if self > other { self } else { other }
            }
            #[inline(always)]
            unsafe fn power(self) -> Self {
                Bits::power(self)
            }
            #[inline(always)]
            unsafe fn select_less(self, other: Self, when_true: Self, otherwise: Self) -> Self {
                if self < other { when_true } else { otherwise }
            }
            #[inline(always)]
            unsafe fn zero_if_less(self, bound: Self, otherwise: Self) -> Self {
                if self < bound { 0.0 } else { otherwise }
            }
            #[inline(always)]
            unsafe fn select_equal(self, other: Self, when_true: Self, otherwise: Self) -> Self {
                if self == other { when_true } else { otherwise }
            }
            #[inline(always)]
            unsafe fn count_if_less(self, other: Self, count: Self) -> Self {
                if self < other { count + 1.0 } else { count }
            }
            #[inline(always)]
            unsafe fn count_if_equal(self, other: Self, count: Self) -> Self {
                if self == other { count + 1.0 } else { count }
            }
            #[inline(always)]
            unsafe fn mask_greater(self, other: Self) -> u16 {
                u16::from(self > other)
            }
            #[inline(always)]
            unsafe fn mask_equal(self, other: Self) -> u16 {
                u16::from(self == other)
            }
            #[inline(always)]
            unsafe fn max_lane(self) -> $float {
                self
            }
            #[inline(always)]
            unsafe fn sum_lanes(self) -> $float {
                self
            }
        }
    };
}
scalar_register!(f32);
scalar_register!(f64);

/// Sixteen elements of a half-width type, each widened without rounding.
macro_rules! load_halves {
    ($pointer:expr) => {{
        let mut lanes = [0.0f32; 16];
        for (i, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: the caller vouches for sixteen readable elements.
            *lane = unsafe { $pointer.add(i).read_unaligned() }.to_f32();
        }
        // SAFETY: plain Rust runs everywhere.
        unsafe { Vector::from_registers(lanes) }
    }};
}

/// The largest of 256 elements of a half-width type, lane by lane.
macro_rules! max_halves {
    ($pointer:expr, $half:ty) => {{
        let mut lanes = [0.0f32; 16];
        for (i, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: the caller vouches for 256 readable elements.
            let bits = |row: usize| unsafe { $pointer.add(i + 16 * row).read_unaligned() }.to_bits();
            let largest = (1..16).fold(bits(0), |largest, row| larger_half(largest, bits(row)));
            *lane = <$half>::from_bits(largest).to_f32();
        }
        // SAFETY: plain Rust runs everywhere.
        unsafe { Vector::from_registers(lanes) }
    }};
}

impl Simd for Scalar {
    type F32 = Vector<f32, 16>;
    type F64 = Vector<f64, 16>;
    type Panels32 = Beside<1>;
    type Panels64 = Beside<1>;

    #[inline(always)]
    fn splat_f32(self, value: f32) -> Self::F32 {
        // SAFETY: plain Rust runs everywhere.
        unsafe { Vector::splat(value) }
    }
    #[inline(always)]
    fn splat_f64(self, value: f64) -> Self::F64 {
        // SAFETY: plain Rust runs everywhere.
        unsafe { Vector::splat(value) }
    }
    #[inline(always)]
    fn widen(self, narrow: Self::F32) -> Self::F64 {
        // SAFETY: plain Rust runs everywhere.
        unsafe { Vector::from_registers(narrow.registers().map(f64::from)) }
    }
    #[inline(always)]
    unsafe fn load_f32(self, pointer: *const f32) -> Self::F32 {
        // SAFETY: the caller vouches for the memory.
        unsafe { Vector::load(pointer) }
    }
    #[inline(always)]
    unsafe fn load_f64(self, pointer: *const f64) -> Self::F64 {
        // SAFETY: the caller vouches for the memory.
        unsafe { Vector::load(pointer) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, pointer: *const f16) -> Self::F32 {
        load_halves!(pointer)
    }
    #[inline(always)]
    unsafe fn load_bf16(self, pointer: *const bf16) -> Self::F32 {
        load_halves!(pointer)
    }
    #[inline(always)]
    unsafe fn max_f16(self, pointer: *const f16) -> Self::F32 {
        max_halves!(pointer, f16)
    }
    #[inline(always)]
    unsafe fn max_bf16(self, pointer: *const bf16) -> Self::F32 {
        max_halves!(pointer, bf16)
    }
    #[inline(always)]
    fn prefetch(self, _pointer: *const u8) {}
}
