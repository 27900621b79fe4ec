//! The definition: plain float64 loops, readable in one sitting. Every fast path is held to it; nothing fast uses it.

use crate::ops::LossOptions;
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

/// ln softmax of each column of a row that has a distribution.
pub fn log_probs(logits: &[f64], temperature: f64, softcap: Option<f64>) -> Vec<f64> {
    let cap = |logit: f64| softcap.map_or(logit, |cap| cap * (logit / cap).tanh());
    let row = row_stats(logits, None, temperature, softcap);
    logits.iter().map(|&logit| (cap(logit) / temperature - row.max_logit) + row.max_log_prob).collect()
}

/// Mean and variance of ln p over the vocabulary of a finite row, every column with the same weight.
pub fn log_prob_moments(logits: &[f64], temperature: f64, softcap: Option<f64>) -> [f64; 2] {
    let (log_probs, vocab) = (log_probs(logits, temperature, softcap), logits.len() as f64);
    let mean = sum(log_probs.iter().copied()) / vocab;
    [mean, sum(log_probs.iter().map(|value| (value - mean).powi(2))) / vocab]
}

/// ln(sum p^a) / (1 - a), for a = 1 the entropy, for a = inf -ln of the largest probability.
pub fn renyi_entropy(logits: &[f64], order: f64, temperature: f64, softcap: Option<f64>) -> f64 {
    let row = row_stats(logits, None, temperature, softcap);
    if order == 1.0 || order == f64::INFINITY {
        return if order == 1.0 { row.entropy } else { -row.max_log_prob };
    }
    let powers = log_probs(logits, temperature, softcap).into_iter().map(|value| (order * value).exp());
    sum(powers).ln() / (1.0 - order)
}

/// ln sum e^(b z), mean and variance of z under softmax(b z), and its entropy, for a finite row.
pub fn tempered(logits: &[f64], inverse_temperature: f64, temperature: f64, softcap: Option<f64>) -> [f64; 4] {
    let cap = |logit: f64| softcap.map_or(logit, |cap| cap * (logit / cap).tanh());
    let z: Vec<f64> = logits.iter().map(|&logit| cap(logit) / temperature).collect();
    let scaled: Vec<f64> = z.iter().map(|value| inverse_temperature * value).collect();
    let row = row_stats(&scaled, None, 1.0, None);
    let p: Vec<f64> = log_probs(&scaled, 1.0, None).into_iter().map(f64::exp).collect();
    let mean = sum(p.iter().zip(&z).map(|(p, z)| p * z));
    let variance = sum(p.iter().zip(&z).map(|(p, z)| p * (z - mean).powi(2)));
    [row.lse, mean, variance, row.entropy]
}

/// What turns a derivative by z into one by the logit.
fn slope(logit: f64, temperature: f64, softcap: Option<f64>) -> f64 {
    softcap.map_or(1.0, |cap| 1.0 - (logit / cap).tanh().powi(2)) / temperature
}

/// The gradient of one row's loss, w_t (1 - e) nll + e / vocab sum_v w_v (lse - z_v) + z_loss lse^2, by its logits.
pub fn loss_gradient(
    logits: &[f64],
    target: usize,
    settings: &LossOptions<'_>,
    temperature: f64,
    softcap: Option<f64>,
) -> Vec<f64> {
    let weight = |column: usize| settings.class_weights.map_or(1.0, |weights| weights[column]);
    let even_share = settings.label_smoothing / logits.len() as f64;
    let likelihood_share = weight(target) * (1.0 - settings.label_smoothing);
    let lse = row_stats(logits, None, temperature, softcap).lse;
    let weight_sum = sum((0..logits.len()).map(weight));
    let log_probs = log_probs(logits, temperature, softcap);
    let derivative = |column: usize| {
        let p = log_probs[column].exp();
        let of_nll = if column == target { log_probs[column].exp_m1() } else { p };
        let of_even = weight_sum * p - weight(column);
        let of_z_loss = 2.0 * lse * p;
        let by_z = likelihood_share * of_nll + even_share * of_even + settings.z_loss * of_z_loss;
        by_z * slope(logits[column], temperature, softcap)
    };
    (0..logits.len()).map(derivative).collect()
}

/// The gradient of a row's log-sum-exp: p.
pub fn logsumexp_gradient(logits: &[f64], temperature: f64, softcap: Option<f64>) -> Vec<f64> {
    let log_probs = log_probs(logits, temperature, softcap);
    log_probs.iter().zip(logits).map(|(p, &logit)| p.exp() * slope(logit, temperature, softcap)).collect()
}

/// The gradient of a row's entropy: -p (ln p + entropy).
pub fn entropy_gradient(logits: &[f64], temperature: f64, softcap: Option<f64>) -> Vec<f64> {
    let entropy = row_stats(logits, None, temperature, softcap).entropy;
    let log_probs = log_probs(logits, temperature, softcap);
    let derivative = |(log_prob, logit): (&f64, &f64)| {
        let by_z = if *log_prob == f64::NEG_INFINITY { 0.0 } else { -log_prob.exp() * (log_prob + entropy) };
        by_z * slope(*logit, temperature, softcap)
    };
    log_probs.iter().zip(logits).map(derivative).collect()
}

/// The gradients of KL(p||q) of two finite rows, by the logits of p and of q.
pub fn kl_gradients(p_logits: &[f64], q_logits: &[f64], temperature: f64) -> [Vec<f64>; 2] {
    let divergence = kl_divergence(p_logits, q_logits, temperature);
    let (p, q) = (log_probs(p_logits, temperature, None), log_probs(q_logits, temperature, None));
    let pairs = || p.iter().zip(&q);
    [
        pairs().map(|(p, q)| p.exp() * (p - q - divergence) / temperature).collect(),
        pairs().map(|(p, q)| (q.exp() - p.exp()) / temperature).collect(),
    ]
}

/// The gradients of the Jensen-Shannon divergence of two finite rows: p (ln(p/m) - KL(p||m)) / 2, m the mean of p and q.
pub fn js_gradients(p_logits: &[f64], q_logits: &[f64], temperature: f64) -> [Vec<f64>; 2] {
    let (p, q) = (log_probs(p_logits, temperature, None), log_probs(q_logits, temperature, None));
    // ln(p/m) = -ln((1 + q/p) / 2)
    let ratio = |own: f64, other: f64| -((other - own).exp_m1() / 2.0).ln_1p();
    let of = |own: &[f64], other: &[f64]| -> Vec<f64> {
        let pairs = || own.iter().zip(other);
        let divergence = sum(pairs().map(|(&own, &other)| own.exp() * ratio(own, other)));
        pairs().map(|(&own, &other)| own.exp() * (ratio(own, other) - divergence) / 2.0 / temperature).collect()
    };
    [of(&p, &q), of(&q, &p)]
}
