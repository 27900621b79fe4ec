//! A row at several inverse temperatures b: sums of e^(b d) and of its moments, d the logit less the largest.
//!
//! With p_b = softmax(b z): lse = ln sum e^(b z), mean and variance those of z under p_b, entropy that of p_b. At b = 0
//! p_b is uniform over the columns that are not minus infinity.

use super::leaf::{LeafSums, larger};
use super::row::RowSums;
use crate::output::Flags;

/// Squarings that one exponential goes through at most; its relative error is then 2^3 times its own.
pub(crate) const MOST_DOUBLINGS: usize = 3;

/// Inverse temperatures that are one value times 1, 2, 4, ...
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chain {
    /// The smallest.
    pub(crate) base: f64,
    /// Where each stands in the caller's list.
    pub(crate) places: Vec<usize>,
    /// Whether more than the masses is wanted: means, variances, entropies.
    pub(crate) moments: bool,
}

/// What is wanted of the sums at one inverse temperature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    /// lse and log mass.
    Mass,
    /// Mean, variance and entropy too.
    Moments,
}

/// Splits a list into chains; each value stands in one of them.
pub(crate) fn chains(inverse_temperatures: &[f64]) -> Vec<Chain> {
    let mut places: Vec<usize> = (0..inverse_temperatures.len()).collect();
    places.sort_by(|&a, &b| inverse_temperatures[a].total_cmp(&inverse_temperatures[b]));
    let mut chains: Vec<Chain> = Vec::new();
    for place in places {
        let value = inverse_temperatures[place];
        let doubles = |chain: &&mut Chain| {
            let doublings = chain.places.len();
            doublings <= MOST_DOUBLINGS && chain.base > 0.0 && chain.base * f64::from(1u32 << doublings) == value
        };
        match chains.iter_mut().find(doubles) {
            Some(chain) => chain.places.push(place),
            None => chains.push(Chain { base: value, places: vec![place], moments: true }),
        }
    }
    chains
}

/// Chains for the lists of several quantities. Each list keeps the bits that it has alone, as its chains do not depend
/// on the other lists; chains that begin with the same value are summed once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ChainSet {
    pub(crate) chains: Vec<Chain>,
    /// Sums that the chains give.
    pub(crate) count: usize,
}

impl ChainSet {
    /// Adds a list; where the sums of each of its values stand.
    pub(crate) fn add(&mut self, inverse_temperatures: &[f64]) -> Vec<usize> {
        self.add_needed(inverse_temperatures, |_| Need::Moments)
    }

    /// The same for a list whose values are not all wanted for the same. One that is not wanted is summed only where
    /// the chain of another goes through it.
    pub(crate) fn add_needed(&mut self, inverse_temperatures: &[f64], need: impl Fn(usize) -> Need) -> Vec<usize> {
        let mut found = vec![usize::MAX; inverse_temperatures.len()];
        for Chain { base, places: mut members, .. } in chains(inverse_temperatures) {
            while members.pop_if(|member| need(*member) == Need::Nothing).is_some() {}
            let shared = self.chains.iter().position(|chain| chain.base == base).unwrap_or_else(|| {
                self.chains.push(Chain { base, places: Vec::new(), moments: false });
                self.chains.len() - 1
            });
            let chain = &mut self.chains[shared];
            chain.moments |= members.iter().any(|&member| need(member) == Need::Moments);
            for (level, member) in members.into_iter().enumerate() {
                if level == chain.places.len() {
                    chain.places.push(self.count);
                    self.count += 1;
                }
                found[member] = chain.places[level];
            }
        }
        self.chains.retain(|chain| !chain.places.is_empty());
        found
    }
}

/// What has been read of one row. Partials over neighbouring leaf ranges append.
#[derive(Clone, Debug)]
pub(crate) struct TemperedPartial {
    /// Leaf after leaf, an entry for each inverse temperature; `drop` and `spread` are in units of the logits.
    pub(crate) leaves: Vec<LeafSums>,
    /// Leaf after leaf, the sum of class weight times d; empty without weights.
    pub(crate) weighted: Vec<f64>,
    /// The leaf that is being read.
    pub(crate) next: Vec<LeafSums>,
    /// The target's logit, if there is one.
    pub(crate) target_logit: Option<f64>,
}

/// A row at one inverse temperature. All is NaN but `lse` where the row has no distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tempered {
    pub(crate) lse: f64,
    /// ln sum e^(b d), at least 0: -ln of the largest probability.
    pub(crate) log_mass: f64,
    /// Mean of d under p_b, at most 0.
    pub(crate) drop: f64,
    pub(crate) mean: f64,
    pub(crate) variance: f64,
    pub(crate) entropy: f64,
    pub(crate) flags: Flags,
}

impl Tempered {
    const UNDEFINED: Self = Self {
        lse: f64::NAN,
        log_mass: f64::NAN,
        drop: f64::NAN,
        mean: f64::NAN,
        variance: f64::NAN,
        entropy: f64::NAN,
        flags: Flags::NAN,
    };
}

impl TemperedPartial {
    pub(crate) fn new(inverse_temperatures: usize) -> Self {
        let next = vec![LeafSums::EMPTY; inverse_temperatures];
        Self { leaves: Vec::new(), weighted: Vec::new(), next, target_logit: None }
    }

