//! The kernels for two rows: KL both ways, the moments of q's logits under p, and the Jensen-Shannon divergence.

use super::kl::kl_leaf;
use super::row_stats::{BlockMaxima, LEAST_PART, leaf_sums};
use crate::input::{Leaf, LeafScratch, RowView};
use crate::simd::lent::BLOCK_VECTORS;
use crate::simd::math::{exp_or_zero, jensen};
use crate::simd::{Element, Float, Job, Lanes, Simd};
use crate::state::pair::{CrossLeaf, PairPartial, Scales};
use std::ops::Range;

/// Reads some leaves of a row of each model.
pub(crate) struct PairRow<'j, 'a, E: Element> {
    pub(crate) inverse_temperature: f64,
    pub(crate) p: RowView<'a, E>,
    pub(crate) q: RowView<'a, E>,
    pub(crate) leaves: Range<usize>,
    pub(crate) scratch: &'j mut [LeafScratch<E>; 2],
    pub(crate) partial: &'j mut PairPartial,
}

impl<E: Element> Job for PairRow<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let [p_scratch, q_scratch] = self.scratch;
        let scale = E::Compute::from_f64(self.inverse_temperature);
        for index in self.leaves {
            let p = self.p.leaf(index, &mut p_scratch.columns);
            let q = self.q.leaf(index, &mut q_scratch.columns);
            // After the first of these the leaves are in cache.
            self.partial.forward.push(kl_leaf(simd, &p, &q, scale));
            self.partial.reverse.push(kl_leaf(simd, &q, &p, scale));
            self.partial.p.push(leaf_sums(simd, &p, &BlockMaxima::of(simd, &p), scale, true));
            self.partial.cross.push(cross_leaf(simd, &p, &q, scale));
        }
    }
}

/// References and scale of one leaf, in every lane.
struct Lane<L> {
    p_reference: L,
    q_reference: L,
    scale: L,
}

impl<L: Lanes> Lane<L> {
    /// p's weight e^d and q's d; both 0 where p's weight is, and where q's logit is minus infinity: KL tells whether p lacks
    /// support there, or whether its weight is nothing in the row.
    #[inline(always)]
    fn weigh(&self, p_logits: L, q_logits: L) -> (L, L) {
        let zero = p_logits.fill(L::Scalar::ZERO);
        let weight = exp_or_zero(p_logits.sub(self.p_reference).mul(self.scale));
        let weight = q_logits.select_equal(q_logits.fill(L::Scalar::NEG_INFINITY), zero, weight);
        let d = q_logits.sub(self.q_reference).mul(self.scale);
        (weight, weight.select_equal(zero, zero, d))
    }
}

/// Moments of q's scaled logits under p's weights.
#[inline(always)]
fn cross_leaf<S: Simd, E: Element>(simd: S, p: &Leaf<'_, E>, q: &Leaf<'_, E>, scale: E::Compute) -> CrossLeaf {
    let p_maxima = BlockMaxima::<S, E>::of(simd, p);
    let q_reference = BlockMaxima::<S, E>::of(simd, q).reference();
    let lane = Lane {
        p_reference: E::splat(simd, p_maxima.reference()),
        q_reference: E::splat(simd, q_reference),
        scale: E::splat(simd, scale),
    };
    let [mass, drop, bend] = moments(simd, p, q, &lane, E::splat(simd, E::Compute::ZERO));
    let mut spread = bend - drop * (drop / mass);
    if bend > 0.0 && spread < bend * LEAST_PART {
        let mean = E::splat(simd, E::Compute::from_f64(drop / mass));
        let [_, first, second] = moments(simd, p, q, &lane, mean);
        spread = second - first * (first / mass);
    }
    let spread = if mass == 0.0 { 0.0 } else { spread };
    CrossLeaf { p_max: p_maxima.max().into(), q_reference: q_reference.into(), mass, drop, spread }
}

/// Sums of w, w (d - origin) and w (d - origin)^2.
#[inline(always)]
fn moments<S: Simd, E: Element>(
    simd: S,
    p: &Leaf<'_, E>,
    q: &Leaf<'_, E>,
    lane: &Lane<E::Lanes<S>>,
    origin: E::Lanes<S>,
) -> [f64; 3] {
    let mut totals = [simd.splat_f64(0.0); 3];
    for index in 0..p.blocks() {
        let mut sums = [E::splat(simd, E::Compute::ZERO); 3];
        for vector in 0..BLOCK_VECTORS {
            let (p_logits, q_logits) = (p.block(index).load(simd, vector), q.block(index).load(simd, vector));
            let (weight, d) = lane.weigh(p_logits, q_logits);
            let distance = d.sub(origin);
            let weighted = weight.mul(distance);
            sums = [sums[0].add(weight), sums[1].add(weighted), weighted.mul_add(distance, sums[2])];
        }
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = total.add(E::total(simd, sum));
        }
    }
    totals.map(Lanes::sum_lanes)
}

/// Sums the Jensen-Shannon divergence over some leaves of a row of each model, once both normalisers are known.
pub(crate) struct JensenRow<'j, 'a, E: Element> {
    pub(crate) scales: Scales,
    pub(crate) p: RowView<'a, E>,
    pub(crate) q: RowView<'a, E>,
    pub(crate) leaves: Range<usize>,
    pub(crate) scratch: &'j mut [LeafScratch<E>; 2],
    pub(crate) sums: &'j mut Vec<f64>,
}

impl<E: Element> Job for JensenRow<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let [p_scratch, q_scratch] = self.scratch;
        for index in self.leaves {
            let p = self.p.leaf(index, &mut p_scratch.columns);
            let q = self.q.leaf(index, &mut q_scratch.columns);
            self.sums.push(jensen_leaf(simd, &p, &q, &self.scales));
        }
    }
}

/// Sum of (p + q) / 2 times `jensen` of ln p - ln q.
#[inline(always)]
fn jensen_leaf<S: Simd, E: Element>(simd: S, p: &Leaf<'_, E>, q: &Leaf<'_, E>, scales: &Scales) -> f64 {
    let splat = |value: f64| E::splat(simd, E::Compute::from_f64(value));
    let (p_max, q_max, scale) = (splat(scales.p_max), splat(scales.q_max), splat(scales.inverse_temperature));
    let (p_log_mass, q_log_mass) = (splat(scales.p_log_mass), splat(scales.q_log_mass));
    let offset = splat(scales.p_log_mass - scales.q_log_mass);
    let (zero, half) = (splat(0.0), splat(0.5));
    let mut total = simd.splat_f64(0.0);
    for index in 0..p.blocks() {
        let mut sum = zero;
        for vector in 0..BLOCK_VECTORS {
            let p_d = p.block(index).load(simd, vector).sub(p_max).mul(scale);
            let q_d = q.block(index).load(simd, vector).sub(q_max).mul(scale);
            let mass = exp_or_zero(p_d.sub(p_log_mass)).add(exp_or_zero(q_d.sub(q_log_mass)));
            let term = jensen(p_d.sub(q_d).sub(offset)).mul(mass.mul(half));
            sum = mass.select_equal(zero, zero, term).add(sum);
        }
        total = total.add(E::total(simd, sum));
    }
    total.sum_lanes()
}
