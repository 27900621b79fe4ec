//! What a bfloat16 tile product means, in plain loops; tests hold the others to it.

use super::{PANEL, Product, Tiles, chunk};
use half::bf16;

/// The product of VDPBF16PS, term by term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlainBf16;

impl Tiles for PlainBf16 {
    type Operand = bf16;
    type Sum = f32;

    fn multiply(self, product: Product<'_, bf16, f32>) {
        if !product.check() {
            return;
        }
        for row in 0..product.rows {
            let left = &product.left[row * product.left_stride..][..product.depth];
            for column in 0..product.panels * PANEL {
                let panel = &product.right[column / PANEL * product.right_stride..];
                let place = &mut product.sums[row * product.stride + column];
                let mut total = if product.adds { *place } else { 0.0 };
                let length = chunk(product.depth);
                for (chunk, left) in left.chunks(length).enumerate() {
                    let mut sum = 0f32;
                    for (pair, left) in left.chunks(2).enumerate() {
                        let right = &panel[(chunk * length / 2 + pair) * 2 * PANEL + column % PANEL * 2..];
                        sum = flushed(flushed(left[1]).mul_add(flushed(right[1]), sum));
                        sum = flushed(flushed(left[0]).mul_add(flushed(right[0]), sum));
                    }
                    total = if chunk == 0 && !product.adds { sum } else { sum + total };
                }
                *place = total;
            }
        }
    }
}

/// The value in float32; a subnormal one as 0 of its sign.
fn flushed(value: impl Into<f32>) -> f32 {
    let value = value.into();
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}
