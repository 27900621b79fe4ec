//! NaN, infinities, extremes, subnormals and minus zero at every place of a row, against the table of docs/numerics.md:
//! which fields are undefined, which flags stand, and that the neighbour rows keep their bits.

#[path = "special_values/sample.rs"]
mod sample;
mod support;

use half::{bf16, f16};
use sample::{Aim, Format, Kind, Sample, nans, specials};
use support::{Random, lse_bound};
use xentrs::{
    Execution, Flags, Float, Isa, LogitsView, Options, RowColumns, RowStats, Targets, cross_entropy, kl_divergence,
    logsumexp, reference, row_stats,
};

const TOP_K: usize = 3;

macro_rules! for_each_dtype {
    ($element:ident => $check:expr) => {
        for_each_dtype!($element => $check; f32, f64, f16, bf16)
    };
    ($element:ident => $check:expr; $($type:ty),+) => {
        $({
            type $element = $type;
            $check;
        })+
    };
}

/// The statistics of each row, once the functions that compute less have said the same.
fn rows_of<E: Format>(view: &LogitsView<'_, E>, targets: Option<&Targets>, isa: Isa) -> Vec<Row> {
    let options = Options { top_k: TOP_K, execution: on(isa), ..Options::default() };
    let columns = row_stats(view, targets, &options).unwrap();
    let same = |one: &[f64], other: &[f64]| one.iter().map(bits_of).eq(other.iter().map(bits_of));
    if let Some(targets) = targets {
        assert!(same(&cross_entropy(view, targets, &options).unwrap(), &columns.nll), "{isa}");
    } else {
        assert!(same(&logsumexp(view, &options).unwrap(), &columns.lse), "{isa}");
    }
    (0..view.rows()).map(|row| Row::of(&columns, row)).collect()
}

fn on(isa: Isa) -> Execution {
    Execution { isa: Some(isa), num_threads: Some(1) }
}

/// The bits, but one NaN: its payload is not promised.
fn bits_of(value: &f64) -> u64 {
    if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() }
}

const NAMES: [&str; 9] =
    ["lse", "max_logit", "nll", "log_prob", "entropy", "varentropy", "max_log_prob", "margin", "sum_sq_prob"];

/// One row of a result: its floats in the order of [`NAMES`] and its largest log-probabilities; argmax, rank, ties, flags
/// and the columns of the largest.
#[derive(Debug)]
struct Row(Vec<f64>, Vec<i64>);

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().map(bits_of).eq(other.0.iter().map(bits_of)) && self.1 == other.1
    }
}

impl Row {
    fn of(columns: &RowColumns, row: usize) -> Self {
        let floats = [&columns.lse, &columns.max_logit, &columns.nll, &columns.log_prob, &columns.entropy];
        let more = [&columns.varentropy, &columns.max_log_prob, &columns.margin, &columns.sum_sq_prob];
        let counts = [columns.argmax[row], columns.rank[row], columns.ties[row], columns.flags[row].into()];
        let top = row * TOP_K..(row + 1) * TOP_K;
        let floats = floats.iter().chain(&more).map(|column| column[row]);
        Self(
            floats.chain(columns.top_log_probs[top.clone()].iter().copied()).collect(),
            counts.into_iter().chain(columns.top_ids[top].iter().copied()).collect(),
        )
    }

    /// A row that has no distribution: `limit` is its lse and its largest logit.
    fn undefined(limit: f64, nll: f64, flags: Flags) -> Self {
        let floats = [limit, limit, nll, nll].into_iter().chain([f64::NAN; 5 + TOP_K]).collect();
        Self(floats, [-1, 0, 0, flags.bits().into()].into_iter().chain([-1; TOP_K]).collect())
    }

    /// Holds a row that has one to the plain definition.
    fn check<E: Format>(&self, exact: &[f64], target: Option<usize>, context: &str) {
        let expected = reference::row_stats(exact, target, 1.0, None);
        let RowStats { lse, max_logit, nll, log_prob, entropy, varentropy, max_log_prob, margin, sum_sq_prob, .. } =
            expected;
        let floats = [lse, max_logit, nll, log_prob, entropy, varentropy, max_log_prob, margin, sum_sq_prob];
        let bound = |value: f64| lse_bound::<E>(exact.len(), value);
        // As in tests/kernels.rs: the entropy adds the mean distance to the largest, whose terms carry the same errors.
        let near_entropy = 8.0 * E::Compute::UNIT_ROUNDOFF * (2.0 + (exact.len() as f64).ln());
        let near_varentropy = 128.0 * near_entropy * (1.0 + varentropy);
        let near =
            [bound(lse), 0.0, bound(nll), bound(nll), near_entropy, near_varentropy, bound(1.0), 0.0, bound(1.0)];
        for (i, name) in NAMES.iter().enumerate() {
            assert_near(name, self.0[i], floats[i], near[i], context);
        }
        let counts = [expected.argmax, expected.rank, expected.ties, expected.flags.bits().into(), expected.argmax];
        assert_eq!(self.1[..5], counts, "{context}");
    }
}

