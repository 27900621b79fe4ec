//! One leaf: up to 4,096 columns of a row, aligned to absolute column numbers, as whole blocks.
//!
//! Consecutive columns are read where they lie. The last block of a row, if it is not full, and every leaf of a strided
//! row are copied; columns past the vocabulary are minus infinity, which changes no bit of any sum.

use crate::simd::lent::{BLOCK, Block, Lent};
use crate::simd::{Element, Float};

/// Columns of a leaf; part of the numeric contract.
pub(crate) const LEAF: usize = 4096;
/// Blocks of a leaf.
pub(crate) const LEAF_BLOCKS: usize = LEAF / BLOCK;

/// Columns to be read as blocks.
#[derive(Clone, Copy)]
pub(crate) struct Leaf<'a, E> {
    memory: Lent<'a, E>,
    byte_offset: usize,
    full_blocks: usize,
    tail: Lent<'a, E>,
    columns: usize,
    distance_to_next: usize,
}

impl<'a, E: Element> Leaf<'a, E> {
    /// Consecutive columns at `byte_offset`; those past the last full block stand in `tail`.
    pub(super) fn new(memory: Lent<'a, E>, byte_offset: usize, columns: usize, tail: &'a [E]) -> Self {
        let (full_blocks, tail) = (columns / BLOCK, Lent::from_slice(tail));
        Self { memory, byte_offset, full_blocks, tail, columns, distance_to_next: LEAF }
    }

    /// The first `columns` of a padded buffer of whole blocks.
    pub(crate) fn from_padded(buffer: &'a [E], columns: usize) -> Self {
        let memory = Lent::from_slice(buffer);
        let full_blocks = columns.div_ceil(BLOCK);
        Self { memory, byte_offset: 0, full_blocks, tail: memory, columns, distance_to_next: 0 }
    }

    /// Columns of the row in this leaf.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Columns of minus infinity behind them.
    pub(crate) fn padding(&self) -> usize {
        self.blocks() * BLOCK - self.columns
    }

    /// Blocks to read.
    pub(crate) fn blocks(&self) -> usize {
        self.columns.div_ceil(BLOCK)
    }

    /// Elements from a column of this leaf to one that is likely to be read next: the next leaf, or the column itself.
    #[inline(always)]
    pub(crate) fn distance_to_next(&self) -> usize {
        self.distance_to_next
    }

    /// The logit of one column.
    pub(crate) fn logit(&self, column: usize) -> E {
        assert!(column < self.columns);
        if column / BLOCK < self.full_blocks {
            self.memory.element(self.byte_offset + column * size_of::<E>())
        } else {
            self.tail.element(column % BLOCK * size_of::<E>())
        }
    }

    /// Block number `index`.
    #[inline(always)]
    pub(crate) fn block(&self, index: usize) -> Block<'a, E> {
        if index < self.full_blocks {
            self.memory.block(self.byte_offset + index * (BLOCK * size_of::<E>()))
        } else {
            self.tail.block(0)
        }
    }
}

/// Room for one leaf of a strided row, for the tail of a row, and for a leaf after the soft cap.
pub(crate) struct LeafScratch<E: Element> {
    pub(crate) columns: Vec<E>,
    pub(crate) capped: Vec<E::Compute>,
}

impl<E: Element> LeafScratch<E> {
    pub(crate) fn new() -> Self {
        Self { columns: vec![E::IMPOSSIBLE; LEAF], capped: vec![E::Compute::NEG_INFINITY; LEAF] }
    }
}
