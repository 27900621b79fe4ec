//! KL divergence of a row from the sums of its leaves.
//!
//! With a = z_p - z_q, c any reference, b = a - c and p the softmax of z_p:
//! KL(p||q) = sum p (b + expm1(-b)) + log1p(y) - y, y = sum p expm1(-b).
//! The first sum has terms of one sign and log1p(y) - y is of second order, so close pairs keep their relative accuracy.
//! Where y is large the divergence is too, and KL = sum p b + ln sum p e^-b is used.

use crate::error::Error;
use crate::output::Flags;

/// Sums over one leaf around its own largest logits: d = logit less the largest, w = e^(d of p), t = e^(d of q),
/// b = d of p - d of q. Columns where q's logit is minus infinity count only in `unsupported`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct KlLeaf {
    /// Largest logit of p; where it is minus infinity d is around 0.
    pub(crate) p_max: f64,
    /// Largest logit of q; where it is minus infinity d is around 0.
    pub(crate) q_max: f64,
    /// Whether a logit is NaN.
    pub(crate) has_nan: bool,
    /// Largest logit of p where q's is minus infinity.
    pub(crate) unsupported: f64,
    /// Sum of w.
    pub(crate) p_mass: f64,
    /// The same with the columns where q's logit is minus infinity.
    pub(crate) all_mass: f64,
    /// Sum of t.
    pub(crate) q_mass: f64,
    /// Sum of t - w, exact where the two are close.
    pub(crate) surplus: f64,
    /// Sum of w b.
    pub(crate) cross: f64,
    /// Sum of w b + t - w, each term at least 0.
    pub(crate) excess: f64,
}

/// Arithmetic that the result's error bound depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KlScale {
    pub(crate) inverse_temperature: f64,
    /// Lanes count e^d as 0 below this d.
    pub(crate) lowest_exponent: f64,
    pub(crate) unit_roundoff: f64,
    pub(crate) vocab: usize,
}

impl KlLeaf {
    /// Largest logit of p and the sum of e^d around it.
    pub(crate) fn of_p(&self) -> (f64, f64) {
        (self.p_max, self.all_mass)
    }

    /// Largest logit of q and the sum of e^d around it.
    pub(crate) fn of_q(&self) -> (f64, f64) {
        (self.q_max, self.q_mass)
    }
}

/// Largest logit of one of the rows, and ln sum e^d of its scaled distances from it.
pub(crate) fn log_mass(leaves: &[KlLeaf], inverse_temperature: f64, of: fn(&KlLeaf) -> (f64, f64)) -> (f64, f64) {
    let max = leaves.iter().map(|leaf| of(leaf).0).fold(f64::NEG_INFINITY, f64::max);
    let possible = leaves.iter().map(of).filter(|(leaf_max, _)| *leaf_max > f64::NEG_INFINITY);
    let mass = possible.map(|(leaf_max, mass)| libm::exp((leaf_max - max) * inverse_temperature) * mass);
    (max, libm::log(mass.sum()))
}

/// Why there is no divergence, if one of the rows has no distribution.
pub(crate) fn undefined(leaves: &[KlLeaf]) -> Option<Flags> {
    let largest = |of: fn(&KlLeaf) -> f64| leaves.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
    let maxima = [largest(|leaf| leaf.p_max), largest(|leaf| leaf.q_max)];
    if leaves.iter().any(|leaf| leaf.has_nan) {
        Some(Flags::NAN)
    } else if maxima.contains(&f64::INFINITY) {
        Some(Flags::POSINF)
    } else {
        maxima.contains(&f64::NEG_INFINITY).then_some(Flags::ALL_NEGINF)
    }
}

/// The divergence in nats, and what is unusual about the row.
pub(crate) fn finish(leaves: &[KlLeaf], scale: &KlScale) -> Result<(f64, Flags), Error> {
    let largest = |of: fn(&KlLeaf) -> f64| leaves.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
    let (p_max, q_max) = (largest(|leaf| leaf.p_max), largest(|leaf| leaf.q_max));
    let unsupported = largest(|leaf| leaf.unsupported);
    if let Some(flags) = undefined(leaves) {
        return Ok((f64::NAN, flags));
    }
    if (unsupported - p_max) * scale.inverse_temperature >= scale.lowest_exponent {
        return Ok((f64::INFINITY, Flags::SUPPORT));
    }
    clamp(&merge(leaves, p_max, q_max, scale), scale)
}

