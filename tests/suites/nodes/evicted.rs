//! A node ends when an operator says so.

use citadel_tests::pki::csr;
use citadel_tests::wait;
use tonic::Code;

use super::{DEADLINE, Site, fetch, kept, showing};

#[tokio::test]
async fn an_evicted_node_gets_nothing_more_until_it_is_admitted() {
    let site = Site::start().await;
    let (agent, state) = site.agent("vm-1").await;
    fetch(&agent, &site.dir).await.unwrap();
    let open = site.token("vm-1", "10m").await;
    let stolen = kept(&state);
    site.node(&["evict", "vm-1"]).await.success();

    // At once: neither its SVID nor an open token counts any more.
    let by_svid = site.client().identity(&stolen).build();
    let status = by_svid.attest(&csr::plain()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let status = by_svid.batch(Vec::new()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let by_token = site.client().build();
    let request = showing(&open.text, &csr::plain());
    let status = by_token.attest_with(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let reasons: Vec<String> = site.ca.refusals().iter().map(ToString::to_string).collect();
    assert!(
        reasons
            .iter()
            .any(|line| line.contains("external/vm-1 is evicted")),
        "{reasons:?}"
    );
    // The agent says what it is left with.
    let told = agent
        .process()
        .log_line("the agent's log", DEADLINE, |line| {
            line.contains("an operator evicted the node")
        });
    told.await;
    let list = site.node(&["list", "--output", "json"]).await.success();
    assert!(list.contains("\"evicted\""), "{list}");
    let refused = site
        .node(&["token", "create", "--node", "vm-1", "--ca-address=a:1"])
        .await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);
    assert!(
        refused.errors.contains("citadel node admit"),
        "{}",
        refused.errors
    );

    // Admitted, it joins anew; what was issued before stays ended.
    site.node(&["admit", "vm-1"]).await.success();
    let status = by_svid.attest(&csr::plain()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let token = site.token("vm-1", "10m").await;
    site.join(&token.text, &state).await.success();
    wait::until("the agent has joined anew", DEADLINE, async || {
        let client = site.client().identity(&kept(&state)).build();
        client.attest(&csr::plain()).await.ok()
    })
    .await;
    let status = by_svid.attest(&csr::plain()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);

    let acts = site.acts().await;
    for wanted in [
        "evict-node by local uid 0: node external/vm-1",
        "admit-node by local uid 0: node external/vm-1",
    ] {
        assert!(acts.iter().any(|act| act == wanted), "{acts:#?}");
    }
}

#[tokio::test]
async fn an_auditor_over_the_network_reads_and_changes_nothing() {
    let site = Site::with(|ca| ca.set("admin.auditor", vec!["spiffe://example.org/vm"])).await;
    let (agent, _) = site.agent("vm-1").await;
    let folder = site.dir.join("auditor");
    let path = folder.to_str().unwrap();
    let endpoint = agent.endpoint();
    let env = [("SPIFFE_ENDPOINT_SOCKET", endpoint.as_str())];
    let fetch = ["fetch", "--write", path];
    citadel_tests::citadel::citadel(&site.dir, fetch, &env, DEADLINE)
        .await
        .success();
    citadel_tests::secrets::register_key_file("SVID key", &folder.join("svid_key.pem"));
    let server = site.ca.grpc().to_string();
    let bundle = site.ca.bundle_file();
    let over = async |args: &[&str]| {
        let how = [
            "--server",
            &server,
            "--svid",
            path,
            "--trust-bundle",
            bundle.to_str().unwrap(),
        ];
        let args = [&["node"], args, &how, &["--trust-domain", "example.org"]].concat();
        citadel_tests::citadel::citadel(&site.dir, args, &[], DEADLINE).await
    };
    for args in [&["list"][..], &["token", "list"]] {
        over(args).await.success();
    }
    for args in [
        &["evict", "vm-1"][..],
        &["admit", "vm-1"],
        &["token", "create", "--node", "vm-3"],
    ] {
        let refused = over(args).await;
        assert_eq!(refused.code, Some(4), "{args:?}: {}", refused.errors);
    }
    assert_eq!(site.acts().await.len(), 2);
}
