//! Which instruction set runs here, and how a kernel is entered for it.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::tiles::Amx;
#[cfg(target_arch = "x86_64")]
use super::tiles::Avx512Bf16;
#[cfg(test)]
use super::tiles::PlainBf16;
use super::{Simd, scalar::Scalar};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};
use crate::error::Error;
use std::fmt;
use std::sync::OnceLock;

/// An instruction set that runs on this machine, and how the head multiplies bfloat16 with it. It is made only by
/// detection, so holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa {
    lanes: Token,
    bf16_tiles: Option<Bf16Tiles>,
}

/// Tile products of bfloat16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bf16Tiles {
    #[cfg(test)]
    Plain(PlainBf16),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(Amx),
}

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

/// The names of all instruction sets this crate knows, plainest first; the last two are tile classes of the head.
const NAMES: [&str; 5] = ["scalar", "avx2", "avx512", "avx512bf16", "amx"];

impl Bf16Tiles {
    /// Every class that runs here, the slowest first.
    fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "no class to add"))]
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        found.extend(Avx512Bf16::detect().map(Self::Avx512Bf16));
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        found.extend(Amx::detect().map(Self::Amx));
        found
    }

    fn name(self) -> &'static str {
        match self {
            #[cfg(test)]
            Self::Plain(_) => "plain",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(_) => "avx512bf16",
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(_) => "amx",
        }
    }
}

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
        let mut found = vec![Token::Scalar(Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(Avx2::detect().map(Token::Avx2));
            found.extend(Avx512::detect().map(Token::Avx512));
        }
        found.into_iter().map(|lanes| Self { lanes, bf16_tiles: None }).collect()
    }

    /// The tile classes that run here, the slowest first: the best instruction set with each.
    pub fn available_tiles() -> Vec<Self> {
        let lanes = Self::available().last().expect("scalar is always available").lanes;
        Bf16Tiles::available().into_iter().map(|tiles| Self { lanes, bf16_tiles: Some(tiles) }).collect()
    }

    /// The instruction set of that name, without tiles: `scalar`, `avx2` or `avx512`; or the best with the tiles of that
    /// name: `avx512bf16` or `amx`.
    ///
    /// # Errors
    /// [`Error::UnknownIsa`] for another name, [`Error::IsaUnavailable`] if it does not run here.
    pub fn named(name: &str) -> Result<Self, Error> {
        if !NAMES.contains(&name) {
            return Err(Error::UnknownIsa { name: name.to_owned(), known: &NAMES });
        }
        let found = Self::available().into_iter().chain(Self::available_tiles()).find(|isa| isa.head_name() == name);
        found.ok_or_else(|| Error::IsaUnavailable { name: name.to_owned(), best: Self::best().head_name() })
    }

    /// The fastest instruction set that runs here, with the fastest tiles.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let all = [Self::available(), Self::available_tiles()].concat();
            *all.last().expect("scalar is always available")
        })
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

    /// What rows are read with: `scalar`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self.lanes {
            Token::Scalar(_) => "scalar",
            #[cfg(test)]
            Token::Emulated(_) => "emulated128",
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(_) => "avx512",
        }
    }

    /// What a head of bfloat16 is multiplied with: the tile class, or, without one, [`Isa::name`].
    pub fn head_name(self) -> &'static str {
        self.bf16_tiles.map_or_else(|| self.name(), Bf16Tiles::name)
    }

    pub(crate) fn bf16_tiles(self) -> Option<Bf16Tiles> {
        self.bf16_tiles
    }

    /// Registers of 128 bits, emulated.
    #[cfg(test)]
    pub(crate) fn emulated() -> Self {
        Self { lanes: Token::Emulated(super::emulated::Emulated128), bf16_tiles: None }
    }

    /// The same lanes, with tile products in plain loops.
    #[cfg(test)]
    pub(crate) fn with_plain_tiles(self) -> Self {
        Self { bf16_tiles: Some(Bf16Tiles::Plain(PlainBf16)), ..self }
    }

    /// Runs `job` compiled for this instruction set.
    pub(crate) fn run<J: Job>(self, job: J) -> J::Output {
        match self.lanes {
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
