//! The third promise: no result depends on threads, on the batch of rows, on how the vocabulary is cut, or on the
//! instruction set. Longer than other files: each way to cut a call has its own function here.

mod support;

use half::{bf16, f16};
use std::ops::Range;
use support::{Random, Stored};
use xentrs::{
    Execution, Isa, LogitsView, Options, RowColumns, RowStatsState, Targets, TemperedOptions, kl_divergence, row_stats,
    tempered_row_stats,
};

const ROWS: usize = 67;
const VOCAB: usize = 9_001; // two leaves and a part
const THREADS: [usize; 6] = [1, 2, 3, 4, 7, 16];
const BATCHES: [usize; 6] = [1, 2, 3, 17, 64, ROWS];
const WIDTHS: [usize; 6] = [1, 7, 64, 1_000, 4_096, VOCAB];

/// Every number of a result, as bits, row by row.
fn bits(columns: &RowColumns) -> Vec<Vec<u64>> {
    let likelihoods = [&columns.lse, &columns.nll, &columns.log_prob, &columns.max_logit, &columns.max_log_prob];
    let shapes = [&columns.entropy, &columns.varentropy, &columns.margin, &columns.sum_sq_prob];
    let whole = [&columns.argmax, &columns.rank, &columns.ties];
    let row_bits = |row: usize| {
        let top = row * columns.top_k..(row + 1) * columns.top_k;
        let mut all: Vec<u64> = likelihoods.iter().chain(&shapes).map(|values| values[row].to_bits()).collect();
        all.extend(columns.top_log_probs[top.clone()].iter().map(|value| value.to_bits()));
        all.extend(whole.iter().map(|values| values[row] as u64));
        all.extend(columns.top_ids[top].iter().map(|&id| id as u64));
        all.push(columns.flags[row].into());
        all
    };
    (0..columns.flags.len()).map(row_bits).collect()
}

fn assert_same(got: &[Vec<u64>], expected: &[Vec<u64>], context: &str) {
    assert_eq!(got.len(), expected.len());
    for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got, expected, "row {row} of the call, {context}");
    }
}

/// Rows of several widths, ties and special values among them, and their targets.
fn sample<E: Stored>() -> (Vec<E>, Vec<i64>) {
    let mut random = Random(0x5eed);
    let mut logits = Vec::new();
    let mut targets: Vec<i64> =
        (0..ROWS).map(|row| if row % 13 == 4 { -100 } else { random.below(VOCAB) as i64 }).collect();
    targets[13] = 8_999;
    for row in 0..ROWS {
        let mut one: Vec<E> = random.row(VOCAB, [0.01, 1.0, 4.0, 40.0][row % 4]);
        match row % 10 {
            3 => one[random.below(VOCAB)] = E::IMPOSSIBLE,
            5 => one.fill(E::round(1.5)),
            7 => one[4_096..].fill(E::IMPOSSIBLE),
            9 => one[8_191] = E::round(90.0),
            _ => {}
        }
        match row {
            10 => one[5_000] = E::round(f64::NAN),
            11 => one[8_192] = E::round(f64::INFINITY),
            12 => one.fill(E::IMPOSSIBLE),
            13 => one[8_999] = E::IMPOSSIBLE,
            14 => one.iter_mut().enumerate().for_each(|(i, logit)| *logit = E::round([0.0, -0.0][i / 3 % 2])),
            // The largest logits are zeros of both signs, in several leaves.
            15 => {
                one.iter_mut().for_each(|logit| *logit = E::round(-logit.exact().abs() - 0.5));
                (one[700], one[4_800], one[8_300]) = (E::round(-0.0), E::round(0.0), E::round(-0.0));
            }
            _ => {}
        }
        logits.extend(one);
    }
    (logits, targets)
}

/// Every instruction set with every number of threads.
fn machines() -> impl Iterator<Item = Options> {
    Isa::available().into_iter().flat_map(|isa| THREADS.map(|threads| options(isa, threads)))
}

fn options(isa: Isa, threads: usize) -> Options {
    let execution = Execution { isa: Some(isa), num_threads: Some(threads) };
    Options { top_k: 4, temperature: 0.9, execution, ..Options::default() }
}

