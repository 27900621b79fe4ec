//! Gradients of the cross-entropy of a head, by making its logits again, some columns at a time.
//!
//! For each 512 columns of the vocabulary: every block of rows makes its logits, turns them into derivatives, adds derivatives
//! times weights to its own rows of the gradient of the hidden states, and keeps the derivatives; then, after all blocks,
//! every group of columns adds derivatives times hidden states into its own rows of the gradient of the weights. Each number has one
//! owner and one order of additions, so its bits do not depend on threads. The method is that of "Cut Your Losses in
//! Large-Vocabulary Language Models" (arXiv 2411.09009), as are the filter and the order of the vocabulary.

mod passes;

use super::linear::{Projection, with_narrow_tiles, with_tiles};
use super::loss::{Likelihood, LossOptions};
use super::never;
use crate::error::{Error, try_filled};
use crate::input::{LogitsView, Targets};
use crate::output::Matrix;
use crate::plan::{Execution, HeadPlan};
use crate::run::Interrupt;
use crate::simd::with_default_control;
use passes::Call;

/// What to compute, and what may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GradientOptions {
    /// The gradient of the hidden states.
    pub hidden: bool,
    /// That of the weights.
    pub weight: bool,
    /// That of the bias.
    pub bias: bool,
    /// Leave out blocks of up to 128 rows and 64 columns where every |softmax - target| is below this.
    pub filter_eps: Option<f64>,
    /// Take the vocabulary by falling mean logit, so that the filter finds whole blocks. It changes the order of
    /// additions, and so the last bits of the hidden states' gradient.
    pub orders_vocabulary: bool,
}

/// Gradients in the storage types of what they belong to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// `(rows, width)`; 0 for ignored rows.
    pub hidden: Option<Matrix>,
    /// `(vocab, width)`.
    pub weight: Option<Matrix>,
    /// `(vocab,)`.
    pub bias: Option<Vec<f64>>,
}

/// The loss whose gradient is wanted.
#[derive(Clone, Copy)]
pub struct LossTerms<'l> {
    /// One target for each row.
    pub targets: &'l Targets,
    /// What [`linear_loss`](crate::linear_loss) found for each row.
    pub likelihoods: &'l [Likelihood],
    /// Smoothing and z-loss; class weights have no gradient here.
    pub settings: LossOptions<'l>,
    /// Of the logits.
    pub temperature: f64,
    /// The derivative of the caller's result by each row's loss.
    pub upstream: &'l [f64],
}

/// Gradients of sum_n upstream_n loss_n with respect to hidden states, weights and bias.
///
/// # Errors
/// [`Error::ShapeMismatch`] if there is not one target, likelihood and derivative for each row; [`Error::Parameter`] for
/// class weights; [`Error::OutOfMemory`], [`Error::Threads`].
pub fn linear_gradients(
    projection: &Projection<'_>,
    loss: &LossTerms<'_>,
    options: &GradientOptions,
    execution: &Execution,
) -> Result<Gradients, Error> {
    linear_gradients_with(projection, loss, options, execution, &never)
}

pub(crate) fn linear_gradients_with(
    projection: &Projection<'_>,
    loss: &LossTerms<'_>,
    options: &GradientOptions,
    execution: &Execution,
    interrupt: Interrupt<'_>,
) -> Result<Gradients, Error> {
    check(projection.rows(), loss)?;
    let plan = HeadPlan::new(projection.rows(), projection.hidden.width(), projection.vocab(), execution)?;
    let order = if options.orders_vocabulary { Some(by_mean_logit(projection, loss, execution)?) } else { None };
    let ordered = order.as_deref().map(|order| projection.with_order(order));
    let projection = ordered.as_ref().unwrap_or(projection);
    with_default_control(|| {
        with_tiles!(projection, plan.isa, |product| {
            let softcap = projection.softcap;
            Call::new(&product, loss, options, plan, softcap, projection.logit_scale, order.as_deref()).run(interrupt)
        })
    })
}

fn check(rows: usize, loss: &LossTerms<'_>) -> Result<(), Error> {
    let lengths =
        [("targets", loss.targets.rows()), ("likelihoods", loss.likelihoods.len()), ("upstream", loss.upstream.len())];
    if let Some((left, length)) = lengths.into_iter().find(|(_, length)| *length != rows) {
        let (left_shape, right_shape) = (vec![length], vec![rows]);
        return Err(Error::ShapeMismatch { left, left_shape, right: "the rows of hidden", right_shape });
    }
    if loss.settings.class_weights.is_some() {
        let (name, value) = ("class_weights", "some".to_owned());
        return Err(Error::Parameter { name, value, expected: "none for a gradient" });
    }
    Ok(())
}

/// Rows of the head by falling logit of the mean hidden state, which is their mean logit where there is no soft cap. It
/// decides the order alone.
fn by_mean_logit(
    projection: &Projection<'_>,
    loss: &LossTerms<'_>,
    execution: &Execution,
) -> Result<Vec<usize>, Error> {
    let width = projection.hidden.width();
    let (mut mean, mut row) = (try_filled(width, 0.0)?, try_filled(width, 0.0)?);
    for index in (0..projection.rows()).filter(|&row| loss.targets.column(row).is_some()) {
        projection.hidden.copy_row::<f64>(index, &mut row);
        mean.iter_mut().zip(&row).for_each(|(mean, value)| *mean += value / loss.targets.token_count() as f64);
    }
    let mean: Vec<f32> = mean.into_iter().map(|value: f64| value as f32).collect();
    let logits = projection.logits_of(LogitsView::from_slice(&mean, 1, width)?.into(), execution)?;
    let mut order: Vec<usize> = (0..projection.vocab()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    Ok(order)
}
