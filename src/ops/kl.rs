//! KL divergence of two arrays of logits.

use super::{Options, check_positive, lent_rows, never, slots};
use crate::error::{Error, try_filled};
use crate::input::{LeafScratch, LogitsView};
use crate::kernels::kl::KlRow;
use crate::output::Flags;
use crate::plan::Execution;
use crate::run::{Interrupt, RowIn, RowWork, Source};
use crate::simd::{Element, Float, Isa};
use crate::state::kl::{self, KlLeaf, KlScale};
use crate::state::pair::{SCALES, Scales};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Mutex;

/// Divergences of many rows.
#[derive(Clone, Debug, Default)]
pub struct KlColumns {
    /// KL(p||q) in nats, at least 0.
    pub kl_divergence: Vec<f64>,
    /// Bits of [`Flags`].
    pub flags: Vec<u8>,
    /// What the gradient is made from, four for each row; NaN where a row has no distribution.
    pub scales: Vec<f64>,
}

/// KL(p||q) = sum p ln(p / q) of the softmaxes of each row of two arrays, both at the same temperature, in nats.
///
/// ```
/// use xentrs::{Execution, LogitsView, kl_divergence};
/// let (p, q) = ([0.0f64, 1.0], [1.0f64, 1.0]);
/// let p = LogitsView::from_slice(&p, 1, 2)?;
/// let q = LogitsView::from_slice(&q, 1, 2)?;
/// let divergence = kl_divergence(&p, &q, 1.0, &Execution::default())?.kl_divergence[0];
/// assert!((divergence - 0.110_944_071_671_6).abs() < 1e-12);
/// # Ok::<(), xentrs::Error>(())
/// ```
///
/// # Errors
/// [`Error::ShapeMismatch`] if the arrays differ in shape, [`Error::EmptyVocabulary`], [`Error::Parameter`] for a
/// temperature out of range, [`Error::OutOfMemory`], [`Error::Threads`].
pub fn kl_divergence<E: Element>(
    p_logits: &LogitsView<'_, E>,
    q_logits: &LogitsView<'_, E>,
    temperature: f64,
    execution: &Execution,
) -> Result<KlColumns, Error> {
    kl_divergence_with(p_logits, q_logits, temperature, false, execution, &never)
}

pub(crate) fn kl_divergence_with<E: Element>(
    p: &LogitsView<'_, E>,
    q: &LogitsView<'_, E>,
    temperature: f64,
    log_probs: bool,
    execution: &Execution,
    interrupt: Interrupt<'_>,
) -> Result<KlColumns, Error> {
    check_pair(p, q, temperature)?;
    if log_probs && temperature != 1.0 {
        // The read below sums at this temperature; log-probabilities sum to 1 at temperature 1.
        check_log_probs(p, execution)?;
    }
    kl_rows(&lent_rows([p, q], execution)?, temperature, log_probs && temperature == 1.0, execution.isa()?, interrupt)
}

/// KL of the two sides of a source; with `log_probs` the first side has to be normalised.
pub(super) fn kl_rows<E: Element>(
    source: &impl Source<E, 2>,
    temperature: f64,
    log_probs: bool,
    isa: Isa,
    interrupt: Interrupt<'_>,
) -> Result<KlColumns, Error> {
    let scale = kl_scale::<E>(source.vocab(), temperature);
    let finish = |row: usize, leaves: &[KlLeaf], places: &mut [f64]| {
        if log_probs && kl::undefined(leaves).is_none() {
            let (max, log_mass) = kl::log_mass(leaves, 1.0, KlLeaf::of_p);
            check_normalized(row, max + log_mass)?;
        }
        let (value, flags) = kl::finish(leaves, &scale)?;
        places[0] = value;
        if kl::undefined(leaves).is_none() {
            places[1..].copy_from_slice(&Scales::of(leaves, scale.inverse_temperature).to_array());
        }
        Ok(flags)
    };
    let (values, flags) = read_leaves(source, temperature, 1 + SCALES, isa, finish, interrupt)?;
    let rows = values.chunks_exact(1 + SCALES);
    let scales = rows.clone().flat_map(|row| &row[1..]).copied().collect();
    Ok(KlColumns { kl_divergence: rows.map(|row| row[0]).collect(), flags, scales })
}

/// Runs `finish` on the leaves of each pair of rows; it writes `width` values.
pub(super) fn read_leaves<E: Element, F>(
    source: &impl Source<E, 2>,
    temperature: f64,
    width: usize,
    isa: Isa,
    finish: F,
    interrupt: Interrupt<'_>,
) -> Result<(Vec<f64>, Vec<u8>), Error>
where
    F: Fn(usize, &[KlLeaf], &mut [f64]) -> Result<Flags, Error> + Sync,
{
    let mut values = try_filled(source.rows().saturating_mul(width), f64::NAN)?;
    let mut flags = try_filled(source.rows(), 0)?;
    let fault = FirstFault::default();
    let work = KlWork { inverse_temperature: 1.0 / temperature, isa, width, finish, fault, slots: PhantomData };
    source.run(&work, |size| slots(&mut values, &mut flags, size, width), interrupt)?;
    work.fault.finish()?;
    Ok((values, flags))
}