fn ids(targets: &[i64]) -> Targets {
    Targets::new(targets.iter().copied(), VOCAB, -100).unwrap()
}

fn whole<E: Stored>(logits: &[E], targets: &[i64], options: &Options) -> Vec<Vec<u64>> {
    let view = LogitsView::from_slice(logits, targets.len(), VOCAB).unwrap();
    bits(&row_stats(&view, Some(&ids(targets)), options).unwrap())
}

fn batches(size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..ROWS).step_by(size).map(move |first| first..ROWS.min(first + size))
}

fn check_threads_batches_and_isas<E: Stored>() {
    let (logits, targets) = sample::<E>();
    let expected = whole(&logits, &targets, &options(Isa::best(), 1));
    for options in machines() {
        for rows in BATCHES.into_iter().flat_map(batches) {
            let columns = rows.start * VOCAB..rows.end * VOCAB;
            let context = format!("{:?}, rows {rows:?}, {}", options.execution, E::NAME);
            assert_same(&whole(&logits[columns], &targets[rows.clone()], &options), &expected[rows], &context);
        }
    }
}

#[test]
fn threads_batches_and_isas_change_no_bit() {
    check_threads_batches_and_isas::<f32>();
    check_threads_batches_and_isas::<f16>();
    check_threads_batches_and_isas::<bf16>();
    check_threads_batches_and_isas::<f64>();
}

/// Every number of what is made beside row statistics, as bits, row by row; one NaN, as its payload is not promised.
fn tempered<E: Stored>(logits: &[E], targets: &[i64], options: &Options) -> Vec<Vec<u64>> {
    let wanted =
        TemperedOptions { moments: true, renyi_orders: &[0.5, 2.0, 1.0], inverse_temperatures: &[0.25, 0.0, 3.0] };
    let view = LogitsView::from_slice(logits, targets.len(), VOCAB).unwrap();
    let (stats, found) = tempered_row_stats(&view, Some(&ids(targets)), &wanted, options).unwrap();
    let mut rows = bits(&stats);
    let grid = &found.temperature_grid;
    for (row, all) in rows.iter_mut().enumerate() {
        let lists = [&found.renyi_entropy, &grid.lse, &grid.mean, &grid.variance, &grid.entropy, &grid.nll];
        let values = lists.into_iter().flat_map(|list| &list[row * 3..][..3]);
        let moments = [&found.log_prob_mean[row], &found.log_prob_variance[row]];
        let one_nan = |value: &f64| if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() };
        all.extend(values.chain(moments).map(one_nan));
        all.push(grid.flags[row].into());
    }
    rows
}

fn check_tempered<E: Stored>() {
    let (logits, targets) = sample::<E>();
    let expected = tempered(&logits, &targets, &options(Isa::best(), 1));
    let plain = whole(&logits, &targets, &options(Isa::best(), 1));
    for (row, (expected, plain)) in expected.iter().zip(&plain).enumerate() {
        assert_eq!(expected[..plain.len()], plain[..], "row {row} of row_stats, {}", E::NAME);
    }
    for options in machines() {
        for rows in [1, 3, ROWS].into_iter().flat_map(batches) {
            let columns = rows.start * VOCAB..rows.end * VOCAB;
            let context = format!("{:?}, rows {rows:?}, {}", options.execution, E::NAME);
            assert_same(&tempered(&logits[columns], &targets[rows.clone()], &options), &expected[rows], &context);
        }
    }
}

#[test]
fn what_is_made_beside_row_statistics_has_the_same_bits_too() {
    check_tempered::<f32>();
    check_tempered::<f16>();
    check_tempered::<bf16>();
    check_tempered::<f64>();
}

/// Some rows, and what a state wants to know of them before their columns come.
struct Rows<'s, E> {
    logits: &'s [E],
    targets: &'s [i64],
    target_logits: Vec<f64>,
}

