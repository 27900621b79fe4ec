//! The row-statistics kernel: the sums of one leaf in one read of its memory.
//!
//! A leaf fits the first-level cache. First its largest logit is found; that pass is the read of memory. Then, from
//! cache, every column adds e^d, d e^d, d^2 e^d and e^2d to float32 lanes, which fold into float64 after each block;
//! meanwhile the next leaf is fetched. Blocks that hold the largest logit take a variant that counts it apart.

use crate::input::{LEAF_BLOCKS, Leaf};
use crate::simd::lent::{BLOCK, BLOCK_VECTORS};
use crate::simd::math::exp_or_zero;
use crate::simd::{Element, Float, LANES, Lanes, Simd};
use crate::state::leaf::{LeafSums, Peak};
use crate::state::top::TopColumns;

/// With this part left of a sum of squares, its rounding errors have grown to about 2^-18 of the result.
pub(super) const LEAST_PART: f64 = 1.0 / 64.0;

/// The largest value of each lane, block by block.
pub(crate) struct BlockMaxima<S: Simd, E: Element> {
    blocks: [E::Lanes<S>; LEAF_BLOCKS],
    count: usize,
    max: E::Compute,
}

impl<S: Simd, E: Element> BlockMaxima<S, E> {
    /// Reads the leaf. NaN does not count.
    #[inline(always)]
    pub(crate) fn of(simd: S, leaf: &Leaf<'_, E>) -> Self {
        let lowest = E::splat(simd, E::Compute::NEG_INFINITY);
        let mut maxima = Self { blocks: [lowest; LEAF_BLOCKS], count: leaf.blocks(), max: E::Compute::NEG_INFINITY };
        let mut all = lowest;
        for index in 0..maxima.count {
            maxima.blocks[index] = leaf.block(index).max(simd);
            all = maxima.blocks[index].max(all);
        }
        maxima.max = all.max_lane();
        if maxima.max == E::Compute::ZERO {
            // Which of two zeros a comparison keeps depends on their order.
            maxima.max = largest_zero(leaf);
        }
        maxima
    }

    /// Whether a block holds a logit of at least `value`.
    #[inline(always)]
    fn reaches(&self, block: usize, value: E::Lanes<S>) -> bool {
        (self.blocks[block].mask_greater(value) | self.blocks[block].mask_equal(value)) != 0
    }

    /// What the columns of a list with room are not below. The lanes' maxima are columns of their own, so where they are
    /// more than the list holds, the last of the largest of them is such a bound, and few columns need to be offered.
    #[inline(always)]
    fn floor(&self, top: &TopColumns) -> E::Compute {
        let lanes = self.count * LANES;
        if top.is_full() || top.limit() * 4 > lanes {
            return E::Compute::NEG_INFINITY;
        }
        let mut values = [f64::NEG_INFINITY; LEAF_BLOCKS * LANES];
        for (block, values) in self.blocks[..self.count].iter().zip(values.chunks_mut(LANES)) {
            for (value, lane) in values.iter_mut().zip(block.to_array()) {
                // In a block with NaN a lane may be NaN; its row has no largest logits.
                let lane: f64 = lane.into();
                *value = lane.max(*value);
            }
        }
        let descending = |a: &f64, b: &f64| b.total_cmp(a);
        E::Compute::from_f64(*values[..lanes].select_nth_unstable_by(top.limit() - 1, descending).1)
    }

    /// What distances are measured from: the largest logit. In a leaf of minus infinities any finite reference gives e^d = 0
    /// for all, and NaN for NaN.
    pub(super) fn reference(&self) -> E::Compute {
        if self.max == E::Compute::NEG_INFINITY { E::Compute::ZERO } else { self.max }
    }

    /// Largest logit of the leaf; minus infinity if there is none but NaN.
    pub(crate) fn max(&self) -> E::Compute {
        self.max
    }
}

