//! The kernel for several inverse temperatures: the sums of one leaf at each of them, from one read of its memory.
//!
//! Where the list holds a value, its double, and so on, one exponential serves them all: e^(2 b d) is the square of
//! e^(b d). Each squaring doubles the relative error, which is why a chain is short.

use super::row_stats::BlockMaxima;
use super::rows::change_leaf;
use crate::input::{LEAF, Leaf, LeafScratch, RowView};
use crate::simd::lent::BLOCK_VECTORS;
use crate::simd::math::exp_or_zero;
use crate::simd::{Element, Float, Job, Lanes, Simd};
use crate::state::leaf::LeafSums;
use crate::state::tempered::{Chain, MOST_DOUBLINGS, TemperedPartial};
use std::ops::Range;

/// Reads some leaves of one row.
pub(crate) struct TemperedRow<'j, 'a, E: Element> {
    pub(crate) chains: &'j [Chain],
    pub(crate) softcap: Option<f64>,
    /// A weight for each column, whole leaves of them; the padding is 0.
    pub(crate) class_weights: Option<&'j [E::Compute]>,
    pub(crate) row: RowView<'a, E>,
    pub(crate) leaves: Range<usize>,
    pub(crate) scratch: &'j mut LeafScratch<E>,
    pub(crate) partial: &'j mut TemperedPartial,
}

impl<E: Element> Job for TemperedRow<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let LeafScratch { columns, capped } = self.scratch;
        for index in self.leaves {
            let leaf = self.row.leaf(index, columns);
            let weights = self.class_weights.map(|weights| Leaf::from_padded(&weights[index * LEAF..][..LEAF], LEAF));
            if self.softcap.is_some() {
                let leaf = change_leaf(simd, &leaf, self.softcap, &[], index, capped);
                read_leaf::<S, E::Compute>(simd, &leaf, self.chains, weights, self.partial);
            } else {
                read_leaf::<S, E>(simd, &leaf, self.chains, weights, self.partial);
            }
        }
    }
}

#[inline(always)]
fn read_leaf<S: Simd, E: Element>(
    simd: S,
    leaf: &Leaf<'_, E>,
    chains: &[Chain],
    weights: Option<Leaf<'_, E::Compute>>,
    partial: &mut TemperedPartial,
) {
    let maxima = BlockMaxima::of(simd, leaf);
    let (max, reference) = (maxima.max(), maxima.reference());
    for chain in chains {
        let scale = Scale { max: E::splat(simd, max), reference: E::splat(simd, reference), base: chain.base };
        match (chain.places.len(), chain.moments) {
            (1, true) => sum_chain::<S, E, 1, true>(simd, leaf, &scale, chain, partial),
            (2, true) => sum_chain::<S, E, 2, true>(simd, leaf, &scale, chain, partial),
            (3, true) => sum_chain::<S, E, 3, true>(simd, leaf, &scale, chain, partial),
            (_, true) => sum_chain::<S, E, { MOST_DOUBLINGS + 1 }, true>(simd, leaf, &scale, chain, partial),
            (1, false) => sum_chain::<S, E, 1, false>(simd, leaf, &scale, chain, partial),
            (2, false) => sum_chain::<S, E, 2, false>(simd, leaf, &scale, chain, partial),
            (3, false) => sum_chain::<S, E, 3, false>(simd, leaf, &scale, chain, partial),
            (_, false) => sum_chain::<S, E, { MOST_DOUBLINGS + 1 }, false>(simd, leaf, &scale, chain, partial),
        }
    }
    if let Some(weights) = weights {
        partial.weighted.push(weighted_distance(simd, leaf, &weights, E::splat(simd, reference)));
    }
    partial.leaves.extend(partial.next.iter());
}

/// The largest logit, the reference, and the smallest inverse temperature of the chain.
struct Scale<S: Simd, E: Element> {
    max: E::Lanes<S>,
    reference: E::Lanes<S>,
    base: f64,
}

/// Distance d of the logits from the reference, and e^(b d); both 0 where that is, both NaN where the logit is.
#[inline(always)]
fn weigh<S: Simd, E: Element>(
    logits: E::Lanes<S>,
    scale: &Scale<S, E>,
    inverse_temperature: E::Compute,
) -> (E::Lanes<S>, E::Lanes<S>) {
    let zero = logits.fill(E::Compute::ZERO);
    let d = logits.sub(scale.reference);
    let weight = if inverse_temperature == E::Compute::ZERO {
        let one = logits.fill(E::Compute::ONE);
        let possible = logits.select_equal(logits.fill(E::Compute::NEG_INFINITY), zero, one);
        logits.select_equal(logits, possible, logits)
    } else {
        exp_or_zero(d.mul(logits.fill(inverse_temperature)))
    };
    (weight.select_equal(zero, zero, d), weight)
}

