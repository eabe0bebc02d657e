//! What the agent of a node may ask for.

use std::time::Duration;

use citadel_proto::log::Authority;
use citadel_proto::v1::issue_item::Subject;
use citadel_proto::v1::issue_result::Outcome;
use citadel_proto::v1::{EntriesUpdate, EntrySubject, IssueBatchRequest, PodSubject};
use citadel_tests::client::{Grants, Identity};
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::Pod;
use citadel_tests::pki::csr;
use citadel_tests::process::Launch;
use citadel_tests::wait;
use prost::Message;
use serde_json::json;
use tonic::Code;

use crate::support::{AgentClient, Scene, check_leaf};

const DENIED: Code = Code::PermissionDenied;
const NOWHERE: &str = "00000000-0000-4000-8000-000000000000";
const SEEN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_node_gets_its_own_pods_and_no_others() {
    let scene = Scene::start().await;
    let (here, there) = (scene.agent("here-1").await, scene.agent("there-1").await);
    let own = scene.pod("nodes", "web", "web-1", "here-1").await;
    let neighbour = scene.pod("nodes", "db", "db-1", "here-1").await;
    let foreign = scene.pod("nodes", "web", "web-2", "there-1").await;
    scene.seen_by(&here, &neighbour).await;
    scene.seen_by(&there, &foreign).await;

    let request = csr::plain();
    let item = AgentClient::item_for(
        Subject::Pod(PodSubject {
            pod_uid: own.uid.clone(),
            namespace: "nodes".into(),
            service_account: "web".into(),
        }),
        &request,
    );
    let svid = here.one(item).await.unwrap();
    assert_eq!(svid.pod_uid, own.uid);
    check_leaf(
        &Identity::new(&svid, &request),
        &own.spiffe_id(),
        &request.key_pem,
    );
    let record = scene.admin.certificate(&svid.serial).await.unwrap();
    assert_eq!(record.origin().authority(), Authority::Agent);
    assert_eq!(
        (&record.origin().pod_uid, &record.origin().pod),
        (&own.uid, &own.pod)
    );
    assert_eq!(
        record.caller().spiffe_id,
        "spiffe://example.org/citadel/agent/default/here-1"
    );

    let item = AgentClient::pod_item(&foreign.uid);
    scene
        .refuses_item(DENIED, "runs on node there-1", &here, item)
        .await;
    let item = AgentClient::pod_item(NOWHERE);
    let error = scene
        .refuses_item(DENIED, "is not known on", &here, item)
        .await;
    assert!(
        error.retry_after_ms > 0,
        "the watch may be a moment behind: {error:?}"
    );
    for (namespace, account) in [("nodes", "db"), ("kube-system", "web"), ("kube-system", "")] {
        let item = AgentClient::item(Subject::Pod(PodSubject {
            pod_uid: own.uid.clone(),
            namespace: namespace.into(),
            service_account: account.into(),
        }));
        let error = scene
            .refuses_item(DENIED, "not as the account", &here, item)
            .await;
        assert_eq!(error.retry_after_ms, 0, "a retry is useless");
    }
    let unscheduled = scene
        .api
        .create_pod(&Pod::new("nodes", "web-3", "web"))
        .await;
    // Its token shows that the CA knows the pod; its binding may be a moment behind.
    let token = scene.api.token("nodes", "web", "web-3").await;
    let by_token = scene.client().token(&token).build();
    by_token.issue(&csr::plain()).await.unwrap();
    let item = AgentClient::pod_item(&unscheduled);
    let error = scene
        .refuses_item(DENIED, "is not known on", &here, item)
        .await;
    assert!(error.retry_after_ms > 0, "a retry may help: {error:?}");
}

