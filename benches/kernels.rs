//! Every kernel on every instruction set that runs here, each dtype, three vocabularies, one thread and all: bytes of
//! logits read per second.
//!
//! `cargo bench --bench kernels -- 'nll::f32'` takes the kernels whose path matches; `--sample-count` and `--max-time`
//! are divan's. Each case checks its first row against the plain reference, and the whole call warms it. The cases run one
//! after the other, not in turn: a ratio to the read probe that is to be kept comes from `make bench-check`.
//!
//! Inputs are four times the level-3 caches, for KL both together; no more than [`MOST_BYTES`].

#[path = "../tests/support/mod.rs"]
mod support;

use divan::Bencher;
use divan::counter::BytesCount;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;
use std::{fmt, fs};
use support::{Random, Stored, lse_bound};
use xentrs::{Execution, Float, Isa, LogitsView, Options, Plan, Targets, reference};

const VOCABS: [usize; 3] = [49_152, 128_256, 256_000];
const TOP_K: usize = 20;
const SCALE: f64 = 3.0;
/// So that the bench runs on small machines; where it is less than four times the caches, the first lines say so.
const MOST_BYTES: usize = 240 << 20;
/// Rows start at so many places of one pool of random logits: copying is quicker than drawing each row.
const SHIFTS: usize = 1 << 16;

/// The size of all level-3 caches together, as sysfs tells it; 32 MiB where it does not.
static L3_BYTES: LazyLock<usize> = LazyLock::new(|| {
    let entries = |path: &std::path::Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut sizes = BTreeMap::new();
    for cpu in entries("/sys/devices/system/cpu".as_ref()) {
        for cache in entries(&cpu.join("cache")) {
            let text = |name| fs::read_to_string(cache.join(name)).unwrap_or_default().trim().to_owned();
            if text("level") == "3" {
                let kib: usize = text("size").trim_end_matches('K').parse().unwrap_or(0);
                sizes.insert(text("shared_cpu_list"), kib << 10);
            }
        }
    }
    match sizes.values().sum() {
        0 => 32 << 20,
        bytes => bytes,
    }
});

/// How many bytes a call reads.
fn input_bytes() -> usize {
    (4 * *L3_BYTES).min(MOST_BYTES)
}

/// What a kernel runs with, besides its dtype.
struct Case {
    isa: Isa,
    vocab: usize,
    threads: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} vocab {} threads {}", self.isa, self.vocab, self.threads)
    }
}

impl Case {
    fn execution(&self) -> Execution {
        Execution { isa: Some(self.isa), num_threads: Some(self.threads) }
    }

    fn options(&self) -> Options {
        Options { execution: self.execution(), ..Options::default() }
    }
}

/// Threads of a call that names none.
fn all_threads() -> usize {
    Plan::new(1 << 16, VOCABS[0], &Execution::default()).expect("the environment is valid").threads
}

fn cases() -> Vec<Case> {
    let mut thread_counts = vec![1, all_threads()];
    thread_counts.dedup();
    let mut cases = Vec::new();
    for isa in Isa::available() {
        for vocab in VOCABS {
            cases.extend(thread_counts.iter().map(|&threads| Case { isa, vocab, threads }));
        }
    }
    cases
}

/// Rows of random logits, each with a target.
struct Input<E> {
    logits: Vec<E>,
    rows: usize,
    vocab: usize,
    targets: Targets,
}

impl<E: Stored> Input<E> {
    /// At least `bytes` of logits; `seed` is not 0.
    fn draw(vocab: usize, bytes: usize, seed: u64) -> Self {
        let rows = bytes.div_ceil(vocab * size_of::<E>());
        let pool: Vec<E> = Random(seed).row(vocab + SHIFTS, SCALE);
        let mut logits = Vec::with_capacity(rows * vocab);
        for row in 0..rows {
            // An odd step, so that neighbouring rows differ and the copies are not aligned alike.
            let start = row * 4_099 % SHIFTS;
            logits.extend_from_slice(&pool[start..start + vocab]);
        }
        let ids = (0..rows).map(|row| (row * 7_919 % vocab) as i64);
        let targets = Targets::new(ids, vocab, -100).expect("ids are below the vocabulary");
        Self { logits, rows, vocab, targets }
    }

    fn view(&self) -> LogitsView<'_, E> {
        LogitsView::from_slice(&self.logits, self.rows, self.vocab).expect("the rows fill the slice")
    }

    fn bytes(&self) -> usize {
        size_of_val(self.logits.as_slice())
    }

    /// The first row, exact.
    fn first(&self) -> Vec<f64> {
        self.logits[..self.vocab].iter().map(|&logit| logit.exact()).collect()
    }
}

fn assert_near(name: &str, got: f64, expected: f64, tolerance: f64, case: &Case) {
    let is_near = (got - expected).abs() <= tolerance;
    assert!(is_near, "{name}: {got:e}, expected {expected:e} within {tolerance:e}; {case}");
}

/// The bound on entropy of tests/accuracy.rs.
fn entropy_bound<E: Stored>(vocab: usize) -> f64 {
    8.0 * E::Compute::UNIT_ROUNDOFF * (2.0 + (vocab as f64).ln())
}

fn time<R>(bencher: Bencher<'_, '_>, bytes: usize, call: impl FnMut() -> R) {
    bencher.counter(BytesCount::new(bytes)).bench_local(call);
}

