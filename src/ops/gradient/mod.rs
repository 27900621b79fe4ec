//! Gradients: of logits that lie in memory by reading them once more ([`rows`], [`pairs`]), and of a head by making its logits
//! again, some columns at a time.
//!
//! Of a head, for each 512 columns of the vocabulary: every block of rows makes its logits, turns them into derivatives, adds derivatives
//! times weights to its own rows of the gradient of the hidden states, and keeps the derivatives; then, after all blocks,
//! every group of columns adds derivatives times hidden states into its own rows of the gradient of the weights. Each number has one
//! owner and one order of additions, so its bits do not depend on threads. The method is that of "Cut Your Losses in
//! Large-Vocabulary Language Models" (arXiv 2411.09009), as are the filter and the order of the vocabulary.

mod pairs;
mod passes;
mod rows;

pub use pairs::{PairTerms, js_gradients, kl_gradients, linear_kl_gradients};
#[cfg(feature = "python")]
pub(crate) use pairs::{js_gradients_with, kl_gradients_with, linear_kl_gradients_with};
pub use rows::{entropy_gradient, logsumexp_gradient, loss_gradient};
#[cfg(feature = "python")]
pub(crate) use rows::{entropy_gradient_with, logsumexp_gradient_with, loss_gradient_with};

use super::linear::{Projection, with_narrow_tiles, with_tiles};
use super::loss::{Likelihood, LossOptions, target_weight};
use super::never;
use crate::error::{Error, try_filled};
use crate::input::{LogitsView, Targets};
use crate::kernels::gradient::{Differentiate, RowGradient};
use crate::kernels::linear::Arithmetic;
use crate::output::Matrix;
use crate::plan::{Execution, HeadPlan};
use crate::run::Interrupt;
use crate::simd::{Isa, with_default_control};
use passes::{Call, Rule};
use std::ops::Range;

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
    /// Smoothing, z-loss and class weights; those of a head have no gradient here.
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
    let rule = LossRule::new(loss, plan.isa, projection, order.as_deref());
    with_default_control(|| {
        with_tiles!(projection, plan.isa, |product| {
            Call::new(&product, &rule, options, plan, projection.logit_scale, order.as_deref()).run(interrupt)
        })
    })
}

impl LossTerms<'_> {
    /// What turns a row's logits into derivatives of its loss; `weight_sum` is that of the class weights, the number of
    /// columns without any.
    fn row_gradient(&self, row: usize, vocab: usize, weight_sum: f64, softcap: Option<f64>) -> RowGradient {
        let Likelihood { lse, nll, max_logit, max_log_prob } = self.likelihoods[row];
        let LossOptions { label_smoothing, z_loss, .. } = self.settings;
        let even_share = label_smoothing / vocab as f64;
        let likelihood_share = target_weight(&self.settings, self.targets, row) * (1.0 - label_smoothing);
        let pull = if z_loss > 0.0 { 2.0 * z_loss * lse } else { 0.0 };
        let lse_share = even_share * weight_sum + pull;
        let target = self.targets.column(row).map(|column| {
            let smoothing = even_share * self.settings.class_weights.map_or(1.0, |weights| weights[column]);
            // p - 1 is not made by a difference, which would lose it next to a certainty.
            (column, likelihood_share * libm::expm1(-nll) + lse_share * libm::exp(-nll) - smoothing)
        });
        RowGradient {
            inverse_temperature: 1.0 / self.temperature,
            max_logit,
            max_share: libm::exp(max_log_prob) * (likelihood_share + lse_share),
            bend: None,
            even_share,
            softcap,
            target,
        }
    }

    /// What a derivative by z is multiplied with to be one by the logit: the caller's derivative, and that of z.
    fn factor(&self, row: usize) -> f64 {
        self.upstream[row] / self.temperature
    }
}

/// The loss of a head, whose rows may come in another order.
struct LossRule<'l> {
    loss: &'l LossTerms<'l>,
    isa: Isa,
    vocab: usize,
    softcap: Option<f64>,
    /// Where each row of the head is now.
    places: Option<Vec<usize>>,
}

impl<'l> LossRule<'l> {
    fn new(loss: &'l LossTerms<'l>, isa: Isa, projection: &Projection<'_>, order: Option<&[usize]>) -> Self {
        let places = order.map(|order| {
            let mut places = vec![0; order.len()];
            order.iter().enumerate().for_each(|(place, &row)| places[row] = place);
            places
        });
        Self { loss, isa, vocab: projection.vocab(), softcap: projection.softcap, places }
    }
}

impl<F: Arithmetic> Rule<F> for LossRule<'_> {
    fn counted(&self) -> Vec<usize> {
        (0..self.loss.targets.rows()).filter(|&row| self.loss.targets.column(row).is_some()).collect()
    }

    fn factor(&self, row: usize) -> f64 {
        self.loss.factor(row)
    }

    fn differentiate(&self, row: usize, logits: &mut [F], _others: Option<&[F]>, columns: Range<usize>) {
        let mut row = self.loss.row_gradient(row, self.vocab, self.vocab as f64, self.softcap);
        if let (Some((column, _)), Some(places)) = (&mut row.target, &self.places) {
            *column = places[*column];
        }
        let row = &row;
        self.isa.run(Differentiate { row, class_weights: None, logits, start: columns.start, columns: columns.len() });
    }
}

/// One of each for each row.
fn check_lengths<const COUNT: usize>(rows: usize, lengths: [(&'static str, usize); COUNT]) -> Result<(), Error> {
    match lengths.into_iter().find(|(_, length)| *length != rows) {
        Some((left, length)) => {
            let (left_shape, right_shape) = (vec![length], vec![rows]);
            Err(Error::ShapeMismatch { left, left_shape, right: "the rows", right_shape })
        }
        None => Ok(()),
    }
}

fn check_terms(rows: usize, loss: &LossTerms<'_>) -> Result<(), Error> {
    let lengths =
        [("targets", loss.targets.rows()), ("likelihoods", loss.likelihoods.len()), ("upstream", loss.upstream.len())];
    check_lengths(rows, lengths)
}

fn check(rows: usize, loss: &LossTerms<'_>) -> Result<(), Error> {
    check_terms(rows, loss)?;
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