impl<'s, E: Stored<Compute = f32>> Rows<'s, E> {
    fn new(logits: &'s [E], targets: &'s [i64], rows: Range<usize>) -> Self {
        let (logits, targets) = (&logits[rows.start * VOCAB..rows.end * VOCAB], &targets[rows]);
        let target_logit =
            |(row, &target): (&[E], &i64)| usize::try_from(target).map_or(f64::NAN, |id| row[id].exact());
        let target_logits = logits.chunks(VOCAB).zip(targets).map(target_logit).collect();
        Self { logits, targets, target_logits }
    }

    fn state(&self, options: &Options) -> RowStatsState<f32> {
        let (targets, target_logits) = (ids(self.targets), self.target_logits.clone());
        RowStatsState::new(targets.rows(), VOCAB, Some(targets), Some(target_logits), options).unwrap()
    }

    /// A copy of some columns.
    fn columns(&self, columns: Range<usize>) -> Vec<E> {
        self.logits.chunks(VOCAB).flat_map(|row| row[columns.clone()].iter().copied()).collect()
    }

    /// Copies of `width` columns each, with their first columns.
    fn chunks(&self, width: usize) -> Vec<(usize, Vec<E>)> {
        let starts = (0..VOCAB).step_by(width);
        starts.map(|start| (start, self.columns(start..VOCAB.min(start + width)))).collect()
    }

    fn update(&self, state: &mut RowStatsState<f32>, (start, chunk): &(usize, Vec<E>), options: &Options) {
        let view = LogitsView::from_slice(chunk, self.targets.len(), chunk.len() / self.targets.len()).unwrap();
        state.update(&view, *start, &options.execution).unwrap();
    }
}

fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for i in (1..items.len()).rev() {
        items.swap(i, random.below(i + 1));
    }
}

/// Chunks of `width` columns in a shuffled order, over two states that merge.
fn in_two_states<E: Stored<Compute = f32>>(rows: &Rows<'_, E>, width: usize, options: &Options) -> Vec<Vec<u64>> {
    let mut states = [rows.state(options), rows.state(options)];
    let mut chunks = rows.chunks(width);
    shuffle(&mut chunks, &mut Random(0x5eed ^ width as u64));
    for (i, chunk) in chunks.iter().enumerate() {
        rows.update(&mut states[i % 2], chunk, options);
    }
    // Through bytes, as a process that is resumed would.
    let mut state = RowStatsState::<f32>::from_bytes(&states[0].to_bytes()).unwrap();
    state.merge(&states[1]).unwrap();
    bits(&state.compute().unwrap())
}

fn check_chunks<E: Stored<Compute = f32>>() {
    let (logits, targets) = sample::<E>();
    let rows = Rows::new(&logits, &targets, 0..20);
    for isa in Isa::available() {
        let expected = whole(rows.logits, rows.targets, &options(isa, 1));
        for width in &WIDTHS[1..] {
            let got = in_two_states(&rows, *width, &options(isa, 2));
            assert_same(&got, &expected, &format!("{isa} {}, chunks of {width}", E::NAME));
        }
    }
    let two = Rows::new(&logits, &targets, 10..12);
    let best = options(Isa::best(), 1);
    assert_same(&in_two_states(&two, 1, &best), &whole(two.logits, two.targets, &best), "chunks of 1");
}

#[test]
fn chunks_of_the_vocabulary_change_no_bit() {
    check_chunks::<f32>();
    check_chunks::<f16>();
    check_chunks::<bf16>();
}

#[test]
fn chunks_threads_batches_and_isas_change_no_bit() {
    let (logits, targets) = sample::<f32>();
    let expected = whole(&logits, &targets, &options(Isa::best(), 1));
    for batch in BATCHES.into_iter().flat_map(batches) {
        let rows = Rows::new(&logits, &targets, batch.clone());
        for width in WIDTHS {
            let mut chunks = rows.chunks(width);
            if width > 1 {
                shuffle(&mut chunks, &mut Random(0x5eed ^ width as u64));
            }
            for options in machines() {
                let mut state = rows.state(&options);
                chunks.iter().for_each(|chunk| rows.update(&mut state, chunk, &options));
                let context = format!("{:?}, rows {batch:?}, chunks of {width}", options.execution);
                assert_same(&bits(&state.compute().unwrap()), &expected[batch.clone()], &context);
            }
        }
    }
}

