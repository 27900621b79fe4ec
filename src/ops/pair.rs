//! Divergences of two arrays of logits beyond KL one way.

use super::kl::{FirstFault, check_pair, kl_scale, read_leaves};
use super::{lent_rows, never, slots};
use crate::error::{Error, try_filled};
use crate::input::{LeafScratch, LogitsView};
use crate::kernels::pair::{JensenRow, PairRow};
use crate::output::Flags;
use crate::plan::Execution;
use crate::run::{Interrupt, RowIn, RowWork, Source};
use crate::simd::{Element, Isa};
use crate::state::kl::{self, KlLeaf, KlScale};
use crate::state::pair::{PairPartial, SCALES, Scales};
use std::marker::PhantomData;
use std::ops::Range;

/// Divergences of many rows in nats.
#[derive(Clone, Debug, Default)]
pub struct DivergenceColumns {
    /// KL(p||q).
    pub kl_divergence: Vec<f64>,
    /// KL(q||p).
    pub reverse_kl_divergence: Vec<f64>,
    /// -sum p ln q.
    pub cross_entropy: Vec<f64>,
    /// Variance of ln q under p; NaN where q is 0 and p is not.
    pub cross_varentropy: Vec<f64>,
    /// Bits of [`Flags`].
    pub flags: Vec<u8>,
}

impl DivergenceColumns {
    /// Marks a row that is not counted.
    pub(super) fn ignore(&mut self, row: usize) {
        let Self { kl_divergence, reverse_kl_divergence, cross_entropy, cross_varentropy, flags } = self;
        for field in [kl_divergence, reverse_kl_divergence, cross_entropy, cross_varentropy] {
            field[row] = f64::NAN;
        }
        flags[row] = Flags::IGNORED.bits();
    }
}

/// KL both ways, cross-entropy of q under p and the variance of ln q under p, from one read of both arrays.
///
/// ```
/// use xentrs::{Execution, LogitsView, divergences};
/// let (p, q) = ([0.0f64, 1.0], [1.0f64, 1.0]);
/// let (p, q) = (LogitsView::from_slice(&p, 1, 2)?, LogitsView::from_slice(&q, 1, 2)?);
/// let found = divergences(&p, &q, 1.0, &Execution::default())?;
/// assert!((found.cross_entropy[0] - 2f64.ln()).abs() < 1e-12);
/// assert!((found.reverse_kl_divergence[0] - 0.120_114_507).abs() < 1e-9);
/// # Ok::<(), xentrs::Error>(())
/// ```
///
/// # Errors
/// As [`kl_divergence`](crate::kl_divergence).
pub fn divergences<E: Element>(
    p_logits: &LogitsView<'_, E>,
    q_logits: &LogitsView<'_, E>,
    temperature: f64,
    execution: &Execution,
) -> Result<DivergenceColumns, Error> {
    divergences_with(p_logits, q_logits, temperature, execution, &never)
}

/// Values of one row as the kernel's work writes them.
const FIELDS: usize = 4;

pub(crate) fn divergences_with<E: Element>(
    p: &LogitsView<'_, E>,
    q: &LogitsView<'_, E>,
    temperature: f64,
    execution: &Execution,
    interrupt: Interrupt<'_>,
) -> Result<DivergenceColumns, Error> {
    check_pair(p, q, temperature)?;
    pair_rows(&lent_rows([p, q], execution)?, temperature, execution.isa()?, interrupt)
}

/// Divergences of the two sides of a source.
pub(super) fn pair_rows<E: Element>(
    source: &impl Source<E, 2>,
    temperature: f64,
    isa: Isa,
    interrupt: Interrupt<'_>,
) -> Result<DivergenceColumns, Error> {
    let (mut room, work) = pairing(source, temperature, isa)?;
    source.run(&work, |size| room.slots(size), interrupt)?;
    work.fault.finish()?;
    Ok(room.into_columns())
}

