//! The second promise: lse inside the bound of docs/numerics.md on random, constant and adversarial rows of all dtypes, against the
//! reference in float64; and the properties that exact arithmetic has.

mod support;

use half::{bf16, f16};
use proptest::prelude::*;
use support::{Random, Stored, lse_bound};
use xentrs::{Float, LogitsView, Options, Perplexity, Targets, reference, row_stats};

/// One row of the sort number `kind`.
fn row<E: Stored>(kind: usize, vocab: usize, random: &mut Random) -> Vec<E> {
    let scale = 10f64.powf(random.uniform() * 3.0 - 1.0);
    let offset = random.normal(50.0);
    let mut row: Vec<E> = random.row(vocab, scale);
    match kind % 6 {
        1 => row.fill(E::round(offset)),
        // One larger than the constant rest: every addition to a lane rounds alike.
        2 => {
            row.fill(E::round(offset));
            row[random.below(vocab)] = E::round(offset + 8.0 * random.uniform());
        }
        3 => row.iter_mut().for_each(|logit| *logit = E::round(offset - (random.uniform() * 20.0).powi(2))),
        4 => row
            .iter_mut()
            .for_each(|logit| *logit = E::round(if random.uniform() < 0.5 { offset } else { offset - 16.6 })),
        5 => row.iter_mut().step_by(3).for_each(|logit| *logit = E::IMPOSSIBLE),
        _ => {}
    }
    row
}

/// The largest errors, as parts of their bounds: of lse, of nll, of entropy.
fn worst<E: Stored>(rows: usize, random: &mut Random) -> [f64; 3] {
    let mut worst = [0.0f64; 3];
    for kind in 0..rows {
        let vocab = 2 + 2f64.powf(random.uniform() * 15.0) as usize;
        let logits: Vec<E> = row(kind, vocab, random);
        let exact: Vec<f64> = logits.iter().map(|&logit| logit.exact()).collect();
        let view = LogitsView::from_slice(&logits, 1, vocab).unwrap();
        let possible = exact.iter().position(|logit| logit.is_finite()).expect("no row is all minus infinity");
        let targets = Targets::new([possible as i64], vocab, -100).unwrap();
        let got = row_stats(&view, Some(&targets), &Options::default()).unwrap();
        let expected = reference::row_stats(&exact, Some(possible), 1.0, None);
        let unit = E::Compute::UNIT_ROUNDOFF * (2.0 + (vocab as f64).ln());
        let parts = [
            (got.lse[0] - expected.lse).abs() / lse_bound::<E>(vocab, expected.lse),
            (got.nll[0] - expected.nll).abs() / (2.0 * unit + 2.0 * E::Compute::UNIT_ROUNDOFF * expected.nll),
            (got.entropy[0] - expected.entropy).abs() / (8.0 * unit),
        ];
        for (name, (part, worst)) in ["lse", "nll", "entropy"].iter().zip(parts.iter().zip(&mut worst)) {
            assert!(*part <= 1.0, "{name} is {part} of its bound off; kind {kind}, vocab {vocab}");
            *worst = worst.max(*part);
        }
    }
    worst
}

#[test]
fn errors_stay_inside_their_bounds() {
    let rows = if std::env::var_os("XENTRS_EXHAUSTIVE").is_some() { 25_000 } else { 500 };
    let mut random = Random(0x5eed);
    println!("largest errors of [lse, nll, entropy] as parts of their bounds");
    println!("float32: {:.3?}", worst::<f32>(rows, &mut random));
    println!("float64: {:.3?}", worst::<f64>(rows, &mut random));
    println!("float16: {:.3?}", worst::<f16>(rows, &mut random));
    println!("bfloat16: {:.3?}", worst::<bf16>(rows, &mut random));
}

#[test]
fn values_far_from_one_keep_their_relative_accuracy() {
    let nll = |logits: &[f64], target: i64| {
        let view = LogitsView::from_slice(logits, 1, logits.len()).unwrap();
        let targets = Targets::new([target], logits.len(), -100).unwrap();
        let stats = row_stats(&view, Some(&targets), &Options::default()).unwrap();
        (stats.nll[0], stats.entropy[0])
    };
    let (tiny, entropy) = nll(&[0.0, -40.0], 0);
    assert!((tiny / 4.248_354_255_291_589e-18 - 1.0).abs() < 1e-15);
    assert!((entropy / 1.741_825_244_669_551_5e-16 - 1.0).abs() < 1e-15);
    assert_eq!(nll(&[1e8, 1e8], 1).0, std::f64::consts::LN_2);
}

proptest! {
    /// Sums do not depend on their order, and are rounded once.
    #[test]
    fn totals_are_exact(values in prop::collection::vec(-1e300..1e300f64, 1..60), seed in any::<u64>()) {
        let mut shuffled = values.clone();
        let mut random = Random(seed | 1);
        for i in (1..shuffled.len()).rev() {
            shuffled.swap(i, random.below(i + 1));
        }
        let (first, second) = shuffled.split_at(shuffled.len() / 2);
        let total = |values: &[f64]| {
            let mut totals = Perplexity::default();
            totals.update_nll(values, values.len() as u64);
            totals
        };
        let mut merged = total(second);
        merged.merge(&total(first));
        prop_assert_eq!(merged.to_bytes(), total(&values).to_bytes());
        // Taking all but one away again leaves exactly that one.
        let negated: Vec<f64> = values[1..].iter().map(|value| -value).collect();
        merged.update_nll(&negated, 0);
        prop_assert_eq!(merged.compute().nll_sum.to_bits(), (values[0] + 0.0).to_bits());
    }

    /// Adding one number to all logits leaves nll, up to the rounding of the shifted logits, here none.
    #[test]
    fn a_shift_leaves_nll(whole in prop::collection::vec(-50i32..50, 1..200), shift in -1000i32..1000) {
        let nll = |shift: i32| {
            let logits: Vec<f32> = whole.iter().map(|&logit| (logit + shift) as f32).collect();
            let view = LogitsView::from_slice(&logits, 1, logits.len()).unwrap();
            let targets = Targets::new([0], logits.len(), -100).unwrap();
            row_stats(&view, Some(&targets), &Options::default()).unwrap().nll[0]
        };
        prop_assert_eq!(nll(0).to_bits(), nll(shift).to_bits());
    }

    /// Two rows side by side have the logaddexp of their lse; columns of minus infinity change no bit.
    #[test]
    fn concatenation_and_padding(row in prop::collection::vec(-20f32..20.0, 2..600), padding in 0usize..5000) {
        let lse = |logits: &[f32]| {
            let view = LogitsView::from_slice(logits, 1, logits.len()).unwrap();
            row_stats(&view, None, &Options::default()).unwrap().lse[0]
        };
        let (left, right) = row.split_at(row.len() / 2);
        let (left, right) = (lse(left), lse(right));
        let joined = left.max(right) + (-(left - right).abs()).exp().ln_1p();
        prop_assert!((lse(&row) - joined).abs() <= 3.0 * lse_bound::<f32>(row.len(), joined));
        let mut padded = row.clone();
        padded.resize(row.len() + padding, f32::NEG_INFINITY);
        prop_assert_eq!(lse(&padded).to_bits(), lse(&row).to_bits());
    }
}
