#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use citadel_proto::v1::issue_item::Subject;

use super::*;
use crate::{
    attest::relayed::RelayedToken,
    secrets::SecretKey,
    testing::{Mode, RELAYED_POD, World, id, name_of},
};

fn pod(uid: &str) -> Wanted {
    Wanted {
        key: SecretKey::Pod {
            uid: uid.to_owned(),
        },
        principal: format!("pod {uid}").into(),
        revision: 0,
        spiffe_id: None,
        ttl_seconds: 0,
        token: None,
    }
}

fn entry(name: &str, pod_uid: Option<&str>) -> Wanted {
    Wanted {
        key: SecretKey::Entry {
            entry_id: name.to_owned(),
            pod_uid: pod_uid.map(str::to_owned),
        },
        principal: pod_uid.unwrap_or("uid 0").into(),
        revision: 0,
        spiffe_id: Some(id(name)),
        ttl_seconds: 0,
        token: None,
    }
}

/// Virtual time: what does not come within two days does not come.
const NEVER: Duration = Duration::from_hours(48);

async fn when(secret: &mut Subscription, what: impl FnMut(&State) -> bool) -> State {
    let state = tokio::time::timeout(NEVER, secret.wait_for(what)).await;
    state.expect("it did not come").unwrap().clone()
}

async fn ready(secret: &mut Subscription) -> Arc<Svid> {
    let state = when(secret, |state| matches!(state, State::Ready(_))).await;
    let State::Ready(svid) = state else {
        unreachable!()
    };
    svid
}

async fn denied(secret: &mut Subscription) {
    when(secret, |state| matches!(state, State::Denied(_))).await;
}

/// The next certificate after the one that is there.
async fn renewed(secret: &mut Subscription) -> Arc<Svid> {
    let before = ready(secret).await;
    let other = |state: &State| matches!(state, State::Ready(now) if now.serial != before.serial);
    let State::Ready(svid) = when(secret, other).await else {
        unreachable!()
    };
    svid
}

fn held(secret: &Subscription) -> Option<Arc<Svid>> {
    match &*secret.borrow() {
        State::Ready(svid) => Some(Arc::clone(svid)),
        _ => None,
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_fetched_and_renewed_at_its_slot_with_a_new_key() {
    let world = World::new();
    let began = Instant::now();
    let mut secret = world.manager.subscribe(pod("a")).unwrap();
    let first = ready(&mut secret).await;
    assert_eq!(first.id, id("pod/a"));
    assert!(began.elapsed() < Duration::from_millis(100));
    let second = renewed(&mut secret).await;
    // An hour of life, a slot at half.
    let elapsed = began.elapsed().as_secs();
    assert!((1799..=1801).contains(&elapsed), "{elapsed}");
    assert_ne!(first.key.spki_der(), second.key.spki_der());
    let seen = world.ca.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].previous_serial, "");
    assert_eq!(seen[1].previous_serial, first.serial);
}

