//! KL divergence of two arrays of logits.

use super::{Options, check_positive, never};
use crate::error::{Error, try_filled};
use crate::input::{LEAF, LeafScratch, LogitsView};
use crate::kernels::kl::KlRow;
use crate::plan::{Execution, Plan};
use crate::run::{self, Interrupt, RowWork};
use crate::simd::{Element, Float, Isa};
use crate::state::kl::{self, KlLeaf, KlScale};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Mutex;

/// Divergences of many rows.
#[derive(Clone, Debug, Default)]
pub struct KlColumns {
    /// KL(p||q) in nats, at least 0.
    pub kl_divergence: Vec<f64>,
    /// Bits of [`Flags`](crate::Flags).
    pub flags: Vec<u8>,
}

impl KlColumns {
    /// The places of `size` rows at a time, in row order.
    fn slots(&mut self, size: usize) -> Vec<(&mut [f64], &mut [u8])> {
        self.kl_divergence.chunks_mut(size).zip(self.flags.chunks_mut(size)).collect()
    }
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
    let log_probs = log_probs && temperature == 1.0;
    let plan = Plan::new(p.rows(), p.vocab(), execution)?;
    let scale = kl_scale::<E>(p.vocab(), temperature);
    let (values, flags) = (try_filled(p.rows(), f64::NAN)?, try_filled(p.rows(), 0)?);
    let mut columns = KlColumns { kl_divergence: values, flags };
    let work = KlWork { p, q, scale, log_probs, isa: plan.isa, fault: FirstFault::default(), slots: PhantomData };
    run::rows(&plan, p.rows(), p.vocab().div_ceil(LEAF), &work, |size| columns.slots(size), interrupt)?;
    work.fault.finish()?;
    Ok(columns)
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

/// Rows of log-probabilities sum to 1.
fn check_log_probs<E: Element>(p: &LogitsView<'_, E>, execution: &Execution) -> Result<(), Error> {
    let options = Options { execution: *execution, ..Options::default() };
    let lse = super::logsumexp(p, &options)?;
    match lse.iter().position(|lse| lse.is_finite() && lse.abs() > NORMALIZED) {
        Some(row) => Err(Error::NotNormalized { what: "p_logits", row, sum: libm::exp(lse[row]) }),
        None => Ok(()),
    }
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

struct KlWork<'w, 'a, 's, E: Element> {
    p: &'w LogitsView<'a, E>,
    q: &'w LogitsView<'a, E>,
    scale: KlScale,
    /// Whether p's logits must be log-probabilities.
    log_probs: bool,
    isa: Isa,
    fault: FirstFault,
    slots: PhantomData<fn(&'s ())>,
}

/// By so much may the log-sum-exp of log-probabilities differ from 0.
const NORMALIZED: f64 = 1e-3;

impl<E: Element> KlWork<'_, '_, '_, E> {
    /// Where p must be log-probabilities, a row that has a distribution is one that sums to 1.
    fn check_normalized(&self, row: usize, sums: &[KlLeaf]) -> Result<(), Error> {
        if !self.log_probs || sums.iter().any(|leaf| leaf.has_nan) {
            return Ok(());
        }
        let (max, log_mass) = kl::log_mass(sums, self.scale.inverse_temperature);
        let lse = max * self.scale.inverse_temperature + log_mass;
        if max.is_infinite() || lse.abs() <= NORMALIZED {
            return Ok(());
        }
        Err(Error::NotNormalized { what: "p_logits", row, sum: libm::exp(lse) })
    }
}

impl<'s, E: Element> RowWork for KlWork<'_, '_, 's, E> {
    type Scratch = [LeafScratch<E>; 2];
    type Partial = Vec<KlLeaf>;
    type Slots = (&'s mut [f64], &'s mut [u8]);

    fn scratch(&self) -> Self::Scratch {
        [LeafScratch::new(), LeafScratch::new()]
    }

    fn partial(&self) -> Vec<KlLeaf> {
        Vec::new()
    }

    fn read(&self, row: usize, leaves: Range<usize>, scratch: &mut Self::Scratch, sums: &mut Vec<KlLeaf>) {
        let inverse_temperature = self.scale.inverse_temperature;
        let (p, q) = (self.p.row(row), self.q.row(row));
        self.isa.run(KlRow { inverse_temperature, p, q, leaves, scratch, sums });
    }

    fn append(&self, sums: &mut Vec<KlLeaf>, following: &Vec<KlLeaf>) {
        sums.extend_from_slice(following);
    }

    fn clear(&self, sums: &mut Vec<KlLeaf>) {
        sums.clear();
    }

    fn write(&self, row: usize, sums: &Vec<KlLeaf>, (values, flags): &mut Self::Slots, index: usize) {
        match self.check_normalized(row, sums).and_then(|()| kl::finish(sums, &self.scale)) {
            Ok((value, row_flags)) => {
                values[index] = value;
                flags[index] = row_flags.bits();
            }
            Err(fault) => self.fault.report(row, fault),
        }
    }
}