#[tokio::test]
async fn names_longer_than_any_name_are_refused_and_fill_no_log() {
    let scene = Scene::start().await;
    let agent = scene.agent("long-1").await;
    let long = "x".repeat(100_000);
    let pod = |pod_uid: &str, namespace: &str| {
        Subject::Pod(PodSubject {
            pod_uid: pod_uid.into(),
            namespace: namespace.into(),
            ..Default::default()
        })
    };
    let entry = |entry_id: &str, pod_uid: &str| {
        Subject::Entry(EntrySubject {
            entry_id: entry_id.into(),
            pod_uid: pod_uid.into(),
        })
    };
    for (subject, field) in [
        (pod(&long, ""), "pod_uid: longer than 253"),
        (pod("u", &long), "namespace: longer than 253"),
        (entry(&long, ""), "entry_id: longer than 2061"),
        (entry("e", &long), "pod_uid: longer than 253"),
    ] {
        let item = AgentClient::item(subject);
        let invalid = Code::InvalidArgument;
        let error = scene.refuses_item(invalid, field, &agent, item).await;
        assert!(error.message.contains(field), "{error:?}");
    }
    // The longest that is accepted is cut in the log.
    let item = AgentClient::item(entry(&long[..2061], ""));
    scene.refuses_item(DENIED, "no entry x", &agent, item).await;
    let line = scene.ca.refusals().pop().unwrap();
    assert_eq!(line["reason"].as_str().unwrap().len(), 500);
}

#[tokio::test]
async fn a_batch_is_answered_item_by_item() {
    let scene = Scene::start().await;
    let agent = scene.agent("batch-1").await;
    let web = scene.pod("batches", "web", "web-1", "batch-1").await;
    scene.seen_by(&agent, &web).await;
    let size = scene.admin.size().await;

    let mut broken = AgentClient::pod_item(&web.uid);
    broken.csr.push(0);
    let mut items = vec![
        AgentClient::pod_item(&web.uid),
        broken,
        AgentClient::pod_item(NOWHERE),
    ];
    items.push(AgentClient::pod_item(&web.uid));
    for (number, item) in items.iter_mut().enumerate() {
        item.idempotency_key = format!("item-{number}");
    }
    let results = agent.client.batch(items).await.unwrap().results;
    let keys: Vec<_> = results
        .iter()
        .map(|result| result.idempotency_key.as_str())
        .collect();
    assert_eq!(keys, ["item-0", "item-1", "item-2", "item-3"]);
    let codes: Vec<_> = results
        .into_iter()
        .map(|result| match result.outcome.unwrap() {
            Outcome::Svid(svid) => {
                assert_eq!(svid.spiffe_id, web.spiffe_id());
                Code::Ok
            }
            Outcome::Error(error) => Code::from(error.code),
        })
        .collect();
    assert_eq!(codes, [Code::Ok, Code::InvalidArgument, DENIED, Code::Ok]);
    assert_eq!(scene.admin.size().await, size + 2);

    let many = vec![AgentClient::pod_item(&web.uid); 257];
    scene
        .refuses(
            Code::InvalidArgument,
            "at most 256",
            agent.client.batch(many),
        )
        .await;
    let answer = agent
        .client
        .batch(vec![AgentClient::pod_item(&web.uid); 256])
        .await
        .unwrap();
    assert_eq!(answer.results.len(), 256);
    assert_eq!(scene.admin.size().await, size + 2 + 256);
}

