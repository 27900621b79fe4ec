//! What can be wrong with a call: one variant for each cause, carrying its values. Messages say what came, what was
//! expected, and where.

use std::fmt;

/// The cause of a failed call.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields are the values that the line above them speaks of
pub enum Error {
    /// The buffer's length is not `rows * vocab`.
    BufferLength { elements: usize, rows: usize, vocab: usize },
    /// Two arrays that must have equal shapes do not.
    ShapeMismatch { left: &'static str, left_shape: Vec<usize>, right: &'static str, right_shape: Vec<usize> },
    /// The shape or strides reach further than an address can.
    ShapeOverflow { shape: Vec<usize> },
    /// There is no vocabulary where one is needed.
    EmptyVocabulary { operation: &'static str },
    /// `vocab_size` is not in `[1, vocab]`.
    VocabSize { vocab_size: usize, vocab: usize },
    /// A target outside the vocabulary.
    Target { row: usize, target: i128, vocab: usize },
    /// A number outside the range of its parameter.
    Parameter { name: &'static str, value: String, expected: &'static str },
    /// Probabilities of a row do not sum to 1.
    NotNormalized { what: &'static str, row: usize, sum: f64 },
    /// Columns of a state that came twice, lie outside, or never came.
    Columns { problem: ColumnProblem, start: usize, end: usize, vocab: usize },
    /// Two states of different kinds cannot be merged.
    StateMismatch { field: &'static str, left: String, right: String },
    /// The bytes are no saved state of this version.
    SavedState { reason: String },
    /// A NaN or infinite logit, with `strict`.
    NonFinite { row: usize, column: usize, value: f64 },
    /// A name that is no instruction set.
    UnknownIsa { name: String, known: &'static [&'static str] },
    /// An instruction set that does not run on this machine.
    IsaUnavailable { name: String, best: &'static str },
    /// The memory for the results is not to be had.
    OutOfMemory { bytes: usize },
    /// The threads could not be started.
    Threads { count: usize, reason: String },
    /// The caller asked to stop.
    Interrupted,
    /// A result that arithmetic cannot give; a fault of this library.
    Internal { reason: String },
}

/// What is wrong with the columns given to a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnProblem {
    /// They came before.
    Repeated,
    /// They reach past the vocabulary.
    Outside,
    /// They never came.
    Missing,
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Error::*;
        match self {
            BufferLength { elements, rows, vocab } => {
                write!(formatter, "logits hold {elements} elements, expected rows * vocab = {rows} * {vocab}")
            }
            ShapeMismatch { left, left_shape, right, right_shape } => write!(
                formatter,
                "{left} has shape {}, expected {} as {right} has",
                shape(left_shape),
                shape(right_shape)
            ),
            ShapeOverflow { shape: dimensions } => {
                write!(formatter, "shape {} with these strides is larger than memory", shape(dimensions))
            }
            EmptyVocabulary { operation } => {
                write!(formatter, "logits have vocab 0, expected at least 1 column for {operation}")
            }
            VocabSize { vocab_size, vocab } => {
                write!(formatter, "vocab_size = {vocab_size} is outside [1, {vocab}]")
            }
            Target { row, target, vocab } => write!(formatter, "targets[{row}] = {target} is outside [0, {vocab})"),
            Parameter { name, value, expected } => write!(formatter, "{name} = {value}, expected {expected}"),
            NotNormalized { what, row, sum } => {
                write!(formatter, "{what}[{row}] sums to {sum:?}, expected 1 within 1e-3")
            }
            Columns { problem, start, end, vocab } => {
                let what = match problem {
                    ColumnProblem::Repeated => "were given before",
                    ColumnProblem::Outside => "reach outside the vocabulary",
                    ColumnProblem::Missing => "were never given",
                };
                write!(formatter, "columns [{start}, {end}) {what}, expected each of [0, {vocab}) once")
            }
            StateMismatch { field, left, right } => {
                write!(formatter, "states differ in {field}: {left} and {right}, expected the same")
            }
            SavedState { reason } => write!(formatter, "not a saved state of this version: {reason}"),
            NonFinite { row, column, value } => {
                write!(formatter, "logits[{row}, {column}] = {value}, expected a finite value (strict=True)")
            }
            UnknownIsa { name, known } => {
                write!(formatter, "XENTRS_ISA = {name}, expected one of {}", known.join(", "))
            }
            IsaUnavailable { name, best } => {
                write!(formatter, "XENTRS_ISA = {name} does not run on this machine, expected at most {best}")
            }
            OutOfMemory { bytes } => write!(formatter, "{bytes} bytes for the results could not be allocated"),
            Threads { count, reason } => write!(formatter, "{count} threads could not be started: {reason}"),
            Interrupted => formatter.write_str("interrupted"),
            Internal { reason } => write!(formatter, "internal error: {reason}; please report it"),
        }
    }
}

impl std::error::Error for Error {}

/// A shape as Python writes it.
fn shape(dimensions: &[usize]) -> String {
    match dimensions {
        [only] => format!("({only},)"),
        _ => format!("({})", dimensions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// `count` copies of `value`, or an error where input decides a size that memory does not hold.
pub(crate) fn try_filled<T: Clone>(count: usize, value: T) -> Result<Vec<T>, Error> {
    let mut filled = Vec::new();
    let bytes = count.saturating_mul(size_of::<T>());
    filled.try_reserve_exact(count).map_err(|_| Error::OutOfMemory { bytes })?;
    filled.resize(count, value);
    Ok(filled)
}