/// A divergence and the size of the terms it is the difference of.
struct Divergence {
    value: f64,
    terms: f64,
}

/// Both maxima are finite.
fn merge(leaves: &[KlLeaf], p_max: f64, q_max: f64, scale: &KlScale) -> Divergence {
    let scaled = |difference: f64| difference * scale.inverse_temperature;
    let p_weight = |leaf: &KlLeaf| libm::exp(scaled(leaf.p_max - p_max));
    // Each row is measured from its own largest logit, which moves neither softmax: so no offset is the small difference of
    // large numbers.
    let offset = |leaf: &KlLeaf| scaled(distance(leaf.p_max, p_max) - distance(leaf.q_max, q_max));
    let mass: f64 = leaves.iter().map(|leaf| p_weight(leaf) * leaf.p_mass).sum();
    // A leaf without weight may lie further away than float64 can tell.
    let weighted = leaves.iter().filter(|leaf| p_weight(leaf) > 0.0);
    let reference: f64 = weighted.map(|leaf| p_weight(leaf) * leaf.p_mass / mass * offset(leaf)).sum();
    let (mut excess, mut surplus, mut cross, mut q_mass) = (0.0, 0.0, 0.0, 0.0);
    for leaf in leaves {
        let (weight, shift) = (p_weight(leaf), offset(leaf) - reference);
        q_mass += libm::exp(scaled(leaf.q_max - q_max)) * leaf.q_mass;
        if weight > 0.0 {
            cross += weight * (leaf.cross + leaf.p_mass * shift);
        }
        if weight > 0.0 && shift.abs() < 1.0 {
            let change = libm::expm1(-shift);
            excess += weight * (leaf.excess + leaf.p_mass * (shift + change) + change * leaf.surplus);
            surplus += weight * (leaf.surplus + change * leaf.q_mass);
        } else {
            let arrived = libm::exp(scaled(leaf.q_max - q_max) + reference) * leaf.q_mass;
            surplus += arrived - weight * leaf.p_mass;
            excess += arrived - weight * leaf.p_mass;
            if weight > 0.0 {
                excess += weight * (leaf.cross + leaf.p_mass * shift);
            }
        }
    }
    let y = surplus / mass;
    if y.abs() <= 0.5 {
        let rounding = (excess / mass).max(0.0) + y.abs();
        return Divergence { value: excess / mass + (libm::log1p(y) - y), terms: rounding };
    }
    let log_ratio = reference + libm::log(q_mass) - libm::log(mass);
    let mean = cross / mass;
    Divergence { value: mean + log_ratio, terms: mean.abs() + log_ratio.abs() }
}

/// A leaf's largest logit less its row's; 0 where the leaf has none, and so no weight.
fn distance(leaf_max: f64, max: f64) -> f64 {
    if leaf_max == f64::NEG_INFINITY { 0.0 } else { leaf_max - max }
}

/// No divergence is below 0; rounding may leave it there by less than its error bound.
fn clamp(divergence: &Divergence, scale: &KlScale) -> Result<(f64, Flags), Error> {
    let Divergence { value, terms } = *divergence;
    if value.is_nan() || value == f64::INFINITY {
        // The inputs are finite where it counts: only sums beyond float64 end here.
        return Ok((f64::INFINITY, Flags::OVERFLOW));
    }
    if value >= 0.0 {
        return Ok((value, Flags::default()));
    }
    let bound = 4.0 * scale.unit_roundoff * (2.0 + libm::log(scale.vocab as f64)) * (1.0 + terms);
    if value < -bound {
        return Err(Error::Internal { reason: format!("KL divergence {value:e} is below its error bound -{bound:e}") });
    }
    Ok((0.0, Flags::CLAMPED))
}
