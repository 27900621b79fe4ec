//! Quantities at several inverse temperatures, from one read.

use super::rows::{capped, is_counted};
use super::{Options, check_rows, lent_rows, never, slots};
use crate::error::{Error, try_filled};
use crate::input::{LeafScratch, LogitsView, Targets};
use crate::kernels::tempered::TemperedRow;
use crate::output::Flags;
use crate::run::{Interrupt, RowIn, RowWork, Source};
use crate::simd::{Element, Float, Isa};
use crate::state::tempered::{Chain, TemperedPartial, chains};
use std::marker::PhantomData;
use std::ops::Range;

/// Statistics of each row at each inverse temperature b, `(rows, inverse_temperatures)`; p_b = softmax(b z).
#[derive(Clone, Debug, Default)]
pub struct TemperatureColumns {
    /// ln sum e^(b z).
    pub lse: Vec<f64>,
    /// Mean of z under p_b.
    pub mean: Vec<f64>,
    /// Variance of z under p_b.
    pub variance: Vec<f64>,
    /// Entropy of p_b.
    pub entropy: Vec<f64>,
    /// -ln p_b(target); NaN without targets, 0 for ignored rows.
    pub nll: Vec<f64>,
    /// Bits of [`Flags`], one for each row.
    pub flags: Vec<u8>,
}

/// Statistics at several inverse temperatures. A value, its double and so on share one exponential, whose relative error
/// doubles each time; after three doublings a new one is taken. At 0 every column that is not minus infinity has the same
/// weight, so mean and variance are those of z over the vocabulary.
///
/// ```
/// use xentrs::{LogitsView, Options, temperature_grid};
/// let logits = [0.0f32, 1.0];
/// let view = LogitsView::from_slice(&logits, 1, 2)?;
/// let grid = temperature_grid(&view, None, &[0.0, 1.0, 2.0], &Options::default())?;
/// assert!((grid.lse[0] - 2f64.ln()).abs() < 1e-12 && (grid.mean[0] - 0.5).abs() < 1e-12);
/// assert!((grid.lse[2] - (1.0 + 2f64.exp()).ln()).abs() < 1e-6);
/// # Ok::<(), xentrs::Error>(())
/// ```
///
/// # Errors
/// As [`row_stats`](crate::row_stats); [`Error::Parameter`] for an inverse temperature that is not from 0 to 1e30.
pub fn temperature_grid<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: Option<&Targets>,
    inverse_temperatures: &[f64],
    options: &Options,
) -> Result<TemperatureColumns, Error> {
    temperature_grid_with(logits, targets, inverse_temperatures, options, &never)
}

pub(crate) fn temperature_grid_with<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: Option<&Targets>,
    inverse_temperatures: &[f64],
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<TemperatureColumns, Error> {
    const FIELDS: usize = 5;
    let source = &lent_rows([logits], &options.execution)?;
    let scale = options.checked(logits.vocab())?;
    let exponents = checked("inverse_temperatures", inverse_temperatures)?;
    let exponents: Vec<f64> = exponents.iter().map(|value| value * scale).collect();
    let count = exponents.len();
    // Flags are told of an empty list too.
    let read = if count == 0 { vec![scale] } else { exponents.clone() };
    let finish = |partial: &TemperedPartial, target: Option<f64>, places: &mut [f64]| {
        let flags = partial.finish(0, read[0]).flags;
        for (place, (&exponent, fields)) in exponents.iter().zip(places.chunks_mut(FIELDS)).enumerate() {
            let row = partial.finish(place, exponent);
            let nll = target.map_or(f64::NAN, |logit| row.log_mass + distance(partial.max() - logit, exponent));
            fields.copy_from_slice(&[row.lse, row.mean * scale, row.variance * scale * scale, row.entropy, nll]);
        }
        if target == Some(f64::NEG_INFINITY) && flags == Flags::default() { Flags::TARGET_NEGINF } else { flags }
    };
    let ignored = [f64::NAN, f64::NAN, f64::NAN, f64::NAN, 0.0].repeat(count);
    let work = Tempered { source, targets, exponents: &read, softcap: options.softcap, class_weights: None };
    let (values, flags) = work.run(options, &ignored, finish, interrupt)?;
    let field = |index: usize| values.iter().skip(index).step_by(FIELDS).copied().collect();
    Ok(TemperatureColumns {
        lse: field(0),
        mean: field(1),
        variance: field(2),
        entropy: field(3),
        nll: field(4),
        flags,
    })
}

/// Renyi entropies of the softmax of each row in nats, `(rows, orders)`: ln(sum p^a) / (1 - a). Order 1 is Shannon's
/// entropy, order 0 the log of the number of possible columns, plus infinity -ln of the largest probability.
///
/// # Errors
/// As [`row_stats`](crate::row_stats); [`Error::EmptyVocabulary`]; [`Error::Parameter`] for an order below 0 or NaN.
pub fn renyi_entropy<E: Element>(
    logits: &LogitsView<'_, E>,
    orders: &[f64],
    options: &Options,
) -> Result<(Vec<f64>, Vec<u8>), Error> {
    renyi_entropy_with(logits, orders, options, &never)
}

