//! Distributions of which only the k largest probabilities are known, as dumps and teachers keep them.

use super::Targets;
use crate::error::Error;

/// The log-probabilities of `k` columns of each row; the rest of the mass lies on the other columns together.
#[derive(Clone, Debug, PartialEq)]
pub struct TopKDistribution {
    columns: Vec<Option<usize>>,
    log_probs: Vec<f64>,
    k: usize,
    rows: usize,
}

/// By so much may stored probabilities sum to more than 1.
const TOLERANCE: f64 = 1e-3;

impl TopKDistribution {
    /// Takes ids and log-probabilities in nats, `(rows, k)` each; an id equal to `ignore_index` is left out.
    ///
    /// ```
    /// use xentrs::TopKDistribution;
    /// assert!(TopKDistribution::new([0, 2], &[-0.1, -3.0], (1, 2), 3, -100).is_ok());
    /// assert!(TopKDistribution::new([0, 0], &[-0.1, -3.0], (1, 2), 3, -100).is_err());
    /// ```
    ///
    /// # Errors
    /// As [`Targets::new`]; [`Error::Parameter`] for a NaN or an id that stands twice in a row;
    /// [`Error::NotNormalized`] for a row whose probabilities sum to more than 1.001.
    pub fn new<I>(
        ids: I,
        log_probs: &[f64],
        (rows, k): (usize, usize),
        vocab: usize,
        ignore_index: i64,
    ) -> Result<Self, Error>
    where
        I: IntoIterator<Item: Into<i128>>,
        I::IntoIter: ExactSizeIterator,
    {
        let columns = Targets::new(ids, vocab, ignore_index)?.into_columns();
        if columns.len() != log_probs.len() || columns.len() != rows * k {
            let (left_shape, right_shape) = (vec![log_probs.len()], vec![columns.len()]);
            return Err(Error::ShapeMismatch { left: "p_log_probs", left_shape, right: "p_ids", right_shape });
        }
        let distribution = Self { columns, log_probs: log_probs.to_vec(), k, rows };
        (0..rows).try_for_each(|row| distribution.check(row))?;
        Ok(distribution)
    }

    fn check(&self, row: usize) -> Result<(), Error> {
        let mut columns: Vec<usize> = self.row(row).map(|(column, _)| column).collect();
        columns.sort_unstable();
        if let Some(pair) = columns.windows(2).find(|pair| pair[0] == pair[1]) {
            let value = format!("{} twice in row {row}", pair[0]);
            return Err(Error::Parameter { name: "p_ids", value, expected: "each id once" });
        }
        if self.row(row).any(|(_, log_prob)| log_prob.is_nan()) {
            let value = format!("NaN in row {row}");
            return Err(Error::Parameter { name: "p_log_probs", value, expected: "log-probabilities" });
        }
        let sum: f64 = self.row(row).map(|(_, log_prob)| libm::exp(log_prob)).sum();
        if sum <= 1.0 + TOLERANCE { Ok(()) } else { Err(Error::NotNormalized { what: "p_log_probs", row, sum }) }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns and log-probabilities of one row, without those left out.
    pub(crate) fn row(&self, row: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
        let places = row * self.k..(row + 1) * self.k;
        let known = self.columns[places.clone()].iter().zip(&self.log_probs[places]);
        known.filter_map(|(id, log_prob)| Some(((*id)?, *log_prob)))
    }
}
