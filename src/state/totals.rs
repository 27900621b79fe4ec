//! Totals over a corpus: the exact sum of nll and the count it goes with.

use super::exact_sum::ExactSum;
use crate::error::Error;
use crate::output::{Flags, RowColumns};
use serde::{Deserialize, Serialize};

/// Negative log-likelihood over a corpus. Merging is exact, so any split of the corpus gives the same bits.
///
/// ```
/// let mut totals = xentrs::Perplexity::default();
/// totals.update_nll(&[0.5, 1.5], 2);
/// assert_eq!(totals.compute().mean_nll, 1.0);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    finite_sum: ExactSum,
    token_count: u64,
    infinite_count: u64,
    nan_count: u64,
}

/// What [`Perplexity::compute`] returns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerplexitySummary {
    /// Sum of nll in nats, rounded once.
    pub nll_sum: f64,
    /// Tokens counted.
    pub token_count: u64,
    /// `nll_sum / token_count`; NaN without a token.
    pub mean_nll: f64,
    /// e to the mean; plus infinity where float64 cannot hold it.
    pub perplexity: f64,
    /// The mean in bits.
    pub bits_per_token: f64,
    /// Tokens of probability 0.
    pub infinite_count: u64,
    /// Tokens whose nll is NaN.
    pub nan_count: u64,
    /// Mean over the tokens with a finite nll.
    pub mean_nll_finite: f64,
    /// Whether the mean is finite but its perplexity is not.
    pub overflow: bool,
}

impl Perplexity {
    /// Adds the counted rows of a result.
    pub fn update(&mut self, columns: &RowColumns) {
        let is_counted = |flags: &u8| flags & Flags::IGNORED.bits() == 0;
        for (nll, _) in columns.nll.iter().zip(&columns.flags).filter(|(_, flags)| is_counted(flags)) {
            self.add(*nll);
        }
        self.token_count += columns.token_count;
    }

    /// Adds negative log-likelihoods of `token_count` tokens together.
    pub fn update_nll(&mut self, nll: &[f64], token_count: u64) {
        for &value in nll {
            self.add(value);
        }
        self.token_count += token_count;
    }

    fn add(&mut self, nll: f64) {
        if nll.is_nan() {
            self.nan_count += 1;
        } else if nll.is_infinite() {
            self.infinite_count += 1;
        } else {
            self.finite_sum.add(nll);
        }
    }

    /// Adds another corpus.
    pub fn merge(&mut self, other: &Self) {
        self.finite_sum.merge(&other.finite_sum);
        self.token_count += other.token_count;
        self.infinite_count += other.infinite_count;
        self.nan_count += other.nan_count;
    }

    /// The totals so far.
    pub fn compute(&self) -> PerplexitySummary {
        let finite_sum = self.finite_sum.value();
        let nll_sum = match (self.nan_count, self.infinite_count) {
            (0, 0) => finite_sum,
            (0, _) => f64::INFINITY,
            _ => f64::NAN,
        };
        let finite_count = self.token_count.saturating_sub(self.infinite_count + self.nan_count);
        let mean_nll = nll_sum / self.token_count as f64;
        let mean_nll = if self.token_count == 0 { f64::NAN } else { mean_nll };
        let perplexity = libm::exp(mean_nll);
        PerplexitySummary {
            nll_sum,
            token_count: self.token_count,
            mean_nll,
            perplexity,
            bits_per_token: mean_nll / std::f64::consts::LN_2,
            infinite_count: self.infinite_count,
            nan_count: self.nan_count,
            mean_nll_finite: if finite_count == 0 { f64::NAN } else { finite_sum / finite_count as f64 },
            overflow: mean_nll.is_finite() && perplexity.is_infinite(),
        }
    }

    /// The state as bytes, the same for the same totals.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut canonical = self.clone();
        canonical.finite_sum.carry();
        super::save(&canonical)
    }

    /// The state that [`Perplexity::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::SavedState`] for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let totals: Self = super::restore(bytes)?;
        if !totals.finite_sum.is_well_formed() {
            return Err(Error::SavedState { reason: "the sum has another number of digits".to_owned() });
        }
        Ok(totals)
    }
}