/// Two arrays of one shape, and a temperature in range.
pub(super) fn check_pair<E: Element>(
    p: &LogitsView<'_, E>,
    q: &LogitsView<'_, E>,
    temperature: f64,
) -> Result<(), Error> {
    check_positive("temperature", temperature)?;
    if (p.rows(), p.vocab()) != (q.rows(), q.vocab()) {
        let (left_shape, right_shape) = (vec![q.rows(), q.vocab()], vec![p.rows(), p.vocab()]);
        return Err(Error::ShapeMismatch { left: "q_logits", left_shape, right: "p_logits", right_shape });
    }
    if p.vocab() == 0 {
        return Err(Error::EmptyVocabulary { operation: "a divergence" });
    }
    Ok(())
}

pub(super) fn kl_scale<E: Element>(vocab: usize, temperature: f64) -> KlScale {
    KlScale {
        inverse_temperature: 1.0 / temperature,
        lowest_exponent: E::Compute::LOWEST_EXPONENT.into(),
        unit_roundoff: E::Compute::UNIT_ROUNDOFF,
        vocab,
    }
}

/// By so much may the log-sum-exp of log-probabilities differ from 0.
const NORMALIZED: f64 = 1e-3;

fn check_normalized(row: usize, lse: f64) -> Result<(), Error> {
    if lse.abs() <= NORMALIZED {
        return Ok(());
    }
    Err(Error::NotNormalized { what: "p_logits", row, sum: libm::exp(lse) })
}

/// Rows of log-probabilities that have a distribution sum to 1.
fn check_log_probs<E: Element>(p: &LogitsView<'_, E>, execution: &Execution) -> Result<(), Error> {
    let options = Options { execution: *execution, ..Options::default() };
    let lse = super::logsumexp(p, &options)?;
    let mut finite = lse.iter().enumerate().filter(|(_, lse)| lse.is_finite());
    finite.try_for_each(|(row, &lse)| check_normalized(row, lse))
}

/// The fault of the first row that has one, whichever thread meets it first.
#[derive(Debug, Default)]
pub(super) struct FirstFault(Mutex<Option<(usize, Error)>>);

impl FirstFault {
    pub(super) fn report(&self, row: usize, fault: Error) {
        let mut first = self.0.lock().expect("the lock is held only to store a fault");
        if first.as_ref().is_none_or(|(known, _)| row < *known) {
            *first = Some((row, fault));
        }
    }

    pub(super) fn finish(self) -> Result<(), Error> {
        let first = self.0.into_inner().expect("the lock is held only to store a fault");
        first.map_or(Ok(()), |(_, fault)| Err(fault))
    }
}

struct KlWork<'s, F> {
    inverse_temperature: f64,
    isa: Isa,
    width: usize,
    finish: F,
    fault: FirstFault,
    slots: PhantomData<fn(&'s ())>,
}

impl<'s, E: Element, F> RowWork<E, 2> for KlWork<'s, F>
where
    F: Fn(usize, &[KlLeaf], &mut [f64]) -> Result<Flags, Error> + Sync,
{
    type Scratch = [LeafScratch<E>; 2];
    type Partial = Vec<KlLeaf>;
    type Slots = (&'s mut [f64], &'s mut [u8]);

    fn scratch(&self) -> Self::Scratch {
        [LeafScratch::new(), LeafScratch::new()]
    }

    fn partial(&self) -> Vec<KlLeaf> {
        Vec::new()
    }

    fn read(&self, row: RowIn<'_, E, 2>, leaves: Range<usize>, scratch: &mut Self::Scratch, sums: &mut Vec<KlLeaf>) {
        let [p, q] = row.views;
        self.isa.run(KlRow { inverse_temperature: self.inverse_temperature, p, q, leaves, scratch, sums });
    }

    fn append(&self, sums: &mut Vec<KlLeaf>, following: &Vec<KlLeaf>) {
        sums.extend_from_slice(following);
    }

    fn clear(&self, sums: &mut Vec<KlLeaf>) {
        sums.clear();
    }

    fn write(&self, row: usize, sums: &Vec<KlLeaf>, (values, flags): &mut Self::Slots, index: usize) {
        match (self.finish)(row, sums, &mut values[index * self.width..(index + 1) * self.width]) {
            Ok(row_flags) => flags[index] = row_flags.bits(),
            Err(fault) => self.fault.report(row, fault),
        }
    }
}