/// The largest logit of a leaf where it is a zero: positive if there is a positive one.
#[cold]
fn largest_zero<E: Element>(leaf: &Leaf<'_, E>) -> E::Compute {
    let is_positive = |column| {
        let logit: f64 = leaf.logit(column).widen().into();
        logit == 0.0 && logit.is_sign_positive()
    };
    E::Compute::from_f64(if (0..leaf.columns()).any(is_positive) { 0.0 } else { -0.0 })
}

/// Float64 lanes of the sums named as in [`LeafSums`]; `bend` is the sum of d^2 e^d.
struct Totals<S: Simd> {
    rest: S::F64,
    drop: S::F64,
    bend: S::F64,
    squares: S::F64,
    max_count: u32,
}

/// Scale and reference of one leaf, in every lane.
struct Scale<S: Simd, E: Element> {
    max: E::Lanes<S>,
    reference: E::Lanes<S>,
    inverse_temperature: E::Lanes<S>,
}

/// The sums of one leaf; `rest` alone unless `moments`.
#[inline(always)]
pub(crate) fn leaf_sums<S: Simd, E: Element>(
    simd: S,
    leaf: &Leaf<'_, E>,
    maxima: &BlockMaxima<S, E>,
    inverse_temperature: E::Compute,
    moments: bool,
) -> LeafSums {
    let is_scaled = inverse_temperature != E::Compute::ONE;
    match (moments, is_scaled) {
        (false, false) => sum_leaf::<S, E, false, false>(simd, leaf, maxima, inverse_temperature),
        (false, true) => sum_leaf::<S, E, false, true>(simd, leaf, maxima, inverse_temperature),
        (true, false) => sum_leaf::<S, E, true, false>(simd, leaf, maxima, inverse_temperature),
        (true, true) => sum_leaf::<S, E, true, true>(simd, leaf, maxima, inverse_temperature),
    }
}

/// Without `MOMENTS` only `rest`, without `SCALED` no multiplication by 1: the same bits, sooner.
#[inline(always)]
fn sum_leaf<S: Simd, E: Element, const MOMENTS: bool, const SCALED: bool>(
    simd: S,
    leaf: &Leaf<'_, E>,
    maxima: &BlockMaxima<S, E>,
    inverse_temperature: E::Compute,
) -> LeafSums {
    let scale = Scale {
        max: E::splat(simd, maxima.max),
        reference: E::splat(simd, maxima.reference()),
        inverse_temperature: E::splat(simd, inverse_temperature),
    };
    let zero = simd.splat_f64(0.0);
    let mut totals = Totals { rest: zero, drop: zero, bend: zero, squares: zero, max_count: 0 };
    for index in 0..maxima.count {
        if maxima.reaches(index, scale.max) {
            add_block::<S, E, MOMENTS, SCALED, true>(simd, leaf, index, &scale, &mut totals);
        } else {
            add_block::<S, E, MOMENTS, SCALED, false>(simd, leaf, index, &scale, &mut totals);
        }
    }
    let rest = totals.rest.sum_lanes();
    let max: f64 = maxima.max.into();
    let mut sums = LeafSums {
        max,
        max_count: if max.is_finite() { totals.max_count } else { 0 },
        has_nan: rest.is_nan(),
        rest,
        drop: 0.0,
        spread: 0.0,
        squares: 0.0,
    };
    if MOMENTS {
        sums.drop = totals.drop.sum_lanes();
        sums.squares = totals.squares.sum_lanes();
        sums.spread = spread(simd, leaf, &scale, &sums, totals.bend.sum_lanes());
    }
    sums
}

