//! A machine joins by a token and keeps its identity.

use std::os::unix::fs::PermissionsExt as _;

use citadel_proto::log::{AuthenticationMethod, CertificateUse};
use citadel_proto::v1::EntrySubject;
use citadel_proto::v1::issue_item::Subject;
use citadel_proto::v1::issue_result::Outcome;
use citadel_tests::client::Identity;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use tonic::Code;

use super::{DEADLINE, Site, fetch, kept, showing};
use crate::support::AgentClient;

const AGENT: &str = "spiffe://example.org/citadel/agent/external/vm-1";

#[tokio::test]
async fn a_machine_joins_by_its_token_and_survives_a_reboot() {
    let site = Site::start().await;
    let (mut agent, state) = site.agent("vm-1").await;
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("agent.json")), 0o600);

    // A workload by a unix selector, with the entry's DNS name.
    let svid = fetch(&agent, &site.dir).await.unwrap();
    assert!(svid.contains("spiffe://example.org/vm"), "{svid}");
    assert!(!svid.contains("spiffe://example.org/other"), "{svid}");

    // On record: who let it in, and by what.
    let acts = site.acts().await;
    let [made, joined] = &acts[..] else {
        panic!("{acts:#?}");
    };
    assert!(
        made.starts_with("create-join-token by local uid 0: node external/vm-1"),
        "{made}"
    );
    assert!(joined.starts_with("attested vm-1 by JoinToken"), "{joined}");
    let records = site.admin.all(AGENT).await;
    let first = records.last().unwrap();
    assert_eq!(first.issued.r#use(), CertificateUse::Agent);
    assert_eq!(first.caller().method(), AuthenticationMethod::JoinToken);
    assert!(joined.ends_with(&first.caller().token_id), "{joined}");
    assert_eq!(first.origin().cluster, "external");
    assert_eq!(first.origin().node, "vm-1");

    // The machine is reset: no token is needed, and nobody else is let in meanwhile.
    for _ in 0..2 {
        agent.process().kill().await;
        agent.start_again().await;
        fetch(&agent, &site.dir).await.unwrap();
    }
    assert_eq!(site.acts().await.len(), 2);
    let newest = &site.admin.all(AGENT).await[0];
    assert_eq!(
        newest.caller().method(),
        AuthenticationMethod::ClientCertificate
    );
    assert_eq!(newest.origin().method(), AuthenticationMethod::JoinToken);
    assert_eq!(newest.origin().node_uid, first.origin().node_uid);
    let nodes = site.node(&["list"]).await.success();
    assert!(
        nodes.contains("vm-1") && nodes.contains("joined"),
        "{nodes}"
    );
}

#[tokio::test]
async fn a_joined_agent_renews_by_its_own_svid_for_ever() {
    let site = Site::with(|ca| ca.set("external.svid_ttl", "6s")).await;
    let (agent, state) = site.agent("vm-1").await;
    let first = kept(&state).leaf().serial();
    wait::until("three renewals", DEADLINE, async || {
        (site.admin.all(AGENT).await.len() >= 4).then_some(())
    })
    .await;
    assert_ne!(kept(&state).leaf().serial(), first);
    assert!(agent.is_ready().await);
    fetch(&agent, &site.dir).await.unwrap();
    // One join: all else rests on it.
    assert_eq!(site.acts().await.len(), 2);
}

#[tokio::test]
async fn a_node_gets_its_own_entries_and_no_others() {
    let site = Site::start().await;
    let token = site.token("vm-1", "10m").await;
    let csr = csr::plain();
    let by_token = site.client().build();
    let joined = by_token
        .attest_with(showing(&token.text, &csr))
        .await
        .unwrap();
    let identity = Identity::new(&joined.svid.unwrap(), &csr);
    let client = site.client().identity(&identity).build();
    let mut entries = client.entries().await.unwrap();
    let update = entries.message().await.unwrap().unwrap();
    let ids: Vec<_> = update
        .entries
        .iter()
        .map(|entry| &entry.spiffe_id)
        .collect();
    assert_eq!(ids, ["spiffe://example.org/vm"]);
    let own = update.entries[0].entry_id.clone();

    let other = site.token("vm-2", "10m").await;
    let other_csr = csr::plain();
    let joined = by_token
        .attest_with(showing(&other.text, &other_csr))
        .await
        .unwrap();
    let identity = Identity::new(&joined.svid.unwrap(), &other_csr);
    let neighbour = site.client().identity(&identity).build();
    let ask = async |client: &citadel_tests::client::Client, entry_id: &str| {
        let subject = Subject::Entry(EntrySubject {
            entry_id: entry_id.into(),
            pod_uid: String::new(),
        });
        let answer = client
            .batch(vec![AgentClient::item(subject)])
            .await
            .unwrap();
        answer.results[0].outcome.clone().unwrap()
    };
    let Outcome::Svid(svid) = ask(&client, &own).await else {
        panic!("its own entry is refused");
    };
    assert_eq!(svid.spiffe_id, "spiffe://example.org/vm");
    let Outcome::Error(error) = ask(&neighbour, &own).await else {
        panic!("another node's entry");
    };
    assert_eq!(Code::from(error.code), Code::PermissionDenied);
    // Nor anything of a pod, of which this node has none.
    let item = AgentClient::pod_item("1b4e28ba-2fa1-11d2-883f-0016d3cca427");
    let answer = client.batch(vec![item]).await.unwrap();
    let Some(Outcome::Error(error)) = &answer.results[0].outcome else {
        panic!("an SVID of a pod");
    };
    assert_eq!(Code::from(error.code), Code::PermissionDenied);
}