/// The sums at `LEVELS` inverse temperatures, each twice the one before, into `partial.next`. Without `MOMENTS` only
/// `rest`, with the same bits; the others are NaN.
#[inline(always)]
fn sum_chain<S: Simd, E: Element, const LEVELS: usize, const MOMENTS: bool>(
    simd: S,
    leaf: &Leaf<'_, E>,
    scale: &Scale<S, E>,
    chain: &Chain,
    partial: &mut TemperedPartial,
) {
    let (zero, base) = (E::splat(simd, E::Compute::ZERO), E::Compute::from_f64(scale.base));
    let mut totals = [[simd.splat_f64(0.0); 3]; LEVELS];
    let mut max_count = 0;
    for index in 0..leaf.blocks() {
        let mut sums = [[zero; 3]; LEVELS];
        for vector in 0..BLOCK_VECTORS {
            let logits = leaf.block(index).load(simd, vector);
            let (d, weight) = weigh::<S, E>(logits, scale, base);
            max_count += logits.mask_equal(scale.max).count_ones();
            let mut weight = logits.select_equal(scale.max, zero, weight);
            for [rest, drop, bend] in &mut sums {
                *rest = rest.add(weight);
                if MOMENTS {
                    let weighted = weight.mul(d);
                    *drop = drop.add(weighted);
                    *bend = weighted.mul_add(d, *bend);
                }
                weight = weight.mul(weight);
            }
        }
        for (totals, sums) in totals.iter_mut().zip(sums) {
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = total.add(E::total(simd, sum));
            }
        }
    }
    let max: f64 = scale.max.max_lane().into();
    for (level, (total, &place)) in totals.iter().zip(&chain.places).enumerate() {
        let [rest, drop, bend] = total.map(Lanes::sum_lanes);
        let max_count = if max.is_finite() { max_count } else { 0 };
        let mut sums = LeafSums { max, max_count, has_nan: rest.is_nan(), rest, drop, spread: 0.0, squares: 0.0 };
        if MOMENTS {
            let inverse_temperature = E::Compute::from_f64(scale.base * f64::from(1u32 << level));
            sums.spread = spread(simd, leaf, scale, inverse_temperature, &sums, bend);
        } else {
            (sums.drop, sums.spread) = (f64::NAN, f64::NAN);
        }
        partial.next[place] = sums;
    }
}

/// Sum of (d - mean d)^2 e^(b d): from the sum of squares, or, where the difference would cancel, from the leaf again.
#[inline(always)]
fn spread<S: Simd, E: Element>(
    simd: S,
    leaf: &Leaf<'_, E>,
    scale: &Scale<S, E>,
    inverse_temperature: E::Compute,
    sums: &LeafSums,
    bend: f64,
) -> f64 {
    let spread = bend - sums.drop * (sums.drop / sums.mass());
    if bend.is_nan() || bend <= 0.0 || spread >= bend * super::row_stats::LEAST_PART {
        return spread.max(0.0);
    }
    let mean = E::splat(simd, E::Compute::from_f64(sums.drop / sums.mass()));
    let mut total = simd.splat_f64(0.0);
    for index in 0..leaf.blocks() {
        let mut sum = E::splat(simd, E::Compute::ZERO);
        for vector in 0..BLOCK_VECTORS {
            let (d, weight) = weigh::<S, E>(leaf.block(index).load(simd, vector), scale, inverse_temperature);
            let distance = d.sub(mean);
            sum = weight.mul(distance).mul_add(distance, sum);
        }
        total = total.add(E::total(simd, sum));
    }
    total.sum_lanes()
}

/// Sum of weight times distance from the reference; a weight of 0 counts as 0 also where the logit is minus infinity.
#[inline(always)]
fn weighted_distance<S: Simd, E: Element>(
    simd: S,
    leaf: &Leaf<'_, E>,
    weights: &Leaf<'_, E::Compute>,
    reference: E::Lanes<S>,
) -> f64 {
    let zero = E::splat(simd, E::Compute::ZERO);
    let mut total = simd.splat_f64(0.0);
    for index in 0..leaf.blocks() {
        let mut sum = zero;
        for vector in 0..BLOCK_VECTORS {
            let weight = E::from_compute(simd, weights.block(index).load(simd, vector));
            let d = leaf.block(index).load(simd, vector).sub(reference);
            sum = weight.select_equal(zero, zero, d.mul(weight)).add(sum);
        }
        total = total.add(E::total(simd, sum));
    }
    total.sum_lanes()
}