fn assert_near(name: &str, got: f64, expected: f64, tolerance: f64, context: &str) {
    let is_near = bits_of(&got) == bits_of(&expected) || got == expected || (got - expected).abs() <= tolerance;
    assert!(is_near, "{name}: {got:e}, expected {expected:e} within {tolerance:e}; {context}");
}

/// One special value at the place of each odd row.
fn check_value<E: Format>(sample: &Sample<E>, aim: Aim, kind: Kind, value: E) {
    let (logits, targets) = (sample.with(Some(value)), aim.targets(sample));
    let run = |logits: &[E], isa| rows_of(&sample.view(logits), targets.as_ref(), isa);
    let (plain, best) = (run(&sample.plain, Isa::best()), run(&logits, Isa::best()));
    for isa in Isa::available() {
        assert_eq!(run(&logits, isa), best, "{isa} {} {:?}, {aim:?}", E::NAME, value.exact());
    }
    for (row, got) in best.iter().enumerate() {
        let place = sample.places.get(row / 2).copied().unwrap_or_default();
        let context = format!("row {row}: {} {:?} at {place} of {}, {aim:?}", E::NAME, value.exact(), sample.vocab);
        let expected = match kind {
            _ if row % 2 == 0 => &plain[row],
            _ if aim == Aim::Ignored => &Row::undefined(f64::NAN, 0.0, Flags::IGNORED),
            Kind::Nan => &Row::undefined(f64::NAN, f64::NAN, Flags::NAN),
            Kind::PosInf => &Row::undefined(f64::INFINITY, f64::NAN, Flags::POSINF),
            Kind::Defined => {
                got.check::<E>(&sample.exact_row(&logits, row), aim.target(sample.vocab, place), &context);
                continue;
            }
        };
        assert_eq!(got, expected, "{context}");
    }
}

fn check_rows<E: Format>() {
    for sample in [Sample::<E>::narrow(0x5eed), Sample::wide(0x5eed)] {
        for (kind, value) in specials::<E>() {
            for aim in [Aim::NoTargets, Aim::AtThePlace, Aim::Elsewhere, Aim::Ignored] {
                check_value(&sample, aim, kind, value);
            }
        }
    }
}

#[test]
fn every_special_value_at_every_place_of_a_row() {
    for_each_dtype!(E => check_rows::<E>());
}

/// KL(p||q) as its definition says: 0 ln 0 is 0, and plus infinity where p is positive and q is 0.
fn kl(p: &[f64], q: &[f64]) -> (f64, Flags) {
    let of = |row: &[f64]| reference::row_stats(row, None, 1.0, None);
    let (p_row, q_row) = (of(p), of(q));
    for flags in [Flags::NAN, Flags::POSINF, Flags::ALL_NEGINF] {
        if p_row.flags == flags || q_row.flags == flags {
            return (f64::NAN, flags);
        }
    }
    let log_prob = |logit: f64, row: &RowStats| (logit - row.max_logit) + row.max_log_prob;
    let logs = p.iter().zip(q).map(|(&p, &q)| (log_prob(p, &p_row), log_prob(q, &q_row)));
    let positive = logs.filter(|(p, _)| p.exp() > 0.0);
    if positive.clone().any(|(_, q)| q == f64::NEG_INFINITY) {
        return (f64::INFINITY, Flags::SUPPORT);
    }
    let value = positive.map(|(p, q)| p.exp() * (p - q)).sum();
    (value, if value == f64::INFINITY { Flags::OVERFLOW } else { Flags::default() })
}

/// Special values in p, in q or in both, each at the place of each odd row.
fn check_kl<E: Format>(p: &Sample<E>, q: &Sample<E>, p_value: Option<E>, q_value: Option<E>) {
    let run = |p_logits: &[E], q_logits: &[E], isa| {
        let columns = kl_divergence(&p.view(p_logits), &q.view(q_logits), 1.0, &on(isa)).unwrap();
        let rows = columns.kl_divergence.into_iter().zip(columns.flags);
        rows.map(|(value, flags)| Row(vec![value], vec![flags.into()])).collect::<Vec<_>>()
    };
    let (p_logits, q_logits) = (p.with(p_value), q.with(q_value));
    let (plain, best) = (run(&p.plain, &q.plain, Isa::best()), run(&p_logits, &q_logits, Isa::best()));
    let values = [p_value, q_value].map(|value| value.map(E::exact));
    for isa in Isa::available() {
        assert_eq!(run(&p_logits, &q_logits, isa), best, "{isa} {} {values:?}", E::NAME);
    }
    for (row, got) in best.iter().enumerate() {
        let context = format!("{} {values:?}, row {row} of {} columns", E::NAME, p.vocab);
        if row % 2 == 0 {
            assert_eq!(got, &plain[row], "{context}");
            continue;
        }
        let (value, flags) = kl(&p.exact_row(&p_logits, row), &q.exact_row(&q_logits, row));
        // Each distance from the largest, here below 40, is rounded once in p and once in q; so is each weight.
        let bound = 256.0 * E::Compute::UNIT_ROUNDOFF * (1.0 + value);
        let largest = if E::NAME == "float64" { f64::MAX } else { f32::MAX.into() };
        let is_large = value > largest / p.vocab as f64;
        if flags != Flags::SUPPORT && is_large && got.1[0] == i64::from(Flags::OVERFLOW.bits()) {
            // Sums before the division by their mass are larger than the divergence, and lanes end before float64 does.
            assert_eq!(got.0[0], f64::INFINITY, "{context}");
            continue;
        }
        assert_near("kl", got.0[0], value, bound, &context);
        assert_eq!(got.1[0] & !i64::from(Flags::CLAMPED.bits()), i64::from(flags.bits()), "{context}");
    }
}

