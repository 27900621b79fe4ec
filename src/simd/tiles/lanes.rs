//! Products of float32 or float64 in the lanes of any instruction set, one fused multiply-add for each term.

use super::block::Multiply;
use super::block::Panels;
use super::{Operand, Product, Tiles};
use crate::simd::{Float, Isa, Job, Lanes, Simd};
use std::marker::PhantomData;

/// Tiles of `F` on one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct LaneTiles<F> {
    isa: Isa,
    float: PhantomData<F>,
}

impl<F> LaneTiles<F> {
    pub(crate) fn new(isa: Isa) -> Self {
        Self { isa, float: PhantomData }
    }
}

/// A compute type whose products are made in lanes.
pub(crate) trait LaneOperand: Float + Operand<Compute = Self> {
    /// As many panels as the registers hold.
    type Panels<S: Simd>: Panels;
}
impl LaneOperand for f32 {
    type Panels<S: Simd> = S::Panels32;
}
impl LaneOperand for f64 {
    type Panels<S: Simd> = S::Panels64;
}

impl<F: LaneOperand> Tiles for LaneTiles<F> {
    type Operand = F;
    type Sum = F;

    fn multiply(self, product: Product<'_, F, F>) {
        self.isa.run(LaneProduct(product));
    }
}

struct LaneProduct<'p, F>(Product<'p, F, F>);

impl<F: LaneOperand> Job for LaneProduct<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        F::Panels::<S>::multiply(LaneMultiply::<S, F> { simd, float: PhantomData }, self.0);
    }
}

struct LaneMultiply<S, F> {
    simd: S,
    float: PhantomData<F>,
}

impl<S: Copy, F> Clone for LaneMultiply<S, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Copy, F> Copy for LaneMultiply<S, F> {}

impl<S: Simd, F: LaneOperand> Multiply for LaneMultiply<S, F> {
    type Operand = F;
    type Sum = F;
    type Sums = F::Lanes<S>;
    type Step = F::Lanes<S>;

    #[inline(always)]
    fn zero(self) -> F::Lanes<S> {
        F::splat(self.simd, F::ZERO)
    }
    #[inline(always)]
    unsafe fn load_sums(self, pointer: *const F) -> F::Lanes<S> {
        // SAFETY: the caller vouches for the memory.
        unsafe { F::load(self.simd, pointer) }
    }
    #[inline(always)]
    unsafe fn load(self, pointer: *const F) -> F::Lanes<S> {
        // SAFETY: the caller vouches for the memory.
        unsafe { F::load(self.simd, pointer) }
    }
    #[inline(always)]
    unsafe fn splat(self, pointer: *const F) -> F::Lanes<S> {
        // SAFETY: the caller vouches for the memory.
        F::splat(self.simd, unsafe { pointer.read_unaligned() })
    }
    #[inline(always)]
    fn step(self, left: F::Lanes<S>, right: F::Lanes<S>, sums: F::Lanes<S>) -> F::Lanes<S> {
        left.mul_add(right, sums)
    }
}
