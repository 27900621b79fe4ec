//! The third promise: no result depends on threads, on the batch of rows, on how the vocabulary is cut, or on the
//! instruction set.

mod support;

use half::bf16;
use support::{Random, Stored};
use xentrs::{Execution, Isa, LogitsView, Options, RowColumns, RowStatsState, Targets, kl_divergence, row_stats};

const ROWS: usize = 70;
const VOCAB: usize = 9_000; // two leaves and a part

/// Every number of a result, as bits.
fn bits(columns: &RowColumns) -> Vec<u64> {
    let floats = [
        &columns.lse,
        &columns.nll,
        &columns.log_prob,
        &columns.entropy,
        &columns.varentropy,
        &columns.max_logit,
        &columns.max_log_prob,
        &columns.margin,
        &columns.sum_sq_prob,
        &columns.top_log_probs,
    ];
    let whole = [&columns.argmax, &columns.rank, &columns.ties, &columns.top_ids];
    let mut all: Vec<u64> = floats.into_iter().flatten().map(|value| value.to_bits()).collect();
    all.extend(whole.into_iter().flatten().map(|&value| value as u64));
    all.extend(columns.flags.iter().map(|&value| u64::from(value)));
    all
}

/// Rows of several widths, ties and infinities among them, and their targets.
fn sample<E: Stored>() -> (Vec<E>, Vec<i64>) {
    let mut random = Random(0x5eed);
    let mut logits = Vec::new();
    for row in 0..ROWS {
        let mut one: Vec<E> = random.row(VOCAB, [0.01, 1.0, 4.0, 40.0][row % 4]);
        match row % 10 {
            3 => one[random.below(VOCAB)] = E::IMPOSSIBLE,
            5 => one.fill(E::round(1.5)),
            7 => one[4_096..].fill(E::IMPOSSIBLE),
            9 => one[8_191] = E::round(90.0),
            _ => {}
        }
        logits.extend(one);
    }
    let targets = (0..ROWS).map(|row| if row % 13 == 4 { -100 } else { random.below(VOCAB) as i64 }).collect();
    (logits, targets)
}

fn options(isa: Isa, threads: usize) -> Options {
    let execution = Execution { isa: Some(isa), num_threads: Some(threads) };
    Options { top_k: 4, temperature: 0.9, execution, ..Options::default() }
}

fn whole<E: Stored>(logits: &[E], targets: &[i64], options: &Options) -> RowColumns {
    let view = LogitsView::from_slice(logits, targets.len(), VOCAB).unwrap();
    let targets = Targets::new(targets.iter().copied(), VOCAB, -100).unwrap();
    row_stats(&view, Some(&targets), options).unwrap()
}

fn check_threads_batches_and_isas<E: Stored>() {
    let (logits, targets) = sample::<E>();
    let expected = whole(&logits, &targets, &options(Isa::best(), 1));
    for isa in Isa::available() {
        for threads in [1, 2, 3, 4, 7, 16] {
            assert_eq!(
                bits(&whole(&logits, &targets, &options(isa, threads))),
                bits(&expected),
                "{isa}, {threads} threads"
            );
        }
    }
    for batch in [1, 2, 3, 17, 64] {
        for first in (0..ROWS).step_by(batch) {
            let rows = first..ROWS.min(first + batch);
            let columns = rows.start * VOCAB..rows.end * VOCAB;
            let got = whole(&logits[columns], &targets[rows.clone()], &options(Isa::best(), 2));
            let bits_of = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits_of(&got.nll), bits_of(&expected.nll[rows.clone()]), "batch {batch} from {first}");
            assert_eq!(bits_of(&got.varentropy), bits_of(&expected.varentropy[rows]), "batch {batch} from {first}");
        }
    }
}

#[test]
fn threads_batches_and_isas_change_no_bit() {
    check_threads_batches_and_isas::<f32>();
    check_threads_batches_and_isas::<bf16>();
    check_threads_batches_and_isas::<f64>();
}

/// Chunks of `width` columns in a shuffled order, over two states that merge.
fn in_chunks(logits: &[f32], targets: &[i64], target_logits: &[f64], width: usize, isa: Isa) -> RowColumns {
    let options = options(isa, 2);
    let new_state = || {
        let targets = Targets::new(targets.iter().copied(), VOCAB, -100).unwrap();
        RowStatsState::<f32>::new(targets.rows(), VOCAB, Some(targets), Some(target_logits.to_vec()), &options).unwrap()
    };
    let mut states = [new_state(), new_state()];
    let mut starts: Vec<usize> = (0..VOCAB).step_by(width).collect();
    let mut random = Random(0x5eed ^ width as u64);
    for i in (1..starts.len()).rev() {
        starts.swap(i, random.below(i + 1));
    }
    for (i, &start) in starts.iter().enumerate() {
        let end = VOCAB.min(start + width);
        let chunk: Vec<f32> = logits.chunks(VOCAB).flat_map(|row| row[start..end].iter().copied()).collect();
        let view = LogitsView::from_slice(&chunk, targets.len(), end - start).unwrap();
        states[i % 2].update(&view, start, &options.execution).unwrap();
    }
    let [mut state, other] = states;
    // Through bytes, as a process that is resumed would.
    state = RowStatsState::from_bytes(&state.to_bytes()).unwrap();
    state.merge(&other).unwrap();
    state.compute().unwrap()
}

#[test]
fn chunks_of_the_vocabulary_change_no_bit() {
    let (logits, targets) = sample::<f32>();
    let few = 20;
    let (logits, targets) = (&logits[..few * VOCAB], &targets[..few]);
    let target_logits: Vec<f64> = (0..few)
        .map(|row| usize::try_from(targets[row]).map_or(f64::NAN, |target| logits[row * VOCAB + target].into()))
        .collect();
    for isa in Isa::available() {
        let expected = bits(&whole(logits, targets, &options(isa, 1)));
        for width in [7, 64, 1000, 4096, VOCAB] {
            let got = in_chunks(logits, targets, &target_logits, width, isa);
            assert_eq!(bits(&got), expected, "{isa}, chunks of {width}");
        }
    }
    let two = 2;
    let got = in_chunks(&logits[..two * VOCAB], &targets[..two], &target_logits[..two], 1, Isa::best());
    assert_eq!(bits(&got), bits(&whole(&logits[..two * VOCAB], &targets[..two], &options(Isa::best(), 1))));
}

#[test]
fn kl_divergence_has_the_same_bits_on_all() {
    let mut random = Random(0x5eed);
    let (p, q): (Vec<f32>, Vec<f32>) = (random.row(20 * VOCAB, 3.0), random.row(20 * VOCAB, 3.0));
    let run = |isa, threads| {
        let execution = Execution { isa: Some(isa), num_threads: Some(threads) };
        let view = |logits| LogitsView::<f32>::from_slice(logits, 20, VOCAB).unwrap();
        let columns = kl_divergence(&view(&p), &view(&q), 1.3, &execution).unwrap();
        columns.kl_divergence.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    };
    let expected = run(Isa::best(), 1);
    for isa in Isa::available() {
        for threads in [1, 2, 3, 7, 16] {
            assert_eq!(run(isa, threads), expected, "{isa}, {threads} threads");
        }
    }
}

#[test]
fn half_width_rows_have_the_bits_of_their_float32_values() {
    let (logits, targets) = sample::<bf16>();
    let wide: Vec<f32> = logits.iter().map(|logit| logit.to_f32()).collect();
    let options = options(Isa::best(), 2);
    assert_eq!(bits(&whole(&logits, &targets, &options)), bits(&whole(&wide, &targets, &options)));
}