pub(crate) fn renyi_entropy_with<E: Element>(
    logits: &LogitsView<'_, E>,
    orders: &[f64],
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<(Vec<f64>, Vec<u8>), Error> {
    let source = &lent_rows([logits], &options.execution)?;
    let scale = options.checked(logits.vocab())?;
    if logits.vocab() == 0 {
        return Err(Error::EmptyVocabulary { operation: "an entropy" });
    }
    let finite: Vec<f64> = orders.iter().copied().filter(|order| *order != f64::INFINITY).collect();
    checked("orders", &finite)?;
    // Order 1 comes first; plus infinity needs no sum but that of order 1.
    let exponent = |order: &f64| if *order == f64::INFINITY { scale } else { order * scale };
    let exponents: Vec<f64> = std::iter::once(scale).chain(orders.iter().map(exponent)).collect();
    // Here the rounding errors of the difference and the square left out of the other formula are alike.
    let near_one = libm::cbrt(E::Compute::UNIT_ROUNDOFF);
    let finish = |partial: &TemperedPartial, _: Option<f64>, places: &mut [f64]| {
        let shannon = partial.finish(0, scale);
        for (place, (&order, value)) in orders.iter().zip(places).enumerate() {
            // Both logarithms are of sums around the largest logit, whose multiples cancel here exactly.
            let log_mass = || partial.finish(place + 1, exponents[place + 1]).log_mass;
            // Next to order 1 the difference of logarithms cancels; there the entropy falls by half the varentropy.
            let above_one = order - 1.0;
            *value = match order {
                _ if above_one.abs() < near_one => shannon.entropy - above_one / 2.0 * shannon.variance * scale * scale,
                f64::INFINITY => shannon.log_mass,
                _ => ((log_mass() - order * shannon.log_mass) / (1.0 - order)).max(0.0),
            };
            if shannon.log_mass.is_nan() {
                *value = f64::NAN;
            }
        }
        shannon.flags
    };
    let ignored = vec![f64::NAN; orders.len()];
    let work = Tempered { source, targets: None, exponents: &exponents, softcap: options.softcap, class_weights: None };
    work.run(options, &ignored, finish, interrupt)
}

/// `b` times a difference of logits, which is infinite where the target is impossible, also at 0.
pub(super) fn distance(difference: f64, inverse_temperature: f64) -> f64 {
    if difference == f64::INFINITY { difference } else { difference * inverse_temperature }
}

fn checked<'v>(name: &'static str, values: &'v [f64]) -> Result<&'v [f64], Error> {
    match values.iter().find(|value| !(0.0..=1e30).contains(*value)) {
        None => Ok(values),
        Some(value) => Err(Error::Parameter { name, value: format!("{value:?}"), expected: "numbers from 0 to 1e30" }),
    }
}

/// What a call reads from each row: sums at some exponents, and with class weights.
pub(super) struct Tempered<'w, E: Element, R> {
    pub(super) source: &'w R,
    pub(super) targets: Option<&'w Targets>,
    /// Inverse temperatures.
    pub(super) exponents: &'w [f64],
    pub(super) softcap: Option<f64>,
    /// One for each column, whole leaves of them.
    pub(super) class_weights: Option<&'w [E::Compute]>,
}

impl<E: Element, R: Source<E, 1>> Tempered<'_, E, R> {
    /// Runs `finish` on each counted row, which writes as many values as `ignored` has; rows that are not counted get
    /// `ignored`.
    pub(super) fn run<F>(
        &self,
        options: &Options,
        ignored: &[f64],
        finish: F,
        interrupt: Interrupt<'_>,
    ) -> Result<(Vec<f64>, Vec<u8>), Error>
    where
        F: Fn(&TemperedPartial, Option<f64>, &mut [f64]) -> Flags + Sync,
    {
        let (rows, width) = (self.source.rows(), ignored.len());
        check_rows(rows, self.targets)?;
        let mut values = try_filled(rows.saturating_mul(width), f64::NAN)?;
        let mut flags = try_filled(rows, 0)?;
        let chains = chains(self.exponents);
        let work = TemperedWork {
            targets: self.targets,
            softcap: self.softcap,
            class_weights: self.class_weights,
            exponents: self.exponents.len(),
            chains,
            isa: options.execution.isa()?,
            ignored,
            finish,
            slots: PhantomData,
        };
        self.source.run(&work, |size| slots(&mut values, &mut flags, size, width), interrupt)?;
        Ok((values, flags))
    }
}

struct TemperedWork<'w, 's, C, F> {
    targets: Option<&'w Targets>,
    softcap: Option<f64>,
    class_weights: Option<&'w [C]>,
    exponents: usize,
    chains: Vec<Chain>,
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
        TemperedPartial::new(self.exponents)
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
        let (softcap, class_weights, chains) = (self.softcap, self.class_weights, self.chains.as_slice());
        partial.target_logit = row.target_logit.map(|logit| capped(self.isa, softcap, logit).into());
        let [row] = row.views;
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
