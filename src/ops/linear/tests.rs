//! Every class of tiles through whole calls, held to plain loops and to the emulation.

use super::*;
use crate::input::Head;
use crate::input::{LogitsView, PackedHead, Weight};
use crate::ops::{GradientOptions, LossTerms, linear_expected_embedding, linear_gradients};
use crate::output::Matrix;
use crate::reference;
use crate::simd::Isa;
use half::bf16;

/// Repeatable numbers of both signs below `scale`.
fn numbers(count: usize, seed: u64, scale: f32) -> Vec<bf16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bf16::from_f32(((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0 * scale)
    };
    (0..count).map(|_| next()).collect()
}

struct Model {
    hidden: Vec<bf16>,
    weight: Vec<bf16>,
    targets: Targets,
    shape: (usize, usize, usize),
}

impl Model {
    fn new(rows: usize, width: usize, vocab: usize) -> Self {
        let ids: Vec<i64> = (0..rows).map(|row| if row % 7 == 5 { -100 } else { (row * 977 % vocab) as i64 }).collect();
        let targets = Targets::new(ids, vocab, -100).expect("the ids are inside");
        let (hidden, weight) = (numbers(rows * width, 1, 1.0), numbers(vocab * width, 2, 0.7));
        Self { hidden, weight, targets, shape: (rows, width, vocab) }
    }

    fn projection(&self) -> Projection<'_> {
        let (rows, width, vocab) = self.shape;
        let hidden = LogitsView::from_slice(&self.hidden, rows, width).expect("the shape is right");
        let weight = LogitsView::from_slice(&self.weight, vocab, width).expect("the shape is right");
        let bias = (0..vocab).map(|column| (column % 5) as f64 * 0.25).collect();
        let head = Head::new(Weight::Rows(weight.into()), Some(bias)).expect("one bias for each row");
        Projection::new(hidden.into(), head).expect("the widths agree").scaled(0.5, Some(20.0)).expect("both in range")
    }

    /// Logits by plain float64 loops.
    fn logits(&self, row: usize) -> Vec<f64> {
        let (_, width, vocab) = self.shape;
        let hidden = &self.hidden[row * width..][..width];
        let logit = |column: usize| {
            let weight = &self.weight[column * width..][..width];
            let sum: f64 = hidden.iter().zip(weight).map(|(a, b)| a.to_f64() * b.to_f64()).sum();
            20.0 * libm::tanh(0.5 * (sum + (column % 5) as f64 * 0.25) / 20.0)
        };
        (0..vocab).map(logit).collect()
    }
}

/// The instruction sets and tile classes that run here.
fn classes() -> Vec<Isa> {
    let fastest = *Isa::available().last().expect("scalar is always available");
    [Isa::available_tiles(), vec![fastest, fastest.with_plain_tiles()]].concat()
}

fn execution(isa: Isa, threads: usize) -> Execution {
    Execution { isa: Some(isa), num_threads: Some(threads) }
}

#[test]
fn every_class_is_as_exact_as_float32() {
    let model = Model::new(9, 77, 4200);
    let projection = model.projection();
    for isa in classes() {
        let options = Options { execution: execution(isa, 1), ..Options::default() };
        let found = linear_row_stats(&projection, Some(&model.targets), &options).expect("a plain call");
        assert_eq!(found.isa, isa.head_name());
        for row in 0..9 {
            let Some(target) = model.targets.column(row) else { continue };
            let expected = reference::row_stats(&model.logits(row), Some(target), 1.0, None);
            // 77 products of up to 0.7, summed in float32, then tanh: an error of a few units of 2^-24 of 20.
            assert!((found.nll[row] - expected.nll).abs() < 1e-5, "{isa:?} row {row}: {}", found.nll[row]);
            assert!((found.entropy[row] - expected.entropy).abs() < 1e-5, "{isa:?} row {row}: {}", found.entropy[row]);
        }
    }
}

