//! Derivatives of a divergence of two rows with respect to the logits of either.
//!
//! With p and q the softmaxes, a = ln p - ln q, m their mean, s = q / (p + q):
//! d KL(p||q) / d z_p = p (a - KL), d KL(p||q) / d z_q = q - p;
//! d JS / d z_p = p (ln(p/m) - KL(p||m)) / 2, ln(p/m) = jensen(a) + a s, and the same for q with -a and 1 - s.

use crate::input::{LEAF, LeafScratch, RowView};
use crate::simd::lent::{BLOCK, BLOCK_VECTORS, Lent};
use crate::simd::math::{exp_or_zero, jensen};
use crate::simd::{Element, Float, Job, LANES, Lanes, Simd};
use crate::state::pair::Scales;

/// Whose gradient it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Kl,
    Jensen,
}

/// What turns two rows of logits into derivatives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairGradient {
    pub(crate) rule: Rule,
    pub(crate) scales: Scales,
    /// What p's and q's derivatives are centred on: the divergence itself, or KL(p||m) and KL(q||m).
    pub(crate) centres: [f64; 2],
    /// Multiplies all derivatives.
    pub(crate) factor: f64,
}

/// The same in every lane.
struct Wide<L> {
    rule: Rule,
    max: [L; 2],
    log_mass: [L; 2],
    scale: L,
    offset: L,
    centres: [L; 2],
    factor: L,
}

impl<L: Lanes> Wide<L> {
    #[inline(always)]
    fn new(gradient: &PairGradient, splat: impl Fn(f64) -> L) -> Self {
        let Scales { inverse_temperature, p_max, q_max, p_log_mass, q_log_mass } = gradient.scales;
        Self {
            rule: gradient.rule,
            max: [splat(p_max), splat(q_max)],
            log_mass: [splat(p_log_mass), splat(q_log_mass)],
            scale: splat(inverse_temperature),
            offset: splat(p_log_mass - q_log_mass),
            centres: [splat(gradient.centres[0]), splat(gradient.centres[1])],
            factor: splat(gradient.factor),
        }
    }

    /// p, q and ln p - ln q.
    #[inline(always)]
    fn probabilities(&self, p_logits: L, q_logits: L) -> (L, L, L) {
        let p_d = p_logits.sub(self.max[0]).mul(self.scale);
        let q_d = q_logits.sub(self.max[1]).mul(self.scale);
        let (p, q) = (exp_or_zero(p_d.sub(self.log_mass[0])), exp_or_zero(q_d.sub(self.log_mass[1])));
        (p, q, p_d.sub(q_d).sub(self.offset))
    }

    /// ln(p / m) and ln(q / m); 0 where the weight beside it is.
    #[inline(always)]
    fn mixture_ratios(&self, p: L, q: L, a: L) -> (L, L) {
        let zero = p.fill(L::Scalar::ZERO);
        let (mass, both) = (p.add(q), jensen(a));
        // Where one of the two is 0 the other is all of the mixture, and a is infinite.
        let of_p = q.select_equal(zero, both, a.mul(q.div(mass)).add(both));
        let of_q = p.select_equal(zero, both, both.sub(a.mul(p.div(mass))));
        (p.select_equal(zero, zero, of_p), q.select_equal(zero, zero, of_q))
    }

    /// The derivatives by p's and by q's logits, before the temperature.
    #[inline(always)]
    fn derivatives(&self, p_logits: L, q_logits: L) -> (L, L) {
        let zero = p_logits.fill(L::Scalar::ZERO);
        let (p, q, a) = self.probabilities(p_logits, q_logits);
        let (of_p, of_q) = match self.rule {
            Rule::Kl => (p.select_equal(zero, zero, p.mul(a.sub(self.centres[0]))), q.sub(p)),
            Rule::Jensen => {
                let (p_ratio, q_ratio) = self.mixture_ratios(p, q, a);
                let half = p.fill(L::Scalar::from_f64(0.5));
                (p.mul(half).mul(p_ratio.sub(self.centres[0])), q.mul(half).mul(q_ratio.sub(self.centres[1])))
            }
        };
        (of_p.mul(self.factor), of_q.mul(self.factor))
    }
}

