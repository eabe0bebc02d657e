//! Acknowledgements, refusals, and answers to what is no longer the question.

use citadel_tests::wait;

use super::script::{PROMPT, RENEWAL, Script, node};

/// A name that makes the next response unlike any that repeats an old one.
const FENCE: &str = "spiffe://example.org";

#[tokio::test]
async fn sds_req_03_10_acknowledgements_however_often_make_no_push() {
    let node = node("ack", "1h").await;
    let mut script = Script::open(&node, &["default", "ROOTCA"]).await;
    let first = script.next().await;
    for _ in 0..20 {
        script.ack(&first, &["default", "ROOTCA"]);
    }
    script.ack(&first, &["default", "ROOTCA", FENCE]);
    let second = script.next().await;
    assert_eq!(
        second.names,
        ["ROOTCA", "default", FENCE],
        "an acknowledgement was answered"
    );
    assert_ne!(second.nonce, first.nonce);
    for _ in 0..20 {
        script.ack(&second, &["default", "ROOTCA", FENCE]);
    }
    script.ack(&second, &["default", FENCE]);
    script.ack(&second, &["default", FENCE, "ROOTCA"]);
    assert_eq!(script.next().await.names, ["ROOTCA", "default", FENCE]);
    let metrics = node.agent.metrics().await;
    assert!(
        metrics.contains("ack"),
        "acknowledgements are counted:\n{metrics}"
    );
}

#[tokio::test]
async fn sds_req_02_10_each_renewal_is_one_push() {
    let node = node("renewals", "10s").await;
    let mut script = Script::open(&node, &["default", "ROOTCA"]).await;
    let mut before = script.next().await;
    for _ in 0..2 {
        script.ack(&before, &["default", "ROOTCA"]);
        let renewed = script.within(RENEWAL).await;
        assert_ne!(renewed.serials, before.serials, "a push without news");
        assert_ne!(renewed.version, before.version);
        assert_ne!(renewed.nonce, before.nonce);
        before = renewed;
    }
}

#[tokio::test]
async fn sds_req_04_a_refused_secret_is_not_sent_again_until_it_changes() {
    let node = node("nack", "10s").await;
    let mut script = Script::open(&node, &["default"]).await;
    let first = script.next().await;
    for _ in 0..5 {
        script.nack(&first, "", &["default"], "the test does not like it");
    }
    // Asking for more meanwhile does not count as taking it.
    script.nack(&first, "", &["default", FENCE], "the test does not like it");
    let second = script.next().await;
    assert_eq!(
        second.names,
        ["default", FENCE],
        "the refused one came again at once"
    );
    script.nack(&second, "", &["default", FENCE], "nor this");
    // What is new is sent.
    let third = script.within(RENEWAL).await;
    assert_ne!(third.serials, first.serials);
    script.ack(&third, &["default", FENCE]);

    // Its reason is in the log, once for each response.
    let refusals = wait::until("both refusals are logged", PROMPT, async || {
        let log = node.agent.log();
        let lines = log
            .lines()
            .filter(|line| line.contains("a proxy refused its secrets"));
        let lines: Vec<_> = lines.map(str::to_owned).collect();
        (lines.len() >= 2).then_some(lines)
    })
    .await;
    assert_eq!(refusals.len(), 2, "{refusals:#?}");
    assert!(
        refusals[0].contains("the test does not like it"),
        "{refusals:#?}"
    );
    assert!(refusals[1].contains("nor this"), "{refusals:#?}");
}

#[tokio::test]
async fn an_answer_to_an_old_response_is_ignored() {
    let node = node("stale", "10s").await;
    let mut script = Script::open(&node, &["default"]).await;
    let first = script.next().await;
    // Not answered: its answer is still under way when the next response comes.
    let second = script.within(RENEWAL).await;
    assert_ne!(second.nonce, first.nonce);
    // Had any of these counted, the names would have changed.
    script.ack(&first, &["ROOTCA"]);
    script.nack(&first, "", &["ROOTCA"], "too late");
    let mut made_up = first.clone();
    made_up.nonce = "made-up".into();
    script.ack(&made_up, &["ROOTCA"]);
    // The newest nonce counts.
    script.ack(&second, &["default"]);
    script.ack(&second, &["default", FENCE]);
    assert_eq!(script.next().await.names, ["default", FENCE]);
    assert!(!node.agent.log().contains("too late"));
}
