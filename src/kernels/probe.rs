//! The read probe: the fastest plain read of the same memory, the limit that the other kernels are measured against.

use crate::input::{LEAF_BLOCKS, LeafScratch, RowView};
use crate::simd::lent::BLOCK_VECTORS;
use crate::simd::{Element, Float, Job, Lanes, Simd};

/// Loads every column of one row into eight accumulators.
pub(crate) struct ReadRow<'j, 'a, E: Element> {
    pub(crate) row: RowView<'a, E>,
    pub(crate) scratch: &'j mut LeafScratch<E>,
}

impl<E: Element> Job for ReadRow<'_, '_, E> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        let mut accumulators = [E::splat(simd, E::Compute::ZERO); 8];
        for index in 0..self.row.leaf_count() {
            let leaf = self.row.leaf(index, &mut self.scratch.columns);
            for block in 0..leaf.blocks().min(LEAF_BLOCKS) {
                for vector in 0..BLOCK_VECTORS {
                    let logits = leaf.block(block).load(simd, vector);
                    accumulators[vector % 8] = accumulators[vector % 8].add(logits);
                }
            }
        }
        accumulators.into_iter().map(|lanes| lanes.max_lane().into()).fold(f64::NEG_INFINITY, f64::max)
    }
}
