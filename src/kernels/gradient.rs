//! The derivative of a row's quantity with respect to its logits, made in place of the logits; and weights e^d, likewise.
//!
//! With p = softmax(z), z = c / temperature and c the logit after the soft cap, d = z less the largest:
//! d loss / d z_v = lse_factor p_v - (1 - e) [v = target] - e / vocab, and d entropy / d z_v = -p_v (ln p_v + entropy), both times
//! d z / d logit.

use super::linear::Arithmetic;
use super::rows::change_leaf;
use crate::input::{LEAF, LeafScratch, RowView};
use crate::simd::lent::{BLOCK, BLOCK_VECTORS, Lent};
use crate::simd::math::exp_or_zero;
use crate::simd::tiles::Operand;
use crate::simd::{Element, Float, Job, LANES, Lanes, Simd};

/// What turns a row's logits into derivatives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowGradient {
    pub(crate) inverse_temperature: f64,
    /// Largest logit, divided by the temperature.
    pub(crate) max_logit: f64,
    /// Its probability times the derivative of the quantity by the log-sum-exp.
    pub(crate) max_share: f64,
    /// Factor of d e^d, which the entropy has.
    pub(crate) bend: Option<f64>,
    /// Subtracted everywhere, times the class weight if there are any: the smoothing of a column.
    pub(crate) even_share: f64,
    pub(crate) softcap: Option<f64>,
    /// The target's column and its derivative before the soft cap, which a difference would lose next to a certainty.
    pub(crate) target: Option<(usize, f64)>,
}

impl RowGradient {
    /// The gradient of `factor` times the quantity.
    pub(crate) fn times(self, factor: f64) -> Self {
        Self {
            max_share: self.max_share * factor,
            bend: self.bend.map(|bend| bend * factor),
            even_share: self.even_share * factor,
            target: self.target.map(|(column, derivative)| (column, derivative * factor)),
            ..self
        }
    }
}

/// Whole blocks of logits become derivatives by z times that of the soft cap.
pub(crate) struct Differentiate<'j, F> {
    pub(crate) row: &'j RowGradient,
    /// A weight for each logit.
    pub(crate) class_weights: Option<&'j [F]>,
    pub(crate) logits: &'j mut [F],
    /// Column of the first.
    pub(crate) start: usize,
    /// Columns that are not padding.
    pub(crate) columns: usize,
}

impl<F: Float + Element<Compute = F>> Job for Differentiate<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let splat = |value: f64| F::splat(simd, F::from_f64(value));
        let scale = splat(self.row.inverse_temperature);
        // The largest logit itself again: a difference of scaled ones would keep the rounding of the scale.
        let largest = splat(self.row.max_logit / self.row.inverse_temperature);
        let (share, even, zero) = (splat(self.row.max_share), splat(self.row.even_share), splat(0.0));
        let bend = self.row.bend.map(splat);
        let inverse_cap = self.row.softcap.map(|cap| 1.0 / cap);
        let slope = |logit: f64| inverse_cap.map_or(1.0, |inverse| 1.0 - (logit * inverse) * (logit * inverse));
        let inverse_caps = inverse_cap.map(splat);
        let target = self.row.target.and_then(|(column, derivative)| {
            let place = column.checked_sub(self.start).filter(|place| *place < self.columns)?;
            Some((place, F::from_f64(derivative * slope(self.logits[place].into()))))
        });
        for (index, block) in self.logits.chunks_exact_mut(BLOCK).enumerate() {
            for vector in 0..BLOCK_VECTORS {
                let logits = Lent::from_slice(&*block).block(0).load(simd, vector);
                // In float64 the largest logit is rounded, so the difference may pass 0 by a rounding error.
                let d = logits.sub(largest).mul(scale);
                let d = zero.select_less(d, zero, d);
                let weight = exp_or_zero(d);
                let pull = match bend {
                    // A weight of 0 stands beside an infinite d.
                    Some(bend) => weight.select_equal(zero, zero, d.mul_add(bend, share).mul(weight)),
                    None => weight.mul(share),
                };
                let mut derivatives = match self.class_weights {
                    Some(weights) => {
                        Lent::from_slice(&weights[index * BLOCK..]).block(0).load(simd, vector).neg_mul_add(even, pull)
                    }
                    None => pull.sub(even),
                };
                if let Some(inverse_caps) = inverse_caps {
                    let capped = logits.mul(inverse_caps);
                    derivatives = derivatives.mul(capped.neg_mul_add(capped, splat(1.0)));
                }
                block[vector * LANES..][..LANES].copy_from_slice(&derivatives.to_array());
            }
        }
        if let Some((place, derivative)) = target {
            self.logits[place] = derivative;
        }
        self.logits[self.columns..].fill(F::ZERO);
    }
}

