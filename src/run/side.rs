//! Two models' rows in one pass: work on the rows of one of them, beside work on both.

use super::{Both, Interrupt, RowIn, RowWork, Source};
use crate::error::Error;
use crate::simd::Element;
use std::ops::Range;
use std::sync::Mutex;

/// Work on one side of rows that have two.
pub(crate) struct OfSide<'w, W, const SIDE: usize>(pub(crate) &'w W);

impl<E: Element, W: RowWork<E, 1>, const SIDE: usize> RowWork<E, 2> for OfSide<'_, W, SIDE> {
    type Scratch = W::Scratch;
    type Partial = W::Partial;
    type Slots = W::Slots;

    fn scratch(&self) -> W::Scratch {
        self.0.scratch()
    }

    fn partial(&self) -> W::Partial {
        self.0.partial()
    }

    fn reads(&self, row: usize) -> bool {
        self.0.reads(row)
    }

    fn target(&self, row: usize) -> Option<usize> {
        self.0.target(row)
    }

    fn read(&self, row: RowIn<'_, E, 2>, leaves: Range<usize>, scratch: &mut W::Scratch, partial: &mut W::Partial) {
        let (views, target_logits) = ([row.views[SIDE]], [row.target_logits[SIDE]]);
        self.0.read(RowIn { index: row.index, views, target_logits }, leaves, scratch, partial);
    }

    fn append(&self, partial: &mut W::Partial, following: &W::Partial) {
        self.0.append(partial, following);
    }

    fn clear(&self, partial: &mut W::Partial) {
        self.0.clear(partial);
    }

    fn write(&self, row: usize, partial: &W::Partial, slots: &mut W::Slots, index: usize) {
        self.0.write(row, partial, slots, index);
    }
}

/// One side of a source of two, to whoever scans rows: the work that is run on it has another one beside it, on both
/// sides, in the same pass.
pub(crate) struct SideSource<'s, S, W, F, const SIDE: usize> {
    source: &'s S,
    beside: &'s W,
    /// Places for the results of `beside`; taken by the one run that there is.
    slots: Mutex<Option<F>>,
}

impl<'s, S, W, F, const SIDE: usize> SideSource<'s, S, W, F, SIDE> {
    /// `slots` gives the places of `beside`, as [`Source::run`] wants them.
    pub(crate) fn new<P>(source: &'s S, beside: &'s W, slots: F) -> Self
    where
        F: FnOnce(usize) -> Vec<P>,
    {
        Self { source, beside, slots: Mutex::new(Some(slots)) }
    }
}

impl<E: Element, S: Source<E, 2>, W: RowWork<E, 2>, F, const SIDE: usize> Source<E, 1> for SideSource<'_, S, W, F, SIDE>
where
    F: FnOnce(usize) -> Vec<W::Slots> + Send,
{
    fn rows(&self) -> usize {
        self.source.rows()
    }

    fn vocab(&self) -> usize {
        self.source.vocab()
    }

    fn logits(&self, _side: usize, row: usize) -> Vec<f64> {
        self.source.logits(SIDE, row)
    }

    fn run<V: RowWork<E, 1>>(
        &self,
        work: &V,
        slots: impl FnOnce(usize) -> Vec<V::Slots>,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error> {
        let beside = self.slots.lock().expect("nothing panics while it is held").take();
        let beside = beside.expect("a scan runs its source once");
        let both = Both { first: &OfSide::<_, SIDE>(work), second: self.beside };
        self.source.run(&both, |size| slots(size).into_iter().zip(beside(size)).collect(), interrupt)
    }
}
