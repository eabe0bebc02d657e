//! What a join token does not do.

use citadel_tests::citadel::AgentBuilder;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use tonic::Code;

use super::{DEADLINE, Site, changed, showing};
use crate::support::shows_refusal;

impl Site {
    /// Panics unless this request is refused without a word, with the reason in the log alone.
    async fn refuses(&self, token: &str, reason: &str) {
        self.refuses_by(&self.client().build(), token, reason).await;
    }

    async fn refuses_by(&self, client: &citadel_tests::client::Client, token: &str, reason: &str) {
        let (size, lines) = (self.admin.size().await, self.ca.refusals().len());
        let outcome = client.attest_with(showing(token, &csr::plain())).await;
        let Err(status) = outcome else {
            panic!("not refused: {reason}");
        };
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert_eq!(status.message(), "the caller could not be authenticated");
        let refusals = self.ca.refusals();
        let [line] = &refusals[lines..] else {
            panic!("one line for {reason}: {:#?}", &refusals[lines..]);
        };
        shows_refusal(line, "Unauthenticated", reason);
        assert_eq!(
            self.admin.size().await,
            size,
            "something was recorded: {reason}"
        );
    }
}

#[tokio::test]
async fn a_token_works_once_within_its_time_and_with_its_secret() {
    let site = Site::start().await;
    let token = site.token("vm-1", "10m").await;
    let wrong = changed(&token.text, "secret", "00".repeat(32));
    site.refuses(&wrong, "the secret of join token").await;
    let unknown = changed(&token.text, "id", "00".repeat(16));
    site.refuses(&unknown, "there is no join token").await;
    let short = changed(&token.text, "secret", "00");
    site.refuses(&short, "of another size").await;

    // The first one to show it is let in, and may ask again with the key that it proved.
    let csr = csr::plain();
    let client = site.client().build();
    client
        .attest_with(showing(&token.text, &csr))
        .await
        .unwrap();
    client
        .attest_with(showing(&token.text, &csr))
        .await
        .unwrap();
    site.refuses(&token.text, "was used before").await;

    let token = site.token("vm-1", "1s").await;
    wait::until("the token expires", DEADLINE, async || {
        let list = site.node(&["token", "list"]).await.success();
        list.contains("expired").then_some(())
    })
    .await;
    site.refuses(&token.text, "expired").await;

    let token = site.token("vm-1", "10m").await;
    site.node(&["token", "revoke", &token.id]).await.success();
    site.refuses(&token.text, "was revoked").await;
    let again = site.node(&["token", "revoke", &token.id]).await;
    assert_eq!(again.code, Some(1), "{}", again.errors);
    let list = site
        .node(&["token", "list", "--output", "json"])
        .await
        .success();
    for state in ["used", "expired", "revoked"] {
        assert!(list.contains(&format!("\"{state}\"")), "{list}");
    }
    assert!(!list.contains("secret"), "{list}");
}

#[tokio::test]
async fn a_newer_join_of_the_same_name_ends_the_agent_before() {
    let site = Site::start().await;
    let join = async || {
        let token = site.token("vm-1", "10m").await;
        let csr = csr::plain();
        let client = site.client().build();
        let answer = client
            .attest_with(showing(&token.text, &csr))
            .await
            .unwrap();
        let identity = citadel_tests::client::Identity::new(&answer.svid.unwrap(), &csr);
        (site.client().identity(&identity).build(), token, csr)
    };
    let (before, token, csr) = join().await;
    before.attest(&csr::plain()).await.unwrap();
    let (now, ..) = join().await;
    now.attest(&csr::plain()).await.unwrap();
    let status = before.attest(&csr::plain()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    // Nor does the key that the first token admitted lead to the second one's place.
    let client = site.client().build();
    let status = client
        .attest_with(showing(&token.text, &csr))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    now.attest(&csr::plain()).await.unwrap();
}

#[tokio::test]
async fn the_name_is_the_operator_s_choice() {
    let site = Site::start().await;
    for bad in ["", "Vm-1", "a/b", "..", "-x"] {
        let refused = site
            .node(&["token", "create", "--node", bad, "--ca-address=a:1"])
            .await;
        assert_eq!(refused.code, Some(2), "{bad}: {}", refused.errors);
    }
    let none = site.node(&["token", "create", "--node", "vm-1"]).await;
    assert!(none.errors.contains("ca_addresses"), "{}", none.errors);

    // Whatever the node's side says.
    let token = site.token("vm-1", "10m").await;
    let renamed = changed(&token.text, "node", "vm-2");
    let joined = site.join(&renamed, &site.state("renamed")).await.success();
    assert!(joined.contains("/citadel/agent/external/vm-1,"), "{joined}");
    let token = site.token("vm-1", "10m").await;
    let csr = csr::plain();
    let client = site.client().header("clusterid", "default").build();
    let answer = client
        .attest_with(showing(&token.text, &csr))
        .await
        .unwrap();
    assert_eq!(
        answer.svid.unwrap().spiffe_id,
        "spiffe://example.org/citadel/agent/external/vm-1"
    );
    // And no other credential may stand beside it.
    let token = site.token("vm-1", "10m").await;
    let both = site.client().token("eyJhbGciOiJSUzI1NiJ9.e30.c2ln").build();
    site.refuses_by(&both, &token.text, "beside another credential")
        .await;
}

#[tokio::test]
async fn to_another_ca_than_the_token_s_nothing_of_it_is_sent() {
    let site = Site::start().await;
    let other = Site::start().await;
    let token = site.token("vm-1", "10m").await;
    let led_astray = changed(&token.text, "ca", vec![other.ca.grpc().to_string()]);
    let state = site.state("astray");
    let failed = site.join(&led_astray, &state).await;
    assert_eq!(failed.code, Some(3), "{}", failed.errors);
    assert!(
        failed.errors.contains("could not join"),
        "{}",
        failed.errors
    );
    // Not even a request came; and the token is as good as before.
    let refusals = other.ca.refusals();
    assert!(
        refusals.iter().all(|line| line["rpc"] == ""),
        "{refusals:?}"
    );
    let metrics = other.ca.metrics().await;
    assert!(!metrics.contains("AttestAgent"), "{metrics}");
    site.join(&token.text, &state).await.success();
}

#[tokio::test]
async fn an_agent_whose_svid_has_ended_says_what_to_do_and_goes_on_with_a_new_token() {
    let site = Site::with(|ca| ca.set("external.svid_ttl", "4s")).await;
    let token = site.token("vm-1", "10m").await;
    let state = site.state("vm-1");
    // Without a token there is nothing to start from.
    let unjoined = AgentBuilder::outside(&state).start_unready();
    let ended = unjoined.process().wait(DEADLINE).await;
    assert_eq!(ended.code(), Some(2));
    assert!(
        unjoined.log().contains("citadel node join"),
        "{}",
        unjoined.log()
    );

    site.join(&token.text, &state).await.success();
    // The machine was off for longer than the SVID lives.
    wait::until("the SVID has ended", DEADLINE, async || {
        let client = site.client().identity(&super::kept(&state)).build();
        client.attest(&csr::plain()).await.is_err().then_some(())
    })
    .await;
    let agent = AgentBuilder::outside(&state).start_unready();
    let line = agent.process().log_line("it has ended", DEADLINE, |line| {
        line.contains("citadel node token create") && line.contains(&token.id)
    });
    line.await;
    assert!(!agent.is_ready().await);
    // The running agent takes what a new join puts there.
    let token = site.token("vm-1", "10m").await;
    site.join(&token.text, &state).await.success();
    agent.wait_ready().await;
}
