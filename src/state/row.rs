//! A row: its leaves in column order, and from them the row's statistics.
//!
//! With m the row's largest logit, w = e^(leaf's largest - m) and all sums over columns:
//! rest = sum e^d over all but one of the largest; lse = m + log1p(rest); entropy = log1p(rest) - sum d e^d / mass;
//! varentropy by the sums of squares within and between leaves (Chan, Golub, LeVeque 1983), so it never cancels.

use super::leaf::{LeafSums, Peak, larger};
use super::top::TopColumns;
use crate::output::{Flags, RowStats};

/// What has been read of one row. Partials over neighbouring leaf ranges append.
#[derive(Clone, Debug)]
pub(crate) struct RowPartial {
    pub(crate) leaves: Vec<LeafSums>,
    pub(crate) peak: Peak,
    /// Columns whose logit is above the target's.
    pub(crate) above: u64,
    /// Columns whose logit equals the target's, itself among them.
    pub(crate) equal: u64,
    pub(crate) top: TopColumns,
    /// The target's logit, if there is one.
    pub(crate) target_logit: Option<f64>,
}

impl RowPartial {
    pub(crate) fn new(top_k: usize) -> Self {
        Self {
            leaves: Vec::new(),
            peak: Peak::NONE,
            above: 0,
            equal: 0,
            top: TopColumns::new(top_k),
            target_logit: None,
        }
    }

    /// Makes room for another row.
    pub(crate) fn clear(&mut self) {
        self.leaves.clear();
        self.top.clear();
        (self.peak, self.above, self.equal, self.target_logit) = (Peak::NONE, 0, 0, None);
    }

    /// Appends what has been read of the columns that follow.
    pub(crate) fn append(&mut self, following: &Self) {
        self.leaves.extend_from_slice(&following.leaves);
        self.peak = self.peak.merge(following.peak);
        self.above += following.above;
        self.equal += following.equal;
        self.top.merge(&following.top);
        self.target_logit = self.target_logit.or(following.target_logit);
    }

    /// The row's statistics. `target_logit` is the target's logit, if the row is counted.
    pub(crate) fn finish(&self, target_logit: Option<f64>, inverse_temperature: f64) -> RowStats {
        let has_nan = self.leaves.iter().any(|leaf| leaf.has_nan);
        let max = self.leaves.iter().fold(f64::NEG_INFINITY, |max, leaf| larger(max, leaf.max));
        if has_nan {
            return RowStats::undefined(f64::NAN, f64::NAN, Flags::NAN);
        }
        if max == f64::INFINITY {
            return RowStats::undefined(max, max, Flags::POSINF);
        }
        if max == f64::NEG_INFINITY {
            return RowStats::undefined(max, max, Flags::ALL_NEGINF);
        }
        let sums = RowSums::merge(self.leaves.iter(), max, inverse_temperature, inverse_temperature);
        let mut stats = self.likelihood(&sums, target_logit, inverse_temperature);
        self.describe(&sums, &mut stats, target_logit.is_some(), inverse_temperature);
        stats
    }

    fn likelihood(&self, sums: &RowSums, target_logit: Option<f64>, inverse_temperature: f64) -> RowStats {
        let max_logit = sums.max * inverse_temperature;
        let log_mass = libm::log1p(sums.rest);
        let max_log_prob = -log_mass;
        // Alone it is the sum itself, down to the sign of a zero.
        let lse = if sums.rest == 0.0 { max_logit } else { max_logit + log_mass };
        let mut stats = RowStats { lse, max_logit, max_log_prob, ..RowStats::EMPTY };
        if let Some(logit) = target_logit {
            // Both terms are at least 0, so nothing cancels: `rest` leaves out one of the largest, so where the target
            // is the largest the result is as exact as `rest` itself.
            stats.nll = (sums.max - logit) * inverse_temperature + log_mass;
            stats.log_prob = -stats.nll;
            if logit == f64::NEG_INFINITY {
                stats.flags |= Flags::TARGET_NEGINF;
            } else if stats.nll == f64::INFINITY {
                stats.flags |= Flags::OVERFLOW;
            }
        }
        if stats.lse.is_infinite() {
            stats.flags |= Flags::OVERFLOW;
        }
        stats
    }

    fn describe(&self, sums: &RowSums, stats: &mut RowStats, has_target: bool, inverse_temperature: f64) {
        let mass = 1.0 + sums.rest;
        stats.entropy = -stats.max_log_prob - sums.drop / mass;
        stats.varentropy = sums.spread / mass;
        stats.sum_sq_prob = sums.squares / (mass * mass);
        if self.peak.column != u64::MAX {
            stats.argmax = self.peak.column as i64;
            // Zeros of two signs differ by 0, whichever comes first.
            stats.margin = (self.peak.max - self.peak.second) * inverse_temperature + 0.0;
        }
        if has_target {
            stats.rank = 1 + self.above as i64;
            stats.ties = (self.equal as i64 - 1).max(0);
        }
    }

    /// Log-probability and column of the k largest logits, written to two rows of the result.
    pub(crate) fn write_top(&self, stats: &RowStats, inverse_temperature: f64, log_probs: &mut [f64], ids: &mut [i64]) {
        if stats.argmax < 0 {
            return;
        }
        for ((log_prob, id), &(logit, column)) in log_probs.iter_mut().zip(ids).zip(self.top.entries()) {
            *log_prob = stats.max_log_prob - (self.peak.max - logit) * inverse_temperature;
            *id = column as i64;
        }
    }
}

/// The leaves' sums, all around the row's largest logit.
pub(crate) struct RowSums {
    max: f64,
    pub(crate) rest: f64,
    pub(crate) drop: f64,
    pub(crate) spread: f64,
    squares: f64,
}

impl RowSums {
    /// `max` is finite; `unit` is what one unit of the logits is in the sums' d.
    pub(crate) fn merge<'l>(
        leaves: impl Iterator<Item = &'l LeafSums> + Clone,
        max: f64,
        inverse_temperature: f64,
        unit: f64,
    ) -> Self {
        let mut sums = Self { max, rest: 0.0, drop: 0.0, spread: 0.0, squares: 0.0 };
        // The leaf's largest logit less the row's, and e to it.
        let around = |leaf: &LeafSums| ((leaf.max - max) * unit, libm::exp((leaf.max - max) * inverse_temperature));
        let possible = leaves.filter(|leaf| leaf.max > f64::NEG_INFINITY);
        let shifts: Vec<(f64, f64)> = possible.clone().map(around).collect();
        let mut is_first_largest = true;
        for (leaf, &(shift, weight)) in possible.clone().zip(&shifts) {
            if weight == 0.0 {
                continue;
            }
            let mut largest = f64::from(leaf.max_count);
            if leaf.max == max && is_first_largest {
                largest -= 1.0;
                is_first_largest = false;
            }
            sums.rest += weight * (largest + leaf.rest);
            sums.drop += weight * (leaf.drop + shift * leaf.mass());
            sums.squares += weight * weight * (f64::from(leaf.max_count) + leaf.squares);
        }
        let mean = sums.drop / (1.0 + sums.rest);
        for (leaf, &(shift, weight)) in possible.zip(&shifts) {
            if weight > 0.0 {
                let distance = leaf.drop / leaf.mass() + shift - mean;
                sums.spread += weight * (leaf.spread + leaf.mass() * distance * distance);
            }
        }
        sums
    }
}
