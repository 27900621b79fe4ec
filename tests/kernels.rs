//! Every kernel on every instruction set, each dtype, vocabularies on both sides of lane, block and leaf edges, held to
//! the plain reference. A new kernel is one more line of `kernels!`.

mod support;

use half::{bf16, f16};
use support::{Random, Stored, lse_bound};
use xentrs::{
    Execution, Float, Isa, LogitsView, Options, Targets, TemperedOptions, kl_divergence, reference, renyi_entropy,
    row_stats, temperature_grid, tempered_row_stats,
};

const VOCABS: [usize; 28] = [
    1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1000, 4095, 4096, 4097, 8192,
    8193, 49_152,
];
const SCALES: [f64; 4] = [0.1, 2.0, 10.0, 60.0];

fn execution(isa: Isa) -> Execution {
    Execution { isa: Some(isa), num_threads: Some(1) }
}

fn assert_near(name: &str, got: f64, expected: f64, tolerance: f64, context: &str) {
    let is_near = got == expected || (got - expected).abs() <= tolerance;
    assert!(is_near, "{name}: {got:e}, expected {expected:e} within {tolerance:e}; {context}");
}

/// Row statistics, with and without soft cap and temperature.
fn check_row_stats<E: Stored>(isa: Isa, vocab: usize, scale: f64, random: &mut Random) {
    let unit = E::Compute::UNIT_ROUNDOFF;
    let logits: Vec<E> = random.row(vocab, scale);
    let exact: Vec<f64> = logits.iter().map(|&logit| logit.exact()).collect();
    let target = random.below(vocab);
    for (temperature, softcap) in [(1.0, None), (0.7, None), (2.0, Some(30.0))] {
        let options =
            Options { temperature, softcap, top_k: vocab.min(5), execution: execution(isa), ..Options::default() };
        let view = LogitsView::from_slice(&logits, 1, vocab).unwrap();
        let targets = Targets::new([target as i64], vocab, -100).unwrap();
        let got = row_stats(&view, Some(&targets), &options).unwrap();
        let expected = reference::row_stats(&exact, Some(target), temperature, softcap);
        let context = format!("{isa} {} vocab {vocab} scale {scale} T {temperature} cap {softcap:?}", E::NAME);
        // Scaling rounds each logit: an error of a few ulps of the largest.
        let spread = exact.iter().fold(0.0f64, |largest, logit| largest.max(logit.abs())) / temperature;
        let scaled = if temperature == 1.0 && softcap.is_none() { 0.0 } else { 8.0 * unit * spread };
        let bound = lse_bound::<E>(vocab, expected.lse) + scaled;
        assert_near("lse", got.lse[0], expected.lse, bound, &context);
        assert_near("nll", got.nll[0], expected.nll, bound, &context);
        assert_near("max_logit", got.max_logit[0], expected.max_logit, scaled, &context);
        assert_near("margin", got.margin[0], expected.margin, 2.0 * scaled, &context);
        assert_near("max_log_prob", got.max_log_prob[0], expected.max_log_prob, bound, &context);
        // Entropy adds the mean distance to the largest, whose terms carry the same relative errors.
        let entropy_bound = 8.0 * unit * (2.0 + (vocab as f64).ln()) + 4.0 * scaled;
        assert_near("entropy", got.entropy[0], expected.entropy, entropy_bound, &context);
        let varentropy_bound = 2f64.powi(7) * entropy_bound * (1.0 + expected.varentropy);
        assert_near("varentropy", got.varentropy[0], expected.varentropy, varentropy_bound, &context);
        assert_near("sum_sq_prob", got.sum_sq_prob[0], expected.sum_sq_prob, 2.0 * bound, &context);
        if softcap.is_none() {
            assert_eq!(
                (got.argmax[0], got.rank[0], got.ties[0]),
                (expected.argmax, expected.rank, expected.ties),
                "{context}"
            );
            assert_eq!(got.top_ids[0], expected.argmax, "{context}");
        }
    }
}

