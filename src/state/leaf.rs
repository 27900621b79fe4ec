//! What a kernel keeps of one leaf: its largest logit and the sums of e^d around it, d the logit less the largest.
//!
//! The largest logits stand apart from the sum of the others, so that `ln(1 + rest)` keeps its relative accuracy down
//! to 1e-18, and every other sum has terms of one sign.

use serde::{Deserialize, Serialize};

/// Sums over one leaf. Empty leaves have `max` minus infinity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LeafSums {
    /// Largest logit, before temperature; never NaN.
    pub(crate) max: f64,
    /// Columns that hold it, if it is finite.
    pub(crate) max_count: u32,
    /// Whether a logit is NaN.
    pub(crate) has_nan: bool,
    /// Sum of e^d over the columns below the largest.
    pub(crate) rest: f64,
    /// Sum of d e^d, at most 0.
    pub(crate) drop: f64,
    /// Sum of (d - mean d)^2 e^d.
    pub(crate) spread: f64,
    /// Sum of e^2d over the columns below the largest.
    pub(crate) squares: f64,
}

impl LeafSums {
    /// Of no columns.
    pub(crate) const EMPTY: Self =
        Self { max: f64::NEG_INFINITY, max_count: 0, has_nan: false, rest: 0.0, drop: 0.0, spread: 0.0, squares: 0.0 };

    /// Sum of e^d over all columns.
    pub(crate) fn mass(&self) -> f64 {
        f64::from(self.max_count) + self.rest
    }
}

/// The larger of two logits that are not NaN; of two zeros the positive one, whatever their order.
pub(crate) fn larger(first: f64, second: f64) -> f64 {
    if first > second || (first == second && first.is_sign_positive()) { first } else { second }
}

/// The largest logit's place and its nearest rival. Merging is associative.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Peak {
    pub(crate) max: f64,
    /// First column that holds `max`.
    pub(crate) column: u64,
    /// Largest of the other logits; equal to `max` where two columns hold it.
    pub(crate) second: f64,
}

impl Peak {
    /// Of no columns.
    pub(crate) const NONE: Self = Self { max: f64::NEG_INFINITY, column: u64::MAX, second: f64::NEG_INFINITY };

    /// The peak of both; on equal logits the lower column holds it.
    pub(crate) fn merge(self, other: Self) -> Self {
        let other_leads = other.max > self.max || (other.max == self.max && other.column < self.column);
        let (winner, loser) = if other_leads { (other, self) } else { (self, other) };
        Self { second: winner.second.max(loser.max), ..winner }
    }
}
