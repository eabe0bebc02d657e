//! `kill -9` at any instant, fifty times: what a client received is in the store, no
//! serial was given twice, and the log has no gap.

use std::time::{Duration, SystemTime};

use citadel_tests::citadel::CaBuilder;
use citadel_tests::client::Admin;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::openssl;
use citadel_tests::wait;

use crate::support::{LogOf, names_in, start_load};

const ROUNDS: usize = 50;

/// From a start to certificates that arrive: the CA's start, and new connections.
const FLOWING: Duration = Duration::from_secs(20);

#[tokio::test]
async fn what_a_client_received_is_in_the_store_after_each_of_50_kills() {
    let dir = TestDir::new("crash");
    let mut ca = CaBuilder::new(ApiServer::shared().await)
        .await
        .start()
        .await;
    let received = dir.join("received");
    let load = start_load(&dir, &ca, &ca.bundle_file(), &received, "crash").await;
    let mut dice = Dice::new();
    let mut log = LogOf::default();
    let mut least = usize::MAX;
    for round in 0..ROUNDS {
        // Under load for certain, and then at any instant.
        let before = names_in(&received).len();
        wait::until("certificates arrive", FLOWING, async || {
            assert!(load.is_running(), "the load ended: {}", load.log());
            (names_in(&received).len() > before + 5).then_some(())
        })
        .await;
        tokio::time::sleep(dice.up_to(Duration::from_millis(300))).await;
        ca.process().kill().await;
        ca.start_again().await;
        // All that arrived until now, and then the log: which can only have more.
        let arrived = names_in(&received);
        log.read_on(&Admin::of(&ca)).await;
        for serial in &arrived {
            assert!(
                log.serials.contains(serial),
                "round {round}: {serial} is not in the store"
            );
        }
        least = least.min(arrived.len() - before);
    }
    load.kill().await;
    log.read_on(&Admin::of(&ca)).await;
    let arrived = names_in(&received);
    assert!(arrived.is_subset(&log.serials));
    assert!(least > 0, "a round without a certificate shows nothing");
    // The record is of that very certificate.
    let admin = Admin::of(&ca);
    for serial in arrived.iter().step_by(arrived.len().div_ceil(200)) {
        let pem = std::fs::read(received.join(format!("{serial}.pem"))).unwrap();
        // The last ones may be half written: their writer was killed.
        let (whole, der, _) = openssl::attempt(&["x509", "-outform", "DER"], &pem);
        let record = admin.certificate(serial).await.unwrap();
        assert!(!whole || record.issued.certificate == der, "{serial}");
    }
    println!(
        "{ROUNDS} kills, {} certificates arrived, {} in the log",
        arrived.len(),
        log.size
    );
}

/// Random instants from a seed that is printed, and can be set by
/// `CITADEL_TEST_SEED`.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
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

    /// `SplitMix64`, which is good enough for instants.
    fn up_to(&mut self, most: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let micros = u64::try_from(most.as_micros()).expect("a short time");
        Duration::from_micros(mixed % micros)
    }
}