fn check_kl<E: Stored>(isa: Isa, vocab: usize, scale: f64, random: &mut Random) {
    let unit = E::Compute::UNIT_ROUNDOFF;
    let p: Vec<E> = random.row(vocab, scale);
    for nearness in [0.0, 1e-3, 0.1, 1.0] {
        let q: Vec<E> = p.iter().map(|&logit| E::round(logit.exact() + random.normal(scale * nearness))).collect();
        let view = |logits| LogitsView::<E>::from_slice(logits, 1, vocab).unwrap();
        let got = kl_divergence(&view(&p), &view(&q), 1.0, &execution(isa)).unwrap().kl_divergence[0];
        let exact = |logits: &[E]| logits.iter().map(|&logit| logit.exact()).collect::<Vec<_>>();
        let (p_exact, q_exact) = (exact(&p), exact(&q));
        let expected = reference::kl_divergence(&p_exact, &q_exact, 1.0);
        let context = format!("{isa} {} vocab {vocab} scale {scale} nearness {nearness}", E::NAME);
        // d is rounded once, by at most its size times the unit; what it adds is weighted by |p - q|, which is at most
        // sqrt(2 KL) (Pinsker), and by e^d, which keeps the size of d near ln V.
        let size = p_exact.iter().chain(&q_exact).fold(1.0f64, |largest, logit| largest.max(2.0 * logit.abs()));
        let weight = (2.0 * expected).sqrt().min(2.0) + expected;
        let bound = 4.0 * unit * size * weight + 8.0 * unit * (2.0 + (vocab as f64).ln()) * expected + 1e-13 * weight;
        assert_near("kl", got, expected, bound, &context);
    }
}

/// Allowed errors of lse, mean, variance and entropy at b, from the relative error u (23 + 3 b d) of a weight e^(-b d),
/// d the distance from the largest z: d, b and their product are rounded, exp adds 2 u, and each of up to three
/// squarings doubles what is there and adds u. Moments move with the weights' errors, and u for each d, product and
/// addition.
fn tempered_bounds(z: &[f64], b: f64, unit: f64) -> [f64; 4] {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let largest = z.iter().fold(1.0f64, |largest, value| largest.max(value.abs()));
    let scaled: Vec<f64> = z.iter().map(|value| b * value).collect();
    let log_p = reference::log_probs(&scaled, 1.0, None);
    let entropy = reference::row_stats(&scaled, None, 1.0, None).entropy;
    let mean = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        z.iter().zip(&log_p).map(|(value, log_p)| log_p.exp() * of(max - value, *log_p)).sum()
    };
    let weight_error = |gap: f64| 23.0 + 3.0 * b * gap;
    let mean_gap = mean(&|gap, _| gap);
    let variance = mean(&|gap, _| (gap - mean_gap) * (gap - mean_gap));
    // The reference rounds z, b z and the mean to float64; what that is in each z moves the moments by so much.
    let (of_z, spread) = (4.0 * f64::EPSILON * largest, variance.sqrt());
    // Below the range of exp a weight is 0: at most 1e-30 of the widest gap is lost.
    let lost = 1e-30 * (max + largest);
    let wide = 8.0 * f64::EPSILON * (b.max(1.0) * largest + 1.0);
    [
        unit * (mean(&|gap, _| weight_error(gap)) + (z.len() as f64 + 1.0).log2()) + wide,
        unit * mean(&|gap, _| weight_error(gap) * (gap - mean_gap).abs() + 3.0 * gap) + wide + lost + of_z * b * spread,
        unit * mean(&|gap, _| (7.0 + weight_error(gap)) * gap * gap)
            + lost * (max + largest)
            + of_z * (2.0 * b * variance + 2.0 * spread + of_z),
        unit * (mean(&|gap, log_p| weight_error(gap) * (log_p + entropy).abs() + 3.0 * b * gap) + entropy + 1.0)
            + lost
            + wide
            + of_z * b * b * spread,
    ]
}