#[tokio::test(start_paused = true)]
async fn without_a_slot_the_renewal_keeps_the_jitter_of_its_certificate() {
    let world = World::new();
    world.ca.no_slots();
    let mut secrets: Vec<_> = (0..50)
        .map(|n| world.manager.subscribe(pod(&n.to_string())).unwrap())
        .collect();
    let began = Instant::now();
    for secret in &mut secrets {
        ready(secret).await;
    }
    pass(60 * 44).await;
    let seen = world.ca.seen();
    let renewals: Vec<u64> = seen
        .iter()
        .skip(50)
        .map(|seen| (seen.at - began).as_secs())
        .collect();
    // Each once, though the schedule was looked at every few seconds; and spread.
    assert_eq!(renewals.len(), 50);
    assert!(
        renewals.iter().all(|at| (1439..=2161).contains(at)),
        "{renewals:?}"
    );
    let minutes: HashSet<u64> = renewals.iter().map(|at| at / 60).collect();
    assert!(minutes.len() >= 5, "{renewals:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_at_once_shares_a_batch_and_nothing_is_asked_twice() {
    let world = World::new();
    let secrets: Vec<_> = (0..300)
        .flat_map(|n| [n, n])
        .map(|n| world.manager.subscribe(pod(&n.to_string())).unwrap())
        .collect();
    for mut secret in secrets {
        ready(&mut secret).await;
    }
    let seen = world.ca.seen();
    assert_eq!(seen.len(), 300);
    assert_eq!(world.ca.calls(), 2);
    for call in 1..=2 {
        assert!(seen.iter().filter(|seen| seen.call == call).count() <= 256);
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_storm_is_few_batches_with_few_in_flight() {
    let options = ManagerOptions {
        batches_in_flight: 2,
        ..ManagerOptions::default()
    };
    let world = World::with(options);
    let mut secrets: Vec<_> = (0..1000)
        .map(|n| world.manager.subscribe(pod(&n.to_string())).unwrap())
        .collect();
    for secret in &mut secrets {
        ready(secret).await;
    }
    let calls = world.ca.calls();
    pass(1900).await;
    for secret in &secrets {
        assert!(secret.has_changed().unwrap());
    }
    assert_eq!(world.ca.seen().len(), 2000);
    assert!(
        world.ca.calls() - calls <= 6,
        "{}",
        world.ca.calls() - calls
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_certificate_stays_through_any_outage() {
    let world = World::new();
    let mut secret = world.manager.subscribe(pod("a")).unwrap();
    let first = ready(&mut secret).await;
    world.ca.mode(Mode::Down);
    // A day: far beyond its end, which only the CA's return may change.
    pass(86_400).await;
    assert_eq!(held(&secret).unwrap().serial, first.serial);
    let attempts = world.ca.calls();
    assert!(
        (2_500..8_000).contains(&attempts),
        "{attempts} attempts in a day"
    );
    world.ca.mode(Mode::Good);
    let back = Instant::now();
    renewed(&mut secret).await;
    assert!(
        back.elapsed() <= Duration::from_secs(31),
        "{:?}",
        back.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_15_s_survives_an_outage_of_4_s_at_any_moment() {
    for begins in 0..20 {
        let world = World::new();
        world.ca.lifetime(Duration::from_secs(15));
        let mut secret = world.manager.subscribe(pod("a")).unwrap();
        ready(&mut secret).await;
        tokio::time::sleep(Duration::from_millis(15_000 + begins * 400)).await;
        world.ca.mode(Mode::Down);
        for tick in 0..300 {
            if tick == 40 {
                world.ca.mode(Mode::Good);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            let left = held(&secret).unwrap().not_after - world.clock.true_time();
            assert!(left > time::Duration::seconds(1), "{begins}/{tick}: {left}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_quickly_first_and_then_less_often() {
    let world = World::new();
    world.ca.mode(Mode::Down);
    let began = Instant::now();
    let mut secret = world.manager.subscribe(pod("a")).unwrap();
    when(&mut secret, |state| {
        matches!(state, State::Waiting { trouble: Some(_) })
    })
    .await;
    pass(60).await;
    let times: Vec<Duration> = world.ca.seen().iter().map(|seen| seen.at - began).collect();
    assert!(times[1] <= Duration::from_millis(300), "{times:?}");
    let in_a_minute = times.len();
    assert!((12..40).contains(&in_a_minute), "{times:?}");
    let gaps: HashSet<u128> = times
        .windows(2)
        .map(|w| w[1].saturating_sub(w[0]).as_millis())
        .collect();
    assert!(gaps.len() > in_a_minute / 2, "no jitter: {times:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_ca_says_about_waiting_is_done() {
    let world = World::new();
    world.ca.mode(Mode::Later(20_000));
    let mut secret = world.manager.subscribe(pod("a")).unwrap();
    pass(19).await;
    assert_eq!(world.ca.calls(), 1);
    world.ca.mode(Mode::Good);
    let began = Instant::now();
    ready(&mut secret).await;
    assert!(
        began.elapsed() <= Duration::from_millis(3_500),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn one_items_failure_does_not_touch_the_others() {
    let world = World::new();
    world.ca.mode_of("pod/b", Mode::Deny);
    world.ca.mode_of("pod/c", Mode::Later(1_000));
    let mut a = world.manager.subscribe(pod("a")).unwrap();
    let mut b = world.manager.subscribe(pod("b")).unwrap();
    let c = world.manager.subscribe(pod("c")).unwrap();
    ready(&mut a).await;
    denied(&mut b).await;
    assert!(matches!(&*c.borrow(), State::Waiting { trouble: Some(_) }));
    assert_eq!(world.ca.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_takes_a_certificate_only_when_it_is_repeated() {
    let world = World::new();
    let mut secret = world.manager.subscribe(pod("a")).unwrap();
    ready(&mut secret).await;
    world.ca.mode(Mode::Deny);
    pass(1801).await;
    // Refused once: it may be a CA that has just started.
    assert!(held(&secret).is_some());
    assert_eq!(world.ca.calls(), 2);
    pass(3).await;
    assert!(held(&secret).is_none());
    denied(&mut secret).await;
    // The CA changes its mind, and nobody had to restart anything.
    world.ca.mode(Mode::Good);
    pass(1).await;
    let mut secret = world.manager.subscribe(pod("a")).unwrap();
    ready(&mut secret).await;
}

#[tokio::test(start_paused = true)]
async fn a_single_refusal_is_forgotten() {
    let world = World::new();
    let mut secret = world.manager.subscribe(pod("a")).unwrap();
    ready(&mut secret).await;
    world.ca.mode(Mode::Deny);
    pass(1801).await;
    world.ca.mode(Mode::Good);
    renewed(&mut secret).await;
    world.ca.mode(Mode::Deny);
    pass(1800).await;
    assert!(held(&secret).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refused_pod_is_asked_for_again_when_someone_comes_back() {
    let world = World::new();
    world.ca.mode(Mode::Deny);
    let mut first = world.manager.subscribe(pod("a")).unwrap();
    denied(&mut first).await;
    // At once: the answer that is there.
    let second = world.manager.subscribe(pod("a")).unwrap_err();
    assert_eq!(second, NotNow::Refused("so told".into()));
    assert_eq!(world.ca.calls(), 1);
    world.ca.mode(Mode::Good);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut third = world.manager.subscribe(pod("a")).unwrap();
    ready(&mut third).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_entry_is_left_alone_until_the_entries_change() {
    let world = World::new();
    world.ca.mode(Mode::Deny);
    let mut secret = world.manager.subscribe(entry("x", Some("a"))).unwrap();
    denied(&mut secret).await;
    pass(40).await;
    let again = world.manager.subscribe(entry("x", Some("a"))).unwrap_err();
    assert!(matches!(again, NotNow::Refused(_)));
    pass(5).await;
    assert_eq!(world.ca.calls(), 1);
    world.ca.mode(Mode::Good);
    let changed = Wanted {
        revision: 1,
        ..entry("x", Some("a"))
    };
    let mut secret = world.manager.subscribe(changed).unwrap();
    assert_eq!(ready(&mut secret).await.id, id("x"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_what_was_asked_for_is_not_taken() {
    for wrong in [
        Mode::WrongId("spiffe://example.org/someone-else".into()),
        Mode::WrongKey,
        Mode::Stranger,
    ] {
        let world = World::new();
        let mut secret = world.manager.subscribe(entry("x", None)).unwrap();
        let first = ready(&mut secret).await;
        world.ca.mode(wrong.clone());
        pass(3600).await;
        assert_eq!(held(&secret).unwrap().serial, first.serial, "{wrong:?}");
        assert!(world.ca.calls() > 3, "{wrong:?}");
    }
    for wrong in ["spiffe://other.org/a", "spiffe://example.org/citadel/ca"] {
        let world = World::new();
        world.ca.mode(Mode::WrongId(wrong.into()));
        let secret = world.manager.subscribe(pod("a")).unwrap();
        pass(10).await;
        assert!(held(&secret).is_none(), "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_clock_here_costs_nothing() {
    let world = World::new();
    world.clock.set_by(time::Duration::days(400));
    let mut secret = world.manager.subscribe(pod("a")).unwrap();
    ready(&mut secret).await;
    pass(1700).await;
    assert_eq!(world.ca.calls(), 1);
    renewed(&mut secret).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_forward_brings_renewals_forward_and_none_are_put_off() {
    let world = World::new();
    let mut secret = world.manager.subscribe(pod("a")).unwrap();
    ready(&mut secret).await;
    pass(60).await;
    // A machine that slept: the monotonic clock did not move.
    world.clock.set_by(time::Duration::hours(8));
    let began = Instant::now();
    renewed(&mut secret).await;
    assert!(
        began.elapsed() <= Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    // Backwards: the renewal comes when it would have.
    pass(60).await;
    world.clock.set_by(time::Duration::days(-30));
    let began = Instant::now();
    renewed(&mut secret).await;
    assert!(
        began.elapsed() <= Duration::from_secs(1_750),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_any_more_is_forgotten_after_a_while() {
    let world = World::new();
    let mut secret = world.manager.subscribe(pod("a")).unwrap();
    let svid = Arc::downgrade(&ready(&mut secret).await);
    drop(secret);
    pass(10).await;
    // A proxy that restarts finds it.
    let secret = world.manager.subscribe(pod("a")).unwrap();
    assert!(held(&secret).is_some());
    pass(300).await;
    assert!(held(&secret).is_some());
    drop(secret);
    pass(60).await;
    assert!(svid.upgrade().is_none());
    assert_eq!(world.ca.calls(), 1);
    pass(7200).await;
    assert_eq!(world.ca.calls(), 1);
}

/// What a pod asks for with a token that names it; `text` tells tokens apart.
fn relayed(pod: &str, text: &str) -> Wanted {
    let claims = format!(r#"{{"x":"{text}","kubernetes.io":{{"pod":{{"uid":"{pod}"}}}}}}"#);
    let header = format!("Bearer e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
    let token = RelayedToken::from_header(header.as_bytes(), None).unwrap();
    Wanted {
        key: SecretKey::Relayed {
            token: token.digest(),
            pod_uid: Some(pod.to_owned()),
        },
        principal: format!("pod {pod}").into(),
        revision: 0,
        spiffe_id: None,
        ttl_seconds: 0,
        token: Some(token),
    }
}

#[tokio::test(start_paused = true)]
async fn a_relayed_token_proves_once_and_the_pod_renews() {
    let world = World::new();
    let wanted = relayed(RELAYED_POD, "a");
    let token = wanted.token.clone().unwrap();
    let mut secret = world.manager.subscribe(wanted).unwrap();
    ready(&mut secret).await;
    renewed(&mut secret).await;
    let seen = world.ca.seen();
    let Subject::RelayedToken(relayed) = &seen[0].subject else {
        panic!("{}", name_of(&seen[0].subject))
    };
    assert_eq!(relayed.token, token.expose());
    assert_eq!(name_of(&seen[1].subject), format!("pod/{RELAYED_POD}"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_asked_about_again_with_longer_and_longer_pauses() {
    let world = World::new();
    world.ca.mode(Mode::Deny);
    // Ten minutes of a caller that comes back with another token each time.
    for number in 0..6_000 {
        let wanted = relayed("a", &number.to_string());
        if let Ok(mut secret) = world.manager.subscribe(wanted) {
            denied(&mut secret).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let asked = world.ca.seen().len();
    assert!((10..=20).contains(&asked), "{asked}");
    // The CA takes the very token that it refused before.
    world.ca.mode(Mode::Good);
    pass(60).await;
    let mut secret = world.manager.subscribe(relayed("a", "0")).unwrap();
    ready(&mut secret).await;
}

#[tokio::test(start_paused = true)]
async fn forged_tokens_that_keep_the_ca_busy_put_off_no_renewal() {
    let world = World::new();
    world.ca.lifetime(Duration::from_secs(60));
    let mut secret = world.manager.subscribe(pod("good")).unwrap();
    ready(&mut secret).await;
    // Whatever is asked for beside one of these waits for hours.
    world.ca.tokens_take(Duration::from_hours(3));
    let mut forged = Vec::new();
    for evil in 0..300 {
        for number in 0..6 {
            let wanted = relayed(&evil.to_string(), &number.to_string());
            forged.extend(world.manager.subscribe(wanted));
        }
    }
    assert!(forged.len() <= 4 * 300, "{}", forged.len());
    for _ in 0..3_600 {
        pass(1).await;
        let left = held(&secret).unwrap().not_after - world.clock.true_time();
        assert!(left >= time::Duration::seconds(29), "{left}");
    }
    // And who is new gets its first.
    let began = Instant::now();
    ready(&mut world.manager.subscribe(pod("new")).unwrap()).await;
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn the_number_of_identities_is_bounded() {
    let options = ManagerOptions {
        identities: 2,
        ..ManagerOptions::default()
    };
    let world = World::with(options);
    let _a = world.manager.subscribe(pod("a")).unwrap();
    let _b = world.manager.subscribe(pod("b")).unwrap();
    assert_eq!(world.manager.subscribe(pod("c")).unwrap_err(), NotNow::Full);
    world.manager.subscribe(pod("a")).unwrap();
}
