//! The definition: plain float64 loops, readable in one sitting. Every fast path is held to it; nothing fast uses it.

use crate::output::{Flags, RowStats};

/// All statistics of one row. `target` is `None` without one; an ignored row is never given to this function.
///
/// z = softcap(logit) / temperature; p = softmax(z).
pub fn row_stats(logits: &[f64], target: Option<usize>, temperature: f64, softcap: Option<f64>) -> RowStats {
    let cap = |logit: f64| softcap.map_or(logit, |cap| cap * (logit / cap).tanh());
    let z: Vec<f64> = logits.iter().map(|&logit| cap(logit) / temperature).collect();
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if z.iter().any(|value| value.is_nan()) {
        return RowStats::undefined(f64::NAN, f64::NAN, Flags::NAN);
    }
    if max == f64::INFINITY {
        return RowStats::undefined(max, max, Flags::POSINF);
    }
    if max == f64::NEG_INFINITY {
        return RowStats::undefined(max, max, Flags::ALL_NEGINF);
    }
    let argmax = z.iter().position(|&value| value == max).expect("the largest is one of them");
    // The largest is left out, so that ln(1 + rest) is exact where it dominates.
    let rest = sum(others(&z, argmax).map(|value| (value - max).exp()));
    let log_mass = rest.ln_1p();
    let probability = |value: f64| (value - max).exp() / (1.0 + rest);
    let weighted = |of: &dyn Fn(f64) -> f64| -> f64 {
        // Probability 0 takes part in no sum: 0 times infinity is 0 here.
        sum(z.iter().filter(|&&value| probability(value) > 0.0).map(|&value| probability(value) * of(value)))
    };
    let mean_drop = weighted(&|value| max - value);
    let second = others(&z, argmax).fold(f64::NEG_INFINITY, f64::max);
    let mut stats = RowStats {
        lse: max + log_mass,
        entropy: log_mass + mean_drop,
        varentropy: weighted(&|value| (max - value - mean_drop).powi(2)),
        sum_sq_prob: weighted(&probability),
        max_logit: max,
        max_log_prob: -log_mass,
        margin: max - second,
        argmax: argmax as i64,
        ..RowStats::EMPTY
    };
    if let Some(target) = target {
        stats.nll = (max - z[target]) + log_mass;
        stats.log_prob = -stats.nll;
        stats.rank = 1 + z.iter().filter(|&&value| value > z[target]).count() as i64;
        stats.ties = z.iter().filter(|&&value| value == z[target]).count() as i64 - 1;
        if z[target] == f64::NEG_INFINITY {
            stats.flags = Flags::TARGET_NEGINF;
        } else if stats.nll == f64::INFINITY {
            stats.flags = Flags::OVERFLOW;
        }
    }
    stats
}

/// A sum that carries its rounding errors along (Neumaier 1974), so that long rows are a reference too.
fn sum(terms: impl Iterator<Item = f64>) -> f64 {
    let (mut total, mut lost) = (0.0f64, 0.0f64);
    for term in terms {
        let next = total + term;
        lost += if total.abs() >= term.abs() { (total - next) + term } else { (term - next) + total };
        total = next;
    }
    total + lost
}

fn others(z: &[f64], column: usize) -> impl Iterator<Item = f64> {
    z.iter().enumerate().filter(move |&(i, _)| i != column).map(|(_, &value)| value)
}

/// KL(p||q) of the softmaxes of two finite rows: sum p (b + expm1(-b)) with b = ln p - ln q, whose terms are at least 0.
pub fn kl_divergence(p_logits: &[f64], q_logits: &[f64], temperature: f64) -> f64 {
    let p = row_stats(p_logits, None, temperature, None);
    let q = row_stats(q_logits, None, temperature, None);
    let log_prob = |logit: f64, row: &RowStats| (logit / temperature - row.max_logit) + row.max_log_prob;
    sum(p_logits.iter().zip(q_logits).map(|(&p_logit, &q_logit)| {
        let b = log_prob(p_logit, &p) - log_prob(q_logit, &q);
        log_prob(p_logit, &p).exp() * (b + (-b).exp_m1())
    }))
}