/// Moments, Renyi entropies and a grid beside row statistics: near the reference, and with the bits of their own
/// functions.
fn check_tempered<E: Stored>(isa: Isa, vocab: usize, scale: f64, random: &mut Random) {
    const ORDERS: [f64; 5] = [0.5, 2.0, 1.0, f64::INFINITY, 0.0];
    const GRID: [f64; 5] = [0.0, 0.5, 1.0, 2.0, 3.3];
    let unit = E::Compute::UNIT_ROUNDOFF.max(2.0 * f64::EPSILON); // the reference is no better than float64
    let logits: Vec<E> = random.row(vocab, scale);
    let targets = Targets::new([random.below(vocab) as i64], vocab, -100).unwrap();
    let view = LogitsView::from_slice(&logits, 1, vocab).unwrap();
    for (temperature, softcap) in [(1.0, None), (0.7, None), (2.0, Some(30.0))] {
        let options =
            Options { temperature, softcap, top_k: vocab.min(5), execution: execution(isa), ..Options::default() };
        let wanted = TemperedOptions { moments: true, renyi_orders: &ORDERS, inverse_temperatures: &GRID };
        let (stats, found) = tempered_row_stats(&view, Some(&targets), &wanted, &options).unwrap();
        let context = format!("{isa} {} vocab {vocab} scale {scale} T {temperature} cap {softcap:?}", E::NAME);
        let plain = row_stats(&view, Some(&targets), &options).unwrap();
        assert_eq!(format!("{stats:?}"), format!("{plain:?}"), "{context}");
        let grid = temperature_grid(&view, Some(&targets), &GRID, &options).unwrap();
        assert_eq!(format!("{:?}", found.temperature_grid), format!("{grid:?}"), "{context}");
        let (renyi, _) = renyi_entropy(&view, &ORDERS, &options).unwrap();
        assert_eq!(found.renyi_entropy, renyi, "{context}");
        if softcap.is_some() {
            continue; // the bounds have no term for it
        }
        let z: Vec<f64> = logits.iter().map(|&logit| logit.exact() / temperature).collect();
        let bounds = |b| tempered_bounds(&z, b, unit);
        for (place, b) in GRID.into_iter().enumerate() {
            let expected = reference::tempered(&z, b, 1.0, None);
            let got = [&grid.lse, &grid.mean, &grid.variance, &grid.entropy].map(|values| values[place]);
            for (field, name) in ["grid lse", "grid mean", "grid variance", "grid entropy"].into_iter().enumerate() {
                assert_near(name, got[field], expected[field], bounds(b)[field], &format!("{context} b {b}"));
            }
        }
        let ([lse, _, _, entropy], [_, mean, variance, _]) = (bounds(1.0), bounds(0.0));
        let [expected_mean, expected_variance] = reference::log_prob_moments(&z, 1.0, None);
        assert_near("log_prob_mean", found.log_prob_mean[0], expected_mean, mean + lse, &context);
        assert_near("log_prob_variance", found.log_prob_variance[0], expected_variance, variance, &context);
        for (&order, &value) in ORDERS.iter().zip(&renyi) {
            let bound = match order {
                1.0 => entropy,
                f64::INFINITY => lse,
                _ => (bounds(order)[0] + order * lse) / (1.0 - order).abs(),
            };
            let expected = reference::renyi_entropy(&z, order, 1.0, None);
            assert_near("renyi_entropy", value, expected, bound, &format!("{context} order {order}"));
        }
    }
}

macro_rules! kernels {
    ($($name:ident: $check:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                for isa in Isa::available() {
                    let mut random = Random(0x5eed);
                    for vocab in VOCABS {
                        for scale in SCALES {
                            $check::<f32>(isa, vocab, scale, &mut random);
                            $check::<f64>(isa, vocab, scale, &mut random);
                            $check::<f16>(isa, vocab, scale, &mut random);
                            $check::<bf16>(isa, vocab, scale, &mut random);
                        }
                    }
                    println!("{}: {isa} checked", stringify!($name));
                }
                for name in ["scalar", "avx2", "avx512"] {
                    if Isa::named(name).is_err() {
                        println!("{}: {name} SKIPPED, this machine lacks it", stringify!($name));
                    }
                }
            }
        )+
    };
}
kernels! {
    row_stats_holds_to_the_reference: check_row_stats,
    kl_divergence_holds_to_the_reference: check_kl,
    tempered_row_stats_hold_to_the_reference: check_tempered,
}

#[test]
fn a_misaligned_start_changes_no_bit() {
    let mut random = Random(0x5eed);
    let logits: Vec<f32> = random.row(10_007, 4.0);
    for isa in Isa::available() {
        let options = Options { execution: execution(isa), ..Options::default() };
        let whole = row_stats(&LogitsView::from_slice(&logits[3..10_003], 1, 10_000).unwrap(), None, &options).unwrap();
        let copy = logits[3..10_003].to_vec();
        let moved = row_stats(&LogitsView::from_slice(&copy, 1, 10_000).unwrap(), None, &options).unwrap();
        assert_eq!(whole.lse, moved.lse);
        assert_eq!(whole.varentropy, moved.varentropy);
    }
}
