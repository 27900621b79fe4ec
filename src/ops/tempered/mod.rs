//! Quantities at several inverse temperatures, from one read.

mod beside;
mod measures;
mod work;

pub(super) use beside::scan_tempered;
#[cfg(feature = "python")]
pub(crate) use beside::tempered_row_stats_with;
pub use beside::{TemperedColumns, TemperedOptions, tempered_row_stats};
pub(super) use measures::distance;
pub(super) use work::Tempered;

use super::{Options, lent_rows, never};
use crate::error::Error;
use crate::input::{LogitsView, Targets};
use crate::output::Flags;
use crate::run::Interrupt;
use crate::simd::{Element, Float};
use crate::state::tempered::{ChainSet, TemperedPartial};
use measures::{Grid, Renyi};

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

/// Statistics at several inverse temperatures. A value, its double and so on share one exponential, whose relative
/// error doubles each time; after three doublings a new one is taken. At 0 every column that is not minus infinity has
/// the same weight, so mean and variance are those of z over the vocabulary.
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
    let source = &lent_rows([logits], &options.execution)?;
    let scale = options.checked(logits.vocab())?;
    let mut set = ChainSet::default();
    let grid = Grid::new(&mut set, inverse_temperatures, scale)?;
    if inverse_temperatures.is_empty() {
        // Flags are told of an empty list too.
        set.add(&[scale]);
    }
    let finish = |partial: &TemperedPartial, target: Option<f64>, values: &mut [f64]| {
        grid.write(partial, target, values);
        flags_of(partial, target)
    };
    let ignored = grid.ignored();
    let work = Tempered { source, targets, exponents: &set, softcap: options.softcap, class_weights: None };
    let (values, flags) = work.run(options, &ignored, finish, interrupt)?;
    Ok(TemperatureColumns::split(&values, ignored.len(), 0, flags))
}

impl TemperatureColumns {
    /// From rows of `width` values, of which those from `first` on are the grid's.
    fn split(values: &[f64], width: usize, first: usize, flags: Vec<u8>) -> Self {
        let field = |index: usize| {
            let rows = values.chunks(width.max(1));
            rows.flat_map(|row| row.iter().skip(first + index).step_by(Grid::FIELDS)).copied().collect()
        };
        Self { lse: field(0), mean: field(1), variance: field(2), entropy: field(3), nll: field(4), flags }
    }
}

/// What is unusual about a row.
fn flags_of(partial: &TemperedPartial, target: Option<f64>) -> Flags {
    let flags = partial.flags();
    if target == Some(f64::NEG_INFINITY) && flags == Flags::default() { Flags::TARGET_NEGINF } else { flags }
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
    let mut set = ChainSet::default();
    let renyi = Renyi::new(&mut set, ("orders", orders), scale, E::Compute::UNIT_ROUNDOFF)?;
    let finish = |partial: &TemperedPartial, _: Option<f64>, values: &mut [f64]| {
        renyi.write(partial, values);
        partial.flags()
    };
    let ignored = renyi.ignored();
    let work = Tempered { source, targets: None, exponents: &set, softcap: options.softcap, class_weights: None };
    work.run(options, &ignored, finish, interrupt)
}
