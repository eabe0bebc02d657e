//! A refusal: its code for the client, its reason in the log, and nothing
//! issued.

use std::fmt::Debug;

use citadel_proto::v1::{IssueItem, ItemError};
use serde_json::Value;
use tonic::{Code, Status};

use super::{AgentClient, Scene};

impl Scene<'_> {
    /// Panics unless `call` ends with `code`, the log gets exactly one line for
    /// it whose reason contains `reason`, and the log of issuances has not
    /// grown. The test must be the only one that uses this CA.
    pub(crate) async fn refuses<T: Debug>(
        &self,
        code: Code,
        reason: &str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Status {
        let (size, lines) = (self.admin.size().await, self.ca.refusals().len());
        let status = match call.await {
            Err(status) => status,
            Ok(answer) => panic!("not refused ({reason}): {answer:?}"),
        };
        assert_eq!(status.code(), code, "{reason}: {status:?}");
        self.nothing_but_one_line(size, lines, &format!("{code:?}"), reason)
            .await;
        if code == Code::Unauthenticated {
            assert_eq!(status.message(), "the caller could not be authenticated");
        }
        status
    }

    /// The same for one item of an agent's batch.
    pub(crate) async fn refuses_item(
        &self,
        code: Code,
        reason: &str,
        agent: &AgentClient,
        item: IssueItem,
    ) -> ItemError {
        let (size, lines) = (self.admin.size().await, self.ca.refusals().len());
        let error = match agent.one(item).await {
            Err(error) => error,
            Ok(svid) => panic!("not refused ({reason}): {svid:?}"),
        };
        assert_eq!(Code::from(error.code), code, "{reason}: {error:?}");
        self.nothing_but_one_line(size, lines, &format!("{code:?}"), reason)
            .await;
        error
    }

    async fn nothing_but_one_line(&self, size: u64, lines: usize, code: &str, reason: &str) {
        // The line is written before the answer.
        let refusals = self.ca.refusals();
        let [line] = &refusals[lines..] else {
            panic!("one line for {reason}: {:#?}", &refusals[lines..]);
        };
        shows_refusal(line, code, reason);
        assert_eq!(
            self.admin.size().await,
            size,
            "something was issued: {reason}"
        );
    }
}

/// Panics unless this line of the log tells of this refusal.
pub(crate) fn shows_refusal(line: &Value, code: &str, reason: &str) {
    let text = line["reason"].as_str().unwrap_or_default();
    assert!(
        text.contains(reason),
        "the reason should be {reason:?}: {line}"
    );
    assert_eq!(line["code"], code, "{line}");
    assert_eq!(line["level"], "WARN", "{line}");
    let peer = line["peer"].as_str().unwrap_or_default();
    assert!(peer.starts_with("127.0.0."), "the peer: {line}");
    let rpc = line["rpc"].as_str().unwrap_or_default();
    assert!(rpc.contains('/'), "the RPC: {line}");
}
