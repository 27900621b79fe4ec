//! Products of hidden states and head weights, tile by tile.
//!
//! In: `left`, rows of operands one after another, and `right`, packed panels of sixteen columns. Out: `sums[row][column]` =
//! sum over k of left[row][k] right[k][column]. Every sum is a chain of its own over ascending k, cut after [`chunk`] terms, so
//! its bits do not depend on which rows and columns stand beside it. Each implementation of [`Tiles`] has its own bits; those
//! of float32 and float64 lanes are the same on every instruction set.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
mod block;
mod lanes;
mod pack;
#[cfg(test)]
mod plain;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use amx::Amx;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512bf16::Avx512Bf16;
pub use block::{Beside, Panels};
pub(crate) use lanes::LaneTiles;
pub(crate) use pack::{pack_columns, pack_rows};
#[cfg(test)]
pub(crate) use plain::PlainBf16;

use super::{Element, Float};
use half::bf16;

/// Terms of one chain before it is added to its sum: a shorter chain rounds less, a longer one stores less often. A quarter
/// of the depth has half the rounding error of a single chain (the errors of its terms are those of sums a half as large).
pub(crate) fn chunk(depth: usize) -> usize {
    (depth / 4).clamp(64, 256).next_multiple_of(64)
}
/// Columns of a packed panel.
pub(crate) const PANEL: usize = super::LANES;

/// What products are made of.
pub trait Operand: Element {
    /// Neighbours in k that one lane multiplies at a time; a panel holds them side by side.
    const PAIR: usize;
    /// The depth of operands is padded with zeros to a multiple of this.
    const DEPTH: usize;
}

impl Operand for f32 {
    const PAIR: usize = 1;
    const DEPTH: usize = 1;
}
impl Operand for f64 {
    const PAIR: usize = 1;
    const DEPTH: usize = 1;
}
impl Operand for bf16 {
    const PAIR: usize = 2;
    const DEPTH: usize = 32;
}

/// One way to multiply.
pub(crate) trait Tiles: Copy + Send + Sync {
    type Operand: Operand<Compute = Self::Sum>;
    type Sum: Float + Element<Compute = Self::Sum>;

    /// Writes `product.sums`, or adds to them.
    fn multiply(self, product: Product<'_, Self::Operand, Self::Sum>);
}

/// Operands and places of one product.
pub struct Product<'p, O, F> {
    /// `rows` rows, `left_stride` elements from one to the next.
    pub(crate) left: &'p [O],
    pub(crate) left_stride: usize,
    pub(crate) rows: usize,
    /// `panels` panels, `right_stride` elements from one to the next: for each `PAIR` of k its sixteen columns, a pair each.
    pub(crate) right: &'p [O],
    pub(crate) right_stride: usize,
    pub(crate) panels: usize,
    /// A multiple of the operand's `DEPTH`.
    pub(crate) depth: usize,
    /// `rows` rows of `panels * PANEL` sums, `stride` elements from one to the next.
    pub(crate) sums: &'p mut [F],
    pub(crate) stride: usize,
    /// Whether to add to what `sums` hold.
    pub(crate) adds: bool,
}

impl<O: Operand, F> Product<'_, O, F> {
    /// Whether there is anything to multiply. Every read and write of a product lies inside what this has seen.
    #[inline(always)]
    fn check(&self) -> bool {
        if self.rows == 0 || self.panels == 0 {
            return false;
        }
        assert!(self.depth.is_multiple_of(O::DEPTH), "operands are padded");
        assert!(self.left_stride >= self.depth && self.left.len() >= (self.rows - 1) * self.left_stride + self.depth);
        let panel = PANEL * self.depth;
        assert!(self.right_stride >= panel && self.right.len() >= (self.panels - 1) * self.right_stride + panel);
        let width = self.panels * PANEL;
        assert!(self.stride >= width && self.sums.len() >= (self.rows - 1) * self.stride + width);
        true
    }
}

#[cfg(test)]
mod tests;
