//! Row statistics with what is made of sums at other temperatures, from one read of the logits, or one product of a
//! head.

use super::measures::{Grid, Moments, Renyi};
use super::{TemperatureColumns, Tempered, flags_of};
use crate::error::Error;
use crate::input::{LogitsView, Targets};
use crate::ops::rows::{conclude, scan, scanning};
use crate::ops::{Options, lent_rows, never, slots};
use crate::output::{Flags, RowColumns};
use crate::run::{Both, Interrupt, Source};
use crate::simd::{Element, Float};
use crate::state::tempered::{ChainSet, TemperedPartial};
use std::ops::Range;

/// What a call computes beside each row's statistics. The default is nothing, which costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TemperedOptions<'o> {
    /// Mean and variance of the log-probabilities over the vocabulary, every column with the same weight.
    pub moments: bool,
    /// Orders of Renyi entropies, see [`renyi_entropy`](crate::renyi_entropy).
    pub renyi_orders: &'o [f64],
    /// Inverse temperatures b of a grid of softmax(b z), see [`temperature_grid`](crate::temperature_grid); z has been
    /// divided by the temperature of [`Options`].
    pub inverse_temperatures: &'o [f64],
}

/// Results of [`TemperedOptions`]; what was not asked for is empty.
#[derive(Clone, Debug, Default)]
pub struct TemperedColumns {
    /// Mean of ln p over the vocabulary; minus infinity where a logit is.
    pub log_prob_mean: Vec<f64>,
    /// Variance of ln p over the vocabulary; NaN where a logit is minus infinity.
    pub log_prob_variance: Vec<f64>,
    /// Renyi entropies, `(rows, renyi_orders)`.
    pub renyi_entropy: Vec<f64>,
    /// Statistics at each inverse temperature, `(rows, inverse_temperatures)`.
    pub temperature_grid: TemperatureColumns,
}

/// The statistics of [`row_stats`](crate::row_stats), with the same bits, and beside them moments of log-probabilities,
/// Renyi entropies and a grid of temperatures, with the bits that their own functions give. The logits are read once.
///
/// ```
/// use xentrs::{LogitsView, Options, TemperedOptions, tempered_row_stats};
/// let view = LogitsView::from_slice(&[0.0f32; 8], 1, 8)?;
/// let wanted = TemperedOptions { moments: true, renyi_orders: &[2.0], ..TemperedOptions::default() };
/// let (stats, tempered) = tempered_row_stats(&view, None, &wanted, &Options::default())?;
/// assert!((stats.entropy[0] - 8f64.ln()).abs() < 1e-12 && (tempered.renyi_entropy[0] - 8f64.ln()).abs() < 1e-12);
/// assert!((tempered.log_prob_mean[0] + 8f64.ln()).abs() < 1e-12);
/// # Ok::<(), xentrs::Error>(())
/// ```
///
/// # Errors
/// As [`row_stats`](crate::row_stats); [`Error::EmptyVocabulary`] with moments or orders; [`Error::Parameter`] for an
/// order or an inverse temperature that is out of range.
pub fn tempered_row_stats<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: Option<&Targets>,
    wanted: &TemperedOptions<'_>,
    options: &Options,
) -> Result<(RowColumns, TemperedColumns), Error> {
    tempered_row_stats_with(logits, targets, wanted, options, &never)
}

pub(crate) fn tempered_row_stats_with<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: Option<&Targets>,
    wanted: &TemperedOptions<'_>,
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<(RowColumns, TemperedColumns), Error> {
    scan_tempered(&lent_rows([logits], &options.execution)?, targets, wanted, options, interrupt)
}

