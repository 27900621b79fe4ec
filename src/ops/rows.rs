//! Quantities of one array of logits.

use super::{Options, check_rows, lent_rows, never};
use crate::error::Error;
use crate::input::{LeafScratch, LogitsView, Targets};
use crate::kernels::probe::ReadRow;
use crate::kernels::rows::{CapLogit, Scan, ScanRow};
use crate::output::{Flags, RowColumns, RowSlots, RowStats};
use crate::plan::{Execution, Plan};
use crate::run::{self, Interrupt, RowIn, RowWork, Source};
use crate::simd::{Element, Float, Isa};
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
    scan_logits(logits, targets, options, true, &never)
}

/// Only lse, nll and flags.
fn likelihoods<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: Option<&Targets>,
    options: &Options,
) -> Result<RowColumns, Error> {
    scan_logits(logits, targets, options, false, &never)
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
pub(crate) fn scan_logits<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: Option<&Targets>,
    options: &Options,
    all: bool,
    interrupt: Interrupt<'_>,
) -> Result<RowColumns, Error> {
    scan(&lent_rows([logits], &options.execution)?, targets, options, all, interrupt)
}

/// The same of any source.
pub(super) fn scan<E: Element>(
    source: &impl Source<E, 1>,
    targets: Option<&Targets>,
    options: &Options,
    all: bool,
    interrupt: Interrupt<'_>,
) -> Result<RowColumns, Error> {
    let (mut columns, work) = scanning(source, targets, options, all)?;
    source.run(&work, |size| columns.slots(size), interrupt)?;
    conclude(columns, source, targets, options)
}

/// Room for the columns, and the work that fills it.
pub(super) fn scanning<'w, 's, E: Element, const SIDES: usize>(
    source: &impl Source<E, SIDES>,
    targets: Option<&'w Targets>,
    options: &Options,
    all: bool,
) -> Result<(RowColumns, ScanWork<'w, 's>), Error> {
    let inverse_temperature = options.checked(source.vocab())?;
    check_rows(source.rows(), targets)?;
    let columns = RowColumns::allocate(source.rows(), all, options.top_k)?;
    let scan = Scan { inverse_temperature, softcap: options.softcap, all };
    let isa = options.execution.isa()?;
    Ok((columns, ScanWork { targets, scan, isa, top_k: options.top_k, slots: PhantomData }))
}

/// Looks at filled columns, which are of the first side, and says of the call what they do not.
pub(super) fn conclude<E: Element, const SIDES: usize>(
    columns: RowColumns,
    source: &impl Source<E, SIDES>,
    targets: Option<&Targets>,
    options: &Options,
) -> Result<RowColumns, Error> {
    if options.strict {
        check_finite(source, targets, &columns.flags)?;
    }
    let token_count = targets.map_or(0, Targets::token_count);
    Ok(RowColumns { token_count, isa: options.execution.isa()?.name(), ..columns })
}

pub(super) struct ScanWork<'w, 's> {
    targets: Option<&'w Targets>,
    scan: Scan,
    isa: Isa,
    top_k: usize,
    slots: PhantomData<fn(&'s ())>,
}

impl<'s, E: Element> RowWork<E, 1> for ScanWork<'_, 's> {
    type Scratch = LeafScratch<E>;
    type Partial = RowPartial;
    type Slots = RowSlots<'s>;

    fn scratch(&self) -> LeafScratch<E> {
        LeafScratch::new()
    }

    fn partial(&self) -> RowPartial {
        RowPartial::new(self.top_k)
    }

    fn reads(&self, row: usize) -> bool {
        is_counted(self.targets, row)
    }

    fn target(&self, row: usize) -> Option<usize> {
        self.targets?.column(row)
    }

    fn read(&self, row: RowIn<'_, E, 1>, leaves: Range<usize>, scratch: &mut LeafScratch<E>, partial: &mut RowPartial) {
        let ([view], [target_logit], scan) = (row.views, row.target_logits, self.scan);
        let target_logit = target_logit.map(|logit| capped(self.isa, scan.softcap, logit));
        partial.target_logit = target_logit.map(Into::into);
        self.isa.run(ScanRow { scan, row: view, leaves, target_logit, without: &[], scratch, partial });
    }

    fn append(&self, partial: &mut RowPartial, following: &RowPartial) {
        partial.append(following);
    }

    fn clear(&self, partial: &mut RowPartial) {
        partial.clear();
    }

    fn write(&self, row: usize, partial: &RowPartial, slots: &mut RowSlots<'s>, index: usize) {
        if !is_counted(self.targets, row) {
            return slots.write(index, &RowStats::IGNORED);
        }
        let inverse_temperature = self.scan.inverse_temperature;
        let stats = partial.finish(partial.target_logit, inverse_temperature);
        slots.write(index, &stats);
        if self.top_k > 0 {
            let places = index * self.top_k..(index + 1) * self.top_k;
            let (log_probs, ids) = (&mut slots.top_log_probs[places.clone()], &mut slots.top_ids[places]);
            partial.write_top(&stats, inverse_temperature, log_probs, ids);
        }
    }
}

/// Whether the row has a target, or there are no targets at all.
pub(super) fn is_counted(targets: Option<&Targets>, row: usize) -> bool {
    targets.is_none_or(|targets| targets.column(row).is_some())
}

/// One logit after the soft cap.
pub(super) fn capped<F: Float + Element<Compute = F>>(isa: Isa, softcap: Option<f64>, logit: F) -> F {
    softcap.map_or(logit, |cap| isa.run(CapLogit { logit, cap }))
}

/// The first row without a finite result, and the column that is to blame.
fn check_finite<E: Element, const SIDES: usize>(
    source: &impl Source<E, SIDES>,
    targets: Option<&Targets>,
    flags: &[u8],
) -> Result<(), Error> {
    let to_blame = Flags::NAN | Flags::POSINF | Flags::ALL_NEGINF | Flags::TARGET_NEGINF;
    let Some(row) = flags.iter().position(|bits| bits & to_blame.bits() != 0) else { return Ok(()) };
    let logits = source.logits(0, row);
    let target = targets.and_then(|targets| targets.column(row)).unwrap_or(0);
    let column = logits.iter().position(|logit| logit.is_nan() || *logit == f64::INFINITY).unwrap_or(target);
    let value = logits.get(column).copied().unwrap_or(f64::NEG_INFINITY);
    Err(Error::NonFinite { row, column, value })
}
