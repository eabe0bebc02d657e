#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;

#[derive(Default, Clone, Debug)]
struct World {
    ready: BTreeMap<String, String>,
    gone: BTreeSet<String>,
}

impl World {
    fn of<const N: usize>(resources: [(&str, &str); N]) -> Self {
        let owned = |(name, version): (&str, &str)| (name.to_owned(), version.to_owned());
        Self {
            ready: resources.into_iter().map(owned).collect(),
            gone: BTreeSet::new(),
        }
    }

    fn without(&self, name: &str) -> Self {
        let mut world = self.clone();
        world.ready.remove(name);
        world.gone.insert(name.to_owned());
        world
    }
}

impl Ready for World {
    fn version_of(&self, name: &str) -> Option<String> {
        self.ready.get(name).cloned()
    }

    fn is_gone(&self, name: &str) -> bool {
        self.gone.contains(name)
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn subscribe(names: &[&str]) -> Request {
    Request {
        subscribe: owned(names),
        ..Request::default()
    }
}

fn unsubscribe(names: &[&str]) -> Request {
    Request {
        unsubscribe: owned(names),
        ..Request::default()
    }
}

fn ack(push: &Push) -> Request {
    Request {
        nonce: push.nonce.clone(),
        ..Request::default()
    }
}

fn nack(push: &Push) -> Request {
    Request {
        refused: Some("bad key".to_owned()),
        ..ack(push)
    }
}

fn stream() -> Stream {
    Stream::new([1, 2, 3, 4])
}

fn names(push: &Push) -> Vec<&str> {
    push.resources.keys().map(String::as_str).collect()
}

#[test]
fn sds_req_07_15_only_what_changed_is_sent_with_a_version_of_its_own() {
    let mut world = World::of([("a", "1"), ("b", "1")]);
    let mut stream = stream();
    stream.request(subscribe(&["a", "b", "later"])).unwrap();
    let first = stream.push(&world).unwrap();
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first.removed, [""; 0]);
    assert_eq!(
        stream.request(ack(&first)),
        Ok(Meaning::Acknowledged(first.resources.clone()))
    );
    assert_eq!(stream.push(&world), None);
    world.ready.insert("b".into(), "2".into());
    let second = stream.push(&world).unwrap();
    assert_eq!(second.resources, World::of([("b", "2")]).ready);
    assert_ne!(first.nonce, second.nonce);
    // What was not ready holds nothing up, and follows at once.
    world.ready.insert("later".into(), "1".into());
    assert_eq!(names(&stream.push(&world).unwrap()), ["later"]);
}

#[test]
fn sds_req_16_what_a_client_brings_with_it_is_not_sent_again_until_it_changes() {
    let world = World::of([("a", "1"), ("b", "2")]);
    let mut stream = stream();
    let held = [("a", "1"), ("b", "1"), ("never asked for", "1")];
    let again = Request {
        held: held.map(|(n, v)| (n.into(), v.into())).into(),
        ..subscribe(&["a", "b"])
    };
    stream.request(again.clone()).unwrap();
    // Nothing is known to be held before there is something to compare it with.
    assert!(stream.brought(&World::default()).is_empty());
    assert_eq!(stream.brought(&world), World::of([("a", "1")]).ready);
    assert!(stream.brought(&world).is_empty());
    assert_eq!(names(&stream.push(&world).unwrap()), ["b"]);
    // Only the first request of a stream may say so: later ones are the server's to know.
    stream.request(unsubscribe(&["a"])).unwrap();
    stream.request(again).unwrap();
    assert_eq!(names(&stream.push(&world).unwrap()), ["a", "b"]);
}

#[test]
fn sds_req_10_17_who_asks_again_gets_it_again_and_an_answer_is_no_question() {
    let world = World::of([("a", "1"), ("b", "1")]);
    let mut stream = stream();
    stream.request(subscribe(&["a"])).unwrap();
    let first = stream.push(&world).unwrap();
    // A client that repeats its names in each answer makes no loop, yes or no.
    let mut answer = ack(&first);
    answer.subscribe = owned(&["a"]);
    stream.request(answer).unwrap();
    assert_eq!(stream.push(&world), None);
    // It may have lost it.
    stream.request(subscribe(&["a"])).unwrap();
    let second = stream.push(&world).unwrap();
    assert_eq!(names(&second), ["a"]);
    let mut answer = nack(&second);
    answer.subscribe = owned(&["a"]);
    stream.request(answer).unwrap();
    assert_eq!(stream.push(&world), None);
    // It asks while nothing is there: what goes then is still taken away from it.
    stream.request(subscribe(&["a"])).unwrap();
    assert_eq!(stream.push(&World::default()), None);
    let gone = stream.push(&world.without("a")).unwrap();
    assert_eq!(gone.removed, ["a"]);
    // A new name in an answer is one that is asked for.
    let mut answer = ack(&first);
    answer.subscribe = owned(&["b"]);
    stream.request(answer).unwrap();
    assert_eq!(
        names(&stream.push(&World::of([("b", "1")])).unwrap()),
        ["b"]
    );
}

#[test]
fn sds_req_04_a_refusal_is_told_once_and_not_retried_until_the_content_changes() {
    let world = World::of([("a", "1")]);
    let mut stream = stream();
    stream.request(subscribe(&["a"])).unwrap();
    let push = stream.push(&world).unwrap();
    let refused = Meaning::Refused(push.resources.clone(), "bad key".into());
    assert_eq!(stream.request(nack(&push)), Ok(refused));
    assert_eq!(stream.push(&world), None);
    assert_eq!(stream.request(nack(&push)), Ok(Meaning::Subscribed));
    assert_eq!(stream.push(&world), None);
    assert!(stream.push(&World::of([("a", "2")])).is_some());
}

#[test]
fn sds_req_05_answers_to_older_responses_count_and_unknown_nonces_do_not() {
    let mut stream = stream();
    stream.request(subscribe(&["a"])).unwrap();
    let one = stream.push(&World::of([("a", "1")])).unwrap();
    let two = stream.push(&World::of([("a", "2")])).unwrap();
    assert_eq!(
        stream.request(ack(&one)),
        Ok(Meaning::Acknowledged(one.resources.clone()))
    );
    // The subscription of a request with a strange nonce is not lost.
    let strange = Request {
        nonce: "of another stream".into(),
        ..subscribe(&["b"])
    };
    assert_eq!(stream.request(strange), Ok(Meaning::Subscribed));
    assert_eq!(stream.subscribed().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(
        stream.request(ack(&two)),
        Ok(Meaning::Acknowledged(two.resources))
    );
}

#[test]
fn sds_req_06_what_was_unsubscribed_is_not_sent_until_it_is_asked_for_again() {
    let mut stream = stream();
    stream.request(subscribe(&["a", "b"])).unwrap();
    stream.push(&World::of([("a", "1"), ("b", "1")])).unwrap();
    stream.request(unsubscribe(&["a", "unknown"])).unwrap();
    assert_eq!(stream.push(&World::of([("a", "2"), ("b", "1")])), None);
    stream.request(subscribe(&["a"])).unwrap();
    let push = stream.push(&World::of([("a", "2"), ("b", "1")])).unwrap();
    assert_eq!(names(&push), ["a"]);
    // Both at once: never without what it wants.
    let both = Request {
        unsubscribe: owned(&["a"]),
        ..subscribe(&["a"])
    };
    stream.request(both).unwrap();
    assert_eq!(
        names(&stream.push(&World::of([("a", "2"), ("b", "1")])).unwrap()),
        ["a"]
    );
}

#[test]
fn sds_req_18_what_is_gone_is_removed_once_and_what_is_late_never() {
    let all = World::of([("a", "1"), ("b", "1")]);
    let mut stream = stream();
    stream.request(subscribe(&["a", "b", "unknown"])).unwrap();
    stream.push(&all).unwrap();
    // Not ready is not gone.
    let mut late = all.clone();
    late.ready.remove("a");
    assert_eq!(stream.push(&late), None);
    assert_eq!(stream.push(&all), None);
    let gone = all.without("a").without("unknown");
    let push = stream.push(&gone).unwrap();
    assert!(push.resources.is_empty());
    assert_eq!(push.removed, ["a"]);
    assert_eq!(stream.push(&gone), None);
    // And back.
    assert_eq!(names(&stream.push(&all).unwrap()), ["a"]);
    // One that the client brought with it from an earlier stream, and that went meanwhile.
    let mut stream = Stream::new([9; 4]);
    let held = Request {
        held: [("a".to_owned(), "1".to_owned())].into(),
        ..subscribe(&["a"])
    };
    stream.request(held).unwrap();
    assert_eq!(stream.push(&gone).unwrap().removed, ["a"]);
}

#[test]
fn sds_req_19_sizes_are_bounded() {
    let many: Vec<String> = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
    let all = |subscribe: Vec<String>| Request {
        subscribe,
        ..Request::default()
    };
    assert_eq!(
        stream().request(all(many.clone())),
        Err(ProtocolError::TooManyNames)
    );
    // Not by little and little either.
    let mut slowly = stream();
    slowly.request(all(many[..MAX_NAMES].to_vec())).unwrap();
    assert_eq!(
        slowly.request(all(many[MAX_NAMES..].to_vec())),
        Err(ProtocolError::TooManyNames)
    );
    let long = "x".repeat(2049);
    for request in [subscribe(&[&long]), unsubscribe(&[&long])] {
        assert_eq!(stream().request(request), Err(ProtocolError::NameTooLong));
    }
    // A client that never answers.
    let mut silent = stream();
    silent.request(subscribe(&["a"])).unwrap();
    for version in 0..1000 {
        let world = World::of([("a", version.to_string().as_str())]);
        silent.push(&world).unwrap();
    }
    assert!(silent.awaited.len() <= MAX_AWAITED);
}

#[derive(Debug, Clone)]
enum Step {
    World(Vec<(String, String)>, Vec<String>),
    /// Answers the response so many before the last one, and changes names with it.
    Answer(usize, bool, Vec<String>, Vec<String>),
    Ask(Vec<String>, Vec<String>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = prop::sample::select(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]);
    let some = || prop::collection::vec(name.clone(), 0..3);
    let ready = prop::collection::vec((name.clone(), "[12]"), 0..4);
    let step = prop_oneof![
        (ready, some()).prop_map(|(ready, gone)| Step::World(ready, gone)),
        (0usize..3, any::<bool>(), some(), some())
            .prop_map(|(back, yes, more, fewer)| Step::Answer(back, yes, more, fewer)),
        (some(), some()).prop_map(|(more, fewer)| Step::Ask(more, fewer)),
    ];
    prop::collection::vec(step, 0..40)
}

proptest! {
    /// However client and world behave: a client that applies what it is sent has exactly
    /// what is ready of what it asked for and keeps what is merely late; nothing is sent
    /// that it did not ask for or holds already; no nonce comes twice; and right after a
    /// push there is nothing more to say.
    #[test]
    fn sds_req_10_15_a_client_that_applies_what_it_is_sent_has_what_is_there(steps in steps()) {
        let mut stream = stream();
        let mut world = World::default();
        let mut pushes: Vec<Push> = Vec::new();
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        let mut holds: BTreeMap<String, String> = BTreeMap::new();
        // What it asked for (again) and was not sent since: it comes though it is held.
        let mut again: BTreeSet<String> = BTreeSet::new();
        for step in steps {
            let mut ask = |request: Request, wanted: &mut BTreeSet<String>, holds: &mut BTreeMap<_, _>| {
                for name in &request.unsubscribe {
                    wanted.remove(name);
                    again.remove(name);
                    holds.remove(name);
                }
                for name in &request.subscribe {
                    wanted.insert(name.clone());
                    again.insert(name.clone());
                }
                stream.request(request).unwrap();
            };
            match step {
                Step::World(ready, gone) => {
                    let ready: BTreeMap<_, _> = ready.into_iter().collect();
                    let gone = gone.into_iter().filter(|name| !ready.contains_key(name)).collect();
                    world = World { ready, gone };
                }
                Step::Answer(back, yes, subscribe, unsubscribe) => {
                    let Some(push) = pushes.iter().rev().nth(back).cloned() else { continue };
                    let refused = (!yes).then(|| "no".to_owned());
                    let request = Request { nonce: push.nonce, subscribe, unsubscribe, refused, ..Request::default() };
                    ask(request, &mut wanted, &mut holds);
                }
                Step::Ask(subscribe, unsubscribe) => {
                    ask(Request { subscribe, unsubscribe, ..Request::default() }, &mut wanted, &mut holds);
                }
            }
            if let Some(push) = stream.push(&world) {
                for (name, version) in &push.resources {
                    prop_assert!(wanted.contains(name));
                    prop_assert_eq!(world.ready.get(name), Some(version));
                    prop_assert!(holds.get(name) != Some(version) || again.remove(name));
                    holds.insert(name.clone(), version.clone());
                }
                for name in &push.removed {
                    prop_assert!(world.gone.contains(name) && holds.remove(name).is_some());
                }
                prop_assert!(pushes.iter().all(|before| before.nonce != push.nonce));
                pushes.push(push);
            }
            prop_assert_eq!(stream.push(&world), None);
            for name in &wanted {
                if let Some(version) = world.ready.get(name) {
                    prop_assert_eq!(holds.get(name), Some(version));
                }
                prop_assert!(!(world.gone.contains(name) && holds.contains_key(name)));
            }
        }
    }
}