    /// Makes room for another row.
    pub(crate) fn clear(&mut self) {
        self.leaves.clear();
        self.weighted.clear();
        self.target_logit = None;
    }

    /// Appends what has been read of the columns that follow.
    pub(crate) fn append(&mut self, following: &Self) {
        self.leaves.extend_from_slice(&following.leaves);
        self.weighted.extend_from_slice(&following.weighted);
        self.target_logit = self.target_logit.or(following.target_logit);
    }

    /// The row's leaves at inverse temperature number `place`.
    fn leaves_at(&self, place: usize) -> impl Iterator<Item = &LeafSums> + Clone {
        self.leaves.iter().skip(place).step_by(self.next.len())
    }

    /// Why the row has no distribution; nothing if it has one.
    pub(crate) fn flags(&self) -> Flags {
        if self.leaves.iter().any(|leaf| leaf.has_nan) {
            return Flags::NAN;
        }
        match self.max() {
            f64::INFINITY => Flags::POSINF,
            f64::NEG_INFINITY => Flags::ALL_NEGINF,
            _ => Flags::default(),
        }
    }

    /// The row's largest logit; minus infinity if there is none.
    pub(crate) fn max(&self) -> f64 {
        self.leaves.iter().fold(f64::NEG_INFINITY, |max, leaf| larger(max, leaf.max))
    }

    /// The row at inverse temperature number `place`, which is `inverse_temperature`. Where only the mass was needed,
    /// mean, variance and entropy may be NaN.
    pub(crate) fn finish(&self, place: usize, inverse_temperature: f64) -> Tempered {
        let (max, flags) = (self.max(), self.flags());
        if flags != Flags::default() {
            return Tempered { lse: if flags == Flags::NAN { f64::NAN } else { max }, flags, ..Tempered::UNDEFINED };
        }
        let sums = RowSums::merge(self.leaves_at(place), max, inverse_temperature, 1.0);
        let (mass, log_mass) = (1.0 + sums.rest, libm::log1p(sums.rest));
        let drop = sums.drop / mass;
        Tempered {
            lse: inverse_temperature * max + log_mass,
            log_mass,
            drop,
            mean: max + drop,
            variance: sums.spread / mass,
            // At 0 the distances count nothing, also where they are larger than the lanes can hold.
            entropy: if inverse_temperature == 0.0 { log_mass } else { log_mass - inverse_temperature * drop },
            flags: Flags::default(),
        }
    }

    /// Columns that are not minus infinity; `place` is that of inverse temperature 0.
    pub(crate) fn possible(&self, place: usize) -> f64 {
        self.leaves_at(place).map(LeafSums::mass).sum()
    }

    /// Sum over all columns of class weight times (largest logit less logit), at least 0. `weight_sums` has the
    /// weights' sum for each leaf.
    pub(crate) fn weighted_distance(&self, weight_sums: &[f64]) -> f64 {
        let max = self.max();
        let leaves = self.leaves_at(0).zip(&self.weighted).zip(weight_sums);
        let distance = leaves.map(|((leaf, weighted), weight_sum)| {
            let reference = if leaf.max == f64::NEG_INFINITY { 0.0 } else { leaf.max };
            let shift = if *weight_sum == 0.0 { 0.0 } else { (max - reference) * weight_sum };
            shift - weighted
        });
        distance.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_share_a_chain() {
        let found = chains(&[2.0, 0.0, 0.5, 1.0, 3.0, 4.0, 8.0]);
        let chain = |base, places: &[usize]| Chain { base, places: places.to_vec(), moments: true };
        // Four values to a chain: 8 would be the fourth square of 0.5.
        let expected = [chain(0.0, &[1]), chain(0.5, &[2, 3, 0, 5]), chain(3.0, &[4]), chain(8.0, &[6])];
        assert_eq!(found, expected);
    }

    #[test]
    fn equal_values_have_places_of_their_own() {
        let found = chains(&[1.0, 1.0]);
        assert_eq!(found.iter().map(|chain| chain.places.len()).sum::<usize>(), 2);
    }

    #[test]
    fn lists_share_chains_that_begin_alike() {
        let mut set = ChainSet::default();
        assert_eq!(set.add(&[1.0, 0.0]), [1, 0]);
        // 1 is the square of 0.5 here and has other bits than 1 alone.
        assert_eq!(set.add(&[1.0, 0.5, 2.0]), [3, 2, 4]);
        assert_eq!(set.add(&[0.0, 1.0, 2.0, 0.5]), [0, 3, 4, 2]);
        assert_eq!(set.add(&[2.0, 1.0, 1.0]), [5, 1, 1]);
        assert_eq!((set.count, set.chains.len()), (6, 3));
    }

    #[test]
    fn values_that_are_not_needed_cost_nothing() {
        let mut set = ChainSet::default();
        let need = |member| if member == 3 { Need::Nothing } else { Need::Mass };
        let found = set.add_needed(&[1.0, 0.5, 2.0, 1.0], need);
        assert_eq!((&found[..3], set.count, set.chains.len()), (&[1, 0, 2][..], 3, 1));
        assert!(!set.chains[0].moments);
        set.add(&[0.5]);
        assert!(set.chains[0].moments && set.count == 3);
    }
}
