//! Rows that lie in memory: whole rows for each thread, or, where there are few, runs of leaves.

use super::{Interrupt, RowIn, RowWork, Source, for_each};
use crate::error::Error;
use crate::input::{LEAF, LogitsView};
use crate::plan::{Plan, Unit};
use crate::simd::{Element, with_default_control};

/// Rows that lie in memory.
pub(crate) struct LentRows<'v, 'a, E, const SIDES: usize> {
    pub(crate) plan: Plan,
    pub(crate) sides: [&'v LogitsView<'a, E>; SIDES],
}

impl<E: Element, const SIDES: usize> LentRows<'_, '_, E, SIDES> {
    fn row<W: RowWork<E, SIDES>>(&self, work: &W, index: usize) -> Option<RowIn<'_, E, SIDES>> {
        let views = self.sides.map(|side| side.row(index));
        let logits = |column| views.map(|view| Some(view.logit(column).widen()));
        work.reads(index).then(|| RowIn {
            index,
            views,
            target_logits: work.target(index).map_or([None; SIDES], logits),
        })
    }
}

impl<E: Element, const SIDES: usize> Source<E, SIDES> for LentRows<'_, '_, E, SIDES> {
    fn rows(&self) -> usize {
        self.sides[0].rows()
    }

    fn vocab(&self) -> usize {
        self.sides[0].vocab()
    }

    fn logits(&self, side: usize, row: usize) -> Vec<f64> {
        let view = self.sides[side].row(row);
        (0..view.vocab()).map(|column| view.logit(column).widen().into()).collect()
    }

    fn run<W: RowWork<E, SIDES>>(
        &self,
        work: &W,
        slots: impl FnOnce(usize) -> Vec<W::Slots>,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error> {
        let (plan, row_count, leaf_count) = (&self.plan, self.rows(), self.vocab().div_ceil(LEAF));
        with_default_control(|| match plan.unit {
            Unit::Rows(size) => {
                let units = slots(size).into_iter().enumerate();
                let scratch = || (work.scratch(), work.partial());
                let run = |(scratch, partial): &mut (W::Scratch, W::Partial), (unit, mut slots): (usize, W::Slots)| {
                    let first = unit * size;
                    for index in first..row_count.min(first + size) {
                        work.clear(partial);
                        if let Some(row) = self.row(work, index) {
                            work.read(row, 0..leaf_count, scratch, partial);
                        }
                        work.write(index, partial, &mut slots, index - first);
                    }
                };
                for_each(plan.threads, units, scratch, run, interrupt)
            }
            Unit::Leaves(size) => {
                let pieces = leaf_count.div_ceil(size);
                let mut partials: Vec<W::Partial> = (0..row_count * pieces).map(|_| work.partial()).collect();
                let units = partials.iter_mut().enumerate();
                let run = |scratch: &mut W::Scratch, (unit, partial): (usize, &mut W::Partial)| {
                    let first = unit % pieces * size;
                    if let Some(row) = self.row(work, unit / pieces) {
                        work.read(row, first..leaf_count.min(first + size), scratch, partial);
                    }
                };
                for_each(plan.threads, units, || work.scratch(), run, interrupt)?;
                for ((row, parts), mut slots) in partials.chunks_mut(pieces).enumerate().zip(slots(1)) {
                    let (whole, following) = parts.split_first_mut().expect("a row has at least one leaf here");
                    following.iter().for_each(|part| work.append(whole, part));
                    work.write(row, whole, &mut slots, 0);
                }
                Ok(())
            }
        })
    }
}
