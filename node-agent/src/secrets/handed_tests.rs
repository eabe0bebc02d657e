#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Arc, LazyLock};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use citadel_identity::key::WorkloadKey;
use proptest::prelude::*;
use prost::Message;
use tokio::time::timeout;

use super::*;
use crate::{
    mutation::{mutate, mutation},
    secrets::{State, Subscription},
    testing::{Mode, Pki, RELAYED_POD, World, id, trust_domain},
};

/// Virtual time: what does not come within two days does not come.
const NEVER: Duration = Duration::from_hours(48);

fn wanted(key: SecretKey) -> Wanted {
    Wanted {
        spiffe_id: matches!(key, SecretKey::Entry { .. }).then(|| id("web")),
        key,
        principal: "pod a".into(),
        revision: 3,
        ttl_seconds: 0,
        token: None,
    }
}

fn pod(uid: &str) -> Wanted {
    wanted(SecretKey::Pod { uid: uid.into() })
}

fn entry() -> Wanted {
    wanted(SecretKey::Entry {
        entry_id: "web".into(),
        pod_uid: Some("a".into()),
    })
}

fn relayed() -> Wanted {
    let claims = r#"{"kubernetes.io":{"pod":{"uid":"elsewhere"}}}"#;
    let token = format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
    let token = RelayedToken::handed_over(&token).unwrap();
    Wanted {
        token: Some(token.clone()),
        ..wanted(SecretKey::Relayed {
            token: token.digest(),
            pod_uid: None,
        })
    }
}

async fn ready(secret: &mut Subscription) -> Arc<Svid> {
    let is_ready = |state: &State| matches!(state, State::Ready(_));
    let state = timeout(NEVER, secret.wait_for(is_ready)).await;
    let State::Ready(svid) = state.expect("it did not come").unwrap().clone() else {
        unreachable!()
    };
    svid
}

fn of_first(world: &World) -> BundleSet {
    world.ca.pki.bundles()
}

#[tokio::test(start_paused = true)]
async fn a_successor_serves_what_it_was_handed_without_the_ca_and_renews_it_at_its_slot() {
    let first = World::new();
    let (mut serials, mut wanted_by) = (Vec::new(), Vec::new());
    for wanted in [pod("a"), entry(), relayed()] {
        let mut secret = first.manager.subscribe(wanted).unwrap();
        let svid = ready(&mut secret).await;
        serials.push((svid.serial.clone(), svid.key.pkcs8_der().to_vec()));
        wanted_by.push(secret);
    }
    tokio::time::sleep(Duration::from_mins(10)).await;
    // What nobody has asked for yet is kept for them.
    let until = Instant::now() + Duration::from_mins(2);
    first.manager.prepare(pod("b"), until, 10);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let handed = first.manager.hand_over();
    assert_eq!(handed.len(), 4);

    let second = World::new();
    second.ca.mode(Mode::Down);
    let restored = second.manager.restore(handed, &of_first(&first));
    assert_eq!(restored, Restoration { taken: 4, left: 0 });
    let mut secrets = Vec::new();
    for (wanted, (serial, key)) in [pod("a"), entry(), relayed()].into_iter().zip(&serials) {
        let secret = second.manager.subscribe(wanted).unwrap();
        let State::Ready(svid) = secret.borrow().clone() else {
            panic!("{serial} is not there at once")
        };
        assert_eq!(
            (&svid.serial, svid.key.pkcs8_der()),
            (serial, key.as_slice())
        );
        secrets.push(secret);
    }
    assert_eq!(second.manager.held().len(), 4);
    // At half of the hour, 10 min after the handover at 10 min, nothing is asked for.
    tokio::time::sleep(Duration::from_mins(19)).await;
    assert_eq!(second.ca.calls(), 0);
    second
        .bundles
        .send_replace(Some(Arc::new(second.ca.pki.bundles())));
    second.ca.mode(Mode::Good);
    tokio::time::sleep(Duration::from_mins(2)).await;
    let seen = second.ca.seen();
    let mut previous: Vec<_> = seen
        .iter()
        .map(|seen| seen.previous_serial.clone())
        .collect();
    let mut before: Vec<_> = serials.iter().map(|(serial, _)| serial.clone()).collect();
    previous.sort();
    before.sort();
    assert_eq!(previous, before);
    // The relayed token rests on the pod that it had proven.
    let relayed = seen
        .iter()
        .find(|seen| seen.previous_serial == serials[2].0);
    let name = crate::testing::name_of(&relayed.unwrap().subject);
    assert_eq!(name, format!("pod/{RELAYED_POD}"));
}

