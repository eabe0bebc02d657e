//! The kills, and what has to hold after each of them and at the end.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use citadel_ledger::{Receipt, VerifierKey};
use citadel_tests::citadel::Ca;
use citadel_tests::client::Admin;
use citadel_tests::pki::openssl;
use citadel_tests::process::Process;
use citadel_tests::wait;

use super::dice::Dice;
use super::kept::{Kept, Plan, Progress};
use crate::support::{LogOf, names_in, start_load};

/// From a start to certificates that arrive: the CA's start, and new connections.
const FLOWING: Duration = Duration::from_secs(20);

/// After certificates began to arrive, the longest time until the kill.
const INSTANT: Duration = Duration::from_millis(300);

/// Certificates of a round whose receipts are verified, beside the last one.
const SAMPLE: usize = 3;

/// Runs the plan, from where an earlier run was interrupted.
pub(super) async fn run(plan: Plan) {
    let kept = plan.open().await;
    let mut ca = kept.ca().await;
    let received = kept.received();
    let load = start_load(ca.dir(), &ca, &ca.bundle_file(), &received, plan.name()).await;
    let mut dice = Dice::new();
    let mut log = LogOf::default();
    let mut progress = kept.progress();
    let begun_at = progress.kills;
    while progress.kills < plan.kills && !plan.is_over() {
        let begun = Instant::now();
        under_load(&received, &load).await;
        tokio::time::sleep(dice.time(INSTANT)).await;
        ca.process().kill().await;
        let arrived = names_in(&received);
        ca.start_again().await;
        // What is checked has the processor to itself.
        load.pause();
        let admin = Admin::of(&ca);
        let info = admin.info().await;
        log.read_to(&admin, info.log_size).await;
        for serial in &arrived {
            assert!(
                log.serials.contains(serial),
                "kill {}: {serial} is not in the log",
                progress.kills
            );
        }
        let key: VerifierKey = info.log_key.parse().expect("a key");
        let sample = choose(&arrived, &mut dice);
        // What an interrupted run left may be half written.
        let whole = begun_at == 0 || progress.kills > begun_at;
        are_proven(&admin, &key, whole.then_some(&*received), &sample).await;
        // What was checked needs no second look.
        for serial in &arrived {
            std::fs::remove_file(received.join(format!("{serial}.pem"))).expect("a file");
        }
        progress.kills += 1;
        progress.certificates += arrived.len();
        progress.receipts += sample.len();
        progress.seconds += begun.elapsed().as_secs_f64();
        kept.keep(progress, &info.checkpoint);
        load.resume();
    }
    load.kill().await;
    println!(
        "{} kills in this run: {progress:?}, {} entries in the log",
        progress.kills - begun_at,
        log.size
    );
    if progress.kills >= plan.kills {
        end(&kept, ca, log, progress).await;
    }
}

/// Waits until certificates arrive: a kill at any other time shows nothing.
async fn under_load(received: &Path, load: &Process) {
    let before = names_in(received).len();
    wait::until("certificates arrive", FLOWING, async || {
        assert!(load.is_running(), "the load ended: {}", load.log());
        (names_in(received).len() > before + 5).then_some(())
    })
    .await;
}

/// Some of them, among them the newest: serials begin with the time.
fn choose(arrived: &HashSet<String>, dice: &mut Dice) -> HashSet<String> {
    let mut sorted: Vec<_> = arrived.iter().collect();
    sorted.sort();
    let mut chosen = HashSet::from([(*sorted.last().expect("some arrived")).clone()]);
    for _ in 0..SAMPLE {
        chosen.insert(sorted[dice.index(sorted.len())].clone());
    }
    chosen
}

/// The start has signed a checkpoint over all that was there: each of these certificates
/// is proven by a receipt now, and by the log's public key alone.
async fn are_proven(
    admin: &Admin,
    key: &VerifierKey,
    received: Option<&Path>,
    serials: &HashSet<String>,
) {
    for serial in serials {
        let text = admin.receipt(serial).await.expect("a receipt");
        let receipt = Receipt::parse(text.as_bytes()).expect("a receipt");
        receipt
            .verify(std::slice::from_ref(key))
            .unwrap_or_else(|error| panic!("{serial}: {error}"));
        let record = admin.certificate(serial).await.expect("a record");
        assert_eq!(receipt.entry, record.bytes, "{serial}");
        if let Some(received) = received {
            let pem = std::fs::read(received.join(format!("{serial}.pem"))).expect("a file");
            let der = openssl::run(&["x509", "-outform", "DER"], &pem);
            assert_eq!(record.issued.certificate, der, "{serial}");
        }
    }
}

/// After the last kill: the rest of the log, and all of its tree.
async fn end(kept: &Kept, ca: Ca, mut log: LogOf, progress: Progress) {
    let admin = Admin::of(&ca);
    log.read_on(&admin).await;
    assert!(names_in(&kept.received()).is_subset(&log.serials));
    let key: VerifierKey = admin.info().await.log_key.parse().expect("a key");
    ca.terminate().await;
    let begun = Instant::now();
    let (verified, checkpoints) = kept.verify(&key).await;
    // The stop is an entry, and a checkpoint covers it. What the load had asked for when it
    // was killed may have been recorded after the log was read.
    assert!(verified.size > log.size, "{} {}", verified.size, log.size);
    assert_eq!(verified.covered, verified.size);
    assert_eq!(checkpoints, progress.kills);
    let result = format!(
        "{} kills in {:.0} s: {} certificates arrived, {} receipts verified; a log of {} \
         entries, verified with {checkpoints} checkpoints in {:.1} s",
        progress.kills,
        progress.seconds,
        progress.certificates,
        progress.receipts,
        verified.size,
        begun.elapsed().as_secs_f64()
    );
    println!("{result}");
    kept.dir.write("result", format!("{result}\n"));
}
