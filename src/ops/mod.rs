//! The front door: one function for each quantity. Each checks, plans, runs and finishes.

mod chunks;
mod embedding;
mod gradient;
mod kl;
mod linear;
mod loss;
mod pair;
mod rows;
mod tempered;
mod tile_probe;
mod top_k;

#[cfg(feature = "python")]
pub(crate) use embedding::linear_expected_embedding_with;
pub use embedding::{ExpectedEmbedding, linear_expected_embedding};
pub use gradient::{
    GradientOptions, Gradients, LossTerms, PairTerms, entropy_gradient, js_gradients, kl_gradients, linear_gradients,
    linear_kl_gradients, logsumexp_gradient, loss_gradient,
};
#[cfg(feature = "python")]
pub(crate) use gradient::{
    entropy_gradient_with, js_gradients_with, kl_gradients_with, linear_gradients_with, linear_kl_gradients_with,
    logsumexp_gradient_with, loss_gradient_with,
};
#[cfg(feature = "python")]
pub(crate) use kl::kl_divergence_with;
pub use kl::{KlColumns, kl_divergence};
pub use linear::{
    JointColumns, Projection, linear_divergences, linear_joint_row_stats, linear_kl_divergence, linear_loss,
    linear_row_stats, linear_target_logits, linear_tempered_row_stats,
};
#[cfg(feature = "python")]
pub(crate) use linear::{
    linear_divergences_with, linear_joint_row_stats_with, linear_kl_divergence_with, linear_loss_with, linear_scan,
    linear_tempered_row_stats_with,
};
pub use loss::{Likelihood, LossColumns, LossOptions, loss, soft_cross_entropy};
#[cfg(feature = "python")]
pub(crate) use loss::{loss_with, soft_cross_entropy_with};
pub use pair::{DivergenceColumns, JsColumns, divergences, js_divergence};
#[cfg(feature = "python")]
pub(crate) use pair::{divergences_with, js_divergence_with};
#[cfg(feature = "python")]
pub(crate) use rows::scan_logits;
pub use rows::{cross_entropy, entropy, logsumexp, perplexity, read_probe, row_stats};

pub use tempered::{
    TemperatureColumns, TemperedColumns, TemperedOptions, renyi_entropy, temperature_grid, tempered_row_stats,
};
#[cfg(feature = "python")]
pub(crate) use tempered::{renyi_entropy_with, temperature_grid_with, tempered_row_stats_with};
pub use tile_probe::tile_probe;
pub use top_k::top_k_kl_divergence;
#[cfg(feature = "python")]
pub(crate) use top_k::top_k_kl_divergence_with;

use crate::error::Error;
use crate::input::{LogitsView, Targets};
use crate::plan::{Execution, Plan};
use crate::run::LentRows;
use crate::simd::Element;

/// Settings of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Divides the logits; positive and finite.
    pub temperature: f64,
    /// `softcap * tanh(logits / softcap)` before the temperature, as Gemma 2 does; positive and finite.
    pub softcap: Option<f64>,
    /// How many of the largest logits to return.
    pub top_k: usize,
    /// Whether a row without a finite result is an error.
    pub strict: bool,
    /// Instruction set and threads.
    pub execution: Execution,
}

impl Default for Options {
    fn default() -> Self {
        Self { temperature: 1.0, softcap: None, top_k: 0, strict: false, execution: Execution::default() }
    }
}

impl Options {
    /// The inverse temperature, once all settings are known to be good.
    fn checked(&self, vocab: usize) -> Result<f64, Error> {
        check_positive("temperature", self.temperature)?;
        if let Some(softcap) = self.softcap {
            check_positive("softcap", softcap)?;
        }
        if self.top_k > vocab {
            let value = self.top_k.to_string();
            return Err(Error::Parameter { name: "top_k", value, expected: "at most the vocabulary" });
        }
        Ok(1.0 / self.temperature)
    }
}

/// Positive, finite, and within the range in which float32 lanes can hold it and its inverse.
pub(crate) fn check_positive(name: &'static str, value: f64) -> Result<(), Error> {
    const RANGE: std::ops::RangeInclusive<f64> = 1e-30..=1e30;
    if RANGE.contains(&value) {
        return Ok(());
    }
    Err(Error::Parameter { name, value: format!("{value:?}"), expected: "a number from 1e-30 to 1e30" })
}

/// A call from Rust is not interrupted.
fn never() -> bool {
    false
}

/// The places of `size` rows at a time, `width` values each.
fn slots<'s>(
    values: &'s mut [f64],
    flags: &'s mut [u8],
    size: usize,
    width: usize,
) -> Vec<(&'s mut [f64], &'s mut [u8])> {
    let mut values = values.chunks_mut((size * width).max(1));
    flags.chunks_mut(size).map(|flags| (values.next().unwrap_or_default(), flags)).collect()
}

/// Lent rows, and the plan to read them.
fn lent_rows<'v, 'a, E: Element, const SIDES: usize>(
    sides: [&'v LogitsView<'a, E>; SIDES],
    execution: &Execution,
) -> Result<LentRows<'v, 'a, E, SIDES>, Error> {
    let plan = Plan::new(sides[0].rows(), sides[0].vocab(), execution)?;
    Ok(LentRows { plan, sides })
}

/// One target for each row.
fn check_rows(rows: usize, targets: Option<&Targets>) -> Result<(), Error> {
    match targets {
        Some(targets) if targets.rows() != rows => {
            let (left_shape, right_shape) = (vec![targets.rows()], vec![rows]);
            Err(Error::ShapeMismatch { left: "targets", left_shape, right: "the rows of logits", right_shape })
        }
        _ => Ok(()),
    }
}
