//! The product in registers, written once: a few rows times a few panels, each sum in a lane of its own.

use super::{Operand, PANEL, Product, chunk};
use crate::simd::{Element, Lanes};

/// Rows of a block.
const ROWS: usize = 6;

/// How one class multiplies. A value is made only where its instructions run.
pub trait Multiply: Copy {
    type Operand: Operand<Compute = Self::Sum>;
    type Sum: Element<Compute = Self::Sum>;
    /// Sixteen sums.
    type Sums: Lanes<Scalar = Self::Sum>;
    /// One row's operands of a step, in every lane; or sixteen columns' operands.
    type Step: Copy;

    fn zero(self) -> Self::Sums;
    /// # Safety
    /// - `pointer` is readable for sixteen sums.
    unsafe fn load_sums(self, pointer: *const Self::Sum) -> Self::Sums;
    /// # Safety
    /// - `pointer` is readable for `PANEL * PAIR` operands.
    unsafe fn load(self, pointer: *const Self::Operand) -> Self::Step;
    /// # Safety
    /// - `pointer` is readable for `PAIR` operands.
    unsafe fn splat(self, pointer: *const Self::Operand) -> Self::Step;
    fn step(self, left: Self::Step, right: Self::Step, sums: Self::Sums) -> Self::Sums;
}

/// How many panels a block takes beside each other.
pub trait Panels {
    #[doc(hidden)]
    fn multiply<M: Multiply>(multiply: M, product: Product<'_, M::Operand, M::Sum>);
}

/// So many panels: as many as leave a register for each sum, and some for operands.
pub struct Beside<const PANELS: usize>;

impl<const PANELS: usize> Panels for Beside<PANELS> {
    /// The whole product in blocks of up to [`ROWS`] rows and `PANELS` panels.
    #[inline(always)]
    fn multiply<M: Multiply>(multiply: M, mut product: Product<'_, M::Operand, M::Sum>) {
        if !product.check() {
            return;
        }
        let mut panel = 0;
        while panel + PANELS <= product.panels {
            rows_of::<M, PANELS>(multiply, &mut product, panel);
            panel += PANELS;
        }
        for panel in panel..product.panels {
            rows_of::<M, 1>(multiply, &mut product, panel);
        }
    }
}

#[inline(always)]
fn rows_of<M: Multiply, const PANELS: usize>(multiply: M, product: &mut Product<'_, M::Operand, M::Sum>, panel: usize) {
    let mut row = 0;
    while row + ROWS <= product.rows {
        block::<M, ROWS, PANELS>(multiply, product, row, panel);
        row += ROWS;
    }
    if row + 4 <= product.rows {
        block::<M, 4, PANELS>(multiply, product, row, panel);
        row += 4;
    }
    if row + 2 <= product.rows {
        block::<M, 2, PANELS>(multiply, product, row, panel);
        row += 2;
    }
    for row in row..product.rows {
        block::<M, 1, PANELS>(multiply, product, row, panel);
    }
}

#[inline(always)]
fn block<M: Multiply, const ROWS: usize, const PANELS: usize>(
    multiply: M,
    product: &mut Product<'_, M::Operand, M::Sum>,
    row: usize,
    panel: usize,
) {
    debug_assert!(row + ROWS <= product.rows && panel + PANELS <= product.panels);
    let (pair, chunk) = (M::Operand::PAIR, chunk(product.depth));
    let (left, right) = (&product.left[row * product.left_stride..], &product.right[panel * product.right_stride..]);
    let places = product.sums[row * product.stride + panel * PANEL..].as_mut_ptr();
    let mut first = 0;
    while first == 0 || first < product.depth {
        let end = product.depth.min(first + chunk);
        let mut sums = [[multiply.zero(); PANELS]; ROWS];
        for k in (first..end).step_by(pair) {
            // SAFETY: `multiply` saw `check` pass, `row + ROWS` and `panel + PANELS` are inside the product, and k is below
            // its depth, which is a multiple of the pair.
            unsafe {
                let mut weights = [multiply.load(right.as_ptr().add(k * PANEL)); PANELS];
                for (j, weights) in weights.iter_mut().enumerate().skip(1) {
                    *weights = multiply.load(right.as_ptr().add(j * product.right_stride + k * PANEL));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let left = multiply.splat(left.as_ptr().add(i * product.left_stride + k));
                    for (sums, weights) in sums.iter_mut().zip(weights) {
                        *sums = multiply.step(left, weights, *sums);
                    }
                }
            }
        }
        let adds = product.adds || first > 0;
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                // SAFETY: as above, of the sums; they are borrowed for writing.
                unsafe {
                    let place = places.add(i * product.stride + j * PANEL);
                    let sum = if adds { sum.add(multiply.load_sums(place)) } else { sum };
                    place.cast::<[M::Sum; PANEL]>().write_unaligned(sum.to_array());
                }
            }
        }
        first = end.max(1);
    }
}