#[test]
fn what_is_made_beside_the_statistics_is_as_exact_and_has_the_same_bits_on_any_threads() {
    let model = Model::new(150, 77, 9000);
    let projection = model.projection();
    let wanted = TemperedOptions { moments: true, renyi_orders: &[0.5, 2.0], inverse_temperatures: &[0.5, 2.0] };
    for isa in classes() {
        let call = |threads| {
            let options =
                Options { execution: execution(isa, threads), top_k: 2, temperature: 0.8, ..Options::default() };
            let plain = linear_row_stats(&projection, Some(&model.targets), &options).expect("a plain call");
            let found = linear_tempered_row_stats(&projection, Some(&model.targets), &wanted, &options);
            let (stats, tempered) = found.expect("a plain call");
            assert_eq!(format!("{stats:?}"), format!("{plain:?}"), "{isa:?}");
            tempered
        };
        let found = call(1);
        for threads in [2, 5] {
            assert_eq!(format!("{:?}", call(threads)), format!("{found:?}"), "{isa:?}");
        }
        for row in [0, 1, 149] {
            let logits = model.logits(row);
            let near = |got: f64, expected: f64| {
                // The products' errors, as above, times what a measure makes of them: at most 4.
                assert!((got - expected).abs() < 5e-5, "{isa:?} row {row}: {got}, expected {expected}");
            };
            let [mean, variance] = reference::log_prob_moments(&logits, 0.8, None);
            near(found.log_prob_mean[row], mean);
            near(found.log_prob_variance[row], variance);
            for (place, value) in [0.5, 2.0].into_iter().enumerate() {
                near(found.renyi_entropy[row * 2 + place], reference::renyi_entropy(&logits, value, 0.8, None));
                let grid = &found.temperature_grid;
                let got = [&grid.lse, &grid.mean, &grid.variance, &grid.entropy].map(|field| field[row * 2 + place]);
                let expected = reference::tempered(&logits, value, 0.8, None);
                got.into_iter().zip(expected).for_each(|(got, expected)| near(got, expected));
            }
        }
        assert!(found.log_prob_mean[5].is_nan() && found.temperature_grid.nll[10] == 0.0, "row 5 is ignored");
    }
}

/// KL both ways, -sum p ln q and the variance of ln q under p, by plain loops.
fn divergences_of(p: &[f64], q: &[f64], temperature: f64) -> [f64; 4] {
    let (log_p, log_q) = (reference::log_probs(p, temperature, None), reference::log_probs(q, temperature, None));
    let mean_of = |value: &dyn Fn(f64) -> f64| -> f64 {
        log_p.iter().zip(&log_q).map(|(log_p, log_q)| libm::exp(*log_p) * value(*log_q)).sum()
    };
    let mean = mean_of(&|log_q| log_q);
    let forward = reference::kl_divergence(p, q, temperature);
    let reverse = reference::kl_divergence(q, p, temperature);
    [forward, reverse, -mean, mean_of(&|log_q| (log_q - mean) * (log_q - mean))]
}

