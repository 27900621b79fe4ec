//! How a call will run: instruction set, threads, units of work. Plain data that follows from shape, settings and machine;
//! making one touches no array, and no choice in it changes a bit of the result.

use crate::error::Error;
use crate::input::LEAF;
use crate::simd::Isa;

/// What a caller asks of the machine; the default leaves both to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Execution {
    /// Instruction set; `None` takes [`Isa::current`].
    pub isa: Option<Isa>,
    /// Threads; `None` or 0 takes all that this process may use.
    pub num_threads: Option<usize>,
}

impl Execution {
    /// The instruction set that a call will take.
    pub(crate) fn isa(&self) -> Result<Isa, Error> {
        self.isa.map_or_else(Isa::current, Ok)
    }

    /// The instruction set, and threads for work that `useful` of them could share.
    fn resolve(&self, useful: usize) -> Result<(Isa, usize), Error> {
        let isa = self.isa()?;
        let most = match self.num_threads.unwrap_or(0) {
            0 => default_threads(useful)?,
            count => checked_threads("num_threads", count)?,
        };
        Ok((isa, most.min(useful).max(1)))
    }
}

/// A printable choice.
///
/// ```
/// use xentrs::{Execution, Plan};
/// let plan = Plan::new(512, 128_256, &Execution { num_threads: Some(2), ..Execution::default() })?;
/// assert_eq!(plan.threads, 2);
/// # Ok::<(), xentrs::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Instruction set of the kernels.
    pub isa: Isa,
    /// Threads that take units.
    pub threads: usize,
    /// What one thread takes at a time.
    pub unit: Unit,
}

/// A piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// So many whole rows.
    Rows(usize),
    /// So many leaves of one row, for calls with fewer rows than threads could share.
    Leaves(usize),
}

/// More threads than any machine has; a larger number is a mistake.
const MOST_THREADS: usize = 4096;
/// A unit is at least so many columns, which take some ten microseconds: waking a thread costs less.
const UNIT_COLUMNS: usize = 1 << 16;
/// A unit is at most so many columns, so that an interrupt is answered soon.
const LONGEST_UNIT_COLUMNS: usize = 1 << 20;
/// Units for each thread, so that a thread that is held up does not hold up the call.
const UNITS_PER_THREAD: usize = 4;

impl Plan {
    /// The plan for `rows` rows of `vocab` columns.
    ///
    /// # Errors
    /// [`Error::Parameter`] for more than 4,096 threads or an environment variable that is no number; those of
    /// [`Isa::current`].
    pub fn new(rows: usize, vocab: usize, execution: &Execution) -> Result<Self, Error> {
        let columns = rows.saturating_mul(vocab);
        let leaves = vocab.div_ceil(LEAF);
        let (isa, threads) = execution.resolve(columns.div_ceil(UNIT_COLUMNS / 2))?;
        let wanted_units = threads * UNITS_PER_THREAD;
        let splits_rows = leaves > 1 && (rows < wanted_units && threads > 1 || vocab > LONGEST_UNIT_COLUMNS);
        let unit = if splits_rows {
            let fair = (leaves * rows).div_ceil(wanted_units);
            Unit::Leaves(fair.clamp(1, LONGEST_UNIT_COLUMNS / LEAF).min(leaves))
        } else {
            let fair = rows.div_ceil(wanted_units).max(1);
            Unit::Rows((UNIT_COLUMNS / vocab.max(1)).clamp(1, fair))
        };
        Ok(Self { isa, threads, unit })
    }
}

/// How a call on hidden states and a head will run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadPlan {
    /// Instruction set of the kernels.
    pub isa: Isa,
    /// Threads that take units.
    pub threads: usize,
    /// Rows of a unit, which share the weights that are read for them.
    pub rows: usize,
    /// Leaves of a unit: all, or fewer where there are too few rows for all threads.
    pub leaves: usize,
}

/// Rows of a unit: their logits over one leaf take 4 MiB of float32, and packing the weights a fortieth of the time.
const HEAD_ROWS: usize = 256;
/// A thread is woken for at least so many products.
const HEAD_PRODUCTS: usize = 1 << 20;

impl HeadPlan {
    /// The plan for `rows` hidden states of `width` and a head of `vocab` rows.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn new(rows: usize, width: usize, vocab: usize, execution: &Execution) -> Result<Self, Error> {
        let leaf_count = vocab.div_ceil(LEAF);
        let products = rows.saturating_mul(vocab).saturating_mul(width.max(1));
        let (isa, threads) = execution.resolve(products.div_ceil(HEAD_PRODUCTS))?;
        let blocks = rows.div_ceil(HEAD_ROWS).max(1);
        let pieces = if blocks >= 2 * threads || threads == 1 { 1 } else { (4 * threads).div_ceil(blocks) };
        Ok(Self {
            isa,
            threads,
            rows: rows.div_ceil(blocks).max(1),
            leaves: leaf_count.div_ceil(pieces.clamp(1, leaf_count.max(1))).max(1),
        })
    }
}

/// Threads of a call that names none and could use so many: `XENTRS_NUM_THREADS`, else the cores this process may use (affinity
/// and cgroup quota counted). These are not looked at where one thread is enough: it takes longer than a small call.
///
/// # Errors
/// [`Error::Parameter`] if the variable is not a number from 1 to 4,096.
pub fn default_threads(useful: usize) -> Result<usize, Error> {
    match std::env::var("XENTRS_NUM_THREADS") {
        Ok(text) if !text.is_empty() => {
            let count = text.trim().parse().map_err(|_| thread_error("XENTRS_NUM_THREADS", text.clone()))?;
            checked_threads("XENTRS_NUM_THREADS", count)
        }
        _ if useful <= 1 => Ok(1),
        _ => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
    }
}

fn checked_threads(name: &'static str, count: usize) -> Result<usize, Error> {
    if (1..=MOST_THREADS).contains(&count) { Ok(count) } else { Err(thread_error(name, count.to_string())) }
}

fn thread_error(name: &'static str, value: String) -> Error {
    Error::Parameter { name, value, expected: "a number from 1 to 4096" }
}
