//! Names that become ready after they were asked for.

use std::time::Duration;

use citadel_tests::citadel::{AgentBuilder, CaBuilder};
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::wait;

use super::script::{ID, Script, node};
use crate::node::{Node, user_entry};

/// From the CA's start to a push: its own, the agent's backoff, a first certificate.
const READY: Duration = Duration::from_secs(30);

#[tokio::test]
async fn sds_req_08_what_was_asked_for_before_the_ca_was_there_comes_when_it_is() {
    let api = ApiServer::shared().await;
    let pod = api.create_agent("early").await;
    let entry = user_entry("/unix/root", "early", 0);
    let ca = CaBuilder::new(api)
        .await
        .set("entries", vec![entry])
        .start()
        .await;
    // It has made its keys; then it goes.
    ca.process().kill().await;
    let agent = AgentBuilder::new(&ca, &pod.token).start_unready();
    let mut node = Node { ca, agent };
    wait::until("the agent's socket", READY, async || {
        node.agent.socket().exists().then_some(())
    })
    .await;
    assert!(!node.agent.is_ready().await);

    let mut script = Script::open(&node, &["default", "ROOTCA", ID]).await;
    node.ca.start_again().await;
    // Each as soon as it is there, in one response or in several.
    let mut last = script.within(READY).await;
    while last.names.len() < 3 {
        script.ack(&last, &["default", "ROOTCA", ID]);
        let next = script.within(READY).await;
        assert!(
            next.names.len() > last.names.len(),
            "{next:?} after {last:?}"
        );
        last = next;
    }
    assert_eq!(last.names, ["ROOTCA", "default", ID]);
}

#[tokio::test]
async fn sds_req_08_a_name_that_becomes_an_identity_is_pushed_beside_the_old_ones() {
    let mut node = node("later", "1h").await;
    let later = "spiffe://example.org/unix/later";
    let mut script = Script::open(&node, &[ID, later]).await;
    let first = script.next().await;
    assert_eq!(first.names, [ID]);
    script.ack(&first, &[ID, later]);

    node.ca.process().kill().await;
    let entries = [
        user_entry("/unix/root", "later", 0),
        user_entry("/unix/later", "later", 0),
    ];
    node.ca.set("entries", entries.to_vec());
    node.ca.start_again().await;
    // Nobody asked again.
    let second = script.within(READY).await;
    assert_eq!(second.names, [later, ID]);
}