#[tokio::test]
async fn a_batch_of_more_than_a_mebibyte_is_not_even_read() {
    const LIMIT: usize = 1 << 20;
    let scene = Scene::start().await;
    let agent = scene.agent("large-1").await;
    // An item's CSR fills the request; it is no CSR, which is said of the item alone.
    let filled = |bytes: usize| {
        let mut request = IssueBatchRequest {
            items: vec![AgentClient::pod_item(&agent.pod.uid)],
        };
        request.items[0].csr = vec![0; bytes];
        let more = request.encoded_len() - bytes;
        request.items[0].csr.truncate(bytes - more);
        assert_eq!(request.encoded_len(), bytes);
        request.items
    };
    let size = scene.admin.size().await;
    let answer = agent.client.batch(filled(LIMIT)).await.unwrap();
    let Some(Outcome::Error(error)) = &answer.results[0].outcome else {
        panic!("{answer:?}");
    };
    assert_eq!(Code::from(error.code), Code::InvalidArgument, "{error:?}");
    assert!(error.message.contains("csr"), "{error:?}");

    let status = agent.client.batch(filled(LIMIT + 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().contains("1048576"), "{status:?}");
    assert_eq!(scene.admin.size().await, size);
    let item = AgentClient::pod_item(&agent.pod.uid);
    agent.one(item).await.expect("the connection lives on");
    assert_eq!(agent.client.seen().handshakes().len(), 1);
}

#[tokio::test]
async fn an_identity_without_a_pod_ends_with_its_node() {
    let entry = json!([{
        "id": "/unix/alice", "nodes": ["default/vouch-1"], "selectors": ["unix:uid:1000"],
    }]);
    let scene = Scene::with(|ca| ca.set("entries", entry)).await;
    let agent = scene.agent("vouch-1").await;
    let update = agent.client.entries().await.unwrap().message().await;
    let entry_id = update.unwrap().unwrap().entries[0].entry_id.clone();
    let subject = EntrySubject {
        entry_id,
        ..Default::default()
    };
    let request = csr::plain();
    let item = AgentClient::item_for(Subject::Entry(subject), &request);
    let svid = agent.one(item).await.unwrap();
    let identity = Identity::new(&svid, &request);
    let client = scene.client().identity(&identity).build();
    // While the node lives it is who it says, but renews through the agent alone.
    let alive = client.issue(&csr::plain()).await.unwrap_err();
    assert_eq!(alive.code(), DENIED, "{alive:?}");

    // A node that is made again by that name is another one.
    scene.api.delete_node("vouch-1").await;
    scene.api.create_node("vouch-1").await;
    wait::until("the CA has noticed", SEEN, async || {
        let status = client.issue(&csr::plain()).await.unwrap_err();
        (status.code() == Code::Unauthenticated).then_some(())
    })
    .await;
    let gone = "node vouch-1 with UID";
    scene
        .refuses(Code::Unauthenticated, gone, client.issue(&csr::plain()))
        .await;
}

#[tokio::test]
async fn a_pod_that_is_gone_gets_nothing_from_its_agent() {
    let scene = Scene::start().await;
    let agent = scene.agent("gone-1").await;
    let web = scene.pod("gone", "web", "web-1", "gone-1").await;
    scene.seen_by(&agent, &web).await;
    scene.api.delete_pod("gone", "web-1").await;
    wait::until("the CA has noticed", SEEN, async || {
        agent.one(AgentClient::pod_item(&web.uid)).await.err()
    })
    .await;
    let item = AgentClient::pod_item(&web.uid);
    scene.refuses_item(DENIED, "is gone", &agent, item).await;
}

#[tokio::test]
async fn entries_belong_to_their_nodes() {
    let scene = Scene::with(|ca| {
        ca.set(
            "entries",
            json!([
                { "id": "/unix/alice", "nodes": ["default/entry-1"], "selectors": ["unix:uid:1000"] },
                { "id": "/unix/bob", "nodes": ["default/entry-2"], "selectors": ["unix:uid:1000"] },
                { "id": "/shop/front", "nodes": "all", "ttl": "5m", "hint": "front",
                  "dns_names": ["front.shop.example.org"],
                  "selectors": ["k8s:ns:entries", "k8s:pod-label:app:front"] },
            ]),
        )
    })
    .await;
    let (one, two) = (scene.agent("entry-1").await, scene.agent("entry-2").await);
    scene.api.ensure_namespace("entries").await;
    scene.api.ensure_account("entries", "web").await;
    let front = scene
        .api
        .create_pod(&front_pod("front-1").label("app", "front"))
        .await;
    let back = scene
        .api
        .create_pod(&front_pod("back-1").label("app", "back"))
        .await;

    let of = async |agent: &AgentClient| {
        agent
            .client
            .entries()
            .await
            .unwrap()
            .message()
            .await
            .unwrap()
            .unwrap()
    };
    let (ones, twos) = (of(&one).await, of(&two).await);
    let named = |update: &EntriesUpdate, path: &str| {
        let wanted = format!("spiffe://example.org{path}");
        update
            .entries
            .iter()
            .find(|entry| entry.spiffe_id == wanted)
            .cloned()
    };
    let alice = named(&ones, "/unix/alice").expect("its own entry");
    let bob = named(&twos, "/unix/bob").expect("its own entry");
    assert!(named(&ones, "/unix/bob").is_none() && named(&twos, "/unix/alice").is_none());
    let shared = named(&ones, "/shop/front").expect("an entry of all nodes");
    assert_eq!(shared.hint, "front");

    let item = |entry_id: &str, pod_uid: &str| {
        AgentClient::item(Subject::Entry(EntrySubject {
            entry_id: entry_id.into(),
            pod_uid: pod_uid.into(),
        }))
    };
    assert_eq!(
        one.one(item(&alice.entry_id, "")).await.unwrap().spiffe_id,
        alice.spiffe_id
    );
    scene
        .refuses_item(DENIED, "no entry", &one, item(&bob.entry_id, ""))
        .await;
    scene
        .refuses_item(DENIED, "no entry", &one, item("/unix/alice#made-up", ""))
        .await;

    let request = csr::plain();
    let wanted = Subject::Entry(EntrySubject {
        entry_id: shared.entry_id.clone(),
        pod_uid: front.clone(),
    });
    let svid = wait::until("the pod is seen", SEEN, async || {
        one.one(AgentClient::item_for(wanted.clone(), &request))
            .await
            .ok()
    })
    .await;
    assert_eq!((svid.hint.as_str(), &svid.pod_uid), ("front", &front));
    let grants = Identity::new(&svid, &request).leaf().grants();
    let mut expected = Grants::of_leaf("spiffe://example.org/shop/front");
    expected.names.push("DNS:front.shop.example.org".into());
    assert_eq!(grants, expected);
    assert_eq!(svid.not_after - svid.not_before, 300 + 30);

    // The CA looks at the labels itself; whose node the pod is on as well.
    wait::until("the other pod is seen", SEEN, async || {
        let error = one.one(item(&shared.entry_id, &back)).await.unwrap_err();
        (error.retry_after_ms == 0).then_some(())
    })
    .await;
    let call = item(&shared.entry_id, &back);
    scene
        .refuses_item(DENIED, "does not match k8s:pod-label:app:front", &one, call)
        .await;
    let call = item(&shared.entry_id, &front);
    scene
        .refuses_item(DENIED, "runs on node entry-1", &two, call)
        .await;
    let call = item(&shared.entry_id, "");
    scene
        .refuses_item(Code::InvalidArgument, "pod_uid", &one, call)
        .await;
}

fn front_pod(name: &str) -> Pod {
    Pod::new("entries", name, "web").on("entry-1")
}

#[tokio::test]
async fn no_template_yields_what_is_reserved() {
    for template in [
        "/citadel/{account}",
        "/citadel/agent/default/{account}",
        "/citadel/ca",
    ] {
        let refused = checked(&format!(
            "trust_domain: example.org\nid_template: {template}\n"
        ))
        .await;
        assert_eq!(refused.0, Some(2), "{}", refused.1);
        for part in ["id_template", "2", "/citadel/"] {
            assert!(refused.1.contains(part), "{part}: {}", refused.1);
        }
    }
    let entry = "trust_domain: example.org\nentries:\n  - id: /citadel/agent/default/n1\n    nodes: all\n    selectors: [\"k8s:ns:shop\"]\n";
    let refused = checked(entry).await;
    assert_eq!(refused.0, Some(2), "{}", refused.1);
    assert!(
        refused.1.contains("entries[0].id") && refused.1.contains("reserved"),
        "{}",
        refused.1
    );

    // Here it depends on the namespace's name.
    let good = checked("trust_domain: example.org\nid_template: /{namespace}/{account}\n").await;
    assert_eq!(good.0, Some(0), "{}", good.1);
    let scene = Scene::with(|ca| ca.set("id_template", "/{namespace}/{account}")).await;
    let agent = scene.agent("template-1").await;
    let reserved = scene.pod("citadel", "ca", "ca-1", "template-1").await;
    let plain = scene.pod("plain", "ca", "ca-1", "template-1").await;
    scene.seen_by(&agent, &plain).await;
    let client = scene.client_of(&reserved);
    scene
        .refuses(DENIED, "reserved", client.issue(&csr::plain()))
        .await;
    let item = AgentClient::pod_item(&reserved.uid);
    scene.refuses_item(DENIED, "reserved", &agent, item).await;
}

/// `citadel-ca --check-config` of this file: its exit code and its words.
async fn checked(yaml: &str) -> (Option<i32>, String) {
    let dir = TestDir::new("check");
    let file = dir.write("ca.yaml", yaml);
    let process = Launch::new("check", citadel_tests::parts::program("citadel-ca"))
        .arg("--config")
        .arg(file)
        .arg("--check-config")
        .start(&dir);
    let status = process.wait(Duration::from_secs(10)).await;
    (status.code(), process.log())
}
