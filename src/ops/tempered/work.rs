//! The work behind every quantity at several inverse temperatures: sums of each row, and what a caller makes of them.

use crate::error::{Error, try_filled};
use crate::input::{LeafScratch, Targets};
use crate::kernels::tempered::TemperedRow;
use crate::ops::rows::{capped, is_counted};
use crate::ops::{Options, check_rows, slots};
use crate::output::Flags;
use crate::run::{Interrupt, RowIn, RowWork, Source};
use crate::simd::{Element, Isa};
use crate::state::tempered::{ChainSet, TemperedPartial};
use std::marker::PhantomData;
use std::ops::Range;

/// What a call reads from each row: sums at some exponents, and with class weights.
pub(in crate::ops) struct Tempered<'w, E: Element, R> {
    pub(in crate::ops) source: &'w R,
    pub(in crate::ops) targets: Option<&'w Targets>,
    /// Inverse temperatures.
    pub(in crate::ops) exponents: &'w ChainSet,
    pub(in crate::ops) softcap: Option<f64>,
    /// One for each column, whole leaves of them.
    pub(in crate::ops) class_weights: Option<&'w [E::Compute]>,
}

/// A value for each row and field, flat, and each row's flags.
pub(in crate::ops) type Room = (Vec<f64>, Vec<u8>);

impl<'w, E: Element, R: Source<E, 1>> Tempered<'w, E, R> {
    /// Runs `finish` on each counted row, which writes as many values as `ignored` has; rows that are not counted get
    /// `ignored`.
    pub(in crate::ops) fn run<F>(
        &self,
        options: &Options,
        ignored: &'w [f64],
        finish: F,
        interrupt: Interrupt<'_>,
    ) -> Result<Room, Error>
    where
        F: Fn(&TemperedPartial, Option<f64>, &mut [f64]) -> Flags + Sync,
    {
        let (mut values, mut flags) = self.room(ignored.len())?;
        let work = self.work(options, ignored, finish)?;
        self.source.run(&work, |size| slots(&mut values, &mut flags, size, ignored.len()), interrupt)?;
        Ok((values, flags))
    }

    /// Room for the results of all rows, `width` values each.
    pub(super) fn room(&self, width: usize) -> Result<Room, Error> {
        let rows = self.source.rows();
        check_rows(rows, self.targets)?;
        Ok((try_filled(rows.saturating_mul(width), f64::NAN)?, try_filled(rows, 0)?))
    }

    /// The work that `run` does.
    pub(super) fn work<'s, F>(
        &self,
        options: &Options,
        ignored: &'w [f64],
        finish: F,
    ) -> Result<TemperedWork<'w, 's, E::Compute, F>, Error> {
        Ok(TemperedWork {
            targets: self.targets,
            softcap: self.softcap,
            class_weights: self.class_weights,
            exponents: self.exponents,
            isa: options.execution.isa()?,
            ignored,
            finish,
            slots: PhantomData,
        })
    }
}

pub(super) struct TemperedWork<'w, 's, C, F> {
    targets: Option<&'w Targets>,
    softcap: Option<f64>,
    class_weights: Option<&'w [C]>,
    exponents: &'w ChainSet,
    isa: Isa,
    ignored: &'w [f64],
    finish: F,
    slots: PhantomData<fn(&'s ())>,
}

impl<'s, E: Element, F> RowWork<E, 1> for TemperedWork<'_, 's, E::Compute, F>
where
    F: Fn(&TemperedPartial, Option<f64>, &mut [f64]) -> Flags + Sync,
{
    type Scratch = LeafScratch<E>;
    type Partial = TemperedPartial;
    type Slots = (&'s mut [f64], &'s mut [u8]);

    fn scratch(&self) -> LeafScratch<E> {
        LeafScratch::new()
    }

    fn partial(&self) -> TemperedPartial {
        TemperedPartial::new(self.exponents.count)
    }

    fn reads(&self, row: usize) -> bool {
        is_counted(self.targets, row)
    }

    fn target(&self, row: usize) -> Option<usize> {
        self.targets?.column(row)
    }

    fn read(
        &self,
        row: RowIn<'_, E, 1>,
        leaves: Range<usize>,
        scratch: &mut LeafScratch<E>,
        partial: &mut TemperedPartial,
    ) {
        let (softcap, class_weights, chains) = (self.softcap, self.class_weights, self.exponents.chains.as_slice());
        let ([target_logit], [row]) = (row.target_logits, row.views);
        partial.target_logit = target_logit.map(|logit| capped(self.isa, softcap, logit).into());
        self.isa.run(TemperedRow { chains, softcap, class_weights, row, leaves, scratch, partial });
    }

    fn append(&self, partial: &mut TemperedPartial, following: &TemperedPartial) {
        partial.append(following);
    }

    fn clear(&self, partial: &mut TemperedPartial) {
        partial.clear();
    }

    fn write(&self, row: usize, partial: &TemperedPartial, (values, flags): &mut Self::Slots, index: usize) {
        let width = self.ignored.len();
        let places = &mut values[index * width..(index + 1) * width];
        flags[index] = if is_counted(self.targets, row) {
            (self.finish)(partial, partial.target_logit, places).bits()
        } else {
            places.copy_from_slice(self.ignored);
            Flags::IGNORED.bits()
        };
    }
}
