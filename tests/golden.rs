//! 2,000 golden rows, known to 50 digits from mpmath: they prove the reference, and every instruction set beside it.
//!
//! `golden/make.py` says how a row follows from its number; [`Recipe`] is that text in Rust, under the same names. A
//! checksum in each line of `golden/rows.csv` shows that both made the same bits. A Python test pins the SHA-256 of the
//! CSV and computes some of its rows again.

mod support;

use half::{bf16, f16};
use support::{Stored, lse_bound};
use xentrs::{Execution, Float, Isa, LogitsView, Options, Targets, reference, row_stats};

const CSV: &str = include_str!("golden/rows.csv");
const DTYPES: [&str; 4] = ["float32", "float64", "float16", "bfloat16"];
const BITS: [u32; 4] = [24, 53, 11, 8];
const KINDS: [&str; 10] =
    ["spread", "constant", "peak", "tie", "offset", "masked", "tail", "odd", "steps", "geometric"];
const VOCABS: [usize; 15] = [1, 2, 3, 15, 16, 17, 31, 33, 255, 256, 257, 1000, 4095, 4096, 4097];
/// The columns of the CSV after the row's place, and what every array of six numbers here holds.
const QUANTITIES: [&str; 6] = ["lse", "nll", "entropy", "varentropy", "sum_sq_prob", "max_log_prob"];

/// The draws of one row, in the order of the recipe.
struct Recipe {
    state: u64,
    number: usize,
    bits: u32,
}

/// The logit q * 2^unit; exact, as is the power, whose exponent is small.
fn logit(q: i64, unit: i32) -> f64 {
    q as f64 * f64::from_bits(((1023 + unit) as u64) << 52)
}

impl Recipe {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn wave(&mut self) -> i64 {
        let mut half = || (self.next() >> (65 - self.bits)) as i64;
        half() + half() - (1 << (self.bits - 1))
    }

    fn unit_of_width(&mut self) -> i32 {
        self.below(18) as i32 - 10 + 1 - self.bits as i32
    }

    fn vocab(&mut self) -> usize {
        VOCABS.get(self.number / 40 % 20).copied().unwrap_or_else(|| {
            let power = 1 + self.below(12);
            2 + self.below(1 << power)
        })
    }

    fn logits(&mut self, kind: &str, vocab: usize) -> Vec<f64> {
        match kind {
            "spread" => {
                let unit = self.unit_of_width();
                (0..vocab).map(|_| logit(self.wave(), unit)).collect()
            }
            "constant" => {
                let unit = self.unit_of_width();
                vec![logit(self.wave(), unit); vocab]
            }
            "peak" => self.peak(vocab),
            "tie" => self.tie(vocab),
            "offset" => self.offset(vocab),
            "masked" => self.masked(vocab),
            "odd" => {
                let (unit, q, other, column) = (self.unit_of_width(), self.wave(), self.wave(), self.below(vocab));
                (0..vocab).map(|i| logit(if i == column { other } else { q }, unit)).collect()
            }
            "steps" => {
                let low = 64 + self.below(192) as i64;
                (0..vocab).map(|_| logit(-low * self.below(2) as i64, -3)).collect()
            }
            _ => self.scattered(vocab, kind == "tail"),
        }
    }

    fn peak(&mut self, vocab: usize) -> Vec<f64> {
        let (column, unit) = (self.below(vocab), 8 - self.bits as i32);
        let peak = (40 + self.below(31) as i64) << (self.bits - 8);
        let mut logits: Vec<f64> = (0..vocab).map(|_| logit(self.wave() >> 6, unit)).collect();
        logits[column] = logit(peak, unit);
        logits
    }

    fn tie(&mut self, vocab: usize) -> Vec<f64> {
        let (unit, first) = (self.unit_of_width(), self.below(vocab));
        let second = (first + 1 + self.below((vocab - 1).max(1))) % vocab;
        let mut logits: Vec<f64> = (0..vocab).map(|_| logit(self.wave(), unit)).collect();
        logits[first] = logit(1 << (self.bits - 1), unit);
        logits[second] = logits[first];
        logits
    }

    fn offset(&mut self, vocab: usize) -> Vec<f64> {
        let (offset, unit) = [(10_000i64, -10), (1_000_000, -33), (700, -1), (160, 0)][self.number % 4];
        let sign = 1 - 2 * self.below(2) as i64;
        let mut q = || sign * ((offset << -unit) + self.below(16 << -unit) as i64);
        (0..vocab).map(|_| logit(q(), unit)).collect()
    }

    fn masked(&mut self, vocab: usize) -> Vec<f64> {
        let kept = self.below(vocab);
        let odds = [2, 8, 64][self.below(3)];
        let draw = |column| {
            let (q, mask) = (self.wave(), self.below(odds));
            if mask == 0 || column == kept { logit(q, 4 - self.bits as i32) } else { f64::NEG_INFINITY }
        };
        (0..vocab).map(draw).collect()
    }

