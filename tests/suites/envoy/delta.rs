//! The same with SDS in its incremental form: `api_type: DELTA_GRPC`.

use std::time::Duration;

use citadel_tests::deploy;
use tokio::time::{Instant, sleep_until};

use super::FIRST;
use super::mesh::Mesh;
use super::traffic::Traffic;

/// Certificates of 15 s through four of their renewals, the agent killed and started again
/// between them: Envoy then says which versions it holds.
#[tokio::test]
async fn envoy_takes_its_secrets_by_delta_and_goes_on_after_the_agent_s_restart() {
    let mut mesh = Mesh::with("delta", "15s", deploy::by_delta).await;
    mesh.first_answer(FIRST).await;
    let begun = Instant::now();
    let traffic = Traffic::start(&mesh);
    sleep_until(begun + Duration::from_secs(20)).await;
    mesh.node.agent.process().kill().await;
    mesh.node.agent.start_again().await;
    sleep_until(begun + Duration::from_secs(45)).await;
    let seen = traffic.stop().await;
    seen.none_failed();
    assert!(
        seen.client_serials.len() >= 4 && seen.server_serials.len() >= 4,
        "the client's: {:?}, the server's: {:?}",
        seen.client_serials,
        seen.server_serials
    );
    mesh.refused_nothing();
    for envoy in [&mesh.pair.client, &mesh.pair.server] {
        let stats = envoy
            .get("/stats?usedonly&filter=sds")
            .await
            .expect("stats");
        let refused: Vec<_> = stats
            .lines()
            .filter(|line| line.contains("update_rejected") && !line.ends_with(": 0"))
            .collect();
        assert!(refused.is_empty(), "{refused:?}");
    }
    let metrics = mesh.node.agent.metrics().await;
    let streams = metrics
        .lines()
        .find(|line| line.contains("streams{protocol=\"sds_delta\"}"));
    // Certificate and roots of each.
    assert!(
        streams.is_some_and(|line| line.ends_with(" 4")),
        "{metrics}"
    );
}
