//! Every gradient of rows in memory on every instruction set, each dtype, vocabularies on both sides of lane, block and leaf
//! edges, held to the plain reference; the same bits for any threads and instruction set; special values; bad places.

mod support;

use half::{bf16, f16};
use support::{Random, Stored};
use xentrs::{
    Error, Execution, Float, Isa, Likelihood, LogitsView, LossOptions, LossTerms, Options, PairTerms, Targets,
    entropy_gradient, js_divergence, js_gradients, kl_divergence, kl_gradients, logsumexp_gradient, loss,
    loss_gradient, reference, row_stats,
};

const VOCABS: [usize; 12] = [1, 2, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 9001];
const SCALES: [f64; 3] = [0.1, 3.0, 40.0];
/// What a caller multiplies with; the gradients below are divided by it again.
const UPSTREAM: f64 = 0.75;

fn execution(isa: Isa) -> Execution {
    Execution { isa: Some(isa), num_threads: Some(1) }
}

/// Half an ulp of the storage type, relative, and the smallest number that it tells from 0.
fn storage<E: Stored>() -> (f64, f64) {
    match E::NAME {
        "float16" => (2f64.powi(-11), 2f64.powi(-25)),
        "bfloat16" => (2f64.powi(-8), 1e-40),
        "float32" => (2f64.powi(-24), 1e-45),
        _ => (2f64.powi(-53), 1e-300),
    }
}

/// A probability carries the rounding of its distance from the largest, that of the normaliser, and an ulp of exp: what
/// `parts` is multiplied with, the sizes of the terms that a derivative is made of.
struct Allowed {
    unit: f64,
    parts: Vec<f64>,
}

impl Allowed {
    fn new<E: Stored>(rows: &[&[f64]], temperature: f64, softcap: Option<f64>, extra: f64) -> Self {
        let largest = rows.iter().flat_map(|row| row.iter()).fold(1.0f64, |largest, logit| largest.max(logit.abs()));
        let size = largest / temperature;
        let unit = E::Compute::UNIT_ROUNDOFF * (16.0 + 8.0 * size + 2.0 * (rows[0].len() as f64).ln());
        let mut parts = vec![extra; rows[0].len()];
        for row in rows {
            let log_probs = reference::log_probs(row, temperature, softcap);
            // Logarithms of probabilities stand beside some of them.
            parts.iter_mut().zip(log_probs).for_each(|(part, log_prob)| *part += log_prob.exp() * (2.0 + 4.0 * size));
        }
        Self { unit, parts }
    }

    fn check<E: Stored>(&self, name: &str, got: &[E], expected: &[f64], context: &str) {
        let (relative, smallest) = storage::<E>();
        for (column, (got, expected)) in got.iter().zip(expected).enumerate() {
            let (got, expected) = (got.exact() / UPSTREAM, *expected);
            // Below -87.33 or -708.39 a weight counts as 0.
            let floor = if E::Compute::UNIT_ROUNDOFF > 1e-10 { 2e-38 * 400.0 } else { 0.0 };
            let bound = 2.0 * relative * expected.abs() + 2.0 * smallest + self.unit * self.parts[column] + floor;
            let is_near = (got - expected).abs() <= bound;
            assert!(is_near, "{name}[{column}]: {got:e}, expected {expected:e} within {bound:e}; {context}");
        }
    }
}

fn exact<E: Stored>(logits: &[E]) -> Vec<f64> {
    logits.iter().map(|&logit| logit.exact()).collect()
}