    /// The kinds tail and geometric.
    fn scattered(&mut self, vocab: usize, is_tail: bool) -> Vec<f64> {
        let (widths, least) = if is_tail { (17, -3) } else { (18, -12) };
        let draw = |_| {
            let q = (self.next() >> (64 - self.bits)) as i64;
            let unit = self.below(widths) as i32 + least - self.bits as i32;
            logit(if is_tail || self.below(2) == 1 { -q } else { q }, unit)
        };
        (0..vocab).map(draw).collect()
    }

    fn target(&mut self, logits: &[f64]) -> usize {
        let first = |wanted: f64| logits.iter().position(|&logit| logit == wanted).expect("it is one of them");
        let finite = || logits.iter().copied().filter(|logit| logit.is_finite());
        match self.below(3) {
            0 => first(finite().fold(f64::NEG_INFINITY, f64::max)),
            1 => {
                let start = self.below(logits.len());
                let mut columns = (start..logits.len()).chain(0..start);
                columns.find(|&column| logits[column].is_finite()).expect("one is finite")
            }
            _ => first(finite().fold(f64::INFINITY, f64::min)),
        }
    }
}

/// A row made anew, and its line in the CSV with each value rounded once.
struct Golden {
    name: String,
    logits: Vec<f64>,
    target: usize,
    values: [f64; 6],
}

impl Golden {
    fn new(number: usize, line: &str) -> Self {
        let mut recipe = Recipe { state: (number as u64) << 32, number, bits: BITS[number % 4] };
        let (dtype, kind, vocab) = (DTYPES[number % 4], KINDS[number / 4 % 10], recipe.vocab());
        let logits = recipe.logits(kind, vocab);
        let target = recipe.target(&logits);
        let checksum = logits.iter().fold(0xcbf2_9ce4_8422_2325, |checksum: u64, logit| {
            let mixed = (checksum ^ logit.to_bits()).wrapping_mul(0x100_0000_01b3);
            mixed ^ mixed >> 32
        });
        let place = format!("{number},{dtype},{vocab},{kind},{target},{checksum:016x},");
        let values = line.strip_prefix(&place).unwrap_or_else(|| panic!("{line} is the line, {place} the row"));
        let mut values = values.split(',').map(|value| value.parse().expect("a number"));
        let values = std::array::from_fn(|i| values.next().unwrap_or_else(|| panic!("{} is missing", QUANTITIES[i])));
        Self { name: format!("row {number}: {dtype}, vocab {vocab}, {kind}, target {target}"), logits, target, values }
    }

    /// All rows of one dtype.
    fn all(dtype: &str) -> Vec<Self> {
        let lines = CSV.lines().skip(1).enumerate().filter(|(number, _)| DTYPES[number % 4] == dtype);
        lines.map(|(number, line)| Self::new(number, line)).collect()
    }
}

/// Where the errors of an implementation come from.
struct Arithmetic {
    unit: f64,         // unit roundoff of e^d and of the sums; what follows the sums is float64
    additions: f64,    // roundings that one term passes on its way into a sum
    lowest: f64,       // e^d counts as 0 below this d
    cancellation: f64, // how often smaller than the sum of squares that it is made from the varentropy may be
}

/// Its sums carry their errors along: one rounding, and one for what is of second order. Below -745 exp is 0 itself.
const REFERENCE: Arithmetic =
    Arithmetic { unit: f64::EPSILON / 2.0, additions: 2.0, lowest: -745.0, cancellation: 1.0 };

impl Arithmetic {
    /// A lane adds 16 vectors of a block; in float64 the 16 blocks, 4 halvings of the lanes and 2 leaves with their
    /// e^shift count too. Where less than 1/64 of the sum of squares would remain, the kernel sums around the mean.
    fn of_kernel<E: Stored>() -> Self {
        let unit = E::Compute::UNIT_ROUNDOFF;
        let additions = if unit < 1e-10 { 16.0 + 16.0 + 4.0 + 9.0 } else { 16.0 };
        Self { unit, additions, lowest: E::Compute::LOWEST_EXPONENT.into(), cancellation: 64.0 }
    }