/// KL(p||m) and KL(q||m) of a pair of rows, m their mean.
pub(crate) struct MixtureRow<'j, 'a, E: Element> {
    pub(crate) gradient: &'j PairGradient,
    pub(crate) rows: [RowView<'a, E>; 2],
    pub(crate) scratch: &'j mut [LeafScratch<E>; 2],
}

impl<E: Element> Job for MixtureRow<'_, '_, E> {
    type Output = [f64; 2];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f64; 2] {
        let [p_scratch, q_scratch] = self.scratch;
        let wide = Wide::new(self.gradient, |value| E::splat(simd, E::Compute::from_f64(value)));
        let mut totals = [simd.splat_f64(0.0); 2];
        for index in 0..self.rows[0].leaf_count() {
            let p_leaf = self.rows[0].leaf(index, &mut p_scratch.columns);
            let q_leaf = self.rows[1].leaf(index, &mut q_scratch.columns);
            for block in 0..p_leaf.blocks() {
                let mut sums = [E::splat(simd, E::Compute::ZERO); 2];
                for vector in 0..BLOCK_VECTORS {
                    let logits = (p_leaf.block(block).load(simd, vector), q_leaf.block(block).load(simd, vector));
                    let (p, q, a) = wide.probabilities(logits.0, logits.1);
                    let (p_ratio, q_ratio) = wide.mixture_ratios(p, q, a);
                    sums = [p.mul_add(p_ratio, sums[0]), q.mul_add(q_ratio, sums[1])];
                }
                totals = [totals[0].add(E::total(simd, sums[0])), totals[1].add(E::total(simd, sums[1]))];
            }
        }
        totals.map(Lanes::sum_lanes)
    }
}

/// The gradients of a pair of rows that lie in memory, those that have a place.
pub(crate) struct PairGradientRow<'j, 'a, E: Element> {
    pub(crate) gradient: &'j PairGradient,
    pub(crate) rows: [RowView<'a, E>; 2],
    pub(crate) scratch: &'j mut [LeafScratch<E>; 2],
    /// A place for each column.
    pub(crate) outs: [Option<&'j mut [E]>; 2],
}

impl<E: Element> Job for PairGradientRow<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let [p_scratch, q_scratch] = self.scratch;
        let wide = Wide::new(self.gradient, |value| E::splat(simd, E::Compute::from_f64(value)));
        for index in 0..self.rows[0].leaf_count() {
            let p_leaf = self.rows[0].leaf(index, &mut p_scratch.columns);
            let q_leaf = self.rows[1].leaf(index, &mut q_scratch.columns);
            let (p_made, q_made) = (&mut p_scratch.capped, &mut q_scratch.capped);
            let columns = index * LEAF..index * LEAF + p_leaf.columns();
            for block in 0..p_leaf.blocks() {
                for vector in 0..BLOCK_VECTORS {
                    let logits = (p_leaf.block(block).load(simd, vector), q_leaf.block(block).load(simd, vector));
                    let (of_p, of_q) = wide.derivatives(logits.0, logits.1);
                    let first = block * BLOCK + vector * LANES;
                    p_made[first..first + LANES].copy_from_slice(&of_p.to_array());
                    q_made[first..first + LANES].copy_from_slice(&of_q.to_array());
                }
            }
            for (out, made) in self.outs.iter_mut().zip([p_made, q_made]) {
                if let Some(out) = out {
                    E::narrow_all(&made[..columns.len()], &mut out[columns.clone()]);
                }
            }
        }
    }
}

/// Whole blocks of one side's logits become derivatives, beside the other side's; padding 0.
pub(crate) struct DifferentiatePair<'j, F> {
    pub(crate) gradient: &'j PairGradient,
    /// Whether the logits to change are q's.
    pub(crate) is_q: bool,
    /// Of the logits to change, whose derivative is multiplied in.
    pub(crate) softcap: Option<f64>,
    pub(crate) logits: &'j mut [F],
    pub(crate) others: &'j [F],
    /// Columns that are not padding.
    pub(crate) columns: usize,
}

impl<F: Float + Element<Compute = F>> Job for DifferentiatePair<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let splat = |value: f64| F::splat(simd, F::from_f64(value));
        let wide = Wide::new(self.gradient, splat);
        let inverse_cap = self.softcap.map(|cap| splat(1.0 / cap));
        for (block, others) in self.logits.chunks_exact_mut(BLOCK).zip(self.others.chunks_exact(BLOCK)) {
            for vector in 0..BLOCK_VECTORS {
                let mine = Lent::from_slice(&*block).block(0).load(simd, vector);
                let other = Lent::from_slice(others).block(0).load(simd, vector);
                let mut made =
                    if self.is_q { wide.derivatives(other, mine).1 } else { wide.derivatives(mine, other).0 };
                if let Some(inverse_cap) = inverse_cap {
                    let capped = mine.mul(inverse_cap);
                    made = made.mul(capped.neg_mul_add(capped, splat(1.0)));
                }
                block[vector * LANES..][..LANES].copy_from_slice(&made.to_array());
            }
        }
        self.logits[self.columns..].fill(F::ZERO);
    }
}
