//! Which instruction set runs here, and how a kernel is entered for it.

use super::{Simd, scalar::Scalar};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};
use crate::error::Error;
use std::fmt;
use std::sync::OnceLock;

/// An instruction set that runs on this machine. It is made only by detection, so holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Token);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Scalar(Scalar),
    #[cfg(test)]
    Emulated(super::emulated::Emulated128),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

/// The names of all instruction sets this crate knows, plainest first.
const NAMES: [&str; 3] = ["scalar", "avx2", "avx512"];

/// Work that is compiled once for each instruction set. `run` is `#[inline(always)]` in every implementation, so that
/// it is compiled with the features of the entry it is called from.
pub(crate) trait Job {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

impl Isa {
    /// Every instruction set that runs here, plainest first.
    ///
    /// ```
    /// assert_eq!(xentrs::Isa::available()[0].name(), "scalar");
    /// ```
    pub fn available() -> Vec<Self> {
        let mut found = vec![Self(Token::Scalar(Scalar))];
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(Avx2::detect().map(|token| Self(Token::Avx2(token))));
            found.extend(Avx512::detect().map(|token| Self(Token::Avx512(token))));
        }
        found
    }

    /// The instruction set of that name: `scalar`, `avx2` or `avx512`.
    ///
    /// # Errors
    /// [`Error::UnknownIsa`] for another name, [`Error::IsaUnavailable`] if it does not run here.
    pub fn named(name: &str) -> Result<Self, Error> {
        if !NAMES.contains(&name) {
            return Err(Error::UnknownIsa { name: name.to_owned(), known: &NAMES });
        }
        let found = Self::available().into_iter().find(|isa| isa.name() == name);
        found.ok_or_else(|| Error::IsaUnavailable { name: name.to_owned(), best: Self::best().name() })
    }

    /// The fastest instruction set that runs here.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| *Self::available().last().expect("scalar is always available"))
    }

    /// The instruction set in use: [`Isa::best`], or the one that the environment variable `XENTRS_ISA` names. The
    /// variable is read once.
    ///
    /// # Errors
    /// As [`Isa::named`], for the variable's value.
    pub fn current() -> Result<Self, Error> {
        static CURRENT: OnceLock<Result<Isa, Error>> = OnceLock::new();
        let chosen = CURRENT.get_or_init(|| match std::env::var("XENTRS_ISA") {
            Ok(name) if !name.is_empty() => Self::named(&name),
            _ => Ok(Self::best()),
        });
        chosen.clone()
    }

    /// `scalar`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Token::Scalar(_) => "scalar",
            #[cfg(test)]
            Token::Emulated(_) => "emulated128",
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(_) => "avx512",
        }
    }

    /// Registers of 128 bits, emulated.
    #[cfg(test)]
    pub(crate) fn emulated() -> Self {
        Self(Token::Emulated(super::emulated::Emulated128))
    }

    /// Runs `job` compiled for this instruction set.
    pub(crate) fn run<J: Job>(self, job: J) -> J::Output {
        match self.0 {
            Token::Scalar(token) => job.run(token),
            #[cfg(test)]
            Token::Emulated(token) => job.run(token),
            // SAFETY: the token was made by detection, so its instructions run here.
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(token) => unsafe { run_avx2(token, job) },
            // SAFETY: the token was made by detection, so its instructions run here.
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(token) => unsafe { run_avx512(token, job) },
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn run_avx2<J: Job>(token: Avx2, job: J) -> J::Output {
    job.run(token)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
fn run_avx512<J: Job>(token: Avx512, job: J) -> J::Output {
    job.run(token)
}
