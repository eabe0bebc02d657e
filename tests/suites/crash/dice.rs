//! Random instants.

use std::time::{Duration, SystemTime};

/// Random numbers from a seed that is printed, and can be set by `CITADEL_TEST_SEED`.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new() -> Self {
        let chosen = std::env::var("CITADEL_TEST_SEED").ok();
        let seed = chosen.map_or_else(
            || {
                SystemTime::UNIX_EPOCH
                    .elapsed()
                    .expect("after 1970")
                    .subsec_nanos()
                    .into()
            },
            |seed| seed.parse().expect("CITADEL_TEST_SEED is a number"),
        );
        println!("CITADEL_TEST_SEED={seed}");
        Self(seed)
    }

    pub(super) fn time(&mut self, most: Duration) -> Duration {
        let micros = u64::try_from(most.as_micros()).expect("a short time");
        Duration::from_micros(self.next() % micros)
    }

    pub(super) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.next() % length as u64).expect("below a length")
    }

    /// `SplitMix64`, which is good enough for instants.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