fn check_rows<E: Stored>(isa: Isa, vocab: usize, scale: f64, random: &mut Random) {
    let logits: Vec<E> = random.row(vocab, scale);
    let exact = exact(&logits);
    let view = LogitsView::from_slice(&logits, 1, vocab).unwrap();
    let target = random.below(vocab);
    let targets = Targets::new([target as i64], vocab, -100).unwrap();
    let weights: Vec<f64> = (0..vocab).map(|_| 2.0 * random.uniform()).collect();
    for (temperature, softcap) in [(1.0, None), (0.7, None), (2.0, Some(30.0))] {
        let options = Options { temperature, softcap, execution: execution(isa), ..Options::default() };
        let context = format!("{isa} {} vocab {vocab} scale {scale} T {temperature} cap {softcap:?}", E::NAME);
        let mut out = vec![E::round(f64::NAN); vocab];
        for (label_smoothing, z_loss, class_weights) in
            [(0.0, 0.0, None), (0.1, 0.01, None), (0.0, 0.0, Some(&weights[..])), (0.3, 0.1, Some(&weights[..]))]
        {
            let settings = LossOptions { label_smoothing, z_loss, class_weights };
            let found = loss(&view, &targets, &settings, &options).unwrap();
            let upstream = &[UPSTREAM];
            let terms =
                LossTerms { targets: &targets, likelihoods: &found.likelihoods, settings, temperature, upstream };
            loss_gradient(&view, &terms, &options, &mut out).unwrap();
            let expected = reference::loss_gradient(&exact, target, &settings, temperature, softcap);
            let mut allowed = Allowed::new::<E>(&[&exact], temperature, softcap, label_smoothing / vocab as f64 * 4.0);
            allowed.parts[target] += 4.0;
            allowed.check("loss", &out, &expected, &format!("{context} {settings:?}"));
        }
        let stats = row_stats(&view, None, &options).unwrap();
        let likelihood = Likelihood {
            lse: stats.lse[0],
            nll: f64::NAN,
            max_logit: stats.max_logit[0],
            max_log_prob: stats.max_log_prob[0],
        };
        let allowed = Allowed::new::<E>(&[&exact], temperature, softcap, 0.0);
        logsumexp_gradient(&view, &[likelihood], &[UPSTREAM], &options, &mut out).unwrap();
        let softmax = reference::logsumexp_gradient(&exact, temperature, softcap);
        allowed.check("logsumexp", &out, &softmax, &context);
        entropy_gradient(&view, &[likelihood], &stats.entropy, &[UPSTREAM], &options, &mut out).unwrap();
        let expected = reference::entropy_gradient(&exact, temperature, softcap);
        allowed.check("entropy", &out, &expected, &context);
    }
}

fn check_pairs<E: Stored>(isa: Isa, vocab: usize, scale: f64, random: &mut Random) {
    let p: Vec<E> = random.row(vocab, scale);
    for (nearness, temperature) in [(0.0, 1.0), (1e-2, 1.0), (1.0, 0.7)] {
        let q: Vec<E> = p.iter().map(|&logit| E::round(logit.exact() + random.normal(scale * nearness))).collect();
        let (p_exact, q_exact) = (exact(&p), exact(&q));
        let view = |logits| LogitsView::<E>::from_slice(logits, 1, vocab).unwrap();
        let (sides, execution) = ([&view(&p), &view(&q)], execution(isa));
        let allowed = Allowed::new::<E>(&[&p_exact, &q_exact], temperature, None, 0.0);
        let context = format!("{isa} {} vocab {vocab} scale {scale} nearness {nearness}", E::NAME);
        let (mut p_out, mut q_out) = (vec![E::round(f64::NAN); vocab], vec![E::round(f64::NAN); vocab]);
        let kl = kl_divergence(sides[0], sides[1], temperature, &execution).unwrap();
        let terms = PairTerms { scales: &kl.scales, upstream: &[UPSTREAM], temperature };
        kl_gradients(sides, &kl.kl_divergence, &terms, [Some(&mut p_out), Some(&mut q_out)], &execution).unwrap();
        let expected = reference::kl_gradients(&p_exact, &q_exact, temperature);
        allowed.check("kl by p", &p_out, &expected[0], &context);
        allowed.check("kl by q", &q_out, &expected[1], &context);
        let js = js_divergence(sides[0], sides[1], temperature, &execution).unwrap();
        let terms = PairTerms { scales: &js.scales, ..terms };
        js_gradients(sides, &terms, [Some(&mut p_out), Some(&mut q_out)], &execution).unwrap();
        let expected = reference::js_gradients(&p_exact, &q_exact, temperature);
        allowed.check("js by p", &p_out, &expected[0], &context);
        allowed.check("js by q", &q_out, &expected[1], &context);
        // A side that is not wanted changes nothing of the other.
        let mut alone = vec![E::round(f64::NAN); vocab];
        js_gradients(sides, &terms, [None, Some(&mut alone)], &execution).unwrap();
        assert_eq!(exact(&alone), exact(&q_out), "{context}");
    }
}