    /// Largest error of each quantity, to first order. With u the unit and d = z - max <= 0, d is off by u |d| and exp by
    /// 2 u, so e^d is off by (2 + |d|) u of itself, and a sum of n additions by n u more. With D = sum p |d|, ln(1 + rest)
    /// moves by u ((2 + n) rest / (1 + rest) + D), which is small where rest is, and D by u ((4 + n) D + sum p d^2) and by
    /// what the mass is off. Nothing here is the size of the logits: rows around 1e6 are held to the same.
    fn bounds(&self, values: &[f64; 6], vocab: usize) -> [f64; 6] {
        let Self { unit, additions, lowest, cancellation } = *self;
        let &[lse, nll, entropy, varentropy, sum_sq_prob, max_log_prob] = values;
        let vocab = vocab as f64;
        // log1p, a quotient or sum, and the rounding of the golden value: float64 each. Subnormals have fewer digits.
        let spare = |value: f64| 4.0 * REFERENCE.unit * value.abs() + f64::MIN_POSITIVE;
        let lost = vocab * lowest.exp();
        let drop = (entropy + max_log_prob).max(0.0);
        let second_moment = varentropy + drop * drop;
        let log_mass = unit * ((2.0 + additions) * -max_log_prob.exp_m1() + drop) + lost;
        let drop_error = unit * ((4.0 + additions) * drop + second_moment) + log_mass * drop - lost * lowest;
        // A term is off by its weight and by twice what d and the mean are off, over their difference.
        let weights = unit * (8.0 + additions + vocab.ln() - lowest) * varentropy;
        let distances = 2.0 * unit * (varentropy * second_moment).sqrt();
        let mean = (2.0 * varentropy.sqrt() + drop_error) * drop_error;
        [
            log_mass + spare(max_log_prob) + spare(lse) / 2.0,
            log_mass + spare(nll),
            log_mass + drop_error + spare(entropy),
            cancellation * (weights + distances) + mean + lost * lowest * lowest + spare(varentropy),
            sum_sq_prob * (unit * (8.0 + 2.0 * drop + additions) + 2.0 * log_mass) + spare(sum_sq_prob),
            log_mass + spare(max_log_prob),
        ]
    }
}

/// Fails where a value is outside its bound; raises the largest parts seen.
fn hold(golden: &Golden, who: &str, got: &[f64; 6], bounds: &[f64; 6], largest: &mut [f64; 6]) {
    for (i, name) in QUANTITIES.iter().enumerate() {
        let (expected, bound) = (golden.values[i], bounds[i]);
        let error = (got[i] - expected).abs();
        assert!(error <= bound, "{who} {name} {:e}, expected {expected:e} within {bound:e}; {}", got[i], golden.name);
        largest[i] = largest[i].max(error / bound);
    }
}

#[test]
fn the_reference_holds_to_the_golden_rows() {
    assert_eq!(CSV.lines().count(), 1 + 2_000);
    let mut largest = [0.0; 6];
    for golden in DTYPES.iter().flat_map(|dtype| Golden::all(dtype)) {
        let got = reference::row_stats(&golden.logits, Some(golden.target), 1.0, None);
        let got = [got.lse, got.nll, got.entropy, got.varentropy, got.sum_sq_prob, got.max_log_prob];
        let mut bounds = REFERENCE.bounds(&golden.values, golden.logits.len());
        // The terms of these have one sign, so even the smallest keep their digits: (8 + 745) u is below 1e-13.
        for i in [1, 2, 5] {
            bounds[i] = bounds[i].min(1e-13 * golden.values[i].abs() + f64::MIN_POSITIVE);
        }
        hold(&golden, "reference", &got, &bounds, &mut largest);
    }
    println!("reference: largest errors {largest:.3?} of the bounds of {QUANTITIES:?}");
}

/// One row on one instruction set.
fn computed<E: Stored>(golden: &Golden, isa: Isa) -> [f64; 6] {
    let logits: Vec<E> = golden.logits.iter().map(|&logit| E::round(logit)).collect();
    assert!(logits.iter().map(|logit| logit.exact()).eq(golden.logits.iter().copied()), "{} is rounded", golden.name);
    let execution = Execution { isa: Some(isa), num_threads: Some(1) };
    let view = LogitsView::from_slice(&logits, 1, logits.len()).unwrap();
    let targets = Targets::new([golden.target as i64], logits.len(), -100).unwrap();
    let stats = row_stats(&view, Some(&targets), &Options { execution, ..Options::default() }).unwrap();
    [stats.lse, stats.nll, stats.entropy, stats.varentropy, stats.sum_sq_prob, stats.max_log_prob].map(|all| all[0])
}

fn check_row_stats<E: Stored>() {
    let rows = Golden::all(E::NAME);
    for isa in Isa::available() {
        let mut largest = [0.0; 6];
        for golden in &rows {
            let vocab = golden.logits.len();
            let mut bounds = Arithmetic::of_kernel::<E>().bounds(&golden.values, vocab);
            // The contract's own bounds, which know nothing of the row but its length, hold as well.
            for i in [0, 1, 5] {
                bounds[i] = bounds[i].min(lse_bound::<E>(vocab, golden.values[i]));
            }
            bounds[2] = bounds[2].min(8.0 * E::Compute::UNIT_ROUNDOFF * (2.0 + (vocab as f64).ln()));
            hold(golden, isa.name(), &computed::<E>(golden, isa), &bounds, &mut largest);
        }
        println!("{} {isa}: largest errors {largest:.3?} of the bounds of {QUANTITIES:?}", E::NAME);
    }
}

#[test]
fn row_stats_holds_to_the_golden_rows() {
    check_row_stats::<f32>();
    check_row_stats::<f64>();
    check_row_stats::<f16>();
    check_row_stats::<bf16>();
    for name in ["scalar", "avx2", "avx512"].into_iter().filter(|name| Isa::named(name).is_err()) {
        println!("{name}: SKIPPED, this machine lacks it");
    }
}
