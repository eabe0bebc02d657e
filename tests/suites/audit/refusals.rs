//! The audit log of refusals.

use std::time::Duration;

use citadel_tests::dir::TestDir;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use serde_json::Value;
use tonic::Code;

use crate::support::{AgentClient, Scene};

const WRITTEN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn who_is_refused_is_on_record_and_no_token_is() {
    let dir = TestDir::new("refusals");
    let file = dir.join("refused.jsonl");
    let path = file.to_str().unwrap().to_owned();
    let scene = Scene::with(|ca| ca.set("log.refusals", path)).await;
    let web = scene.workload("refused").await;
    let lines = async |count: usize| -> Vec<Value> {
        wait::until("the lines", WRITTEN, async || {
            let text = std::fs::read_to_string(&file).ok()?;
            let lines: Vec<Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).expect("a whole line of JSON"))
                .collect();
            (lines.len() >= count).then_some(lines)
        })
        .await
    };

    // Nobody: the reason is exact, the caller unknown.
    let forged = format!("{}x", web.token);
    let client = scene.client().token(&forged).build();
    let status = client.issue(&csr::plain()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let line = lines(1).await.pop().unwrap();
    assert_eq!(
        (&line["kind"], &line["code"]),
        (&"refused".into(), &"Unauthenticated".into())
    );
    assert_eq!(line["rpc"], "citadel.v1.WorkloadService/IssueSvid");
    assert!(
        line["address"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{line}"
    );
    assert!(line["caller"].is_null() && !line["reason"].as_str().unwrap().is_empty());

    // An agent that asks for a pod of another node: whoever it is is on record.
    let agent = scene.agent("elsewhere").await;
    let item = AgentClient::pod_item(&web.uid);
    agent.one(item).await.unwrap_err();
    let line = lines(2).await.pop().unwrap();
    assert_eq!(line["code"], "PermissionDenied");
    assert_eq!(line["agent_of"], "default/elsewhere");
    assert_eq!(line["caller"]["method"], "client_certificate");
    assert_eq!(
        line["caller"]["spiffe_id"],
        "spiffe://example.org/citadel/agent/default/elsewhere"
    );

    // A flood fills no disk: so many lines, and a count of what was left out.
    for _ in 0..600 {
        client.issue(&csr::plain()).await.unwrap_err();
    }
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        (250..600).contains(&text.lines().count()),
        "{}",
        text.lines().count()
    );
    assert!(
        !text.contains(&web.token) && !text.contains("eyJ"),
        "a token in the audit log"
    );
    assert!(scene.ca.terminate().await.success());
}