/// Room for the divergences, and the work that fills it.
pub(super) fn pairing<'s, E: Element>(
    source: &impl Source<E, 2>,
    temperature: f64,
    isa: Isa,
) -> Result<(PairRoom, PairWork<'s>), Error> {
    let values = try_filled(source.rows().saturating_mul(FIELDS), f64::NAN)?;
    let flags = try_filled(source.rows(), 0)?;
    let scale = kl_scale::<E>(source.vocab(), temperature);
    Ok((PairRoom { values, flags }, PairWork { scale, isa, fault: FirstFault::default(), slots: PhantomData }))
}

/// What [`PairWork`] writes of all rows.
pub(super) struct PairRoom {
    values: Vec<f64>,
    flags: Vec<u8>,
}

impl PairRoom {
    pub(super) fn slots(&mut self, size: usize) -> Vec<(&mut [f64], &mut [u8])> {
        slots(&mut self.values, &mut self.flags, size, FIELDS)
    }

    /// The columns. A work may have met a fault.
    pub(super) fn into_columns(self) -> DivergenceColumns {
        let field = |index: usize| self.values.iter().skip(index).step_by(FIELDS).copied().collect();
        DivergenceColumns {
            kl_divergence: field(0),
            reverse_kl_divergence: field(1),
            cross_entropy: field(2),
            cross_varentropy: field(3),
            flags: self.flags,
        }
    }
}

/// Jensen-Shannon divergences of many rows.
#[derive(Clone, Debug, Default)]
pub struct JsColumns {
    /// In nats, in [0, ln 2].
    pub js_divergence: Vec<f64>,
    /// Bits of [`Flags`].
    pub flags: Vec<u8>,
    /// What the gradient is made from, four for each row; NaN where a row has no distribution.
    pub scales: Vec<f64>,
}

/// Jensen-Shannon divergence of each row, in [0, ln 2]: the mean of KL(p||m) and KL(q||m), m the mean of p and q.
/// The logarithm of a mixture needs both normalisers first, so both arrays are read twice.
///
/// # Errors
/// As [`kl_divergence`](crate::kl_divergence).
pub fn js_divergence<E: Element>(
    p_logits: &LogitsView<'_, E>,
    q_logits: &LogitsView<'_, E>,
    temperature: f64,
    execution: &Execution,
) -> Result<JsColumns, Error> {
    js_divergence_with(p_logits, q_logits, temperature, execution, &never)
}

pub(crate) fn js_divergence_with<E: Element>(
    p: &LogitsView<'_, E>,
    q: &LogitsView<'_, E>,
    temperature: f64,
    execution: &Execution,
    interrupt: Interrupt<'_>,
) -> Result<JsColumns, Error> {
    check_pair(p, q, temperature)?;
    let finish = |_row: usize, leaves: &[KlLeaf], places: &mut [f64]| {
        let undefined = kl::undefined(leaves);
        if undefined.is_none() {
            places.copy_from_slice(&Scales::of(leaves, 1.0 / temperature).to_array());
        }
        Ok(undefined.unwrap_or_default())
    };
    let (source, isa) = (lent_rows([p, q], execution)?, execution.isa()?);
    let (scales, flags) = read_leaves(&source, temperature, SCALES, isa, finish, interrupt)?;
    let mut values = try_filled(p.rows(), f64::NAN)?;
    let work = JensenWork { scales: &scales, isa, scale: 1.0 / temperature, slots: PhantomData };
    source.run(&work, |size| values.chunks_mut(size).collect(), interrupt)?;
    Ok(JsColumns { js_divergence: values, flags, scales })
}

pub(super) struct PairWork<'s> {
    scale: KlScale,
    isa: Isa,
    pub(super) fault: FirstFault,
    slots: PhantomData<fn(&'s ())>,
}

