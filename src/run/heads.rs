//! Rows that are made of hidden states and heads: blocks of rows for each thread, or, where there are few, some leaves of a
//! block.

use super::{Interrupt, RowIn, RowWork, Source, for_each};
use crate::error::Error;
use crate::input::LEAF;
use crate::kernels::linear::{Arithmetic, Blocks, Logits, leaf_columns};
use crate::plan::HeadPlan;
use crate::simd::{Element, with_default_control};
use std::ops::Range;

/// Rows that are made, block by block, from hidden states and heads.
pub(crate) struct HeadRows<'p, F, const SIDES: usize> {
    pub(crate) plan: HeadPlan,
    pub(crate) sides: [&'p dyn Logits<F>; SIDES],
    pub(crate) rows: usize,
    pub(crate) vocab: usize,
}

/// One row of a block: its number, what has been read of it, and where its results go.
struct Entry<P, S> {
    row: usize,
    partial: P,
    slots: Option<S>,
}

/// The rows of a block, for some of its leaves.
type Part<W, E, const SIDES: usize> = Vec<Entry<<W as RowWork<E, SIDES>>::Partial, <W as RowWork<E, SIDES>>::Slots>>;

impl<F: Arithmetic, const SIDES: usize> HeadRows<'_, F, SIDES> {
    /// Reads some leaves of the block's rows.
    fn read_block<W: RowWork<F, SIDES>>(
        &self,
        work: &W,
        leaves: Range<usize>,
        (blocks, scratch): &mut (Blocks<'_, F, SIDES>, W::Scratch),
        entries: &mut [Entry<W::Partial, W::Slots>],
    ) {
        let rows: Vec<usize> = entries.iter().map(|entry| entry.row).collect();
        let targets: Vec<Option<usize>> = rows.iter().map(|&row| work.target(row)).collect();
        blocks.load(&rows);
        let target_logits = blocks.targets(&targets);
        for leaf in leaves {
            blocks.multiply(leaf, self.vocab);
            for (place, entry) in entries.iter_mut().enumerate() {
                let views = blocks.views(place, leaf, self.vocab);
                let target_logits = target_logits.each_ref().map(|side| side[place]);
                let row = RowIn { index: entry.row, views, target_logits };
                work.read(row, leaf..leaf + 1, scratch, &mut entry.partial);
            }
        }
    }
}

impl<F: Arithmetic, const SIDES: usize> Source<F, SIDES> for HeadRows<'_, F, SIDES> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn logits(&self, side: usize, row: usize) -> Vec<f64> {
        let mut block = self.sides[side].block(1);
        block.load(&[row]);
        let mut logits = Vec::with_capacity(self.vocab);
        for leaf in 0..self.vocab.div_ceil(LEAF) {
            let columns = leaf_columns(leaf, self.vocab);
            block.multiply(columns.clone());
            logits.extend(block.leaf(0)[..columns.len()].iter().map(|&logit| -> f64 { logit.into() }));
        }
        logits
    }

    fn run<W: RowWork<F, SIDES>>(
        &self,
        work: &W,
        slots: impl FnOnce(usize) -> Vec<W::Slots>,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error> {
        let HeadPlan { threads, rows: block_rows, leaves: piece, .. } = self.plan;
        let leaf_count = self.vocab.div_ceil(LEAF);
        let pieces = leaf_count.div_ceil(piece).max(1);
        // Ignored rows take no place in a block.
        let (mut read, mut unread) = (Vec::new(), Vec::new());
        for (row, slots) in slots(1).into_iter().enumerate() {
            if work.reads(row) { read.push((row, slots)) } else { unread.push((row, slots)) }
        }
        let scratch = || (Blocks::new(&self.sides, block_rows), work.scratch());
        with_default_control(|| {
            let empty = work.partial();
            unread.into_iter().for_each(|(row, mut slots)| work.write(row, &empty, &mut slots, 0));
            let mut parts: Vec<Part<W, F, SIDES>> = Vec::new();
            let mut rows = read.into_iter().peekable();
            while rows.peek().is_some() {
                let block: Vec<_> = rows.by_ref().take(block_rows).collect();
                let indices: Vec<usize> = block.iter().map(|(row, _)| *row).collect();
                let entry = |(row, slots)| Entry { row, partial: work.partial(), slots: Some(slots) };
                parts.push(block.into_iter().map(entry).collect());
                for _ in 1..pieces {
                    let entry = |&row| Entry { row, partial: work.partial(), slots: None };
                    parts.push(indices.iter().map(entry).collect());
                }
            }
            let run = |scratch: &mut (Blocks<'_, F, SIDES>, W::Scratch),
                       (unit, part): (usize, &mut Part<W, F, SIDES>)| {
                let first = unit % pieces * piece;
                self.read_block(work, first..leaf_count.min(first + piece), scratch, part);
                if pieces == 1 {
                    finish(work, part);
                }
            };
            for_each(threads, parts.iter_mut().enumerate(), scratch, run, interrupt)?;
            if pieces > 1 {
                for block in parts.chunks_mut(pieces) {
                    let (whole, following) = block.split_first_mut().expect("a block has at least one piece");
                    for part in following {
                        let pairs = whole.iter_mut().zip(part.iter());
                        pairs.for_each(|(whole, part)| work.append(&mut whole.partial, &part.partial));
                    }
                    finish(work, whole);
                }
            }
            Ok(())
        })
    }
}

/// Writes the rows of a block and gives their memory back.
fn finish<E: Element, W: RowWork<E, SIDES>, const SIDES: usize>(
    work: &W,
    entries: &mut Vec<Entry<W::Partial, W::Slots>>,
) {
    for mut entry in std::mem::take(entries) {
        if let Some(slots) = &mut entry.slots {
            work.write(entry.row, &entry.partial, slots, 0);
        }
    }
}