/// Shards whose borders lie inside leaves, on them and beside them, each read by another instruction set.
#[test]
fn shards_merge_in_any_order() {
    let (logits, targets) = sample::<f32>();
    let rows = Rows::new(&logits, &targets, 0..20);
    let expected = whole(rows.logits, rows.targets, &options(Isa::best(), 1));
    let borders = [0, 100, 4_095, 4_097, 5_000, 8_192, 8_999, VOCAB];
    let mut random = Random(0x5eed);
    for attempt in 0..24 {
        let isas = Isa::available();
        let shard = |(i, border): (usize, &[usize])| {
            let options = options(isas[(i + attempt) % isas.len()], 2);
            let mut state = rows.state(&options);
            rows.update(&mut state, &(border[0], rows.columns(border[0]..border[1])), &options);
            state
        };
        let mut shards: Vec<_> = borders.windows(2).enumerate().map(shard).collect();
        match attempt {
            0 => {}
            1 => shards.reverse(),
            _ => shuffle(&mut shards, &mut random),
        }
        while shards.len() > 1 {
            // In order and in reverse into one state, else by any tree.
            let into = if attempt < 2 { 0 } else { random.below(shards.len() - 1) };
            let next = shards.remove(into + 1);
            shards[into].merge(&next).unwrap();
        }
        assert_same(&bits(&shards[0].compute().unwrap()), &expected, &format!("order number {attempt}"));
    }
}

fn check_padding<E: Stored>() {
    let (logits, targets) = sample::<E>();
    let junk = [f64::NAN, f64::INFINITY, 1e4, 0.0].map(E::round);
    let pad = |row: &[E]| row.iter().copied().chain((0..215).map(|i| junk[i % 4])).collect::<Vec<_>>();
    let padded: Vec<E> = logits.chunks(VOCAB).flat_map(pad).collect();
    let view = LogitsView::from_slice(&padded, ROWS, VOCAB + 215).unwrap().with_vocab_size(VOCAB).unwrap();
    let plain = LogitsView::from_slice(&logits, ROWS, VOCAB).unwrap();
    for options in machines() {
        let got = bits(&row_stats(&view, Some(&ids(&targets)), &options).unwrap());
        let context = format!("{:?}, {}", options.execution, E::NAME);
        assert_same(&got, &whole(&logits, &targets, &options), &context);
    }
    let kl = |q| {
        let columns = kl_divergence(&plain, q, 0.9, &Execution::default()).unwrap();
        (columns.kl_divergence.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), columns.flags)
    };
    assert_eq!(kl(&view), kl(&plain), "{}", E::NAME);
}

#[test]
fn padding_columns_change_no_bit() {
    check_padding::<f32>();
    check_padding::<f16>();
    check_padding::<bf16>();
    check_padding::<f64>();
}

#[test]
fn kl_divergence_has_the_same_bits_on_all() {
    let mut random = Random(0x5eed);
    let (p, q): (Vec<f32>, Vec<f32>) = (random.row(20 * VOCAB, 3.0), random.row(20 * VOCAB, 3.0));
    let run = |execution| {
        let view = |logits| LogitsView::<f32>::from_slice(logits, 20, VOCAB).unwrap();
        let columns = kl_divergence(&view(&p), &view(&q), 1.3, &execution).unwrap();
        columns.kl_divergence.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    };
    let expected = run(options(Isa::best(), 1).execution);
    for Options { execution, .. } in machines() {
        assert_eq!(run(execution), expected, "{execution:?}");
    }
}

#[test]
fn half_width_rows_have_the_bits_of_their_float32_values() {
    let (logits, targets) = sample::<bf16>();
    let wide: Vec<f32> = logits.iter().map(|logit| logit.to_f32()).collect();
    let options = options(Isa::best(), 2);
    assert_same(&whole(&logits, &targets, &options), &whole(&wide, &targets, &options), "bfloat16 and float32");
}
