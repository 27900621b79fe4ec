//! Quantities of one array of logits.

use super::{Options, check_rows, never};
use crate::error::Error;
use crate::input::{LEAF, LeafScratch, LogitsView, RowView, Targets};
use crate::kernels::probe::ReadRow;
use crate::kernels::rows::{CapLogit, Scan, ScanRow};
use crate::output::{Flags, RowColumns, RowSlots, RowStats};
use crate::plan::{Execution, Plan};
use crate::run::{self, Interrupt, RowWork};
use crate::simd::{Element, Isa};
use crate::state::row::RowPartial;
use std::marker::PhantomData;
use std::ops::Range;

/// All statistics of each row of `logits`; those of the target where `targets` are given.
///
/// Storage f16, bf16 and f32 compute in f32 lanes with f64 totals, f64 in f64. The logits are read once.
///
/// # Errors
/// [`Error::ShapeMismatch`] if there is not one target for each row, [`Error::Parameter`] for a setting out of range,
/// [`Error::NonFinite`] with `strict`, [`Error::OutOfMemory`], [`Error::Threads`].
pub fn row_stats<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: Option<&Targets>,
    options: &Options,
) -> Result<RowColumns, Error> {
    scan(logits, targets, options, true, &never)
}

/// Only lse, nll and flags.
fn likelihoods<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: Option<&Targets>,
    options: &Options,
) -> Result<RowColumns, Error> {
    scan(logits, targets, options, false, &never)
}

/// Log-sum-exp of each row.
///
/// # Errors
/// As [`row_stats`].
pub fn logsumexp<E: Element>(logits: &LogitsView<'_, E>, options: &Options) -> Result<Vec<f64>, Error> {
    Ok(likelihoods(logits, None, options)?.lse)
}

/// Entropy of the softmax of each row, in nats.
///
/// # Errors
/// As [`row_stats`]; [`Error::EmptyVocabulary`] for a vocabulary of 0.
pub fn entropy<E: Element>(logits: &LogitsView<'_, E>, options: &Options) -> Result<Vec<f64>, Error> {
    if logits.vocab() == 0 {
        return Err(Error::EmptyVocabulary { operation: "entropy" });
    }
    Ok(row_stats(logits, None, options)?.entropy)
}

/// Negative log-likelihood of each row's target, in nats; 0 for ignored rows.
///
/// # Errors
/// As [`row_stats`].
pub fn cross_entropy<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: &Targets,
    options: &Options,
) -> Result<Vec<f64>, Error> {
    Ok(likelihoods(logits, Some(targets), options)?.nll)
}

/// e to the mean negative log-likelihood over the counted rows.
///
/// # Errors
/// As [`row_stats`].
pub fn perplexity<E: Element>(logits: &LogitsView<'_, E>, targets: &Targets, options: &Options) -> Result<f64, Error> {
    let columns = likelihoods(logits, Some(targets), options)?;
    let mut totals = crate::state::Perplexity::default();
    totals.update(&columns);
    Ok(totals.compute().perplexity)
}

/// Reads all logits and computes next to nothing: the limit that memory sets to the other functions. Returns a value
/// that depends on every logit.
///
/// # Errors
/// [`Error::Threads`], [`Error::OutOfMemory`].
pub fn read_probe<E: Element>(logits: &LogitsView<'_, E>, execution: &Execution) -> Result<f64, Error> {
    let plan = Plan::new(logits.rows(), logits.vocab(), execution)?;
    let mut largest = crate::error::try_filled(logits.rows(), f64::NEG_INFINITY)?;
    let work = |scratch: &mut LeafScratch<E>, (row, place): (usize, &mut f64)| {
        *place = plan.isa.run(ReadRow { row: logits.row(row), scratch });
    };
    let units = largest.iter_mut().enumerate();
    run::for_each(plan.threads, units, LeafScratch::new, work, &never)?;
    Ok(largest.into_iter().fold(f64::NEG_INFINITY, f64::max))
}

