//! Registration entries that change while everything runs.

use std::time::Duration;

use citadel_proto::log::{PolicyChanged, entry::Kind};
use citadel_proto::workload::X509svidResponse;
use citadel_tests::client::Admin;
use nix::sys::signal::Signal;
use serde_json::json;

use super::requirements::{PROMPT, next, node, svids};
use crate::node::{Node, user_entry};

const NODE: &str = "changes";

fn ids(message: &X509svidResponse) -> Vec<&str> {
    let ids = message.svids.iter().map(|svid| svid.spiffe_id.as_str());
    ids.map(|id| id.strip_prefix("spiffe://example.org").expect("ours"))
        .collect()
}

/// Waits for the refusal of a changed configuration, with these words.
async fn is_refused(node: &Node, words: &'static str) {
    node.ca
        .process()
        .log_line("the refusal", PROMPT, |line| {
            line.contains("not taken over") && line.contains(words)
        })
        .await;
}

#[tokio::test]
async fn changed_entries_reach_an_open_stream_and_bad_ones_change_nothing() {
    let mut node = node(NODE, &[("/unix/first", "")], "1h").await;
    let mut stream = svids(&node).await;
    assert_eq!(ids(&next(&mut stream, PROMPT).await), ["/unix/first"]);

    let first = user_entry("/unix/first", NODE, 0);
    let second = user_entry("/unix/second", NODE, 0);
    node.ca.set("entries", json!([first, second]));
    node.ca.rewrite();
    node.ca.process().signal(Signal::SIGHUP);
    let both = next(&mut stream, PROMPT).await;
    assert_eq!(ids(&both), ["/unix/first", "/unix/second"]);

    // Refused whole: the good one beside it counts no more than the bad one.
    let third = user_entry("/unix/third", NODE, 0);
    let reserved = user_entry("/citadel/ca", NODE, 0);
    node.ca.set("entries", json!([third, reserved]));
    node.ca.rewrite();
    node.ca.process().signal(Signal::SIGHUP);
    is_refused(&node, "entries[1].id").await;
    node.ca.set("entries", json!([third]));
    node.ca.set("max_renewal_age", "100h");
    node.ca.rewrite();
    node.ca.process().signal(Signal::SIGHUP);
    is_refused(&node, "restart the CA").await;

    // Without a signal, as where a mounted file changes.
    node.ca.set("entries", json!([second]));
    node.ca.set("max_renewal_age", "168h");
    node.ca.rewrite();
    let one = next(&mut stream, Duration::from_secs(20)).await;
    assert_eq!(ids(&one), ["/unix/second"]);

    // What was in force when is on record, and what was issued under which.
    let log = Admin::of(&node.ca).read_log(0).await;
    let changes: Vec<&PolicyChanged> = log
        .iter()
        .filter_map(|(_, entry)| match entry.kind.as_ref()? {
            Kind::PolicyChanged(changed) => Some(changed),
            _ => None,
        })
        .collect();
    let [start, added, removed] = changes[..] else {
        panic!("{changes:?}");
    };
    assert_eq!(added.old_revision, start.new_revision);
    assert_eq!(removed.old_revision, added.new_revision);
    assert_ne!(removed.new_revision, added.new_revision);
    let issued_under = |path: &str| -> Vec<u64> {
        let issued = log.iter().filter_map(|(_, entry)| match &entry.kind {
            Some(Kind::Issued(issued)) => Some(issued),
            _ => None,
        });
        issued
            .filter(|issued| issued.spiffe_id.ends_with(path))
            .map(|issued| issued.policy_revision)
            .collect()
    };
    assert_eq!(issued_under("/unix/first"), [start.new_revision]);
    assert_eq!(issued_under("/unix/second"), [added.new_revision]);
    assert_eq!(issued_under("/unix/third"), [0; 0]);
}
