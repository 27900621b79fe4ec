//! KL against a distribution of which only the k largest probabilities are kept.

use super::rows::capped;
use super::{Options, lent_rows, never, slots};
use crate::error::{Error, try_filled};
use crate::input::{LeafScratch, LogitsView, TopKDistribution};
use crate::kernels::rows::{Scan, ScanRow};
use crate::output::Flags;
use crate::run::{Interrupt, RowIn, RowWork, Source};
use crate::simd::{Element, Isa};
use crate::state::row::RowPartial;
use std::marker::PhantomData;
use std::ops::Range;

/// KL(p||q) over k columns and the rest of the vocabulary as one more: sum p ln(p / q) + p_rest ln(p_rest / q_rest), in nats.
/// It is at most the KL over all columns. One read of q: its rest is summed without the k columns, never by a difference.
///
/// # Errors
/// As [`row_stats`](crate::row_stats); [`Error::ShapeMismatch`] if there is not one distribution for each row.
pub fn top_k_kl_divergence<E: Element>(
    p: &TopKDistribution,
    q_logits: &LogitsView<'_, E>,
    options: &Options,
) -> Result<(Vec<f64>, Vec<u8>), Error> {
    top_k_kl_divergence_with(p, q_logits, options, &never)
}

pub(crate) fn top_k_kl_divergence_with<E: Element>(
    p: &TopKDistribution,
    q: &LogitsView<'_, E>,
    options: &Options,
    interrupt: Interrupt<'_>,
) -> Result<(Vec<f64>, Vec<u8>), Error> {
    let inverse_temperature = options.checked(q.vocab())?;
    if p.rows() != q.rows() {
        let (left_shape, right_shape) = (vec![p.rows()], vec![q.rows()]);
        return Err(Error::ShapeMismatch { left: "p_ids", left_shape, right: "the rows of q_logits", right_shape });
    }
    let (mut values, mut flags) = (try_filled(q.rows(), f64::NAN)?, try_filled(q.rows(), 0)?);
    let scan = Scan { inverse_temperature, softcap: options.softcap, all: false };
    let work = TailWork { p, q, scan, isa: options.execution.isa()?, slots: PhantomData };
    let source = lent_rows([q], &options.execution)?;
    source.run(&work, |size| slots(&mut values, &mut flags, size, 1), interrupt)?;
    Ok((values, flags))
}

struct TailWork<'w, 'a, 's, E: Element> {
    p: &'w TopKDistribution,
    q: &'w LogitsView<'a, E>,
    scan: Scan,
    isa: Isa,
    slots: PhantomData<fn(&'s ())>,
}

impl<E: Element> TailWork<'_, '_, '_, E> {
    fn divergence(&self, row: usize, rest: &RowPartial) -> (f64, Flags) {
        let scale = self.scan.inverse_temperature;
        let view = self.q.row(row);
        let z = |column| -> f64 { capped(self.isa, self.scan.softcap, view.logit(column).widen()).into() };
        let known: Vec<(f64, f64)> = self.p.row(row).map(|(column, log_p)| (log_p, z(column) * scale)).collect();
        let rest = rest.finish(None, scale);
        if rest.flags.contains(Flags::NAN) || known.iter().any(|(_, z)| z.is_nan()) {
            return (f64::NAN, Flags::NAN);
        }
        let largest = known.iter().map(|(_, z)| *z).fold(rest.lse, f64::max);
        if largest == f64::INFINITY {
            return (f64::NAN, Flags::POSINF);
        }
        if largest == f64::NEG_INFINITY {
            return (f64::NAN, Flags::ALL_NEGINF);
        }
        let mass = known.iter().map(|(_, z)| libm::exp(z - largest)).sum::<f64>() + libm::exp(rest.lse - largest);
        let lse = largest + libm::log(mass);
        // With no column left there is no rest, whatever the rounding of the probabilities leaves.
        let has_rest = known.len() < self.q.vocab();
        let p_rest = (1.0 - known.iter().map(|(log_p, _)| libm::exp(*log_p)).sum::<f64>()).max(0.0)
            * f64::from(u8::from(has_rest));
        let term = |p: f64, log_p: f64, z: f64| if p == 0.0 { 0.0 } else { p * (log_p - (z - lse)) };
        let sum: f64 = known.iter().map(|&(log_p, z)| term(libm::exp(log_p), log_p, z)).sum();
        let divergence = sum + term(p_rest, libm::log(p_rest), rest.lse);
        match divergence {
            f64::INFINITY => (divergence, Flags::SUPPORT),
            _ if divergence < 0.0 => (0.0, Flags::CLAMPED),
            _ => (divergence, Flags::default()),
        }
    }
}

impl<'s, E: Element> RowWork<E, 1> for TailWork<'_, '_, 's, E> {
    type Scratch = LeafScratch<E>;
    type Partial = RowPartial;
    type Slots = (&'s mut [f64], &'s mut [u8]);

    fn scratch(&self) -> LeafScratch<E> {
        LeafScratch::new()
    }

    fn partial(&self) -> RowPartial {
        RowPartial::new(0)
    }

    fn read(&self, row: RowIn<'_, E, 1>, leaves: Range<usize>, scratch: &mut LeafScratch<E>, partial: &mut RowPartial) {
        let without: Vec<usize> = self.p.row(row.index).map(|(column, _)| column).collect();
        let (scan, without, [row]) = (self.scan, without.as_slice(), row.views);
        self.isa.run(ScanRow { scan, row, leaves, target_logit: None, without, scratch, partial });
    }

    fn append(&self, partial: &mut RowPartial, following: &RowPartial) {
        partial.append(following);
    }

    fn clear(&self, partial: &mut RowPartial) {
        partial.clear();
    }

    fn write(&self, row: usize, partial: &RowPartial, (values, flags): &mut Self::Slots, index: usize) {
        let (value, row_flags) = self.divergence(row, partial);
        (values[index], flags[index]) = (value, row_flags.bits());
    }
}
