//! Gradients of quantities of one array of logits: each row is read once more, and its derivatives written once.

use super::{LossTerms, check_lengths, check_terms};
use crate::error::Error;
use crate::input::{LeafScratch, LogitsView};
use crate::kernels::gradient::{GradientRow, RowGradient};
use crate::ops::loss::{Likelihood, check, padded};
use crate::ops::{Options, never};
use crate::plan::{Plan, Unit};
use crate::run::{Interrupt, for_each};
use crate::simd::{Element, Float, with_default_control};

/// The gradient of sum_n upstream_n loss_n, as [`loss`](crate::loss()) defines the loss, with respect to the logits.
///
/// `out` takes as many numbers for each row as all rows share of it, at least `vocab`; those past the vocabulary, and ignored
/// rows, become 0. A row without a finite loss has NaN where nothing is defined.
///
/// ```
/// use xentrs::{LogitsView, LossOptions, LossTerms, Options, Targets, loss, loss_gradient};
/// let logits = LogitsView::from_slice(&[0.0f32, 0.0], 1, 2)?;
/// let (targets, settings, options) = (Targets::new([1], 2, -100)?, LossOptions::default(), Options::default());
/// let likelihoods = &loss(&logits, &targets, &settings, &options)?.likelihoods;
/// let terms = LossTerms { targets: &targets, likelihoods, settings, temperature: 1.0, upstream: &[1.0] };
/// let mut gradient = [0.0; 2];
/// loss_gradient(&logits, &terms, &options, &mut gradient)?;
/// assert_eq!(gradient, [0.5, -0.5]);
/// # Ok::<(), xentrs::Error>(())
/// ```
///
/// # Errors
/// [`Error::ShapeMismatch`] if there is not one target, likelihood and derivative for each row; [`Error::BufferLength`] for a
/// place of another size; as [`loss`](crate::loss()).
pub fn loss_gradient<E: Element>(
    logits: &LogitsView<'_, E>,
    loss: &LossTerms<'_>,
    options: &Options,
    out: &mut [E],
) -> Result<(), Error> {
    loss_gradient_with(logits, loss, options, out, &never)
}

pub(crate) fn loss_gradient_with<E: Element>(
    logits: &LogitsView<'_, E>,
    loss: &LossTerms<'_>,
    options: &Options,
    out: &mut [E],
    interrupt: Interrupt<'_>,
) -> Result<(), Error> {
    check_terms(logits.rows(), loss)?;
    check(&loss.settings, logits.vocab())?;
    let class_weights = loss.settings.class_weights.filter(|_| loss.settings.label_smoothing > 0.0);
    let weight_sum = class_weights.map_or(logits.vocab() as f64, |weights| weights.iter().sum());
    let rule = |row: usize| {
        loss.targets.column(row)?;
        let gradient = loss.row_gradient(row, logits.vocab(), weight_sum, options.softcap);
        Some(gradient.times(loss.factor(row)))
    };
    let padded = class_weights.map(padded::<E>).transpose()?;
    write_rows(logits, padded.as_deref(), rule, options, out, interrupt)
}

/// The gradient of sum_n upstream_n lse_n: upstream p. `likelihoods` are those of the rows without targets.
///
/// # Errors
/// As [`loss_gradient`].
pub fn logsumexp_gradient<E: Element>(
    logits: &LogitsView<'_, E>,
    likelihoods: &[Likelihood],
    upstream: &[f64],
    options: &Options,
    out: &mut [E],
) -> Result<(), Error> {
    logsumexp_gradient_with(logits, likelihoods, upstream, options, out, &never)
}

pub(crate) fn logsumexp_gradient_with<E: Element>(
    logits: &LogitsView<'_, E>,
    likelihoods: &[Likelihood],
    upstream: &[f64],
    options: &Options,
    out: &mut [E],
    interrupt: Interrupt<'_>,
) -> Result<(), Error> {
    check_lengths(logits.rows(), [("likelihoods", likelihoods.len()), ("upstream", upstream.len())])?;
    let rule = |row: usize| Some(softmax(&likelihoods[row], options).times(upstream[row] / options.temperature));
    write_rows(logits, None, rule, options, out, interrupt)
}