#[tokio::test(start_paused = true)]
async fn while_it_holds_still_the_ca_is_asked_for_nothing() {
    let world = World::new();
    world.ca.tokens_take(Duration::from_secs(4));
    let mut slow = world.manager.subscribe(relayed()).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.ca.calls(), 1);
    // A batch is in flight: it is waited for, and not for ever.
    let began = Instant::now();
    assert!(
        world
            .manager
            .hold_still(Duration::from_secs(1))
            .await
            .is_none()
    );
    let still = world
        .manager
        .hold_still(Duration::from_secs(10))
        .await
        .unwrap();
    assert!(began.elapsed() > Duration::from_secs(3));
    ready(&mut slow).await;
    let mut other = world.manager.subscribe(pod("a")).unwrap();
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert_eq!(world.ca.calls(), 1);
    drop(still);
    ready(&mut other).await;
}

/// One secret as it is handed over, and what its certificate verifies against.
fn sample() -> &'static (HandedSecret, BundleSet) {
    static SAMPLE: LazyLock<(HandedSecret, BundleSet)> = LazyLock::new(|| {
        // Not within the runtime of whichever test comes first.
        std::thread::spawn(make_sample).join().unwrap()
    });
    &SAMPLE
}

fn make_sample() -> (HandedSecret, BundleSet) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new();
        let mut secret = world.manager.subscribe(entry()).unwrap();
        ready(&mut secret).await;
        (world.manager.hand_over().remove(0), of_first(&world))
    })
}

fn take(handed: HandedSecret, bundles: &BundleSet) -> Result<Restored, HandedError> {
    let issuers = ProvenIssuers::default();
    restored(handed, (&trust_domain(), bundles), &issuers, Instant::now())
}

#[test]
fn what_does_not_belong_together_is_left() {
    let (good, bundles) = sample();
    take(good.clone(), bundles).unwrap_or_else(|error| panic!("{error}"));
    let changed = |change: &dyn Fn(&mut HandedSecret)| {
        let mut handed = good.clone();
        change(&mut handed);
        take(handed, bundles)
            .err()
            .expect("it was taken")
            .to_string()
    };
    let svid = |change: &dyn Fn(&mut citadel_proto::agent::HandedSvid)| {
        changed(&|handed| change(handed.svid.as_mut().unwrap()))
    };
    let other = WorkloadKey::generate().unwrap().pkcs8_der().to_vec();
    let reason = svid(&|svid| svid.private_key.clone_from(&other));
    assert!(reason.contains("another key"), "{reason}");
    svid(&|svid| svid.private_key.clear());
    svid(&|svid| svid.certificate_chain.clear());
    svid(&|svid| svid.spiffe_id = "spiffe://example.org/other".into());
    svid(&|svid| svid.server_time_ms = i64::MAX);
    // By the CA's clock it had ended when it was received.
    svid(&|svid| svid.server_time_ms += 2 * 3_600_000);
    changed(&|handed| handed.svid = None);
    changed(&|handed| handed.subject = None);
    changed(&|handed| handed.principal.clear());
    changed(&|handed| handed.principal = "x".repeat(MAX_NAME + 1));
    changed(&|handed| handed.spiffe_id.clear());
    changed(&|handed| handed.spiffe_id = "spiffe://example.org/other".into());
    changed(&|handed| {
        let mut token = HandedToken::default();
        token.sha256 = vec![1; 32];
        handed.subject = Some(Subject::Token(token));
    });
    // A root that nobody trusts any more.
    assert!(take(good.clone(), &Pki::new().bundles()).is_err());
}

#[tokio::test(start_paused = true)]
async fn times_that_make_no_sense_put_nothing_off_and_make_no_loop() {
    let (good, bundles) = sample();
    let world = World::new();
    let mut handed = good.clone();
    handed.due_in_ms = u64::MAX;
    handed.prepared_for_ms = u64::MAX;
    handed.svid.as_mut().unwrap().age_ms = u64::MAX;
    let restored = world.manager.restore(vec![handed.clone(), handed], bundles);
    assert_eq!(restored, Restoration { taken: 1, left: 1 });
    let held = world.manager.held();
    assert!(held[0].due_in <= Duration::from_hours(1), "{held:?}");
    tokio::time::sleep(LONGEST_PREPARED + Duration::from_secs(10)).await;
    assert!(world.manager.held().is_empty());
}

proptest! {
    #[test]
    fn whatever_is_handed_over_only_the_real_certificate_is_taken(
        mutations in prop::collection::vec(mutation(), 1..4),
    ) {
        let (good, bundles) = sample();
        let bytes = mutate(&good.encode_to_vec(), &mutations);
        if let Ok(handed) = HandedSecret::decode(bytes.as_slice())
            && let Ok(taken) = take(handed, bundles)
        {
            let svid = good.svid.as_ref().unwrap();
            prop_assert_eq!(taken.svid.id.to_string(), svid.spiffe_id.as_str());
            prop_assert_eq!(taken.svid.chain[0].as_ref(), svid.certificate_chain[0].as_slice());
        }
    }
}
