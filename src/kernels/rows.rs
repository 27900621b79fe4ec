//! A row, leaf by leaf: what the caller wants of each leaf, with the soft cap before it.

use super::row_stats::{BlockMaxima, count_from_target, leaf_peak, leaf_sums, offer_columns};
use crate::input::{LEAF, Leaf, LeafScratch, RowView};
use crate::simd::lent::{BLOCK, BLOCK_VECTORS, Lent};
use crate::simd::{Element, Float, Job, LANES, Lanes, Simd, math};
use crate::state::leaf::Peak;
use crate::state::row::RowPartial;
use crate::state::top::TopColumns;
use std::ops::Range;

/// What to read from each row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan {
    pub(crate) inverse_temperature: f64,
    pub(crate) softcap: Option<f64>,
    /// Everything, and not only log-sum-exp and nll.
    pub(crate) all: bool,
}

/// Reads some leaves of one row.
pub(crate) struct ScanRow<'j, 'a, E: Element> {
    pub(crate) scan: Scan,
    pub(crate) row: RowView<'a, E>,
    pub(crate) leaves: Range<usize>,
    /// The target's logit after the soft cap.
    pub(crate) target_logit: Option<E::Compute>,
    /// Columns to count as impossible.
    pub(crate) without: &'j [usize],
    pub(crate) scratch: &'j mut LeafScratch<E>,
    pub(crate) partial: &'j mut RowPartial,
}

impl<E: Element> Job for ScanRow<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let LeafScratch { columns, capped } = self.scratch;
        let mut best = Peak::NONE;
        let mut best_leaf = None;
        for index in self.leaves.clone() {
            let leaf = self.row.leaf(index, columns);
            let start = (index * LEAF) as u64;
            let leaves_out = || self.without.iter().any(|column| column / LEAF == index);
            let max = if self.scan.softcap.is_some() || leaves_out() {
                let leaf = change_leaf(simd, &leaf, self.scan.softcap, self.without, index, capped);
                scan_leaf(simd, &leaf, &self.scan, self.target_logit, start, self.partial)
            } else {
                scan_leaf(simd, &leaf, &self.scan, self.target_logit, start, self.partial)
            };
            if max > best.max {
                best_leaf = Some(index);
            }
            best = best.merge(Peak { max, column: start, second: f64::NEG_INFINITY });
        }
        if let (true, Some(index)) = (self.scan.all, best_leaf) {
            // Only the leaf that holds the largest logit is searched for its column; it is still in cache.
            let leaf = self.row.leaf(index, columns);
            let start = (index * LEAF) as u64;
            let peak = if self.scan.softcap.is_some() {
                peak_of(simd, &change_leaf(simd, &leaf, self.scan.softcap, self.without, index, capped), start)
            } else {
                peak_of(simd, &leaf, start)
            };
            let peak = Peak { second: peak.second.max(best.second), ..peak };
            self.partial.peak = self.partial.peak.merge(peak);
        }
    }
}

#[inline(always)]
fn peak_of<S: Simd, E: Element>(simd: S, leaf: &Leaf<'_, E>, start: u64) -> Peak {
    leaf_peak(simd, leaf, &BlockMaxima::of(simd, leaf), start)
}

/// Adds one leaf to what has been read of its row; the leaf's largest logit.
#[inline(always)]
fn scan_leaf<S: Simd, E: Element>(
    simd: S,
    leaf: &Leaf<'_, E>,
    scan: &Scan,
    target_logit: Option<E::Compute>,
    start: u64,
    partial: &mut RowPartial,
) -> f64 {
    let maxima = BlockMaxima::of(simd, leaf);
    let inverse_temperature = E::Compute::from_f64(scan.inverse_temperature);
    partial.leaves.push(leaf_sums(simd, leaf, &maxima, inverse_temperature, scan.all));
    if scan.all {
        if let Some(target_logit) = target_logit {
            let (above, equal) = count_from_target(simd, leaf, &maxima, target_logit);
            partial.above += above;
            partial.equal += equal;
        }
        if partial.top.limit() > 0 {
            offer_columns(simd, leaf, &maxima, start, &mut partial.top);
        }
    }
    maxima.max().into()
}

/// One leaf of a row whose others are elsewhere.
#[inline(always)]
pub(crate) fn scan_leaf_whole<S: Simd, E: Element>(
    simd: S,
    leaf: &Leaf<'_, E>,
    scan: &Scan,
    target_logit: Option<E::Compute>,
    start: u64,
    top: TopColumns,
) -> RowPartial {
    let mut partial = RowPartial { top, ..RowPartial::new(0) };
    scan_leaf(simd, leaf, scan, target_logit, start, &mut partial);
    partial.peak = peak_of(simd, leaf, start);
    partial
}

/// Leaf number `index` after `cap * tanh(logit / cap)` and without some of the row's columns, in `changed`.
#[inline(always)]
pub(super) fn change_leaf<'c, S: Simd, E: Element>(
    simd: S,
    leaf: &Leaf<'_, E>,
    softcap: Option<f64>,
    without: &[usize],
    index: usize,
    changed: &'c mut [E::Compute],
) -> Leaf<'c, E::Compute> {
    for block in 0..leaf.blocks() {
        for vector in 0..BLOCK_VECTORS {
            let mut logits = leaf.block(block).load(simd, vector);
            if let Some(cap) = softcap {
                let cap = E::splat(simd, E::Compute::from_f64(cap));
                logits = math::tanh(logits.div(cap)).mul(cap);
            }
            let first = block * BLOCK + vector * LANES;
            changed[first..first + LANES].copy_from_slice(&logits.to_array());
        }
    }
    changed[leaf.columns()..leaf.blocks() * BLOCK].fill(E::Compute::NEG_INFINITY);
    for column in without.iter().filter(|column| *column / LEAF == index) {
        changed[column % LEAF] = E::Compute::NEG_INFINITY;
    }
    Leaf::from_padded(changed, leaf.columns())
}

/// Whole blocks of logits after the soft cap, in place.
pub(crate) struct CapLogits<'j, F> {
    pub(crate) logits: &'j mut [F],
    pub(crate) cap: f64,
}

impl<F: Float + Element<Compute = F>> Job for CapLogits<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cap = F::splat(simd, F::from_f64(self.cap));
        for block in self.logits.chunks_exact_mut(BLOCK) {
            for vector in 0..BLOCK_VECTORS {
                let logits = Lent::from_slice(&*block).block(0).load(simd, vector);
                let capped = math::tanh(logits.div(cap)).mul(cap);
                block[vector * LANES..][..LANES].copy_from_slice(&capped.to_array());
            }
        }
    }
}

/// One logit after the soft cap, with the bits that its lane has in the leaf.
pub(crate) struct CapLogit<F> {
    pub(crate) logit: F,
    pub(crate) cap: f64,
}

impl<F: Float + Element<Compute = F>> Job for CapLogit<F> {
    type Output = F;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> F {
        let cap = F::splat(simd, F::from_f64(self.cap));
        math::tanh(F::splat(simd, self.logit).div(cap)).mul(cap).to_array()[0]
    }
}
