//! Sixteen lanes as `COUNT` hardware registers; every instruction set gives only its register, [`Register`].

use super::{Float, LANES, Lanes};

/// One hardware register and its instructions.
///
/// # Safety
/// Each method may be called only where the register's instruction set is known to run; `load` and `store` also need
/// `LANES / COUNT` readable or writable elements, of any alignment.
pub unsafe trait Register: Copy {
    type Scalar: Float;
    /// Lanes of one register.
    const WIDTH: usize;

    unsafe fn splat(value: Self::Scalar) -> Self;
    unsafe fn load(pointer: *const Self::Scalar) -> Self;
    unsafe fn store(self, pointer: *mut Self::Scalar);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn neg_mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn power(self) -> Self;
    unsafe fn select_less(self, other: Self, when_true: Self, otherwise: Self) -> Self;
    unsafe fn zero_if_less(self, bound: Self, otherwise: Self) -> Self;
    unsafe fn select_equal(self, other: Self, when_true: Self, otherwise: Self) -> Self;
    unsafe fn count_if_less(self, other: Self, count: Self) -> Self;
    unsafe fn count_if_equal(self, other: Self, count: Self) -> Self;
    unsafe fn mask_greater(self, other: Self) -> u16;
    unsafe fn mask_equal(self, other: Self) -> u16;
    /// The largest lane; there is no NaN among them.
    unsafe fn max_lane(self) -> Self::Scalar;
    /// The sum of the lanes, halves onto halves.
    unsafe fn sum_lanes(self) -> Self::Scalar;
}

/// Sixteen lanes. Made only through a token, so its existence proves that its instructions run here.
#[derive(Clone, Copy)]
pub struct Vector<R, const COUNT: usize>([R; COUNT]);

impl<R: Register, const COUNT: usize> Vector<R, COUNT> {
    /// # Safety
    /// - The caller holds the token of the register's instruction set.
    #[inline(always)]
    pub(super) unsafe fn from_registers(registers: [R; COUNT]) -> Self {
        const { assert!(R::WIDTH * COUNT == LANES) };
        Self(registers)
    }

    #[inline(always)]
    pub(super) fn registers(self) -> [R; COUNT] {
        self.0
    }

    /// # Safety
    /// - The caller holds the token of the register's instruction set.
    #[inline(always)]
    pub(super) unsafe fn splat(value: R::Scalar) -> Self {
        // SAFETY: the caller holds the token.
        unsafe { Self::from_registers([R::splat(value); COUNT]) }
    }

    /// # Safety
    /// - The caller holds the token of the register's instruction set.
    /// - `pointer` is readable for sixteen elements.
    #[inline(always)]
    pub(super) unsafe fn load(pointer: *const R::Scalar) -> Self {
        // SAFETY: the caller holds the token, and vouches for the memory.
        unsafe {
            let mut registers = [R::load(pointer); COUNT];
            for (i, register) in registers.iter_mut().enumerate().skip(1) {
                *register = R::load(pointer.add(i * R::WIDTH));
            }
            Self::from_registers(registers)
        }
    }
}

/// Applies one register method to each register. A macro and not a closure: closures do not inline into a region
/// with more target features than their own.
macro_rules! per_register {
    ($method:ident($first:expr $(, $operand:ident)*)) => {{
        let mut registers = $first.0;
        for i in 0..COUNT {
            // SAFETY: a `Vector` exists only where a token does, so the instruction set runs here.
            registers[i] = unsafe { R::$method(registers[i] $(, $operand.0[i])*) };
        }
        Self(registers)
    }};
}

macro_rules! mask_per_register {
    ($method:ident($first:expr, $second:expr)) => {{
        let mut bits = 0;
        for i in 0..COUNT {
            // SAFETY: a `Vector` exists only where a token does, so the instruction set runs here.
            bits |= unsafe { R::$method($first.0[i], $second.0[i]) } << (i * R::WIDTH);
        }
        bits
    }};
}

/// One register from all, the upper half of them onto the lower until one is left.
macro_rules! halves_onto_halves {
    ($registers:expr, $method:ident) => {{
        let mut registers = $registers;
        let mut width = COUNT / 2;
        while width > 0 {
            for i in 0..width {
                registers[i] = registers[i].$method(registers[i + width]);
            }
            width /= 2;
        }
        registers[0]
    }};
}

impl<R: Register, const COUNT: usize> Lanes for Vector<R, COUNT> {
    type Scalar = R::Scalar;

    #[inline(always)]
    fn fill(self, value: R::Scalar) -> Self {
        // SAFETY: `self` exists only where a token does.
        unsafe { Self::splat(value) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        per_register!(add(self, other))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        per_register!(sub(self, other))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        per_register!(mul(self, other))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        per_register!(div(self, other))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        per_register!(mul_add(self, factor, addend))
    }
    #[inline(always)]
    fn neg_mul_add(self, factor: Self, addend: Self) -> Self {
        per_register!(neg_mul_add(self, factor, addend))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        per_register!(max(self, other))
    }
    #[inline(always)]
    fn power(self) -> Self {
        per_register!(power(self))
    }
    #[inline(always)]
    fn select_less(self, other: Self, when_true: Self, otherwise: Self) -> Self {
        per_register!(select_less(self, other, when_true, otherwise))
    }
    #[inline(always)]
    fn zero_if_less(self, bound: Self, otherwise: Self) -> Self {
        per_register!(zero_if_less(self, bound, otherwise))
    }
    #[inline(always)]
    fn select_equal(self, other: Self, when_true: Self, otherwise: Self) -> Self {
        per_register!(select_equal(self, other, when_true, otherwise))
    }
    #[inline(always)]
    fn count_if_less(self, other: Self, count: Self) -> Self {
        per_register!(count_if_less(self, other, count))
    }
    #[inline(always)]
    fn count_if_equal(self, other: Self, count: Self) -> Self {
        per_register!(count_if_equal(self, other, count))
    }
    #[inline(always)]
    fn mask_greater(self, other: Self) -> u16 {
        mask_per_register!(mask_greater(self, other))
    }
    #[inline(always)]
    fn mask_equal(self, other: Self) -> u16 {
        mask_per_register!(mask_equal(self, other))
    }
    #[inline(always)]
    fn max_lane(self) -> R::Scalar {
        // SAFETY: a `Vector` exists only where a token does, so the instruction set runs here.
        unsafe { halves_onto_halves!(self.0, max).max_lane() }
    }
    #[inline(always)]
    fn sum_lanes(self) -> R::Scalar {
        // SAFETY: a `Vector` exists only where a token does, so the instruction set runs here.
        unsafe { halves_onto_halves!(self.0, add).sum_lanes() }
    }
    #[inline(always)]
    fn to_array(self) -> [R::Scalar; LANES] {
        let mut values = [R::Scalar::ZERO; LANES];
        for (i, register) in self.0.into_iter().enumerate() {
            // SAFETY: a `Vector` exists only where a token does, and the registers' widths sum to `LANES`.
            unsafe { register.store(values.as_mut_ptr().add(i * R::WIDTH)) };
        }
        values
    }
}