/// The same of any source.
pub(in crate::ops) fn scan_tempered<E: Element>(
    source: &impl Source<E, 1>,
    targets: Option<&Targets>,
    wanted: &TemperedOptions<'_>,
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<(RowColumns, TemperedColumns), Error> {
    if *wanted == TemperedOptions::default() {
        return Ok((scan(source, targets, options, true, interrupt)?, TemperedColumns::default()));
    }
    let (mut columns, first) = scanning(source, targets, options, true)?;
    let mut set = ChainSet::default();
    let measures = Measures::new::<E>(&mut set, wanted, source.vocab(), 1.0 / options.temperature)?;
    let width = measures.ignored.len();
    let sums = Tempered { source, targets, exponents: &set, softcap: options.softcap, class_weights: None };
    let (mut values, mut flags) = sums.room(width)?;
    let finish =
        |partial: &TemperedPartial, target: Option<f64>, values: &mut [f64]| measures.write(partial, target, values);
    let second = sums.work(options, &measures.ignored, finish)?;
    source.run(
        &Both { first: &first, second: &second },
        |size| columns.slots(size).into_iter().zip(slots(&mut values, &mut flags, size, width)).collect(),
        interrupt,
    )?;
    Ok((conclude(columns, source, targets, options)?, measures.split(&values, flags)))
}

/// What was asked for. A row's values are those of the moments, of the orders and of the grid.
struct Measures {
    moments: Option<Moments>,
    renyi: Option<Renyi>,
    grid: Option<Grid>,
    /// What an ignored row has.
    ignored: Vec<f64>,
    /// Where the values of the orders begin, and those of the grid.
    borders: [usize; 2],
}

impl Measures {
    fn new<E: Element>(
        set: &mut ChainSet,
        wanted: &TemperedOptions<'_>,
        vocab: usize,
        scale: f64,
    ) -> Result<Self, Error> {
        let (orders, list) = (wanted.renyi_orders, wanted.inverse_temperatures);
        let (has_orders, has_list) = (!orders.is_empty(), !list.is_empty());
        if vocab == 0 && (wanted.moments || has_orders) {
            return Err(Error::EmptyVocabulary { operation: if has_orders { "an entropy" } else { "a mean" } });
        }
        let moments = wanted.moments.then(|| Moments::new(set, vocab, scale));
        let unit_roundoff = E::Compute::UNIT_ROUNDOFF;
        let renyi = has_orders.then(|| Renyi::new(set, ("renyi_orders", orders), scale, unit_roundoff)).transpose()?;
        let grid = has_list.then(|| Grid::new(set, list, scale)).transpose()?;
        let mut ignored = moments.as_ref().map_or_else(Vec::new, |_| Moments::IGNORED.to_vec());
        let first = ignored.len();
        ignored.extend(renyi.iter().flat_map(Renyi::ignored));
        let second = ignored.len();
        ignored.extend(grid.iter().flat_map(Grid::ignored));
        Ok(Self { moments, renyi, grid, ignored, borders: [first, second] })
    }

    fn write(&self, partial: &TemperedPartial, target: Option<f64>, values: &mut [f64]) -> Flags {
        let (values, of_grid) = values.split_at_mut(self.borders[1]);
        let (of_moments, of_renyi) = values.split_at_mut(self.borders[0]);
        if let Some(moments) = &self.moments {
            of_moments.copy_from_slice(&moments.of(partial));
        }
        if let Some(renyi) = &self.renyi {
            renyi.write(partial, of_renyi);
        }
        if let Some(grid) = &self.grid {
            grid.write(partial, target, of_grid);
        }
        flags_of(partial, target)
    }

    /// The rows' values as columns.
    fn split(&self, values: &[f64], flags: Vec<u8>) -> TemperedColumns {
        let (width, [first, second]) = (self.ignored.len(), self.borders);
        let part = |range: Range<usize>| values.chunks(width).flat_map(|row| &row[range.clone()]).copied().collect();
        let mut columns = TemperedColumns::default();
        if self.moments.is_some() {
            (columns.log_prob_mean, columns.log_prob_variance) = (part(0..1), part(1..2));
        }
        columns.renyi_entropy = part(first..second);
        if self.grid.is_some() {
            columns.temperature_grid = TemperatureColumns::split(values, width, second, flags);
        }
        columns
    }
}
