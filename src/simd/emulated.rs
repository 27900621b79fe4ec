//! Registers of 128 bits, emulated lane by lane: four float32 lanes, two float64 lanes.
//!
//! It proves that the kernels take registers of this width. A port to an instruction set of 128 bits is a copy of this file
//! with its intrinsics in place of the loops. For tests only.

use super::Simd;
use super::scalar::Scalar;
use super::tiles::Beside;
use super::vector::{Register, Vector};
use half::{bf16, f16};

/// The token of the emulation, which needs no proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emulated128;

/// Applies a method of one lane to every lane.
macro_rules! each_lane {
    ($count:literal, $method:ident($first:expr $(, $operand:ident)*)) => {{
        let mut lanes = $first;
        for i in 0..$count {
            // SAFETY: plain Rust runs everywhere.
            lanes[i] = unsafe { Register::$method(lanes[i] $(, $operand[i])*) };
        }
        lanes
    }};
}

macro_rules! emulated_register {
    ($float:ty, $count:literal, [$($name:ident($($operand:ident),*)),+]) => {
        // SAFETY: plain Rust only; the pointers are the caller's duty.
        unsafe impl Register for [$float; $count] {
            type Scalar = $float;
            const WIDTH: usize = $count;

            unsafe fn splat(value: $float) -> Self {
                [value; $count]
            }
            unsafe fn load(pointer: *const $float) -> Self {
                // SAFETY: the caller vouches for the memory.
                unsafe { pointer.cast::<Self>().read_unaligned() }
            }
            unsafe fn store(self, pointer: *mut $float) {
                // SAFETY: the caller vouches for the memory.
                unsafe { pointer.cast::<Self>().write_unaligned(self) }
            }
            $(
                unsafe fn $name(self, $($operand: Self),*) -> Self {
                    each_lane!($count, $name(self $(, $operand)*))
                }
            )+
            unsafe fn mask_greater(self, other: Self) -> u16 {
                (0..$count).map(|i| u16::from(self[i] > other[i]) << i).sum()
            }
            unsafe fn mask_equal(self, other: Self) -> u16 {
                (0..$count).map(|i| u16::from(self[i] == other[i]) << i).sum()
            }
            unsafe fn max_lane(self) -> $float {
                let mut lanes = self;
                let mut width = $count / 2;
                while width > 0 {
                    for i in 0..width {
                        // SAFETY: plain Rust runs everywhere.
                        lanes[i] = unsafe { Register::max(lanes[i], lanes[i + width]) };
                    }
                    width /= 2;
                }
                lanes[0]
            }
            unsafe fn sum_lanes(self) -> $float {
                let mut lanes = self;
                let mut width = $count / 2;
                while width > 0 {
                    for i in 0..width {
                        lanes[i] += lanes[i + width];
                    }
                    width /= 2;
                }
                lanes[0]
            }
        }
    };
    ($float:ty, $count:literal) => {
        emulated_register!($float, $count, [
            add(other), sub(other), mul(other), div(other), max(other), power(), mul_add(factor, addend),
            neg_mul_add(factor, addend), select_less(other, when_true, otherwise), zero_if_less(bound, otherwise),
            select_equal(other, when_true, otherwise), count_if_less(other, count), count_if_equal(other, count)
        ]);
    };
}
emulated_register!(f32, 4);
emulated_register!(f64, 2);

/// Sixteen lanes of plain Rust as four registers.
fn grouped(lanes: <Scalar as Simd>::F32) -> Vector<[f32; 4], 4> {
    let lanes = lanes.registers();
    // SAFETY: plain Rust runs everywhere.
    unsafe { Vector::from_registers(std::array::from_fn(|i| std::array::from_fn(|j| lanes[4 * i + j]))) }
}

impl Simd for Emulated128 {
    type F32 = Vector<[f32; 4], 4>;
    type F64 = Vector<[f64; 2], 8>;
    type Panels32 = Beside<1>;
    type Panels64 = Beside<1>;

    fn splat_f32(self, value: f32) -> Self::F32 {
        // SAFETY: plain Rust runs everywhere.
        unsafe { Vector::splat(value) }
    }
    fn splat_f64(self, value: f64) -> Self::F64 {
        // SAFETY: plain Rust runs everywhere.
        unsafe { Vector::splat(value) }
    }
    fn widen(self, narrow: Self::F32) -> Self::F64 {
        let lanes = narrow.registers();
        let pair = |i: usize| std::array::from_fn(|j| f64::from(lanes[i / 2][2 * (i % 2) + j]));
        // SAFETY: plain Rust runs everywhere.
        unsafe { Vector::from_registers(std::array::from_fn(pair)) }
    }
    unsafe fn load_f32(self, pointer: *const f32) -> Self::F32 {
        // SAFETY: the caller vouches for the memory.
        unsafe { Vector::load(pointer) }
    }
    unsafe fn load_f64(self, pointer: *const f64) -> Self::F64 {
        // SAFETY: the caller vouches for the memory.
        unsafe { Vector::load(pointer) }
    }
    unsafe fn load_f16(self, pointer: *const f16) -> Self::F32 {
        // SAFETY: the caller vouches for the memory.
        grouped(unsafe { Scalar.load_f16(pointer) })
    }
    unsafe fn load_bf16(self, pointer: *const bf16) -> Self::F32 {
        // SAFETY: the caller vouches for the memory.
        grouped(unsafe { Scalar.load_bf16(pointer) })
    }
    unsafe fn max_f16(self, pointer: *const f16) -> Self::F32 {
        // SAFETY: the caller vouches for the memory.
        grouped(unsafe { Scalar.max_f16(pointer) })
    }
    unsafe fn max_bf16(self, pointer: *const bf16) -> Self::F32 {
        // SAFETY: the caller vouches for the memory.
        grouped(unsafe { Scalar.max_bf16(pointer) })
    }
    fn prefetch(self, _pointer: *const u8) {}
}

#[cfg(test)]
mod tests {
    use crate::{Element, Execution, Isa, LogitsView, Options, Targets, kl_divergence, row_stats};
    use half::{bf16, f16};

    const VOCAB: usize = 4_403;

    /// Statistics and divergence of two rows of one storage type: the emulation gives the bits of the best instruction set.
    fn agrees<E: Element>(narrow: impl Fn(f32) -> E) {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            narrow((state >> 40) as f32 / (1 << 21) as f32 - 4.0)
        };
        let logits: Vec<E> = (0..2 * VOCAB).map(|_| next()).collect();
        let view = LogitsView::from_slice(&logits, 2, VOCAB).expect("the buffer holds two rows");
        let targets = Targets::new([17, 4_402], VOCAB, -100).expect("both lie inside");
        let run = |isa| {
            let execution = Execution { isa: Some(isa), num_threads: Some(1) };
            let options = Options { top_k: 5, softcap: Some(30.0), execution, ..Options::default() };
            let mut stats = row_stats(&view, Some(&targets), &options).expect("the rows are finite");
            stats.isa = "";
            let mut turned = logits.clone();
            turned.rotate_left(VOCAB);
            let other = LogitsView::from_slice(&turned, 2, VOCAB).expect("the buffer holds two rows");
            (format!("{stats:?}"), kl_divergence(&view, &other, 1.0, &execution).expect("of one shape").kl_divergence)
        };
        assert_eq!(run(Isa::emulated()), run(Isa::best()));
    }

    #[test]
    fn emulated_registers_give_the_same_bits() {
        agrees(|value| value);
        agrees(f64::from);
        agrees(f16::from_f32);
        agrees(bf16::from_f32);
    }
}
