//! Quantities of logits that are never all made: from hidden states and a head.

mod joint;
mod projection;
#[cfg(test)]
mod tests;

#[cfg(feature = "python")]
pub(crate) use joint::linear_joint_row_stats_with;
pub use joint::{JointColumns, linear_joint_row_stats};
pub use projection::{MadeOf, Projection};
pub(super) use projection::{with_narrow_tiles, with_source, with_tiles};

use super::kl::{KlColumns, kl_rows};
use super::loss::{LossColumns, LossOptions, loss_rows};
use super::pair::{DivergenceColumns, pair_rows};
use super::rows::scan;
use super::tempered::{TemperedColumns, TemperedOptions, scan_tempered};
use super::{Options, check_positive, check_rows, never};
use crate::error::{Error, try_filled};
use crate::input::Targets;
use crate::kernels::linear::{HeadBlock, LogitsBlock};
use crate::output::RowColumns;
use crate::plan::{Execution, HeadPlan};
use crate::run::{self, HeadRows, Interrupt};

/// The logit of each row's target, with the bits that it has in its leaf; NaN where a row has none. Shards of a head need
/// them for the rank in each other's columns.
///
/// # Errors
/// [`Error::ShapeMismatch`] if there is not one target for each row, [`Error::OutOfMemory`], [`Error::Threads`].
pub fn linear_target_logits(
    projection: &Projection<'_>,
    targets: &Targets,
    execution: &Execution,
) -> Result<Vec<f64>, Error> {
    check_rows(projection.rows(), Some(targets))?;
    let mut found = try_filled(projection.rows(), f64::NAN)?;
    let plan = HeadPlan::new(projection.rows(), projection.hidden.width(), 1, execution)?;
    with_tiles!(projection, plan.isa, |product| {
        let work = |block: &mut HeadBlock<'_, '_, _>, (unit, places): (usize, &mut [f64])| {
            let rows: Vec<usize> = (unit * plan.rows..).take(places.len()).collect();
            let columns: Vec<Option<usize>> = rows.iter().map(|&row| targets.column(row)).collect();
            block.load(&rows);
            for (place, logit) in places.iter_mut().zip(block.targets(&columns)) {
                *place = logit.map_or(f64::NAN, Into::into);
            }
        };
        let units = found.chunks_mut(plan.rows).enumerate();
        run::for_each(plan.threads, units, || HeadBlock::new(&product, plan.rows), work, &never)?;
    });
    Ok(found)
}

/// All statistics of each row's logits, as [`row_stats`](crate::row_stats) gives them, without the logits.
///
/// bfloat16 times bfloat16 is multiplied in tiles where the machine has them, float64 in float64, all else in float32;
/// sums are never rounded to 16 bits. A row's bits do not depend on the other rows or on threads. The columns name the class
/// in `isa`.
///
/// # Errors
/// As [`row_stats`](crate::row_stats); [`Error::Parameter`] for `options.softcap`, which is the projection's.
pub fn linear_row_stats(
    projection: &Projection<'_>,
    targets: Option<&Targets>,
    options: &Options,
) -> Result<RowColumns, Error> {
    linear_scan(projection, targets, options, true, &never)
}

/// All statistics, or without `all` only lse, nll and flags.
pub(crate) fn linear_scan(
    projection: &Projection<'_>,
    targets: Option<&Targets>,
    options: &Options,
    all: bool,
    interrupt: Interrupt<'_>,
) -> Result<RowColumns, Error> {
    let options = uncapped(options)?;
    with_source!([projection], &options.execution, |source, _plan| {
        let columns = scan(source, targets, &options, all, interrupt)?;
        Ok(RowColumns { isa: projection.isa(&options.execution)?, ..columns })
    })
}

/// The same, with moments of log-probabilities, Renyi entropies and a grid of temperatures, as
/// [`tempered_row_stats`](crate::tempered_row_stats) gives them: each leaf is multiplied once.
///
/// # Errors
/// As [`tempered_row_stats`](crate::tempered_row_stats); [`Error::Parameter`] for `options.softcap`.
pub fn linear_tempered_row_stats(
    projection: &Projection<'_>,
    targets: Option<&Targets>,
    wanted: &TemperedOptions<'_>,
    options: &Options,
) -> Result<(RowColumns, TemperedColumns), Error> {
    linear_tempered_row_stats_with(projection, targets, wanted, options, &never)
}

