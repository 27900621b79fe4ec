//! Two models scored together: the row statistics of each and their divergences, from one product of either head.

use super::{check_sides, linear_divergences_with, linear_scan, linear_tempered_row_stats_with, uncapped, with_source};
use crate::error::Error;
use crate::input::Targets;
use crate::ops::pair::{DivergenceColumns, pairing};
use crate::ops::rows::{conclude, is_counted, scanning};
use crate::ops::tempered::{TemperedColumns, TemperedOptions, scan_tempered};
use crate::ops::{Options, Projection, never};
use crate::output::RowColumns;
use crate::plan::HeadPlan;
use crate::run::{Both, HeadRows, Interrupt, OfSide, SideSource, Source};
use crate::simd::{Element, Isa};

/// Results of [`linear_joint_row_stats`].
#[derive(Clone, Debug, Default)]
pub struct JointColumns {
    /// Statistics of p's rows.
    pub p: RowColumns,
    /// Statistics of q's rows.
    pub q: RowColumns,
    /// What was asked for beside q's statistics.
    pub q_tempered: TemperedColumns,
    /// Divergences of p and q; NaN and flagged where a row is ignored.
    pub divergences: DivergenceColumns,
}

/// What [`linear_row_stats`](crate::linear_row_stats) gives for p, what
/// [`linear_tempered_row_stats`](crate::linear_tempered_row_stats) gives for q and what
/// [`linear_divergences`](crate::linear_divergences) gives for both, with the same bits, from one product of each head.
/// Only where one model is float64 and the other is not each of the three makes its products in its own type.
///
/// The targets are both models'. `wanted` and `options.top_k` are for q.
///
/// ```
/// use xentrs::linear_joint_row_stats;
/// use xentrs::{Error, Head, LogitsView, Options, Projection, Targets, TemperedOptions, Weight};
/// fn side(weight: &[f64]) -> Result<Projection<'_>, Error> {
///     let head = Head::new(Weight::Rows(LogitsView::from_slice(weight, 2, 1)?.into()), None)?;
///     Projection::new(LogitsView::from_slice(&[1.0], 1, 1)?.into(), head)
/// }
/// let (p, q) = (side(&[0.0, 1.0])?, side(&[1.0, 1.0])?);
/// let targets = Targets::new([1], 2, -100)?;
/// let found = linear_joint_row_stats(&p, &q, Some(&targets), &TemperedOptions::default(), &Options::default())?;
/// assert!((found.p.nll[0] - (1.0 + (-1f64).exp()).ln()).abs() < 1e-12);
/// assert!((found.q.nll[0] - 2f64.ln()).abs() < 1e-12);
/// assert!((found.divergences.cross_entropy[0] - 2f64.ln()).abs() < 1e-12);
/// # Ok::<(), xentrs::Error>(())
/// ```
///
/// # Errors
/// As [`linear_tempered_row_stats`](crate::linear_tempered_row_stats) and [`kl_divergence`](crate::kl_divergence).
pub fn linear_joint_row_stats(
    p: &Projection<'_>,
    q: &Projection<'_>,
    targets: Option<&Targets>,
    wanted: &TemperedOptions<'_>,
    options: &Options,
) -> Result<JointColumns, Error> {
    linear_joint_row_stats_with(p, q, targets, wanted, options, &never)
}

pub(crate) fn linear_joint_row_stats_with(
    p: &Projection<'_>,
    q: &Projection<'_>,
    targets: Option<&Targets>,
    wanted: &TemperedOptions<'_>,
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<JointColumns, Error> {
    let options = uncapped(options)?;
    check_sides(p, q, options.temperature)?;
    let mut found = if p.is_wide() == q.is_wide() {
        with_source!([p, q], &options.execution, |source, plan| joint(
            source, targets, wanted, &options, plan.isa, interrupt
        ))?
    } else {
        let divergences = linear_divergences_with(p, q, options.temperature, &options.execution, interrupt)?;
        let p = linear_scan(p, targets, &plain(&options), true, interrupt)?;
        let (q, q_tempered) = linear_tempered_row_stats_with(q, targets, wanted, &options, interrupt)?;
        JointColumns { p, q, q_tempered, divergences }
    };
    (found.p.isa, found.q.isa) = (p.isa(&options.execution)?, q.isa(&options.execution)?);
    for row in (0..p.rows()).filter(|&row| !is_counted(targets, row)) {
        found.divergences.ignore(row);
    }
    Ok(found)
}

fn joint<E: Element>(
    source: &impl Source<E, 2>,
    targets: Option<&Targets>,
    wanted: &TemperedOptions<'_>,
    options: &Options,
    isa: Isa,
    interrupt: Interrupt<'_>,
) -> Result<JointColumns, Error> {
    let of_p = plain(options);
    let (mut p, scan) = scanning(source, targets, &of_p, true)?;
    let (mut room, pair) = pairing(source, options.temperature, isa)?;
    let beside = Both { first: &OfSide::<_, 0>(&scan), second: &pair };
    let q_source = SideSource::<_, _, _, 1>::new(source, &beside, |size| {
        p.slots(size).into_iter().zip(room.slots(size)).collect::<Vec<_>>()
    });
    let (q, q_tempered) = scan_tempered(&q_source, targets, wanted, options, interrupt)?;
    pair.fault.finish()?;
    Ok(JointColumns { p: conclude(p, source, targets, &of_p)?, q, q_tempered, divergences: room.into_columns() })
}

/// The settings for p's statistics.
fn plain(options: &Options) -> Options {
    Options { top_k: 0, ..*options }
}
