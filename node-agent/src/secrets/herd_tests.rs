//! A herd, in simulated time: 100,000 workloads that start within one minute, as the CA
//! would see them. Slots and pauses are the ones that are used; the seed is fixed.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range, time::Duration};

use citadel_identity::slot::renewal_slot;
use rand::{Rng, SeedableRng, rngs::StdRng};
use time::OffsetDateTime;

use super::timing::{Plan, renewal_pause};

const WORKLOADS: usize = 100_000;
const LIFETIME_MS: u64 = 3_600_000;
/// One hundredth of a lifetime.
const WINDOW_MS: u64 = LIFETIME_MS / 100;
const LIFETIMES: u64 = 6;
const STARTED_AT: OffsetDateTime = time::macros::datetime!(2026-11-26 12:00 UTC);

/// Who says when to renew.
#[derive(Clone, Copy, PartialEq)]
enum Slots {
    OfTheCa,
    /// The agents' own jitter alone.
    Ignored,
}

struct Workload {
    name: String,
    /// Drawn once for a certificate.
    jitter: f64,
    held: Option<(Plan, u64)>,
    failures: u32,
}

/// What the CA answered in each window, from the first start on.
struct Load {
    windows: Vec<u32>,
    expired: usize,
}

fn simulate(slots: Slots, outage: Range<u64>) -> Load {
    let mut rng = StdRng::seed_from_u64(5);
    let mut workloads = Vec::with_capacity(WORKLOADS);
    let mut due = BinaryHeap::with_capacity(WORKLOADS);
    for number in 0..WORKLOADS {
        due.push(Reverse((rng.random_range(0..60_000), number)));
        workloads.push(Workload {
            name: format!("pod-{number}"),
            jitter: rng.random(),
            held: None,
            failures: 0,
        });
    }
    let mut load = Load {
        windows: vec![0; 100 * usize::try_from(LIFETIMES).unwrap()],
        expired: 0,
    };
    while let Some(Reverse((now_ms, number))) = due.pop() {
        let Some(window) = load.windows.get_mut((now_ms / WINDOW_MS) as usize) else {
            continue;
        };
        let workload = &mut workloads[number];
        let ends = workload
            .held
            .map(|(plan, received)| received + millis(plan.expires_in));
        load.expired += usize::from(ends.is_some_and(|ends| ends <= now_ms));
        let wait = match (&workload.held, outage.contains(&now_ms)) {
            (Some((plan, _)), true) => {
                workload.failures += 1;
                let left = Duration::from_millis(ends.unwrap().saturating_sub(now_ms));
                renewal_pause(workload.failures, plan, left, rng.random())
            }
            (None, true) => unreachable!("all have started before the outage"),
            (_, false) => {
                *window += 1;
                let plan = issue(slots, workload, now_ms);
                workload.held = Some((plan, now_ms));
                workload.failures = 0;
                workload.jitter = rng.random();
                plan.renew_in
            }
        };
        due.push(Reverse((now_ms + millis(wait), number)));
    }
    load
}

/// The CA's answer as the agent plans by it.
fn issue(slots: Slots, workload: &Workload, now_ms: u64) -> Plan {
    let now = STARTED_AT + Duration::from_millis(now_ms);
    let not_after = now.replace_nanosecond(0).unwrap() + Duration::from_millis(LIFETIME_MS);
    let renew_at = match slots {
        Slots::OfTheCa => renewal_slot(&["/ns/shop/sa/web", &workload.name], now, not_after),
        Slots::Ignored => OffsetDateTime::UNIX_EPOCH,
    };
    let server_ms = i64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap();
    Plan::new(
        server_ms,
        not_after.unix_timestamp(),
        renew_at.unix_timestamp(),
        workload.jitter,
    )
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap()
}

impl Load {
    /// The busiest and the quietest window of these lifetimes, in means of a steady load: each
    /// workload twice in a lifetime.
    fn peak_and_low(&self, lifetimes: Range<f64>) -> (f64, f64) {
        let at = |lifetime: f64| (lifetime * 100.0) as usize;
        let windows = &self.windows[at(lifetimes.start)..at(lifetimes.end)];
        let mean = WORKLOADS as f64 * 2.0 / 100.0;
        let of = |count: Option<&u32>| f64::from(*count.unwrap()) / mean;
        (of(windows.iter().max()), of(windows.iter().min()))
    }
}

const NEVER: Range<u64> = 0..0;

#[test]
fn a_herd_is_spread_evenly_from_the_end_of_its_first_lifetime_on() {
    let slots = simulate(Slots::OfTheCa, NEVER);
    let (peak, low) = slots.peak_and_low(1.0..LIFETIMES as f64);
    let control = simulate(Slots::Ignored, NEVER);
    let (control_peak, control_low) = control.peak_and_low(1.0..LIFETIMES as f64);
    println!("windows of 1 % of a lifetime, in means, from the first lifetime's end on:");
    println!("  slots of the CA: {low:.2} to {peak:.2}");
    println!("  jitter alone:    {control_low:.2} to {control_peak:.2}");
    assert!(peak <= 1.3, "{peak}");
    assert!(low >= 1.0 / 1.3, "{low}");
    assert_eq!(slots.expired, 0);
    assert!(
        control_peak > 1.3,
        "the control shows no herd: {control_peak}"
    );
}

#[test]
fn an_outage_of_a_fifth_of_a_lifetime_is_followed_by_no_stampede() {
    let outage = 2 * LIFETIME_MS..2 * LIFETIME_MS + LIFETIME_MS / 5;
    let slots = simulate(Slots::OfTheCa, outage.clone());
    let (peak, _) = slots.peak_and_low(2.2..LIFETIMES as f64);
    let (after, _) = slots.peak_and_low(3.2..LIFETIMES as f64);
    let control = simulate(Slots::Ignored, outage);
    let (control_peak, _) = control.peak_and_low(2.2..LIFETIMES as f64);
    println!("after an outage of a fifth of a lifetime, the busiest window in means:");
    println!("  slots of the CA: {peak:.2}, a lifetime later {after:.2}");
    println!("  jitter alone:    {control_peak:.2}");
    assert!(peak <= 2.0, "{peak}");
    assert!(after <= 1.3, "{after}");
    assert_eq!(slots.expired + control.expired, 0, "certificates expired");
}