impl PairWork<'_> {
    fn finish(&self, partial: &PairPartial) -> Result<([f64; FIELDS], Flags), Error> {
        let inverse_temperature = self.scale.inverse_temperature;
        let (kl, mut flags) = kl::finish(&partial.forward, &self.scale)?;
        let (reverse, reverse_flags) = kl::finish(&partial.reverse, &self.scale)?;
        flags |= reverse_flags;
        let mut values = [f64::NAN; FIELDS];
        (values[0], values[1]) = (kl, reverse);
        if !kl.is_nan() {
            values[2] = partial.entropy(inverse_temperature) + kl;
            values[3] = if kl == f64::INFINITY { f64::NAN } else { partial.cross_varentropy(inverse_temperature) };
        }
        Ok((values, flags))
    }
}

impl<'s, E: Element> RowWork<E, 2> for PairWork<'s> {
    type Scratch = [LeafScratch<E>; 2];
    type Partial = PairPartial;
    type Slots = (&'s mut [f64], &'s mut [u8]);

    fn scratch(&self) -> Self::Scratch {
        [LeafScratch::new(), LeafScratch::new()]
    }

    fn partial(&self) -> PairPartial {
        PairPartial::default()
    }

    fn read(&self, row: RowIn<'_, E, 2>, leaves: Range<usize>, scratch: &mut Self::Scratch, partial: &mut PairPartial) {
        let ([p, q], inverse_temperature) = (row.views, self.scale.inverse_temperature);
        self.isa.run(PairRow { inverse_temperature, p, q, leaves, scratch, partial });
    }

    fn append(&self, partial: &mut PairPartial, following: &PairPartial) {
        partial.append(following);
    }

    fn clear(&self, partial: &mut PairPartial) {
        partial.clear();
    }

    fn write(&self, row: usize, partial: &PairPartial, (values, flags): &mut Self::Slots, index: usize) {
        match self.finish(partial) {
            Ok((fields, row_flags)) => {
                values[index * FIELDS..(index + 1) * FIELDS].copy_from_slice(&fields);
                flags[index] = row_flags.bits();
            }
            Err(fault) => self.fault.report(row, fault),
        }
    }
}

struct JensenWork<'w, 's> {
    /// Four for each row, as [`Scales`] names them; NaN where a row has no distribution.
    scales: &'w [f64],
    isa: Isa,
    scale: f64,
    slots: PhantomData<fn(&'s ())>,
}

impl JensenWork<'_, '_> {
    fn scales(&self, row: usize) -> Option<Scales> {
        let scales = Scales::from_slice(&self.scales[row * SCALES..], self.scale);
        (!scales.p_max.is_nan()).then_some(scales)
    }
}

impl<'s, E: Element> RowWork<E, 2> for JensenWork<'_, 's> {
    type Scratch = [LeafScratch<E>; 2];
    type Partial = Vec<f64>;
    type Slots = &'s mut [f64];

    fn scratch(&self) -> Self::Scratch {
        [LeafScratch::new(), LeafScratch::new()]
    }

    fn partial(&self) -> Vec<f64> {
        Vec::new()
    }

    fn read(&self, row: RowIn<'_, E, 2>, leaves: Range<usize>, scratch: &mut Self::Scratch, sums: &mut Vec<f64>) {
        let [p, q] = row.views;
        if let Some(scales) = self.scales(row.index) {
            self.isa.run(JensenRow { scales, p, q, leaves, scratch, sums });
        }
    }

    fn append(&self, sums: &mut Vec<f64>, following: &Vec<f64>) {
        sums.extend_from_slice(following);
    }

    fn clear(&self, sums: &mut Vec<f64>) {
        sums.clear();
    }

    fn write(&self, row: usize, sums: &Vec<f64>, values: &mut Self::Slots, index: usize) {
        // Every term is at least 0; the sum may pass ln 2 by rounding.
        let sum = sums.iter().sum::<f64>().min(std::f64::consts::LN_2);
        values[index] = if self.scales(row).is_some() { sum } else { f64::NAN };
    }
}
