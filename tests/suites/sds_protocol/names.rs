//! What a client asks for, and what it asks for no more.

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use tonic::Code;

use crate::node::{Node, user_entry};

use super::script::{ID, Pushed, RENEWAL, Script, node, request, service};

const BUNDLE: &str = "spiffe://example.org";

#[tokio::test]
async fn sds_req_06_11_changed_names_are_a_new_subscription() {
    let node = node("changed", "1h").await;
    let mut script = Script::open(&node, &["default"]).await;
    let first = script.next().await;
    assert_eq!(first.names, ["default"]);

    script.ack(&first, &["default", "ROOTCA"]);
    let second = script.next().await;
    assert_eq!(second.names, ["ROOTCA", "default"]);
    assert_ne!(second.version, first.version);
    assert_eq!(second.serials, first.serials, "the same certificate");

    // By their exact IDs, the others forgotten.
    script.ack(&second, &[ID, BUNDLE]);
    let third = script.next().await;
    assert_eq!(third.names, [BUNDLE, ID]);
    assert_eq!(third.serials, first.serials);

    // Fewer names are no reason to send anything: the next answer is the one after.
    script.ack(&third, &[ID]);
    script.ack(&third, &[ID, "ROOTCA"]);
    assert_eq!(script.next().await.names, ["ROOTCA", ID]);
}

#[tokio::test]
async fn sds_req_06_what_was_unsubscribed_is_not_sent_until_it_is_asked_for_again() {
    let node = node("unsubscribe", "10s").await;
    let mut script = Script::open(&node, &["default", "ROOTCA"]).await;
    let first = script.next().await;
    script.ack(&first, &["ROOTCA"]);

    // Another stream tells when the certificate was renewed.
    let mut witness = Script::open(&node, &["default"]).await;
    let before = witness.next().await;
    witness.ack(&before, &["default"]);
    let renewed = witness.within(RENEWAL).await;
    assert_ne!(renewed.serials, before.serials);

    // Nothing of that came here: the next answer is the one for a new name.
    script.ack(&first, &["ROOTCA", BUNDLE]);
    let second = script.next().await;
    assert_eq!(second.names, ["ROOTCA", BUNDLE]);

    // Nothing at all, and then what was there before: it is sent again.
    script.ack(&second, &[]);
    script.ack(&second, &["ROOTCA"]);
    let third = script.next().await;
    assert_eq!(third.names, ["ROOTCA"]);
    script.ack(&third, &["ROOTCA", "default"]);
    assert_eq!(script.next().await.names, ["ROOTCA", "default"]);
}

#[tokio::test]
async fn sds_req_07_an_unknown_name_holds_up_nothing() {
    let node = node("unknown", "1h").await;
    let unknown = [
        "no-such-name",
        "spiffe://example.org/unix/nobody",
        "spiffe://other.example",
        "",
    ];
    let names = [&["default", "ROOTCA"][..], &unknown].concat();
    let mut script = Script::open(&node, &names).await;
    let first = script.next().await;
    assert_eq!(first.names, ["ROOTCA", "default"]);
    script.ack(&first, &names);
    script.ack(&first, &[&names[..], &[ID]].concat());
    assert_eq!(script.next().await.names, ["ROOTCA", "default", ID]);

    // Alone, it leaves the stream open and silent until there is something to say.
    let mut script = Script::open(&node, &unknown).await;
    script.send(request(&["ROOTCA"]));
    assert_eq!(script.next().await.names, ["ROOTCA"]);
}

#[tokio::test]
async fn sds_req_09_21_fetch_gives_what_a_stream_gives() {
    let node = node("fetch", "1h").await;
    let fetch = async |names: &[&str]| service(&node).fetch_secrets(request(names)).await;
    let fetched = fetch(&["default", "ROOTCA", "no-such-name"]).await.unwrap();
    let fetched = Pushed::read(fetched.into_inner());
    assert_eq!(fetched.names, ["ROOTCA", "default"]);
    let mut script = Script::open(&node, &["default", "ROOTCA"]).await;
    let streamed = script.next().await;
    assert_eq!(
        (streamed.version, streamed.serials),
        (fetched.version, fetched.serials)
    );
    assert_eq!(
        fetch(&["no-such-name"]).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn sds_req_01_19_what_can_t_be_meant_is_refused() {
    let node = node("refused", "1h").await;
    let cluster = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    let other_type = DiscoveryRequest {
        type_url: cluster.into(),
        ..request(&["default"])
    };
    let many: Vec<_> = (0..1000).map(|number| number.to_string()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let long = "x".repeat(10_000);
    // More than any message may have: it is not even read.
    let huge = "x".repeat(300_000);
    for (first, code) in [
        (other_type, Code::InvalidArgument),
        (request(&many), Code::InvalidArgument),
        (request(&[&long]), Code::InvalidArgument),
        (request(&[&huge]), Code::OutOfRange),
    ] {
        let mut script = Script::try_open(&node, first).await.unwrap();
        assert_eq!(script.end().await.code(), code);
    }
}

#[tokio::test]
async fn sds_req_22_a_caller_without_an_identity_is_denied() {
    // The entry is for another user than the one that runs this.
    let entry = user_entry("/unix/other", "nobody", 4242);
    let node = Node::with("nobody", |ca| ca.set("entries", vec![entry]), |agent| agent).await;
    let mut script = Script::try_open(&node, request(&["default", "ROOTCA"]))
        .await
        .unwrap();
    assert_eq!(script.end().await.code(), Code::PermissionDenied);
    let fetched = service(&node).fetch_secrets(request(&["ROOTCA"])).await;
    assert_eq!(fetched.unwrap_err().code(), Code::PermissionDenied);
}
