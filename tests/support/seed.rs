//! What the environment sets for tests that try many random cases: how many, and from which seed.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::time::Duration;

/// How many cases to try: `GROWD_ROUNDS`, or as many as fit into a run of all tests.
pub fn rounds(usual: usize) -> usize {
    number("GROWD_ROUNDS").map_or(usual, |rounds| usize::try_from(rounds).unwrap())
}

/// How long to go on: `GROWD_SOAK_SECONDS`, or as long as fits into a run of all tests.
pub fn soak(usual: u64) -> Duration {
    Duration::from_secs(number("GROWD_SOAK_SECONDS").unwrap_or(usual))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, and not {text:?}")))
}

/// Numbers from a seed (xorshift64, Marsaglia 2003).
pub struct Random(u64);

impl Random {
    /// From `GROWD_SEED`, or from a new seed. It is printed: the same seed gives the same numbers again.
    pub fn from_environment() -> Self {
        let seed = number("GROWD_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0).max(1);
        println!("GROWD_SEED={seed}");
        Self::of(seed)
    }

    /// The numbers of one seed; 0 has none of its own.
    pub fn of(seed: u64) -> Self {
        let mut random = Self(seed.max(1));
        // The first numbers of seeds that are near each other are alike.
        for _ in 0..8 {
            random.number();
        }
        random
    }

    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.number() % u64::try_from(bound).unwrap()).unwrap()
    }

    pub fn coin(&mut self) -> bool {
        // The low bits of this generator are its weakest.
        self.number() >> 63 == 1
    }
}