fn check_sides<E: Format>(p: &Sample<E>, q: &Sample<E>) {
    for (_, value) in specials::<E>() {
        for (p_value, q_value) in [(Some(value), None), (Some(value), Some(value)), (None, Some(value))] {
            check_kl(p, q, p_value, q_value);
        }
    }
}

fn check_all_pairs<E: Format>() {
    let [p, q] = [0x5eed, 0xfeed].map(|seed| Sample::<E>::new(257, &[0, 128, 256], seed));
    for (_, p_value) in specials::<E>() {
        for (_, q_value) in specials::<E>() {
            check_kl(&p, &q, Some(p_value), Some(q_value));
        }
    }
}

#[test]
fn every_special_value_in_p_in_q_and_in_both() {
    for_each_dtype!(E => check_sides(&Sample::<E>::narrow(0x5eed), &Sample::narrow(0xfeed)));
}

#[test]
fn special_values_in_p_in_q_and_in_both_of_two_leaves() {
    for_each_dtype!(E => check_sides(&Sample::<E>::wide(0x5eed), &Sample::wide(0xfeed)));
}

#[test]
fn every_special_value_in_p_with_every_one_in_q() {
    for_each_dtype!(E => check_all_pairs::<E>());
}

fn check_nans<E: Format>() {
    let (vocab, nans) = (700, nans::<E>());
    let (rows, mut random) = (nans.len(), Random(0x5eed));
    let plain: Vec<E> = random.row(rows * vocab, 3.0);
    let mut logits = plain.clone();
    for (row, &nan) in nans.iter().enumerate() {
        logits[row * vocab + row * 37 % vocab] = nan;
    }
    let [plain, view] = [&plain, &logits].map(|logits| LogitsView::from_slice(logits, rows, vocab).unwrap());
    for isa in Isa::available() {
        let all_nan = |flags: &[u8]| flags.iter().position(|&flags| flags != Flags::NAN.bits());
        for (temperature, softcap) in [(1.0, None), (0.7, None), (2.0, Some(30.0))] {
            let options = Options { temperature, softcap, execution: on(isa), ..Options::default() };
            let stats = row_stats(&view, None, &options).unwrap();
            let context = format!("{isa} {} temperature {temperature} cap {softcap:?}", E::NAME);
            assert_eq!(all_nan(&stats.flags), None, "{context}");
            assert!(stats.lse.iter().chain(&logsumexp(&view, &options).unwrap()).all(|lse| lse.is_nan()), "{context}");
        }
        for (p, q) in [(&view, &plain), (&plain, &view), (&view, &view)] {
            let columns = kl_divergence(p, q, 1.0, &on(isa)).unwrap();
            assert_eq!(all_nan(&columns.flags), None, "{isa} {}", E::NAME);
            assert!(columns.kl_divergence.iter().all(|value| value.is_nan()), "{isa} {}", E::NAME);
        }
    }
}

#[test]
fn no_nan_is_lost_whatever_its_payload() {
    for_each_dtype!(E => check_nans::<E>());
}

/// Rows of one value alone.
fn check_constant<E: Format>(vocab: usize, isa: Isa) {
    for (kind, value) in specials::<E>() {
        let (logits, exact) = (vec![value; vocab], vec![value.exact(); vocab]);
        let targets = Targets::new([1], vocab, -100).unwrap();
        let got = &rows_of(&LogitsView::from_slice(&logits, 1, vocab).unwrap(), Some(&targets), isa)[0];
        let context = format!("{isa} {} {vocab} times {:?}", E::NAME, value.exact());
        let undefined = |limit, flags| assert_eq!(got, &Row::undefined(limit, f64::NAN, flags), "{context}");
        match kind {
            Kind::Nan => undefined(f64::NAN, Flags::NAN),
            Kind::PosInf => undefined(f64::INFINITY, Flags::POSINF),
            Kind::Defined if value.exact() == f64::NEG_INFINITY => undefined(f64::NEG_INFINITY, Flags::ALL_NEGINF),
            Kind::Defined => got.check::<E>(&exact, Some(1), &context),
        }
    }
}

#[test]
fn rows_of_one_special_value() {
    for isa in Isa::available() {
        for vocab in [3, 257, 4_353] {
            for_each_dtype!(E => check_constant::<E>(vocab, isa));
        }
    }
}
