//! What is made of a row's sums: a grid, Renyi entropies, moments. Each names its inverse temperatures to a
//! [`ChainSet`], so that several of them share one read, and finds its sums there again.

use crate::error::Error;
use crate::state::tempered::{ChainSet, Need, TemperedPartial};

/// Statistics at each of a list of inverse temperatures.
pub(super) struct Grid {
    /// What one unit of the logits is in z.
    scale: f64,
    exponents: Vec<f64>,
    places: Vec<usize>,
}

impl Grid {
    /// lse, mean, variance, entropy, nll.
    pub(super) const FIELDS: usize = 5;
    const IGNORED: [f64; Self::FIELDS] = [f64::NAN, f64::NAN, f64::NAN, f64::NAN, 0.0];

    pub(super) fn new(set: &mut ChainSet, inverse_temperatures: &[f64], scale: f64) -> Result<Self, Error> {
        let exponents = checked("inverse_temperatures", inverse_temperatures)?;
        let exponents: Vec<f64> = exponents.iter().map(|value| value * scale).collect();
        let places = set.add(&exponents);
        Ok(Self { scale, exponents, places })
    }

    /// What an ignored row has.
    pub(super) fn ignored(&self) -> Vec<f64> {
        Self::IGNORED.repeat(self.exponents.len())
    }

    pub(super) fn write(&self, partial: &TemperedPartial, target: Option<f64>, values: &mut [f64]) {
        let sums = self.exponents.iter().zip(&self.places);
        for ((&exponent, &place), fields) in sums.zip(values.chunks_mut(Self::FIELDS)) {
            let row = partial.finish(place, exponent);
            let nll = target.map_or(f64::NAN, |logit| row.log_mass + distance(partial.max() - logit, exponent));
            let (mean, variance) = (row.mean * self.scale, row.variance * self.scale * self.scale);
            fields.copy_from_slice(&[row.lse, mean, variance, row.entropy, nll]);
        }
    }
}

/// Renyi entropies at each of a list of orders.
pub(super) struct Renyi {
    scale: f64,
    orders: Vec<f64>,
    exponents: Vec<f64>,
    /// That of order 1, then those of the orders.
    places: Vec<usize>,
    /// Where an order is so near to 1, the rounding errors of the difference and the square left out of the other
    /// formula are alike.
    near_one: f64,
}

impl Renyi {
    /// `name` is what the caller calls the list, `unit_roundoff` that of the compute type.
    pub(super) fn new(
        set: &mut ChainSet,
        (name, orders): (&'static str, &[f64]),
        scale: f64,
        unit_roundoff: f64,
    ) -> Result<Self, Error> {
        let finite: Vec<f64> = orders.iter().copied().filter(|order| *order != f64::INFINITY).collect();
        checked(name, &finite)?;
        let exponent = |order: &f64| if *order == f64::INFINITY { scale } else { order * scale };
        let exponents: Vec<f64> = std::iter::once(scale).chain(orders.iter().map(exponent)).collect();
        let near_one = libm::cbrt(unit_roundoff);
        let has_shannon = orders.iter().any(|order| (order - 1.0).abs() < near_one);
        let need = |member: usize| match member {
            0 if has_shannon => Need::Moments,
            // Plus infinity needs no sum but that of order 1.
            1.. if orders[member - 1] == f64::INFINITY => Need::Nothing,
            _ => Need::Mass,
        };
        let places = set.add_needed(&exponents, need);
        Ok(Self { scale, orders: orders.to_vec(), exponents, places, near_one })
    }

    /// What an ignored row has.
    pub(super) fn ignored(&self) -> Vec<f64> {
        vec![f64::NAN; self.orders.len()]
    }

    pub(super) fn write(&self, partial: &TemperedPartial, values: &mut [f64]) {
        let scale = self.scale;
        let shannon = partial.finish(self.places[0], scale);
        for (member, (&order, value)) in self.orders.iter().zip(values).enumerate() {
            // Both logarithms are of sums around the largest logit, whose multiples cancel here exactly.
            let log_mass = || partial.finish(self.places[member + 1], self.exponents[member + 1]).log_mass;
            // Next to order 1 the difference of logarithms cancels; there the entropy falls by half the varentropy.
            let above_one = order - 1.0;
            *value = match order {
                _ if above_one.abs() < self.near_one => {
                    shannon.entropy - above_one / 2.0 * shannon.variance * scale * scale
                }
                f64::INFINITY => shannon.log_mass,
                _ => ((log_mass() - order * shannon.log_mass) / (1.0 - order)).max(0.0),
            };
            if shannon.log_mass.is_nan() {
                *value = f64::NAN;
            }
        }
    }
}

/// Mean and variance of the log-probabilities over the vocabulary, every column with the same weight.
pub(super) struct Moments {
    scale: f64,
    vocab: usize,
    /// Where the sums at 1 and at 0 stand.
    places: [usize; 2],
}

impl Moments {
    pub(super) const IGNORED: [f64; 2] = [f64::NAN; 2];

    pub(super) fn new(set: &mut ChainSet, vocab: usize, scale: f64) -> Self {
        let places = set.add_needed(&[scale, 0.0], |member| if member == 0 { Need::Mass } else { Need::Moments });
        Self { scale, vocab, places: [places[0], places[1]] }
    }

    /// Mean and variance; minus infinity and NaN where a column is impossible.
    pub(super) fn of(&self, partial: &TemperedPartial) -> [f64; 2] {
        let [one, even] =
            [(self.places[0], self.scale), (self.places[1], 0.0)].map(|(place, b)| partial.finish(place, b));
        // At inverse temperature 0 the columns that are possible count, and lse is the log of their number.
        if libm::round(libm::exp(even.lse)) == self.vocab as f64 {
            return [even.mean * self.scale - one.lse, even.variance * self.scale * self.scale];
        }
        [if one.lse.is_finite() { f64::NEG_INFINITY } else { f64::NAN }, f64::NAN]
    }
}

/// `b` times a difference of logits, which is infinite where the target is impossible, also at 0.
pub(in crate::ops) fn distance(difference: f64, inverse_temperature: f64) -> f64 {
    if difference == f64::INFINITY { difference } else { difference * inverse_temperature }
}

fn checked<'v>(name: &'static str, values: &'v [f64]) -> Result<&'v [f64], Error> {
    match values.iter().find(|value| !(0.0..=1e30).contains(*value)) {
        None => Ok(values),
        Some(value) => Err(Error::Parameter { name, value: format!("{value:?}"), expected: "numbers from 0 to 1e30" }),
    }
}
