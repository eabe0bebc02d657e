#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Default, Clone)]
struct World(BTreeMap<String, String>);

impl World {
    fn of<const N: usize>(resources: [(&str, &str); N]) -> Self {
        Self(
            resources
                .into_iter()
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
                .collect(),
        )
    }
}

impl Ready for World {
    fn version_of(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn is_gone(&self, _: &str) -> bool {
        unreachable!("the state of the world takes nothing away")
    }
}

fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn first<const N: usize>(wanted: [&str; N]) -> Request {
    Request {
        names: names(wanted),
        ..Request::default()
    }
}

fn ack<const N: usize>(push: &Push, wanted: [&str; N]) -> Request {
    Request {
        version: push.version.clone(),
        nonce: push.nonce.clone(),
        names: names(wanted),
        refused: None,
    }
}

fn nack<const N: usize>(push: &Push, wanted: [&str; N]) -> Request {
    Request {
        version: String::new(),
        refused: Some("bad key".into()),
        ..ack(push, wanted)
    }
}

fn stream() -> Stream {
    Stream::new([1, 2, 3, 4])
}

#[test]
fn sds_req_02_03_what_is_ready_is_answered_and_an_ack_is_not() {
    let world = World::of([("default", "1")]);
    let mut stream = stream();
    assert_eq!(stream.request(first(["default"])), Ok(Meaning::Subscribed));
    let push = stream.push(&world).unwrap();
    assert_eq!(push.names, ["default"]);
    assert_eq!(stream.acknowledged(), None);
    for _ in 0..3 {
        // Repeated acknowledgements make no push loop.
        assert_eq!(
            stream.request(ack(&push, ["default"])),
            Ok(Meaning::Acknowledged)
        );
        assert_eq!(stream.push(&world), None);
    }
    assert_eq!(stream.acknowledged(), Some(push.version.as_str()));
}

#[test]
fn sds_req_02_05_new_content_is_pushed_with_a_new_version_and_nonce() {
    let mut stream = stream();
    stream.request(first(["default"])).unwrap();
    let one = stream.push(&World::of([("default", "1")])).unwrap();
    // Without waiting for the acknowledgement of the first.
    let two = stream.push(&World::of([("default", "2")])).unwrap();
    assert_ne!((&one.version, &one.nonce), (&two.version, &two.nonce));
    // The answer to the first is stale now, and changes nothing.
    assert_eq!(stream.request(ack(&one, ["other"])), Ok(Meaning::Stale));
    assert_eq!(stream.subscribed().collect::<Vec<_>>(), ["default"]);
    assert_eq!(stream.acknowledged(), None);
    assert_eq!(
        stream.request(ack(&two, ["default"])),
        Ok(Meaning::Acknowledged)
    );
}

#[test]
fn sds_req_04_a_refusal_is_told_once_and_not_retried() {
    let world = World::of([("default", "1")]);
    let mut stream = stream();
    stream.request(first(["default"])).unwrap();
    let push = stream.push(&world).unwrap();
    assert_eq!(
        stream.request(nack(&push, ["default"])),
        Ok(Meaning::Refused("bad key".into()))
    );
    assert_eq!(stream.push(&world), None);
    assert_eq!(
        stream.request(nack(&push, ["default"])),
        Ok(Meaning::Subscribed)
    );
    assert_eq!(stream.push(&world), None);
    assert_eq!(stream.acknowledged(), None);
    // New content is another matter.
    assert!(stream.push(&World::of([("default", "2")])).is_some());
}

#[test]
fn sds_req_07_08_a_name_that_is_not_ready_holds_nothing_up_and_follows_at_once() {
    let mut world = World::of([("default", "1")]);
    let mut stream = stream();
    stream
        .request(first(["default", "ROOTCA", "nonsense"]))
        .unwrap();
    let push = stream.push(&world).unwrap();
    assert_eq!(push.names, ["default"]);
    stream
        .request(ack(&push, ["default", "ROOTCA", "nonsense"]))
        .unwrap();
    assert_eq!(stream.push(&world), None);
    world.0.insert("ROOTCA".into(), "r".into());
    // The state of the world: all that is ready, not the change alone.
    assert_eq!(stream.push(&world).unwrap().names, ["ROOTCA", "default"]);
}

#[test]
fn a_name_that_becomes_ready_later_is_pushed() {
    let mut stream = stream();
    stream.request(first(["default"])).unwrap();
    assert_eq!(stream.push(&World::default()), None);
    // Envoy asks for another name before anything was answered: no nonce either.
    stream.request(first(["default", "ROOTCA"])).unwrap();
    assert_eq!(stream.push(&World::default()), None);
    let push = stream.push(&World::of([("default", "1")])).unwrap();
    assert_eq!(push.names, ["default"]);
}

#[test]
fn sds_req_06_changed_names_are_a_new_subscription() {
    let world = World::of([("a", "1"), ("b", "1")]);
    let mut stream = stream();
    stream.request(first(["a"])).unwrap();
    let a = stream.push(&world).unwrap();
    stream.request(ack(&a, ["a", "b"])).unwrap();
    let both = stream.push(&world).unwrap();
    assert_eq!(both.names, ["a", "b"]);
    // Fewer names: nothing to say.
    stream.request(ack(&both, ["b"])).unwrap();
    assert_eq!(stream.push(&world), None);
    // What was dropped is not followed any more …
    assert_eq!(stream.push(&World::of([("a", "2"), ("b", "1")])), None);
    // … and sent again when it is asked for again, though its content is as it was.
    stream.request(ack(&both, ["a", "b"])).unwrap();
    assert_eq!(stream.push(&world).unwrap().names, ["a", "b"]);
}

#[test]
fn without_names_nothing_is_sent() {
    let world = World::of([("a", "1")]);
    let mut stream = stream();
    stream.request(first(["a"])).unwrap();
    let push = stream.push(&world).unwrap();
    stream.request(ack(&push, [])).unwrap();
    assert_eq!(stream.push(&World::of([("a", "2")])), None);
}

#[test]
fn sds_req_05_a_strange_nonce_at_the_start_is_stale() {
    let mut stream = stream();
    let request = Request {
        nonce: "of another stream".into(),
        ..first(["default"])
    };
    assert_eq!(stream.request(request), Ok(Meaning::Stale));
    assert_eq!(stream.push(&World::of([("default", "1")])), None);
}

#[test]
fn a_client_that_starts_over_is_served_again_but_not_in_a_loop() {
    let world = World::of([("default", "1")]);
    let mut stream = stream();
    stream.request(first(["default"])).unwrap();
    let push = stream.push(&world).unwrap();
    // It has not seen the response yet.
    stream.request(first(["default"])).unwrap();
    assert_eq!(stream.push(&world), None);
    stream.request(ack(&push, ["default"])).unwrap();
    // It forgot everything.
    stream.request(first(["default"])).unwrap();
    assert!(stream.push(&world).is_some());
    for _ in 0..3 {
        stream.request(first(["default"])).unwrap();
        assert_eq!(stream.push(&world), None);
    }
}

#[test]
fn sds_req_09_versions_derive_from_content() {
    let world = World::of([("default", "1"), ("ROOTCA", "r")]);
    let version = |seed| {
        let mut stream = Stream::new([seed; 4]);
        stream.request(first(["default", "ROOTCA"])).unwrap();
        stream.push(&world).unwrap()
    };
    assert_eq!(version(1).version, version(2).version);
    assert_ne!(version(1).nonce, version(2).nonce);
    let of = |pairs: &[(&str, &str)]| version_of_all(pairs.iter().copied());
    assert_ne!(of(&[("a", "bc")]), of(&[("ab", "c")]));
}

#[test]
fn sds_req_24_a_vanished_secret_is_not_pushed_away() {
    let mut stream = stream();
    stream.request(first(["a", "b"])).unwrap();
    stream.push(&World::of([("a", "1"), ("b", "1")])).unwrap();
    assert_eq!(stream.push(&World::of([("b", "1")])), None);
    assert_eq!(stream.push(&World::of([("a", "1"), ("b", "1")])), None);
    assert_eq!(
        stream
            .push(&World::of([("a", "2"), ("b", "1")]))
            .unwrap()
            .names,
        ["a", "b"]
    );
}

#[test]
fn sds_req_19_sizes_are_bounded() {
    let many = Request {
        names: (0..=MAX_NAMES).map(|n| n.to_string()).collect(),
        ..Request::default()
    };
    assert_eq!(stream().request(many), Err(ProtocolError::TooManyNames));
    let long = Request {
        names: vec!["x".repeat(MAX_NAME + 1)],
        ..Request::default()
    };
    assert_eq!(stream().request(long), Err(ProtocolError::NameTooLong));
}

#[derive(Debug, Clone)]
enum Step {
    World(Vec<(String, String)>),
    Ack(Vec<String>),
    Nack(Vec<String>),
    Old(Vec<String>),
    Fresh(Vec<String>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = prop::sample::select(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]);
    let some = || prop::collection::vec(name.clone(), 0..4);
    let world = prop::collection::vec((name.clone(), "[12]"), 0..4);
    let step = prop_oneof![
        world.prop_map(Step::World),
        some().prop_map(Step::Ack),
        some().prop_map(Step::Nack),
        some().prop_map(Step::Old),
        some().prop_map(Step::Fresh),
    ];
    prop::collection::vec(step, 0..40)
}

proptest! {
    /// However a client and the world behave: a push holds all that is ready of what
    /// was asked for and nothing else, nonces are never used twice, and right after a
    /// push there is nothing more to say (no loop).
    #[test]
    fn sds_req_10_a_stream_stays_sane(steps in steps()) {
        let mut stream = stream();
        let mut world = World::default();
        let mut nonces = vec![String::new()];
        let mut wanted: Vec<String> = Vec::new();
        for step in steps {
            let (nonce, refused, wants) = match step {
                Step::World(resources) => {
                    world = World(resources.into_iter().collect());
                    (None, None, None)
                }
                Step::Ack(names) => (nonces.last().cloned(), None, Some(names)),
                Step::Nack(names) => (nonces.last().cloned(), Some("no".to_owned()), Some(names)),
                Step::Old(names) => (Some("old".to_owned()), None, Some(names)),
                Step::Fresh(names) => (Some(String::new()), None, Some(names)),
            };
            if let (Some(nonce), Some(names)) = (nonce, wants) {
                let request = Request { nonce, names: names.clone(), refused, ..Request::default() };
                if stream.request(request).unwrap() != Meaning::Stale {
                    wanted = names;
                }
            }
            if let Some(push) = stream.push(&world) {
                let mut expected: Vec<String> =
                    wanted.iter().filter(|n| world.0.contains_key(*n)).cloned().collect();
                expected.sort();
                expected.dedup();
                prop_assert_eq!(&push.names, &expected);
                prop_assert!(!nonces.contains(&push.nonce));
                nonces.push(push.nonce);
            }
            prop_assert_eq!(stream.push(&world), None);
        }
    }
}
