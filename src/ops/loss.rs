//! Training losses on top of the likelihood: label smoothing, z-loss, class weights, soft targets. One read of the logits.

use super::rows::{capped, scan};
use super::tempered::{Tempered, distance};
use super::{Options, check_rows, lent_rows, never};
use crate::error::{Error, try_filled};
use crate::input::{LEAF, LogitsView, SoftTargets, Targets};
use crate::output::Flags;
use crate::run::{Interrupt, Source};
use crate::simd::{Element, Float};
use crate::state::Perplexity;
use crate::state::tempered::{ChainSet, Need, TemperedPartial};

/// What is added to the plain likelihood; the default adds nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossOptions<'w> {
    /// Share of the target's probability that is spread evenly over the vocabulary, in [0, 1].
    pub label_smoothing: f64,
    /// Factor of lse^2, at least 0.
    pub z_loss: f64,
    /// A weight for each class, finite and at least 0.
    pub class_weights: Option<&'w [f64]>,
}

/// Losses of many rows in nats.
#[derive(Clone, Debug, Default)]
pub struct LossColumns {
    /// Each row's loss; 0 where ignored.
    pub loss: Vec<f64>,
    /// Bits of [`Flags`].
    pub flags: Vec<u8>,
    /// Rows that are not ignored.
    pub token_count: u64,
    /// Exact sum of the losses, rounded once.
    pub sum: f64,
    /// The sum over the sum of the targets' weights, z-loss over the rows counted; NaN without any.
    pub mean: f64,
    /// What the gradient of the loss is made from, row by row.
    pub likelihoods: Vec<Likelihood>,
}

/// A row's likelihood in nats; all NaN where it is ignored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Log-sum-exp.
    pub lse: f64,
    /// Negative log-likelihood of the target.
    pub nll: f64,
    /// Largest logit, divided by the temperature.
    pub max_logit: f64,
    /// Its log-probability.
    pub max_log_prob: f64,
}

/// Cross-entropy with label smoothing, z-loss and class weights, as `torch.nn.functional.cross_entropy` defines them:
/// w_t (1 - e) nll + e / vocab * sum_v w_v (lse - z_v) + z_loss * lse^2, z-loss as in PaLM (arXiv 2204.02311).
/// A logit of minus infinity makes a smoothed loss plus infinity, unless its class has weight 0.
///
/// # Errors
/// As [`row_stats`](crate::row_stats); [`Error::Parameter`] for a setting out of range; [`Error::ShapeMismatch`] if there is
/// not one weight for each class.
pub fn loss<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: &Targets,
    settings: &LossOptions<'_>,
    options: &Options,
) -> Result<LossColumns, Error> {
    loss_with(logits, targets, settings, options, &never)
}

pub(crate) fn loss_with<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: &Targets,
    settings: &LossOptions<'_>,
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<LossColumns, Error> {
    loss_rows(&lent_rows([logits], &options.execution)?, targets, settings, options, interrupt)
}