/// The limit that memory sets to the others.
#[divan::bench(types = [f32, f64, f16, bf16], args = cases())]
fn read_probe<E: Stored>(bencher: Bencher, case: &Case) {
    let input = Input::<E>::draw(case.vocab, input_bytes(), 1);
    let (view, execution) = (input.view(), case.execution());
    let call = || xentrs::read_probe(&view, &execution).expect("the input is valid");
    // Its value has no other definition than its own loads.
    assert!(call().is_finite(), "{case}");
    time(bencher, input.bytes(), call);
}

#[divan::bench(types = [f32, f64, f16, bf16], args = cases())]
fn logsumexp<E: Stored>(bencher: Bencher, case: &Case) {
    let input = Input::<E>::draw(case.vocab, input_bytes(), 1);
    let (view, options) = (input.view(), case.options());
    let call = || xentrs::logsumexp(&view, &options).expect("the input is valid");
    let expected = reference::row_stats(&input.first(), None, 1.0, None);
    assert_near("lse", call()[0], expected.lse, lse_bound::<E>(case.vocab, expected.lse), case);
    time(bencher, input.bytes(), call);
}

/// `cross_entropy`: lse and the target's likelihood.
#[divan::bench(types = [f32, f64, f16, bf16], args = cases())]
fn nll<E: Stored>(bencher: Bencher, case: &Case) {
    let input = Input::<E>::draw(case.vocab, input_bytes(), 1);
    let (view, options) = (input.view(), case.options());
    let call = || xentrs::cross_entropy(&view, &input.targets, &options).expect("the input is valid");
    let expected = reference::row_stats(&input.first(), Some(0), 1.0, None);
    assert_near("nll", call()[0], expected.nll, lse_bound::<E>(case.vocab, expected.lse), case);
    time(bencher, input.bytes(), call);
}

/// `row_stats`: all statistics.
#[divan::bench(types = [f32, f64, f16, bf16], args = cases())]
fn all<E: Stored>(bencher: Bencher, case: &Case) {
    let input = Input::<E>::draw(case.vocab, input_bytes(), 1);
    let (view, options) = (input.view(), case.options());
    let call = || xentrs::row_stats(&view, Some(&input.targets), &options).expect("the input is valid");
    let expected = reference::row_stats(&input.first(), Some(0), 1.0, None);
    let got = call();
    assert_near("nll", got.nll[0], expected.nll, lse_bound::<E>(case.vocab, expected.lse), case);
    assert_near("entropy", got.entropy[0], expected.entropy, entropy_bound::<E>(case.vocab), case);
    assert_eq!((got.argmax[0], got.rank[0]), (expected.argmax, expected.rank), "{case}");
    time(bencher, input.bytes(), call);
}

/// `row_stats` with the largest logits of each row.
#[divan::bench(types = [f32, f64, f16, bf16], args = cases())]
fn topk<E: Stored>(bencher: Bencher, case: &Case) {
    let input = Input::<E>::draw(case.vocab, input_bytes(), 1);
    let (view, options) = (input.view(), Options { top_k: TOP_K, ..case.options() });
    let call = || xentrs::row_stats(&view, Some(&input.targets), &options).expect("the input is valid");
    let mut first = input.first();
    let lse = reference::row_stats(&first, None, 1.0, None).lse;
    first.sort_unstable_by(|left, right| right.total_cmp(left));
    let got = call();
    for (&log_prob, &logit) in got.top_log_probs[..TOP_K].iter().zip(&first) {
        assert_near("top_log_prob", log_prob, logit - lse, lse_bound::<E>(case.vocab, lse), case);
    }
    time(bencher, input.bytes(), call);
}

/// `kl_divergence`: the bytes are those of both inputs.
#[divan::bench(types = [f32, f64, f16, bf16], args = cases())]
fn kl<E: Stored>(bencher: Bencher, case: &Case) {
    let [p, q] = [1, 2].map(|seed| Input::<E>::draw(case.vocab, input_bytes() / 2, seed));
    let (p_view, q_view, execution) = (p.view(), q.view(), case.execution());
    let call = || xentrs::kl_divergence(&p_view, &q_view, 1.0, &execution).expect("the input is valid");
    let (p_first, q_first) = (p.first(), q.first());
    let expected = reference::kl_divergence(&p_first, &q_first, 1.0);
    // The bound of tests/kernels.rs, where it is derived.
    let size = p_first.iter().chain(&q_first).fold(1.0f64, |largest, logit| largest.max(2.0 * logit.abs()));
    let weight = (2.0 * expected).sqrt().min(2.0) + expected;
    let bound = 4.0 * E::Compute::UNIT_ROUNDOFF * size * weight + entropy_bound::<E>(case.vocab) * expected;
    assert_near("kl", call().kl_divergence[0], expected, bound + 1e-13 * weight, case);
    time(bencher, p.bytes() + q.bytes(), call);
}

fn main() {
    let mib = |bytes: usize| bytes >> 20;
    let found: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    println!("ISAs {}; all threads: {}", found.join(", "), all_threads());
    for name in ["scalar", "avx2", "avx512"] {
        if Isa::named(name).is_err() {
            println!("{name} SKIPPED, this machine lacks it");
        }
    }
    println!("L3 {} MiB, {} MiB read by each call", mib(*L3_BYTES), mib(input_bytes()));
    if input_bytes() < 4 * *L3_BYTES {
        println!("These inputs are less than four times the caches: the figures are too good.");
    }
    let defaults = divan::Divan::default().sample_count(7).sample_size(1).max_time(Duration::from_secs(2));
    defaults.config_with_args().main();
}
