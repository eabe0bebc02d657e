#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use time::{OffsetDateTime, macros::datetime};

use super::{
    stream::{Content, Stream, StreamId},
    summary::{self, Behind, OfBundle, Summary},
    table::Table,
};

const NOW: OffsetDateTime = datetime!(2026-11-26 08:00 UTC);

/// A table with short names for what goes on.
struct World(Table);

impl World {
    fn new() -> Self {
        Self(Table::new(1000))
    }

    fn open(&mut self, protocol: &'static str, pid: i32) -> StreamId {
        self.0.open(Stream {
            protocol,
            pid,
            peer: format!("pod of {pid}").into(),
            opened: NOW,
            resources: Vec::new(),
        })
    }

    fn svid(&mut self, stream: StreamId, serial: &str, not_after: i64) {
        let content = Content::Svid {
            spiffe_id: "spiffe://example.org/x".into(),
            serial: serial.into(),
            not_after,
            pod_uid: Some("uid".into()),
        };
        self.0.sent(stream, "default", serial, content.into(), NOW);
    }

    fn bundle(&mut self, stream: StreamId, hash: &str) {
        let content = Content::OwnBundle(hash.into());
        self.0.sent(stream, "ROOTCA", hash, content.into(), NOW);
    }

    fn ack(&mut self, stream: StreamId, name: &str, version: &str) -> Option<Duration> {
        self.0.acknowledged(stream, name, version, NOW)
    }

    fn summary(&self, current: &str) -> Summary {
        let complete = self.0.untracked() == 0;
        summary::of(
            self.0.streams().map(|(_, stream)| stream),
            current,
            complete,
        )
    }
}

fn of(grade_a: u32, grade_b: u32) -> OfBundle {
    OfBundle { grade_a, grade_b }
}

#[test]
fn only_what_was_acknowledged_counts_as_shown() {
    let mut world = World::new();
    let (certificate, roots) = (world.open("sds", 1), world.open("sds", 1));
    world.svid(certificate, "s1", 1000);
    assert_eq!(
        world.summary("h1").behind,
        1,
        "a holder that has shown nothing"
    );
    world.bundle(roots, "h1");
    assert_eq!(world.summary("h1").behind, 1, "sent is not taken");
    assert!(world.ack(roots, "ROOTCA", "h1").is_some());
    let summary = world.summary("h1");
    assert_eq!(summary.behind, 0);
    assert_eq!(summary.bundles, [("h1".to_owned(), of(1, 0))].into());
    // A new bundle: until it is taken, the holder shows the old one, and is behind.
    world.bundle(roots, "h2");
    let summary = world.summary("h2");
    assert_eq!(summary.bundles, [("h1".to_owned(), of(1, 0))].into());
    let behind = Behind {
        spiffe_id: "spiffe://example.org/x".into(),
        serial: "s1".into(),
        not_after: 1000,
        pod_uid: Some("uid".into()),
        bundle: Some("h1".into()),
    };
    assert_eq!((summary.behind, summary.earliest_behind), (1, Some(behind)));
    // Refusing it is not taking it either, and an answer to the older one is none to this.
    world.0.refused(roots, "ROOTCA", "h2", "no");
    assert_eq!(world.ack(roots, "ROOTCA", "h1"), None);
    assert_eq!(world.summary("h2").behind, 1);
    let (_, stream) = world.0.streams().last().unwrap();
    assert_eq!(stream.resources[0].refused.as_deref(), Some("no"));
    world.bundle(roots, "h3");
    assert!(world.ack(roots, "ROOTCA", "h3").is_some());
    assert_eq!(world.summary("h3").behind, 0);
    // Repeated acknowledgements are no news.
    assert_eq!(world.ack(roots, "ROOTCA", "h3"), None);
}

#[test]
fn a_process_has_shown_what_all_of_its_streams_have() {
    let mut world = World::new();
    let certificate = world.open("sds", 1);
    world.svid(certificate, "s1", 1000);
    let roots = [world.open("sds", 1), world.open("sds_delta", 1)];
    for roots in roots {
        world.bundle(roots, "h1");
    }
    world.ack(roots[0], "ROOTCA", "h1");
    assert_eq!(world.summary("h1").behind, 1);
    world.ack(roots[1], "ROOTCA", "h1");
    assert_eq!(world.summary("h1").bundles["h1"], of(1, 0));
    // A Workload API stream of the same process that has not renewed yet.
    let api = world.open("workload_api", 1);
    world.svid(api, "s2", 900);
    world.bundle(api, "h1");
    let summary = world.summary("h1");
    assert_eq!((summary.behind, summary.bundles.len()), (1, 0));
    assert_eq!(summary.earliest_behind.unwrap().serial, "s2");
    world.ack(api, "ROOTCA", "h1");
    assert_eq!(
        world.summary("h1").bundles["h1"],
        of(0, 1),
        "the lower grade"
    );
    // Another process is another holder; one without an SVID is none.
    let other = world.open("workload_api", 2);
    world.svid(other, "s3", 2000);
    world.bundle(other, "h1");
    let verifies_only = world.open("sds", 3);
    world.bundle(verifies_only, "h0");
    assert_eq!(world.summary("h1").behind, 1);
    world.0.close(other);
    assert_eq!(world.summary("h1").behind, 0);
}

#[test]
fn what_is_kept_is_bounded_and_says_so() {
    let mut table = Table::new(3);
    let mut world = World(Table::new(3));
    let stream = world.open("sds", 1);
    for name in ["a", "b", "c", "d", "e"] {
        world.0.sent(stream, name, "1", Content::Other.into(), NOW);
    }
    assert_eq!(
        (world.0.untracked(), world.summary("h").complete),
        (2, false)
    );
    // Known ones go on, and room is given back.
    world.0.sent(stream, "a", "2", Content::Other.into(), NOW);
    assert!(world.ack(stream, "a", "2").is_some());
    world.0.close(stream);
    assert!(world.summary("h").complete);
    // Versions that are never answered are not kept either.
    let stream = table.open(Stream {
        protocol: "sds",
        pid: 1,
        peer: "x".into(),
        opened: NOW,
        resources: Vec::new(),
    });
    for version in 0..100 {
        table.sent(
            stream,
            "a",
            &version.to_string(),
            Content::Other.into(),
            NOW,
        );
    }
    assert!(table.acknowledged(stream, "a", "3", NOW).is_none());
    assert!(table.acknowledged(stream, "a", "98", NOW).is_some());
    assert!(
        table.acknowledged(stream, "a", "97", NOW).is_none(),
        "an older one"
    );
    assert!(table.acknowledged(stream, "a", "99", NOW).is_some());
    // A sum names few bundles, and the one of now among them.
    let mut world = World::new();
    for pid in 0..40 {
        let stream = world.open("sds", pid);
        world.svid(stream, "s", 1);
        let hash = format!("h{pid}");
        world.bundle(stream, &hash);
        world.ack(stream, "ROOTCA", &hash);
    }
    let summary = world.summary("h7");
    assert_eq!((summary.bundles.len(), summary.behind), (16, 39));
    assert_eq!(summary.bundles["h7"], of(1, 0));
}
