//! The KL kernel: the sums of one leaf of two rows, each read once. The formulas stand in `state/kl.rs`.

use super::row_stats::BlockMaxima;
use crate::input::{Leaf, LeafScratch, RowView};
use crate::simd::lent::BLOCK_VECTORS;
use crate::simd::math::{excess, exp_or_zero};
use crate::simd::{Element, Float, Job, Lanes, Simd};
use crate::state::kl::KlLeaf;
use std::ops::Range;

/// Reads some leaves of a row of each model.
pub(crate) struct KlRow<'j, 'a, E: Element> {
    pub(crate) inverse_temperature: f64,
    pub(crate) p: RowView<'a, E>,
    pub(crate) q: RowView<'a, E>,
    pub(crate) leaves: Range<usize>,
    pub(crate) scratch: &'j mut [LeafScratch<E>; 2],
    pub(crate) sums: &'j mut Vec<KlLeaf>,
}

impl<E: Element> Job for KlRow<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let [p_scratch, q_scratch] = self.scratch;
        for index in self.leaves {
            let p = self.p.leaf(index, &mut p_scratch.columns);
            let q = self.q.leaf(index, &mut q_scratch.columns);
            self.sums.push(kl_leaf(simd, &p, &q, E::Compute::from_f64(self.inverse_temperature)));
        }
    }
}

/// Float64 lanes of the sums named as in [`KlLeaf`].
struct Totals<S: Simd, E: Element> {
    p_mass: S::F64,
    all_mass: S::F64,
    q_mass: S::F64,
    surplus: S::F64,
    cross: S::F64,
    excess: S::F64,
    unsupported: E::Lanes<S>,
    /// Bit `i` is set while lane `i` has met no NaN.
    ordered: u16,
}

/// References and scale, in every lane.
struct Scale<S: Simd, E: Element> {
    p_reference: E::Lanes<S>,
    q_reference: E::Lanes<S>,
    inverse_temperature: E::Lanes<S>,
}

#[inline(always)]
pub(super) fn kl_leaf<S: Simd, E: Element>(
    simd: S,
    p: &Leaf<'_, E>,
    q: &Leaf<'_, E>,
    inverse_temperature: E::Compute,
) -> KlLeaf {
    let p_maxima = BlockMaxima::<S, E>::of(simd, p);
    let q_maxima = BlockMaxima::<S, E>::of(simd, q);
    let scale = Scale {
        p_reference: E::splat(simd, p_maxima.reference()),
        q_reference: E::splat(simd, q_maxima.reference()),
        inverse_temperature: E::splat(simd, inverse_temperature),
    };
    let zero = simd.splat_f64(0.0);
    let unsupported = E::splat(simd, E::Compute::NEG_INFINITY);
    let mut totals = Totals::<S, E> {
        p_mass: zero,
        all_mass: zero,
        q_mass: zero,
        surplus: zero,
        cross: zero,
        excess: zero,
        unsupported,
        ordered: u16::MAX,
    };
    for index in 0..p.blocks() {
        add_block(simd, p, q, index, &scale, &mut totals);
    }
    KlLeaf {
        p_max: p_maxima.max().into(),
        q_max: q_maxima.max().into(),
        has_nan: totals.ordered != u16::MAX,
        unsupported: totals.unsupported.max_lane().into(),
        p_mass: totals.p_mass.sum_lanes(),
        all_mass: totals.all_mass.sum_lanes(),
        q_mass: totals.q_mass.sum_lanes(),
        surplus: totals.surplus.sum_lanes(),
        cross: totals.cross.sum_lanes(),
        excess: totals.excess.sum_lanes(),
    }
}

#[inline(always)]
fn add_block<S: Simd, E: Element>(
    simd: S,
    p: &Leaf<'_, E>,
    q: &Leaf<'_, E>,
    index: usize,
    scale: &Scale<S, E>,
    totals: &mut Totals<S, E>,
) {
    let (p_block, q_block) = (p.block(index), q.block(index));
    let zero = E::splat(simd, E::Compute::ZERO);
    let half = E::splat(simd, E::Compute::from_f64(0.5));
    let minus_infinity = E::splat(simd, E::Compute::NEG_INFINITY);
    let (mut p_mass, mut all_mass, mut q_mass) = (zero, zero, zero);
    let (mut surplus, mut cross, mut excess_sum) = (zero, zero, zero);
    for vector in 0..BLOCK_VECTORS {
        p_block.prefetch(simd, vector, p.distance_to_next());
        q_block.prefetch(simd, vector, q.distance_to_next());
        let (p_logits, q_logits) = (p_block.load(simd, vector), q_block.load(simd, vector));
        totals.ordered &= p_logits.mask_equal(p_logits) & q_logits.mask_equal(q_logits);
        let p_d = p_logits.sub(scale.p_reference).mul(scale.inverse_temperature);
        let q_d = q_logits.sub(scale.q_reference).mul(scale.inverse_temperature);
        let t = exp_or_zero(q_d);
        let weight = exp_or_zero(p_d);
        let w = q_logits.select_equal(minus_infinity, zero, weight);
        let candidate = q_logits.select_equal(minus_infinity, p_logits, minus_infinity);
        totals.unsupported = candidate.max(totals.unsupported);

        let b = p_d.sub(q_d);
        let magnitude = b.max(zero.sub(b));
        let weighted = w.select_equal(zero, zero, w.mul(b));
        let close = excess(b).mul(b).mul(weighted);
        let difference = t.sub(w);
        p_mass = p_mass.add(w);
        all_mass = all_mass.add(weight);
        q_mass = q_mass.add(t);
        cross = cross.add(weighted);
        excess_sum = excess_sum.add(magnitude.select_less(half, close, weighted.add(difference)));
        surplus = surplus.add(magnitude.select_less(half, close.sub(weighted), difference));
    }
    totals.p_mass = totals.p_mass.add(E::total(simd, p_mass));
    totals.all_mass = totals.all_mass.add(E::total(simd, all_mass));
    totals.q_mass = totals.q_mass.add(E::total(simd, q_mass));
    totals.surplus = totals.surplus.add(E::total(simd, surplus));
    totals.cross = totals.cross.add(E::total(simd, cross));
    totals.excess = totals.excess.add(E::total(simd, excess_sum));
}