#[inline(always)]
fn add_block<S: Simd, E: Element, const MOMENTS: bool, const SCALED: bool, const HOLDS_MAX: bool>(
    simd: S,
    leaf: &Leaf<'_, E>,
    index: usize,
    scale: &Scale<S, E>,
    totals: &mut Totals<S>,
) {
    let block = leaf.block(index);
    let zero = E::splat(simd, E::Compute::ZERO);
    // Two chains for the sum that lse depends on: eight additions each, where equal terms would round alike.
    let mut rest = [zero; 2];
    let (mut drop, mut bend, mut squares) = (zero, zero, zero);
    for pair in 0..BLOCK_VECTORS / 2 {
        for (chain, rest) in rest.iter_mut().enumerate() {
            let vector = 2 * pair + chain;
            block.prefetch(simd, vector, leaf.distance_to_next());
            let logits = block.load(simd, vector);
            let (d, mut weight) = weigh::<S, E, SCALED>(logits, scale);
            if HOLDS_MAX {
                totals.max_count += logits.mask_equal(scale.max).count_ones();
                weight = logits.select_equal(scale.max, zero, weight);
            }
            *rest = rest.add(weight);
            if MOMENTS {
                let weighted = weight.mul(d);
                drop = drop.add(weighted);
                bend = weighted.mul_add(d, bend);
                squares = weight.mul_add(weight, squares);
            }
        }
    }
    totals.rest = totals.rest.add(E::total(simd, rest[0].add(rest[1])));
    if MOMENTS {
        totals.drop = totals.drop.add(E::total(simd, drop));
        totals.bend = totals.bend.add(E::total(simd, bend));
        totals.squares = totals.squares.add(E::total(simd, squares));
    }
}

/// d, the scaled logit less the reference, and e^d; both 0 where e^d is.
#[inline(always)]
fn weigh<S: Simd, E: Element, const SCALED: bool>(
    logits: E::Lanes<S>,
    scale: &Scale<S, E>,
) -> (E::Lanes<S>, E::Lanes<S>) {
    let distance = logits.sub(scale.reference);
    let d = if SCALED { distance.mul(scale.inverse_temperature) } else { distance };
    let lowest = d.fill(E::Compute::LOWEST_EXPONENT);
    (d.zero_if_less(lowest, d), exp_or_zero(d))
}

/// Sum of (d - mean d)^2 e^d: from the sum of squares, or, where the difference would cancel, from the leaf again.
#[inline(always)]
fn spread<S: Simd, E: Element>(simd: S, leaf: &Leaf<'_, E>, scale: &Scale<S, E>, sums: &LeafSums, bend: f64) -> f64 {
    let mass = sums.mass();
    let spread = bend - sums.drop * (sums.drop / mass);
    let is_undefined = bend.is_nan() || bend <= 0.0;
    if is_undefined || spread >= bend * LEAST_PART {
        return spread.max(0.0);
    }
    let mean = E::splat(simd, E::Compute::from_f64(sums.drop / mass));
    let zero = E::splat(simd, E::Compute::ZERO);
    let (mut first, mut second) = (simd.splat_f64(0.0), simd.splat_f64(0.0));
    for index in 0..leaf.blocks() {
        let block = leaf.block(index);
        let (mut block_first, mut block_second) = (zero, zero);
        for vector in 0..BLOCK_VECTORS {
            let (d, weight) = weigh::<S, E, true>(block.load(simd, vector), scale);
            let distance = d.sub(mean);
            let weighted = weight.mul(distance);
            block_first = block_first.add(weighted);
            block_second = weighted.mul_add(distance, block_second);
        }
        first = first.add(E::total(simd, block_first));
        second = second.add(E::total(simd, block_second));
    }
    let (first, second) = (first.sum_lanes(), second.sum_lanes());
    (second - first * (first / mass)).max(0.0)
}

/// Columns above the target's logit, and columns equal to it.
#[inline(always)]
pub(crate) fn count_from_target<S: Simd, E: Element>(
    simd: S,
    leaf: &Leaf<'_, E>,
    maxima: &BlockMaxima<S, E>,
    target_logit: E::Compute,
) -> (u64, u64) {
    let (target, zero) = (E::splat(simd, target_logit), E::splat(simd, E::Compute::ZERO));
    // A lane counts no further than the vectors of a leaf: floats hold that exactly.
    // Two chains each, as every addition waits for the one before.
    let (mut above, mut equal) = ([zero; 2], [zero; 2]);
    for index in 0..maxima.count {
        if maxima.reaches(index, target) {
            for pair in 0..BLOCK_VECTORS / 2 {
                for (chain, (above, equal)) in above.iter_mut().zip(&mut equal).enumerate() {
                    let logits = leaf.block(index).load(simd, 2 * pair + chain);
                    *above = target.count_if_less(logits, *above);
                    *equal = target.count_if_equal(logits, *equal);
                }
            }
        }
    }
    let count = |chains: [E::Lanes<S>; 2]| E::total(simd, chains[0].add(chains[1])).sum_lanes() as u64;
    let padding = if target_logit == E::Compute::NEG_INFINITY { leaf.padding() as u64 } else { 0 };
    (count(above), count(equal) - padding)
}