/// All statistics, or without `all` only lse, nll and flags.
pub(crate) fn scan<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: Option<&Targets>,
    options: &Options,
    all: bool,
    interrupt: Interrupt<'_>,
) -> Result<RowColumns, Error> {
    let inverse_temperature = options.checked(logits.vocab())?;
    check_rows(logits, targets)?;
    let plan = Plan::new(logits.rows(), logits.vocab(), &options.execution)?;
    let mut columns = RowColumns::allocate(logits.rows(), all, options.top_k)?;
    let scan = Scan { inverse_temperature, softcap: options.softcap, all };
    let work = ScanWork { logits, targets, scan, isa: plan.isa, top_k: options.top_k, slots: PhantomData };
    let leaf_count = logits.vocab().div_ceil(LEAF);
    run::rows(&plan, logits.rows(), leaf_count, &work, |size| columns.slots(size), interrupt)?;
    if options.strict {
        check_finite(logits, targets, &columns.flags)?;
    }
    columns.token_count = targets.map_or(0, Targets::token_count);
    Ok(columns)
}

struct ScanWork<'w, 'a, 's, E: Element> {
    logits: &'w LogitsView<'a, E>,
    targets: Option<&'w Targets>,
    scan: Scan,
    isa: Isa,
    top_k: usize,
    slots: PhantomData<fn(&'s ())>,
}

impl<E: Element> ScanWork<'_, '_, '_, E> {
    /// Whether the row is counted, or there are no targets at all.
    fn reads(&self, row: usize) -> bool {
        self.targets.is_none_or(|targets| targets.column(row).is_some())
    }

    /// The target's logit after the soft cap.
    fn target_logit(&self, row: usize, view: RowView<'_, E>) -> Option<E::Compute> {
        Some(target_logit(self.isa, self.scan.softcap, view, self.targets?.column(row)?))
    }
}

impl<'s, E: Element> RowWork for ScanWork<'_, '_, 's, E> {
    type Scratch = LeafScratch<E>;
    type Partial = RowPartial;
    type Slots = RowSlots<'s>;

    fn scratch(&self) -> LeafScratch<E> {
        LeafScratch::new()
    }

    fn partial(&self) -> RowPartial {
        RowPartial::new(self.top_k)
    }

    fn read(&self, row: usize, leaves: Range<usize>, scratch: &mut LeafScratch<E>, partial: &mut RowPartial) {
        if self.reads(row) {
            let view = self.logits.row(row);
            let target_logit = self.target_logit(row, view);
            self.isa.run(ScanRow { scan: self.scan, row: view, leaves, target_logit, without: &[], scratch, partial });
        }
    }

    fn append(&self, partial: &mut RowPartial, following: &RowPartial) {
        partial.append(following);
    }

    fn clear(&self, partial: &mut RowPartial) {
        partial.clear();
    }

    fn write(&self, row: usize, partial: &RowPartial, slots: &mut RowSlots<'s>, index: usize) {
        if !self.reads(row) {
            return slots.write(index, &RowStats::IGNORED);
        }
        let inverse_temperature = self.scan.inverse_temperature;
        let target_logit = self.target_logit(row, self.logits.row(row)).map(Into::into);
        let stats = partial.finish(target_logit, inverse_temperature);
        slots.write(index, &stats);
        if self.top_k > 0 {
            let places = index * self.top_k..(index + 1) * self.top_k;
            let (log_probs, ids) = (&mut slots.top_log_probs[places.clone()], &mut slots.top_ids[places]);
            partial.write_top(&stats, inverse_temperature, log_probs, ids);
        }
    }
}

/// One logit after the soft cap.
pub(super) fn target_logit<E: Element>(
    isa: Isa,
    softcap: Option<f64>,
    view: RowView<'_, E>,
    column: usize,
) -> E::Compute {
    let logit = view.logit(column).widen();
    softcap.map_or(logit, |cap| isa.run(CapLogit { logit, cap }))
}

/// The first row without a finite result, and the column that is to blame.
fn check_finite<E: Element>(logits: &LogitsView<'_, E>, targets: Option<&Targets>, flags: &[u8]) -> Result<(), Error> {
    let to_blame = Flags::NAN | Flags::POSINF | Flags::ALL_NEGINF | Flags::TARGET_NEGINF;
    let Some(row) = flags.iter().position(|bits| bits & to_blame.bits() != 0) else { return Ok(()) };
    let view = logits.row(row);
    let value_at = |column: usize| -> f64 { view.logit(column).widen().into() };
    let is_to_blame = |&column: &usize| value_at(column).is_nan() || value_at(column) == f64::INFINITY;
    let target = targets.and_then(|targets| targets.column(row)).unwrap_or(0);
    let column = (0..view.vocab()).find(is_to_blame).unwrap_or(target);
    let value = if view.vocab() > 0 { value_at(column) } else { f64::NEG_INFINITY };
    Err(Error::NonFinite { row, column, value })
}
