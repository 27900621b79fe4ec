//! Two rows: what their leaves leave of them, and the quantities that are made of it.

use super::kl::{KlLeaf, log_mass};
use super::leaf::LeafSums;
use super::row::RowSums;

/// Moments of q's scaled logits under p's weights around the leaf's own references.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CrossLeaf {
    /// Largest logit of p.
    pub(crate) p_max: f64,
    /// The logit of q that d is measured from.
    pub(crate) q_reference: f64,
    /// Sum of w = e^(p's logit less the largest).
    pub(crate) mass: f64,
    /// Sum of w d, d = q's logit less the reference.
    pub(crate) drop: f64,
    /// Sum of w (d - mean d)^2.
    pub(crate) spread: f64,
}

/// What has been read of two rows. Partials over neighbouring leaf ranges append.
#[derive(Clone, Debug, Default)]
pub(crate) struct PairPartial {
    pub(crate) forward: Vec<KlLeaf>,
    pub(crate) reverse: Vec<KlLeaf>,
    pub(crate) p: Vec<LeafSums>,
    pub(crate) cross: Vec<CrossLeaf>,
}

/// What turns scaled logits into log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scales {
    pub(crate) inverse_temperature: f64,
    pub(crate) p_max: f64,
    pub(crate) q_max: f64,
    /// ln sum e^d of p, d the scaled logit less the largest.
    pub(crate) p_log_mass: f64,
    pub(crate) q_log_mass: f64,
}

/// Numbers of [`Scales`] beside the temperature.
pub(crate) const SCALES: usize = 4;

impl Scales {
    /// As [`Scales::to_array`] left them.
    pub(crate) fn from_slice(numbers: &[f64], inverse_temperature: f64) -> Self {
        let [p_max, q_max, p_log_mass, q_log_mass] = [numbers[0], numbers[1], numbers[2], numbers[3]];
        Self { inverse_temperature, p_max, q_max, p_log_mass, q_log_mass }
    }

    pub(crate) fn to_array(self) -> [f64; SCALES] {
        [self.p_max, self.q_max, self.p_log_mass, self.q_log_mass]
    }

    /// Of two rows that have distributions.
    pub(crate) fn of(leaves: &[KlLeaf], inverse_temperature: f64) -> Self {
        let (p_max, p_log_mass) = log_mass(leaves, inverse_temperature, KlLeaf::of_p);
        let (q_max, q_log_mass) = log_mass(leaves, inverse_temperature, KlLeaf::of_q);
        Self { inverse_temperature, p_max, q_max, p_log_mass, q_log_mass }
    }
}

impl PairPartial {
    /// Makes room for another row.
    pub(crate) fn clear(&mut self) {
        self.forward.clear();
        self.reverse.clear();
        self.p.clear();
        self.cross.clear();
    }

    /// Appends what has been read of the columns that follow.
    pub(crate) fn append(&mut self, following: &Self) {
        self.forward.extend_from_slice(&following.forward);
        self.reverse.extend_from_slice(&following.reverse);
        self.p.extend_from_slice(&following.p);
        self.cross.extend_from_slice(&following.cross);
    }

    /// Entropy of p; p has a distribution.
    pub(crate) fn entropy(&self, inverse_temperature: f64) -> f64 {
        let max = self.p.iter().fold(f64::NEG_INFINITY, |max, leaf| max.max(leaf.max));
        let sums = RowSums::merge(self.p.iter(), max, inverse_temperature, inverse_temperature);
        libm::log1p(sums.rest) - sums.drop / (1.0 + sums.rest)
    }

    /// Variance of ln q under p; NaN where q is 0 and p is not.
    pub(crate) fn cross_varentropy(&self, inverse_temperature: f64) -> f64 {
        let max = self.cross.iter().fold(f64::NEG_INFINITY, |max, leaf| max.max(leaf.p_max));
        let weight = |leaf: &CrossLeaf| libm::exp((leaf.p_max - max) * inverse_temperature);
        let possible = || self.cross.iter().filter(|leaf| leaf.mass > 0.0);
        let counted = || possible().map(|leaf| (weight(leaf), leaf)).filter(|(weight, _)| *weight > 0.0);
        let origin = counted().next().map_or(0.0, |(_, leaf)| leaf.q_reference);
        let shift = |leaf: &CrossLeaf| (leaf.q_reference - origin) * inverse_temperature;
        let mass: f64 = counted().map(|(weight, leaf)| weight * leaf.mass).sum();
        let mean = counted().map(|(weight, leaf)| weight * (leaf.drop + leaf.mass * shift(leaf))).sum::<f64>() / mass;
        let spread = counted().map(|(weight, leaf)| {
            let distance = leaf.drop / leaf.mass + shift(leaf) - mean;
            weight * (leaf.spread + leaf.mass * distance * distance)
        });
        spread.sum::<f64>() / mass
    }
}