/// One row of logits that lie in memory, read once more for its gradient.
pub(crate) struct GradientRow<'j, 'a, E: Element> {
    pub(crate) row: RowView<'a, E>,
    pub(crate) gradient: &'j RowGradient,
    /// As whole leaves.
    pub(crate) class_weights: Option<&'j [E::Compute]>,
    pub(crate) scratch: &'j mut LeafScratch<E>,
    /// A place for each column.
    pub(crate) out: &'j mut [E],
}

impl<E: Element> Job for GradientRow<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let LeafScratch { columns, capped } = self.scratch;
        for (index, out) in self.out.chunks_mut(LEAF).enumerate() {
            let leaf = self.row.leaf(index, columns);
            change_leaf(simd, &leaf, self.gradient.softcap, &[], index, capped);
            let whole = leaf.blocks() * BLOCK;
            let differentiate = Differentiate {
                row: self.gradient,
                class_weights: self.class_weights.map(|weights| &weights[index * LEAF..][..whole]),
                logits: &mut capped[..whole],
                start: index * LEAF,
                columns: leaf.columns(),
            };
            differentiate.run(simd);
            E::narrow_all(&capped[..out.len()], out);
        }
    }
}

/// Derivatives times the row's factor: rounded to operands, and added to the sums of their columns.
pub(crate) struct Round<'j, O: Operand> {
    pub(crate) factor: f64,
    pub(crate) derivatives: &'j [O::Compute],
    pub(crate) operands: &'j mut [O],
    pub(crate) column_sums: &'j mut [f64],
}

impl<O: Operand<Compute: Arithmetic>> Job for Round<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let factor = O::Compute::from_f64(self.factor);
        let places = self.operands.iter_mut().zip(self.column_sums);
        for (derivative, (operand, sum)) in self.derivatives.iter().zip(places) {
            let scaled = Arithmetic::affine(*derivative, None, factor);
            *operand = O::narrow(scaled);
            *sum += scaled.into();
        }
    }
}

/// Rows of derivatives as columns: `target[column][row]`, whose rows are as long as it takes.
pub(crate) struct Transpose<'j, O> {
    pub(crate) source: &'j [O],
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) target: &'j mut [O],
    pub(crate) columns: usize,
}

impl<O: Copy> Job for Transpose<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let length = self.target.len() / self.columns;
        for first in (0..self.rows).step_by(LANES) {
            for (column, target) in self.target.chunks_exact_mut(length).enumerate() {
                for (i, place) in target[first..].iter_mut().take(LANES.min(self.rows - first)).enumerate() {
                    *place = self.source[(first + i) * self.stride + column];
                }
            }
        }
    }
}

/// Whole blocks of logits become e^d, d their distance from the largest of them, padding 0; that largest and their sum.
pub(crate) struct Weigh<'j, F> {
    pub(crate) logits: &'j mut [F],
    pub(crate) inverse_temperature: f64,
}

impl<F: Arithmetic> Job for Weigh<'_, F> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> (f64, f64) {
        let mut max = F::splat(simd, F::NEG_INFINITY);
        for block in self.logits.chunks_exact(BLOCK) {
            for vector in 0..BLOCK_VECTORS {
                max = Lent::from_slice(block).block(0).load(simd, vector).max(max);
            }
        }
        let max = max.max_lane();
        let reference = F::splat(simd, if max == F::NEG_INFINITY { F::ZERO } else { max });
        let scale = F::splat(simd, F::from_f64(self.inverse_temperature));
        let mut total = simd.splat_f64(0.0);
        for block in self.logits.chunks_exact_mut(BLOCK) {
            let mut sum = F::splat(simd, F::ZERO);
            for vector in 0..BLOCK_VECTORS {
                let logits = Lent::from_slice(&*block).block(0).load(simd, vector);
                let weight = exp_or_zero(logits.sub(reference).mul(scale));
                sum = sum.add(weight);
                block[vector * LANES..][..LANES].copy_from_slice(&weight.to_array());
            }
            total = total.add(F::total(simd, sum));
        }
        (max.into(), total.sum_lanes())
    }
}

/// Weights as operands: the nearest, and the nearest to what is left.
pub(crate) struct Split<'j, O: Operand> {
    pub(crate) weights: &'j [O::Compute],
    pub(crate) high: &'j mut [O],
    pub(crate) low: &'j mut [O],
}

impl<O: Operand<Compute: Arithmetic>> Job for Split<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for ((&weight, high), low) in self.weights.iter().zip(self.high).zip(self.low) {
            *high = O::narrow(weight);
            *low = O::narrow(Arithmetic::less(weight, high.widen()));
        }
    }
}