/// The gradient of sum_n upstream_n H_n, H the entropy: -upstream p (ln p + H).
///
/// # Errors
/// As [`loss_gradient`].
pub fn entropy_gradient<E: Element>(
    logits: &LogitsView<'_, E>,
    likelihoods: &[Likelihood],
    entropy: &[f64],
    upstream: &[f64],
    options: &Options,
    out: &mut [E],
) -> Result<(), Error> {
    entropy_gradient_with(logits, likelihoods, entropy, upstream, options, out, &never)
}

pub(crate) fn entropy_gradient_with<E: Element>(
    logits: &LogitsView<'_, E>,
    likelihoods: &[Likelihood],
    entropy: &[f64],
    upstream: &[f64],
    options: &Options,
    out: &mut [E],
    interrupt: Interrupt<'_>,
) -> Result<(), Error> {
    let lengths = [("likelihoods", likelihoods.len()), ("entropy", entropy.len()), ("upstream", upstream.len())];
    check_lengths(logits.rows(), lengths)?;
    let rule = |row: usize| {
        let softmax = softmax(&likelihoods[row], options);
        let max_share = -softmax.max_share * (likelihoods[row].max_log_prob + entropy[row]);
        // A row without an entropy has NaN everywhere, and a factor beside a weight of 0 would be 0.
        let bend = (!max_share.is_nan()).then_some(-softmax.max_share);
        let gradient = RowGradient { max_share, bend, ..softmax };
        Some(gradient.times(upstream[row] / options.temperature))
    };
    write_rows(logits, None, rule, options, out, interrupt)
}

/// The gradient of the log-sum-exp by z.
fn softmax(likelihood: &Likelihood, options: &Options) -> RowGradient {
    RowGradient {
        inverse_temperature: 1.0 / options.temperature,
        max_logit: likelihood.max_logit,
        max_share: libm::exp(likelihood.max_log_prob),
        bend: None,
        even_share: 0.0,
        softcap: options.softcap,
        target: None,
    }
}

/// Writes each row's gradient, 0 where `rule` has none.
fn write_rows<E: Element>(
    logits: &LogitsView<'_, E>,
    class_weights: Option<&[E::Compute]>,
    rule: impl Fn(usize) -> Option<RowGradient> + Sync,
    options: &Options,
    out: &mut [E],
    interrupt: Interrupt<'_>,
) -> Result<(), Error> {
    options.checked(logits.vocab())?;
    let columns = row_length(logits, out)?;
    let plan = Plan::new(logits.rows(), logits.vocab(), &options.execution)?;
    let size = rows_of_unit(&plan);
    let work = |scratch: &mut LeafScratch<E>, (unit, out): (usize, &mut [E])| {
        for (row, out) in out.chunks_exact_mut(columns).enumerate().map(|(i, out)| (unit * size + i, out)) {
            let (out, padding) = out.split_at_mut(logits.vocab());
            match &rule(row) {
                Some(gradient) => {
                    let row = logits.row(row);
                    plan.isa.run(GradientRow { row, gradient, class_weights, scratch, out });
                }
                None => out.fill(zero()),
            }
            padding.fill(zero());
        }
    };
    let units = out.chunks_mut((size * columns).max(1)).enumerate();
    with_default_control(|| for_each(plan.threads, units, LeafScratch::new, work, interrupt))
}

/// Rows that a thread writes at a time.
pub(super) fn rows_of_unit(plan: &Plan) -> usize {
    match plan.unit {
        Unit::Rows(size) => size,
        Unit::Leaves(_) => 1,
    }
}

/// Numbers of `out` for each row, at least those of the vocabulary.
pub(super) fn row_length<E: Element>(logits: &LogitsView<'_, E>, out: &[E]) -> Result<usize, Error> {
    let (rows, vocab) = (logits.rows(), logits.vocab());
    let columns = out.len().checked_div(rows).unwrap_or(0);
    if columns * rows == out.len() && (columns >= vocab || rows == 0) {
        return Ok(columns.max(1));
    }
    Err(Error::BufferLength { elements: out.len(), rows, vocab })
}

pub(super) fn zero<E: Element>() -> E {
    E::narrow(E::Compute::ZERO)
}