#[test]
fn two_heads_are_as_exact_and_the_joint_call_has_the_bits_of_its_parts() {
    let (p_model, q_model) = (Model::new(150, 77, 4200), Model::new(150, 40, 4200));
    let (p, q) = (p_model.projection(), q_model.projection());
    let targets = Some(&p_model.targets);
    let wanted = TemperedOptions { moments: true, renyi_orders: &[2.0], inverse_temperatures: &[0.5] };
    for isa in classes() {
        let options = |threads, top_k| {
            let execution = execution(isa, threads);
            Options { execution, temperature: 1.3, top_k, ..Options::default() }
        };
        let found = linear_divergences(&p, &q, 1.3, &execution(isa, 1)).expect("a plain call");
        let fields =
            [&found.kl_divergence, &found.reverse_kl_divergence, &found.cross_entropy, &found.cross_varentropy];
        for row in [0, 5, 149] {
            let expected = divergences_of(&p_model.logits(row), &q_model.logits(row), 1.3);
            for (field, expected) in fields.iter().zip(expected) {
                // The products' errors, as above, times what a measure makes of them: at most 4.
                assert!((field[row] - expected).abs() < 5e-5, "{isa:?} row {row}: {}, expected {expected}", field[row]);
            }
        }
        let of_p = linear_row_stats(&p, targets, &options(1, 0)).expect("a plain call");
        let of_q = linear_tempered_row_stats(&q, targets, &wanted, &options(1, 2)).expect("a plain call");
        let mut both = found.clone();
        (0..150).filter(|&row| p_model.targets.column(row).is_none()).for_each(|row| both.ignore(row));
        for threads in [1, 2, 5] {
            let joint = linear_joint_row_stats(&p, &q, targets, &wanted, &options(threads, 2)).expect("a plain call");
            assert_eq!(format!("{:?}", joint.p), format!("{of_p:?}"), "{isa:?}");
            assert_eq!(format!("{:?}", (joint.q, joint.q_tempered)), format!("{of_q:?}"), "{isa:?}");
            assert_eq!(format!("{:?}", joint.divergences), format!("{both:?}"), "{isa:?}");
        }
    }
}

#[test]
fn a_call_has_the_bits_of_the_emulation_on_any_threads_and_packed() {
    let model = Model::new(150, 100, 9000);
    let projection = model.projection();
    let Some(&isa) = Isa::available_tiles().first().filter(|isa| isa.head_name() == "avx512bf16") else {
        eprintln!("skipped: this machine has no AVX512-BF16");
        return;
    };
    let stats = |projection: &Projection<'_>, isa, threads| {
        let options = Options { execution: execution(isa, threads), top_k: 3, ..Options::default() };
        let found = linear_row_stats(projection, Some(&model.targets), &options).expect("a plain call");
        let bits = |column: &[f64]| column.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        (bits(&found.nll), bits(&found.varentropy), found.rank, found.top_ids)
    };
    let plain = stats(&projection, isa.with_plain_tiles(), 2);
    for threads in [1, 2, 5] {
        assert_eq!(stats(&projection, isa, threads), plain);
    }
    let view = LogitsView::from_slice(&model.weight, 9000, 100).expect("the shape is right");
    let packed = PackedHead::new(&view.into()).expect("there is memory");
    let head = Head::new(Weight::Packed(&packed), projection.head.bias().map(<[f64]>::to_vec)).expect("the same bias");
    assert_eq!(stats(&Projection { head, ..projection.clone() }, isa, 2), plain);
}

#[test]
fn shards_of_a_head_merge_to_the_whole() {
    let model = Model::new(40, 64, 9001);
    let projection = model.projection();
    for isa in classes() {
        let options = Options { execution: execution(isa, 2), top_k: 4, ..Options::default() };
        let whole = linear_row_stats(&projection, Some(&model.targets), &options).expect("a plain call");
        let logits = linear_target_logits(&projection, &model.targets, &options.execution).expect("a plain call");
        let new = || {
            let (targets, logits) = (Some(model.targets.clone()), Some(logits.clone()));
            crate::RowStatsState::<f32>::new(40, 9001, targets, logits, &options).expect("plain settings")
        };
        let (mut first, mut second) = (new(), new());
        for (start, end) in [(5000, 9001), (0, 17), (17, 5000)] {
            let weight = LogitsView::from_slice(&model.weight[start * 64..end * 64], end - start, 64);
            let bias = projection.head.bias().map(|bias| bias[start..end].to_vec());
            let head = Head::new(Weight::Rows(weight.expect("the shape is right").into()), bias).expect("as many");
            let shard = Projection { head, ..projection.clone() };
            let state = if start == 17 { &mut second } else { &mut first };
            state.update_linear(&shard, start, &options.execution).expect("new columns");
        }
        first.merge(&second).expect("states of one kind");
        let merged = first.compute().expect("all columns came");
        assert_eq!((&merged.nll, &merged.rank, &merged.top_ids), (&whole.nll, &whole.rank, &whole.top_ids));
        let bits = |column: &[f64]| column.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&merged.varentropy), bits(&whole.varentropy));
    }
}