/// Losses of the rows of a source.
pub(super) fn loss_rows<E: Element>(
    source: &impl Source<E, 1>,
    targets: &Targets,
    settings: &LossOptions<'_>,
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<LossColumns, Error> {
    check(settings, source.vocab())?;
    check_rows(source.rows(), Some(targets))?;
    let (parts, flags) = if settings.label_smoothing > 0.0 {
        smoothed(source, targets, settings, options, interrupt)?
    } else {
        let columns = scan(source, Some(targets), options, false, interrupt)?;
        let part = |row: usize| {
            let (lse, nll) = (columns.lse[row], columns.nll[row]);
            let (max_logit, max_log_prob) = (columns.max_logit[row], columns.max_log_prob[row]);
            let loss = weigh(target_weight(settings, targets, row), nll);
            Part { loss, likelihood: Likelihood { lse, nll, max_logit, max_log_prob } }
        };
        ((0..source.rows()).map(part).collect(), columns.flags)
    };
    Ok(reduce(&parts, flags, settings, targets))
}

/// A row's likelihood, and its part of the loss, already weighted.
struct Part {
    loss: f64,
    likelihood: Likelihood,
}

/// Adds the z-loss, and sums.
fn reduce(parts: &[Part], flags: Vec<u8>, settings: &LossOptions<'_>, targets: &Targets) -> LossColumns {
    let is_counted = |row: usize| targets.column(row).is_some();
    let z_part = |row: usize| {
        let lse = parts[row].likelihood.lse;
        if settings.z_loss > 0.0 && is_counted(row) { settings.z_loss * lse * lse } else { 0.0 }
    };
    let loss: Vec<f64> = (0..parts.len()).map(|row| parts[row].loss + z_part(row)).collect();
    let (rows, token_count) = (0..parts.len(), targets.token_count());
    let weight_sum =
        total(rows.clone().filter(|&row| is_counted(row)).map(|row| target_weight(settings, targets, row)));
    let mean_loss = if weight_sum == 0.0 { f64::NAN } else { total(parts.iter().map(|part| part.loss)) / weight_sum };
    let mean = if settings.z_loss > 0.0 { mean_loss + total(rows.map(z_part)) / token_count as f64 } else { mean_loss };
    let likelihoods = parts.iter().map(|part| part.likelihood).collect();
    LossColumns { sum: total(loss.iter().copied()), loss, flags, token_count, mean, likelihoods }
}

/// The exact sum, rounded once.
fn total(values: impl Iterator<Item = f64>) -> f64 {
    let mut sum = Perplexity::default();
    values.for_each(|value| sum.update_nll(&[value], 0));
    sum.compute().nll_sum
}

pub(super) fn target_weight(settings: &LossOptions<'_>, targets: &Targets, row: usize) -> f64 {
    match (settings.class_weights, targets.column(row)) {
        (Some(weights), Some(column)) => weights[column],
        _ => 1.0,
    }
}

/// A weight of 0 leaves nothing of an infinite likelihood; NaN stays.
fn weigh(weight: f64, nll: f64) -> f64 {
    if weight == 0.0 && nll == f64::INFINITY { 0.0 } else { weight * nll }
}

/// With label smoothing: the sums at inverse temperature 0 give the mean over the vocabulary in the same read.
fn smoothed<E: Element>(
    source: &impl Source<E, 1>,
    targets: &Targets,
    settings: &LossOptions<'_>,
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<(Vec<Part>, Vec<u8>), Error> {
    // The loss of an ignored row is 0, in both parts; nothing else is known of it.
    const IGNORED: [f64; 6] = [0.0, 0.0, f64::NAN, f64::NAN, f64::NAN, f64::NAN];
    let (scale, vocab) = (options.checked(source.vocab())?, source.vocab() as f64);
    let smoothing = settings.label_smoothing;
    let weights = settings.class_weights.map(|weights| padded::<E>(weights)).transpose()?;
    let weight_sums: Vec<f64> = settings.class_weights.map_or_else(Vec::new, leaf_totals);
    let weight_sum: f64 = weight_sums.iter().sum();
    let mut exponents = ChainSet::default();
    let sums_at = exponents.add_needed(&[scale, 0.0], |member| if member == 0 { Need::Mass } else { Need::Moments });
    let finish = |partial: &TemperedPartial, target: Option<f64>, places: &mut [f64]| {
        let (row, even) = (partial.finish(sums_at[0], scale), partial.finish(sums_at[1], 0.0));
        let nll = target.map_or(f64::NAN, |logit| row.log_mass + distance(partial.max() - logit, scale));
        let smooth = if settings.class_weights.is_some() {
            (weight_sum * row.log_mass + scale * partial.weighted_distance(&weight_sums)) / vocab
        } else if partial.possible(sums_at[1]) < vocab {
            f64::INFINITY
        } else {
            row.log_mass - scale * even.drop
        };
        // Ordered so that a share of 0 never meets an infinity.
        let likelihood = if smoothing < 1.0 { (1.0 - smoothing) * nll } else { 0.0 };
        let smooth_part = if row.log_mass.is_nan() { f64::NAN } else { smoothing * smooth };
        let max_logit = partial.max() * scale;
        places.copy_from_slice(&[likelihood, smooth_part, row.lse, nll, max_logit, -row.log_mass]);
        let is_infinite = nll == f64::INFINITY || smooth == f64::INFINITY;
        if is_infinite && row.flags == Flags::default() { Flags::TARGET_NEGINF } else { row.flags }
    };
    let class_weights = weights.as_deref();
    let call =
        Tempered { source, targets: Some(targets), exponents: &exponents, softcap: options.softcap, class_weights };
    let (values, flags) = call.run(options, &IGNORED, finish, interrupt)?;
    let part = |(row, value): (usize, &[f64])| {
        let weight = target_weight(settings, targets, row);
        let [lse, nll, max_logit, max_log_prob] = [value[2], value[3], value[4], value[5]];
        let likelihood = Likelihood { lse, nll, max_logit, max_log_prob };
        Part { loss: weigh(weight, value[0]) + value[1], likelihood }
    };
    Ok((values.chunks(IGNORED.len()).enumerate().map(part).collect(), flags))
}

/// Weights in the compute type, as whole leaves.
pub(super) fn padded<E: Element>(weights: &[f64]) -> Result<Vec<E::Compute>, Error> {
    let mut padded = try_filled(weights.len().next_multiple_of(LEAF), E::Compute::ZERO)?;
    for (place, &weight) in padded.iter_mut().zip(weights) {
        *place = E::Compute::from_f64(weight);
    }
    Ok(padded)
}

fn leaf_totals(weights: &[f64]) -> Vec<f64> {
    weights.chunks(LEAF).map(|leaf| leaf.iter().sum()).collect()
}

pub(super) fn check(settings: &LossOptions<'_>, vocab: usize) -> Result<(), Error> {
    let fault = |name, value: f64, expected| Err(Error::Parameter { name, value: format!("{value:?}"), expected });
    if !(0.0..=1.0).contains(&settings.label_smoothing) {
        return fault("label_smoothing", settings.label_smoothing, "a number from 0 to 1");
    }
    if !(0.0..=1e30).contains(&settings.z_loss) {
        return fault("z_loss", settings.z_loss, "a number from 0 to 1e30");
    }
    let weights = settings.class_weights.unwrap_or_default();
    if settings.class_weights.is_some() && weights.len() != vocab {
        let (left_shape, right_shape) = (vec![weights.len()], vec![vocab]);
        return Err(Error::ShapeMismatch { left: "weight", left_shape, right: "the vocabulary", right_shape });
    }
    match weights.iter().find(|weight| !(0.0..=1e30).contains(*weight)) {
        Some(&weight) => fault("weight", weight, "finite numbers from 0 to 1e30"),
        None => Ok(()),
    }
}

/// Cross-entropy of each row's softmax under a target distribution given by a few columns: sum t (lse - z).
/// A share of 0 counts as 0 also where the logit is minus infinity.
///
/// # Errors
/// As [`row_stats`](crate::row_stats).
pub fn soft_cross_entropy<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: &SoftTargets,
    options: &Options,
) -> Result<LossColumns, Error> {
    soft_cross_entropy_with(logits, targets, options, &never)
}

pub(crate) fn soft_cross_entropy_with<E: Element>(
    logits: &LogitsView<'_, E>,
    targets: &SoftTargets,
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<LossColumns, Error> {
    let scale = options.checked(logits.vocab())?;
    // The first column that counts stands for the row, so that rows without one are not read.
    let first = targets.first_columns();
    let columns = scan(&lent_rows([logits], &options.execution)?, Some(&first), options, false, interrupt)?;
    let isa = options.execution.isa()?;
    let mut flags = columns.flags;
    let mut loss = try_filled(logits.rows(), 0.0)?;
    for (row, place) in loss.iter_mut().enumerate().filter(|(row, _)| first.column(*row).is_some()) {
        let view = logits.row(row);
        flags[row] &= !Flags::TARGET_NEGINF.bits();
        for (column, share) in targets.row(row).filter(|(_, share)| *share > 0.0) {
            let logit: f64 = capped(isa, options.softcap, view.logit(column).widen()).into();
            if logit == f64::NEG_INFINITY && flags[row] == 0 {
                flags[row] = Flags::TARGET_NEGINF.bits();
            }
            *place += share * ((columns.max_logit[row] - logit * scale) - columns.max_log_prob[row]);
        }
    }
    let token_count = first.token_count();
    let sum = total(loss.iter().copied());
    Ok(LossColumns { loss, flags, token_count, sum, mean: sum / token_count as f64, likelihoods: Vec::new() })
}