/// The leaf's largest logit, its first column and the largest of the others. `start` is the leaf's first column.
#[inline(always)]
pub(crate) fn leaf_peak<S: Simd, E: Element>(
    simd: S,
    leaf: &Leaf<'_, E>,
    maxima: &BlockMaxima<S, E>,
    start: u64,
) -> Peak {
    let max = E::splat(simd, maxima.max);
    let lowest = max.fill(E::Compute::NEG_INFINITY);
    let mut peak = Peak { max: maxima.max.into(), ..Peak::NONE };
    let (mut others, mut count) = (lowest, 0);
    for index in 0..maxima.count {
        if !maxima.reaches(index, max) {
            others = maxima.blocks[index].max(others);
            continue;
        }
        for vector in 0..BLOCK_VECTORS {
            let logits = leaf.block(index).load(simd, vector);
            let mask = logits.mask_equal(max);
            let column = index * BLOCK + vector * LANES + mask.trailing_zeros() as usize;
            // Padding is equal only where all is minus infinity, or where another thread writes to the row meanwhile.
            if mask != 0 && peak.column == u64::MAX && column < leaf.columns() {
                peak.column = start + column as u64;
            }
            count += mask.count_ones();
            others = logits.select_equal(max, lowest, logits).max(others);
        }
    }
    peak.second = if count > 1 { peak.max } else { others.max_lane().into() };
    peak
}

/// Offers the leaf's columns to the list of the largest. `start` is the leaf's first column.
#[inline(always)]
pub(crate) fn offer_columns<S: Simd, E: Element>(
    simd: S,
    leaf: &Leaf<'_, E>,
    maxima: &BlockMaxima<S, E>,
    start: u64,
    top: &mut TopColumns,
) {
    let floor = E::splat(simd, maxima.floor(top));
    for index in 0..maxima.count {
        let mut threshold = Threshold::of::<S, E>(simd, top, floor);
        if threshold.mask(maxima.blocks[index]) == 0 {
            continue;
        }
        for vector in 0..BLOCK_VECTORS {
            let logits = leaf.block(index).load(simd, vector);
            let mut mask = threshold.mask(logits);
            let first = index * BLOCK + vector * LANES;
            let values = if mask == 0 { continue } else { logits.to_array() };
            while mask != 0 {
                let lane = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                if first + lane < leaf.columns() {
                    top.offer(values[lane].into(), start + (first + lane) as u64);
                }
            }
            threshold = Threshold::of::<S, E>(simd, top, floor);
        }
    }
}

/// What a column must be to enter a list.
struct Threshold<L> {
    above: L,
    /// Whether an equal one enters too, as into a list with room.
    or_equal: bool,
}

impl<L: Lanes> Threshold<L> {
    #[inline(always)]
    fn of<S: Simd, E: Element<Lanes<S> = L, Compute = L::Scalar>>(simd: S, top: &TopColumns, floor: L) -> Self {
        let or_equal = !top.is_full();
        let above = if or_equal { floor } else { E::splat(simd, E::Compute::from_f64(top.threshold())) };
        Self { above, or_equal }
    }

    #[inline(always)]
    fn mask(&self, logits: L) -> u16 {
        let above = logits.mask_greater(self.above);
        if self.or_equal { above | logits.mask_equal(self.above) } else { above }
    }
}