#[test]
fn gradients_are_those_of_plain_loops_on_every_class() {
    let (rows, width, vocab) = (37, 40, 700);
    let model = Model::new(rows, width, vocab);
    let projection = model.projection();
    let (mut hidden, mut weight, mut bias) = (vec![0.0; rows * width], vec![0.0; vocab * width], vec![0.0; vocab]);
    for row in 0..rows {
        let Some(target) = model.targets.column(row) else { continue };
        let logits = model.logits(row);
        let lse = reference::row_stats(&logits, None, 1.0, None).lse;
        for column in 0..vocab {
            let pull = libm::exp(logits[column] - lse) - f64::from(u8::from(column == target));
            let derivative = pull * 0.5 * (1.0 - (logits[column] / 20.0) * (logits[column] / 20.0));
            bias[column] += derivative;
            for k in 0..width {
                hidden[row * width + k] += derivative * model.weight[column * width + k].to_f64();
                weight[column * width + k] += derivative * model.hidden[row * width + k].to_f64();
            }
        }
    }
    for isa in classes() {
        let options = Options { execution: execution(isa, 2), ..Options::default() };
        let loss = linear_loss(&projection, &model.targets, &LossOptions::default(), &options).expect("a plain call");
        let terms = LossTerms {
            targets: &model.targets,
            likelihoods: &loss.likelihoods,
            settings: LossOptions::default(),
            temperature: 1.0,
            upstream: &[1.0; 37],
        };
        for orders_vocabulary in [false, true] {
            let wanted =
                GradientOptions { hidden: true, weight: true, bias: true, filter_eps: None, orders_vocabulary };
            let found = linear_gradients(&projection, &terms, &wanted, &options.execution).expect("a plain call");
            let (Some(Matrix::Bf16(of_hidden)), Some(Matrix::Bf16(of_weight))) = (found.hidden, found.weight) else {
                panic!("gradients have the type of what they belong to")
            };
            // Derivatives and results are rounded to bfloat16, 2^-9 of each; the bias is not.
            check(isa, &of_hidden.iter().map(|value| value.to_f64()).collect::<Vec<_>>(), &hidden, 4e-3);
            check(isa, &of_weight.iter().map(|value| value.to_f64()).collect::<Vec<_>>(), &weight, 4e-3);
            check(isa, &found.bias.expect("it was wanted"), &bias, 1e-5);
        }
    }
}

/// The norm of the error is a small part of the norm.
fn check(isa: Isa, found: &[f64], expected: &[f64], tolerance: f64) {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
    assert!(error < tolerance, "{isa:?}: {error}");
}

#[test]
fn the_expected_embedding_is_the_weighted_mean_on_every_class() {
    let (rows, width, vocab) = (11, 33, 1500);
    let model = Model::new(rows, width, vocab);
    let projection = model.projection();
    let mut expected = vec![0.0; rows * width];
    for row in 0..rows {
        let logits = model.logits(row);
        let lse = reference::row_stats(&logits, None, 1.0, None).lse;
        for (column, logit) in logits.into_iter().enumerate() {
            for k in 0..width {
                expected[row * width + k] += libm::exp(logit - lse) * model.weight[column * width + k].to_f64();
            }
        }
    }
    for isa in classes() {
        let found = linear_expected_embedding(&projection, 1.0, &execution(isa, 2)).expect("a plain call");
        check(isa, &found.embedding, &expected, 1e-4);
        let again = linear_expected_embedding(&projection, 1.0, &execution(isa, 1)).expect("a plain call");
        assert_eq!(found, again);
    }
}