pub(crate) fn linear_tempered_row_stats_with(
    projection: &Projection<'_>,
    targets: Option<&Targets>,
    wanted: &TemperedOptions<'_>,
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<(RowColumns, TemperedColumns), Error> {
    let options = uncapped(options)?;
    with_source!([projection], &options.execution, |source, _plan| {
        let (columns, tempered) = scan_tempered(source, targets, wanted, &options, interrupt)?;
        Ok((RowColumns { isa: projection.isa(&options.execution)?, ..columns }, tempered))
    })
}

/// Cross-entropy with label smoothing, z-loss and class weights, as [`loss`](crate::loss()) defines them.
///
/// # Errors
/// As [`loss`](crate::loss()).
pub fn linear_loss(
    projection: &Projection<'_>,
    targets: &Targets,
    settings: &LossOptions<'_>,
    options: &Options,
) -> Result<LossColumns, Error> {
    linear_loss_with(projection, targets, settings, options, &never)
}

pub(crate) fn linear_loss_with(
    projection: &Projection<'_>,
    targets: &Targets,
    settings: &LossOptions<'_>,
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<LossColumns, Error> {
    let options = uncapped(options)?;
    with_source!([projection], &options.execution, |source, _plan| loss_rows(
        source, targets, settings, &options, interrupt
    ))
}

/// KL(p||q) of two models over one vocabulary, as [`kl_divergence`](crate::kl_divergence) defines it; hidden states and
/// heads may differ in width and type.
///
/// # Errors
/// As [`kl_divergence`](crate::kl_divergence).
pub fn linear_kl_divergence(
    p: &Projection<'_>,
    q: &Projection<'_>,
    temperature: f64,
    execution: &Execution,
) -> Result<KlColumns, Error> {
    linear_kl_divergence_with(p, q, temperature, execution, &never)
}

pub(crate) fn linear_kl_divergence_with(
    p: &Projection<'_>,
    q: &Projection<'_>,
    temperature: f64,
    execution: &Execution,
    interrupt: Interrupt<'_>,
) -> Result<KlColumns, Error> {
    check_sides(p, q, temperature)?;
    with_source!([p, q], execution, |source, plan| kl_rows(source, temperature, false, plan.isa, interrupt))
}

/// KL both ways, cross-entropy of q under p and the variance of ln q under p of two models over one vocabulary, as
/// [`divergences`](crate::divergences) defines them; hidden states and heads may differ in width and type. Each head is
/// multiplied once.
///
/// ```
/// use xentrs::{Error, Execution, Head, LogitsView, Projection, Weight, linear_divergences};
/// fn side(weight: &[f64]) -> Result<Projection<'_>, Error> {
///     let head = Head::new(Weight::Rows(LogitsView::from_slice(weight, 2, 1)?.into()), None)?;
///     Projection::new(LogitsView::from_slice(&[1.0], 1, 1)?.into(), head)
/// }
/// let found = linear_divergences(&side(&[0.0, 1.0])?, &side(&[1.0, 1.0])?, 1.0, &Execution::default())?;
/// assert!((found.cross_entropy[0] - 2f64.ln()).abs() < 1e-12);
/// # Ok::<(), xentrs::Error>(())
/// ```
///
/// # Errors
/// As [`kl_divergence`](crate::kl_divergence).
pub fn linear_divergences(
    p: &Projection<'_>,
    q: &Projection<'_>,
    temperature: f64,
    execution: &Execution,
) -> Result<DivergenceColumns, Error> {
    linear_divergences_with(p, q, temperature, execution, &never)
}

pub(crate) fn linear_divergences_with(
    p: &Projection<'_>,
    q: &Projection<'_>,
    temperature: f64,
    execution: &Execution,
    interrupt: Interrupt<'_>,
) -> Result<DivergenceColumns, Error> {
    check_sides(p, q, temperature)?;
    with_source!([p, q], execution, |source, plan| pair_rows(source, temperature, plan.isa, interrupt))
}

/// The settings without the soft cap, which the projection has.
fn uncapped(options: &Options) -> Result<Options, Error> {
    match options.softcap {
        None => Ok(*options),
        Some(cap) => {
            let expected = "none: the soft cap is the projection's";
            Err(Error::Parameter { name: "softcap", value: format!("{cap:?}"), expected })
        }
    }
}

/// Two models' rows of one shape, and a temperature in range.
pub(super) fn check_sides(p: &Projection<'_>, q: &Projection<'_>, temperature: f64) -> Result<(), Error> {
    check_positive("temperature", temperature)?;
    let shape = |side: &Projection<'_>| vec![side.rows(), side.vocab()];
    if shape(p) != shape(q) {
        let (left_shape, right_shape) = (shape(q), shape(p));
        return Err(Error::ShapeMismatch { left: "the logits of q", left_shape, right: "those of p", right_shape });
    }
    if p.vocab() == 0 {
        return Err(Error::EmptyVocabulary { operation: "a divergence" });
    }
    Ok(())
}
