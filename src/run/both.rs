//! Two works on the same rows: each leaf is read by both while the cache holds it.

use super::{RowIn, RowWork};
use crate::simd::Element;
use std::ops::Range;

/// Leaves that the first work reads before the second does: 128 KiB of float32, which the second-level cache holds.
/// Some works look again at a leaf of each range that they are given, so that single leaves would cost more.
const TURN: usize = 8;

/// Two works that read the same rows and know the same targets.
pub(crate) struct Both<'w, A, B> {
    pub(crate) first: &'w A,
    pub(crate) second: &'w B,
}

impl<E: Element, A: RowWork<E, SIDES>, B: RowWork<E, SIDES>, const SIDES: usize> RowWork<E, SIDES> for Both<'_, A, B> {
    type Scratch = (A::Scratch, B::Scratch);
    type Partial = (A::Partial, B::Partial);
    type Slots = (A::Slots, B::Slots);

    fn scratch(&self) -> Self::Scratch {
        (self.first.scratch(), self.second.scratch())
    }

    fn partial(&self) -> Self::Partial {
        (self.first.partial(), self.second.partial())
    }

    fn reads(&self, row: usize) -> bool {
        self.first.reads(row)
    }

    fn target(&self, row: usize) -> Option<usize> {
        self.first.target(row)
    }

    fn read(
        &self,
        row: RowIn<'_, E, SIDES>,
        leaves: Range<usize>,
        scratch: &mut Self::Scratch,
        partial: &mut Self::Partial,
    ) {
        for start in leaves.clone().step_by(TURN) {
            let turn = start..leaves.end.min(start + TURN);
            self.first.read(row, turn.clone(), &mut scratch.0, &mut partial.0);
            self.second.read(row, turn, &mut scratch.1, &mut partial.1);
        }
    }

    fn append(&self, partial: &mut Self::Partial, following: &Self::Partial) {
        self.first.append(&mut partial.0, &following.0);
        self.second.append(&mut partial.1, &following.1);
    }

    fn clear(&self, partial: &mut Self::Partial) {
        self.first.clear(&mut partial.0);
        self.second.clear(&mut partial.1);
    }

    fn write(&self, row: usize, partial: &Self::Partial, slots: &mut Self::Slots, index: usize) {
        self.first.write(row, &partial.0, &mut slots.0, index);
        self.second.write(row, &partial.1, &mut slots.1, index);
    }
}