macro_rules! gradients {
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
gradients! {
    gradients_of_rows_hold_to_the_reference: check_rows,
    gradients_of_pairs_hold_to_the_reference: check_pairs,
}

const ROWS: usize = 23;
const VOCAB: usize = 4_500;

/// The gradients of one call, as bits.
fn all_bits<E: Stored>(logits: &[E], others: &[E], isa: Isa, threads: usize) -> Vec<u64> {
    let execution = Execution { isa: Some(isa), num_threads: Some(threads) };
    let options = Options { execution, ..Options::default() };
    let view = |logits| LogitsView::<E>::from_slice(logits, ROWS, VOCAB).unwrap();
    let (p, q) = (view(logits), view(others));
    let targets = Targets::new((0..ROWS).map(|row| if row == 5 { -100 } else { row as i64 * 7 }), VOCAB, -100).unwrap();
    let settings = LossOptions { label_smoothing: 0.1, ..LossOptions::default() };
    let found = loss(&p, &targets, &settings, &options).unwrap();
    let upstream: Vec<f64> = (0..ROWS).map(|row| 1.0 / (row + 1) as f64).collect();
    let terms = LossTerms {
        targets: &targets,
        likelihoods: &found.likelihoods,
        settings,
        temperature: 1.0,
        upstream: &upstream,
    };
    let mut outs: [Vec<E>; 5] = std::array::from_fn(|_| vec![E::round(f64::NAN); ROWS * VOCAB]);
    let [of_loss, kl_p, kl_q, js_p, js_q] = &mut outs;
    loss_gradient(&p, &terms, &options, of_loss).unwrap();
    let kl = kl_divergence(&p, &q, 1.0, &execution).unwrap();
    let terms = PairTerms { scales: &kl.scales, upstream: &upstream, temperature: 1.0 };
    kl_gradients([&p, &q], &kl.kl_divergence, &terms, [Some(kl_p), Some(kl_q)], &execution).unwrap();
    let js = js_divergence(&p, &q, 1.0, &execution).unwrap();
    let terms = PairTerms { scales: &js.scales, ..terms };
    js_gradients([&p, &q], &terms, [Some(js_p), Some(js_q)], &execution).unwrap();
    outs.iter().flatten().map(|number| number.exact().to_bits()).collect()
}

fn assert_same_bits<E: Stored>() {
    let mut random = Random(0x5eed);
    let logits: Vec<E> = random.row(ROWS * VOCAB, 3.0);
    let others: Vec<E> = random.row(ROWS * VOCAB, 3.0);
    let expected = all_bits(&logits, &others, Isa::available()[0], 1);
    for isa in Isa::available() {
        for threads in [1, 2, 7] {
            assert!(all_bits(&logits, &others, isa, threads) == expected, "{isa}, {threads} threads, {}", E::NAME);
        }
    }
}

#[test]
fn neither_threads_nor_instruction_set_change_a_bit() {
    assert_same_bits::<f32>();
    assert_same_bits::<f64>();
    assert_same_bits::<f16>();
    assert_same_bits::<bf16>();
}

/// The gradient of one row's loss, with a place that is longer than the vocabulary.
fn gradient_of(logits: &[f32], target: i64, settings: LossOptions<'_>) -> Vec<f32> {
    let (view, options) = (LogitsView::from_slice(logits, 1, logits.len()).unwrap(), Options::default());
    let targets = Targets::new([target], logits.len(), -100).unwrap();
    let found = loss(&view, &targets, &settings, &options).unwrap();
    let (likelihoods, upstream) = (&found.likelihoods[..], &[1.0][..]);
    let terms = LossTerms { targets: &targets, likelihoods, settings, temperature: 1.0, upstream };
    let mut out = vec![f32::NAN; logits.len() + 3];
    loss_gradient(&view, &terms, &options, &mut out).unwrap();
    assert_eq!(out[logits.len()..], [0.0; 3], "columns past the vocabulary");
    out.truncate(logits.len());
    out
}

#[test]
fn special_values() {
    let plain = LossOptions::default();
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    assert_eq!(gradient_of(&[0.0, 0.0, -inf], 0, plain), [-0.5, 0.5, 0.0]);
    assert_eq!(gradient_of(&[0.0, 0.0, -inf], 2, plain), [0.5, 0.5, -1.0], "a target of probability 0");
    assert_eq!(gradient_of(&[nan, inf, -inf], -100, plain), [0.0; 3], "an ignored row is not read");
    for row in [[nan, 0.0], [inf, 0.0], [-inf, -inf]] {
        assert!(gradient_of(&row, 0, plain).iter().all(|number| number.is_nan()), "{row:?}");
    }
    let entropy = |logits: &[f32]| {
        let (view, options) = (LogitsView::from_slice(logits, 1, logits.len()).unwrap(), Options::default());
        let found = row_stats(&view, None, &options).unwrap();
        let (max_logit, max_log_prob) = (found.max_logit[0], found.max_log_prob[0]);
        let likelihood = Likelihood { lse: found.lse[0], nll: f64::NAN, max_logit, max_log_prob };
        let mut out = vec![0.0; logits.len()];
        entropy_gradient(&view, &[likelihood], &found.entropy, &[1.0], &options, &mut out).unwrap();
        out
    };
    assert!(entropy(&[inf, 0.0, 1.0]).iter().all(|number| number.is_nan()));
    assert_eq!(entropy(&[0.0, 0.0, -inf]), [0.0; 3], "at its largest, over the columns that are possible");
    // Next to a certainty p - 1 keeps its relative accuracy.
    let near = gradient_of(&[0.0, -40.0], 0, plain);
    let rest = (-40f64).exp();
    assert!((f64::from(near[0]) / -rest - 1.0).abs() < 1e-6, "{near:?}");
    let smoothed = gradient_of(&[0.0, -inf], 0, LossOptions { label_smoothing: 0.5, ..plain });
    assert_eq!(smoothed, [0.25, -0.25], "0.5 (p - 1) + 0.5 (p - 1/2), and -0.5 / 2");
}

/// Far from 0 and at a low temperature the distance from the largest logit is still that of the logits.
#[test]
fn temperature_costs_no_accuracy() {
    let mut random = Random(0x5eed);
    let logits: Vec<f32> = random.row::<f32>(500, 1.0).iter().map(|logit| logit + 100.0).collect();
    let (view, targets) = (LogitsView::from_slice(&logits, 1, 500).unwrap(), Targets::new([7], 500, -100).unwrap());
    let (settings, options) = (LossOptions::default(), Options { temperature: 0.1, ..Options::default() });
    let found = loss(&view, &targets, &settings, &options).unwrap();
    let (likelihoods, upstream) = (&found.likelihoods[..], &[0.1][..]);
    let terms = LossTerms { targets: &targets, likelihoods, settings, temperature: 0.1, upstream };
    let mut out = vec![0.0; 500];
    loss_gradient(&view, &terms, &options, &mut out).unwrap();
    let expected = reference::loss_gradient(&exact(&logits), 7, &settings, 0.1, None);
    for (got, expected) in out.iter().zip(expected) {
        // d is at most 70, so that its rounding moves e^d by 70 units, not by the 1,000 of a scaled logit.
        let bound = 70.0 * 2f64.powi(-24) * (0.1 * expected).abs() + 1e-12;
        assert!((f64::from(*got) - 0.1 * expected).abs() <= bound, "{got:e}, expected {:e}", 0.1 * expected);
    }
}

#[test]
fn places_and_lengths_are_checked() {
    let logits = [0.0f32; 6];
    let view = LogitsView::from_slice(&logits, 2, 3).unwrap();
    let likelihood = Likelihood { lse: 1.0, nll: 0.0, max_logit: 0.0, max_log_prob: -1.0 };
    let options = Options::default();
    for length in [0, 5, 7] {
        let mut out = vec![0.0; length];
        let found = logsumexp_gradient(&view, &[likelihood; 2], &[1.0; 2], &options, &mut out);
        assert_eq!(found, Err(Error::BufferLength { elements: length, rows: 2, vocab: 3 }));
    }
    let mut out = vec![0.0; 6];
    let found = logsumexp_gradient(&view, &[likelihood; 2], &[1.0; 3], &options, &mut out);
    assert_eq!(found.unwrap_err().to_string(), "upstream has shape (3,), expected (2,) as the rows has");
    let empty = LogitsView::<f32>::from_slice(&[], 0, 3).unwrap();
    assert_eq!(logsumexp_gradient(&empty, &[], &[], &options, &mut []), Ok(()));
}
