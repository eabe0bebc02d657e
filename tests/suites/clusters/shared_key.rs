//! Two clusters with one signing key: nothing tells their tokens apart.

use std::time::Duration;

use citadel_tests::client::{Admin, ClientBuilder};
use citadel_tests::kubernetes::{ApiServer, Options};
use citadel_tests::pki::csr;
use citadel_tests::wait;
use tonic::Code;

use super::{Two, cluster, of, web_id, workload};
use crate::support::shows_refusal;

/// Keys are fetched at most every ten seconds.
const NOTICED: Duration = Duration::from_secs(40);

/// A cluster whose API server signs with another one's key.
async fn twin_of(other: &ApiServer) -> ApiServer {
    ApiServer::start_with(Options {
        signing_key: Some(other.signing_key().clone()),
        ..Default::default()
    })
    .await
}

#[tokio::test]
async fn the_ca_does_not_start_and_names_both() {
    let east = &Two::shared().await.east.api;
    let twin = twin_of(east).await;
    for mode in ["local", "token_review"] {
        let clusters = [
            cluster("east-1", east, "citadel-system", mode).await,
            cluster("twin-2", &twin, "citadel-system", "local").await,
        ];
        let ca = of(&clusters).start_unready();
        let status = ca.process().wait(Duration::from_secs(30)).await;
        assert!(!status.success(), "{mode}");
        let log = ca.log();
        let says = |line: &&str| {
            let parts = ["east-1", "twin-2", "share", east.signing_key().kid()];
            parts.iter().all(|part| line.contains(part))
        };
        assert!(log.lines().any(|line| says(&line)), "{mode}: {log}");
    }
}

/// At the start the other cluster was away, so that nobody could know. The first is served all
/// the same, until it turns out that its key does not tell it.
#[tokio::test]
async fn a_cluster_that_appears_later_with_the_key_of_another() {
    let east = &Two::shared().await.east.api;
    let twin = twin_of(east).await;
    let clusters = [
        cluster("east-1", east, "citadel-system", "local").await,
        cluster("twin-2", &twin, "citadel-system", "local").await,
    ];
    let web = workload(east, "later").await;
    twin.stop().await;
    let ca = of(&clusters).start_unready();
    let health = wait::until("the CA is up", NOTICED, async || ca.readyz().await).await;
    assert!(health.body.contains("twin-2"), "{}", health.body);
    let client = ClientBuilder::new(&ca).token(&web.token).build();
    let svid = wait::until("the first cluster is served", NOTICED, async || {
        client.issue(&csr::plain()).await.ok()?.svid
    })
    .await;
    assert_eq!(svid.spiffe_id, web_id("east-1", "later"));
    // Then the server is ready for those clusters that it reaches.
    let health = wait::until("it is ready without", NOTICED, async || {
        let answer = ca.readyz().await?;
        (answer.status == 200).then_some(answer)
    })
    .await;
    for line in ["cluster east-1: ready", "cluster twin-2: degraded: "] {
        assert!(health.body.contains(line), "{}", health.body);
    }
    let metrics = ca.metrics().await;
    for (cluster, ready) in [("east-1", 1), ("twin-2", 0)] {
        let line = format!("citadel_ca_cluster_ready{{cluster=\"{cluster}\"}} {ready}");
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
    }

    twin.start_again().await;
    let refused = wait::until("the key is seen twice", NOTICED, async || {
        client.issue(&csr::plain()).await.err()
    })
    .await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let refusals = ca.refusals();
    let line = refusals.last().unwrap();
    shows_refusal(line, "Unavailable", "clusters east-1 and twin-2 share");
    let size = Admin::of(&ca).size().await;
    // Neither the first cluster listed, nor the one that a header names.
    for cluster in [None, Some("east-1"), Some("twin-2")] {
        let client = ClientBuilder::new(&ca).token(&web.token);
        let client = match cluster {
            Some(name) => client.header("clusterid", name),
            None => client,
        };
        let status = client.build().issue(&csr::plain()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{cluster:?}: {status:?}");
    }
    assert_eq!(Admin::of(&ca).size().await, size);

    let shared = "clusters east-1 and twin-2 share the key";
    let health = wait::until("it says why", NOTICED, async || {
        let answer = ca.readyz().await?;
        answer.body.contains(shared).then_some(answer)
    })
    .await;
    assert_eq!(health.status, 503);
    for cluster in ["east-1", "twin-2"] {
        let line = format!("cluster {cluster}: not ready: {shared}");
        assert!(health.body.contains(&line), "{}", health.body);
    }
    let loud = ca
        .log()
        .lines()
        .any(|line| line.contains(shared) && line.contains(r#""level":"ERROR""#));
    assert!(loud, "{}", ca.log());
    ca.terminate().await;
}
