//! The API server's own record of who asked for what.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::dir::TestDir;
use crate::wait;

/// The group of the harness's administrator.
const OURS: &str = "system:masters";

/// An audit log of the requests that one rule names; goes into `Options::flags`.
pub struct Audit {
    policy: PathBuf,
    log: PathBuf,
}

impl Audit {
    /// `what` are the fields of an audit policy's rule that say which requests count.
    pub fn of(what: &Value) -> Self {
        let dir = TestDir::new("audit");
        let mut rule = json!({ "level": "Metadata", "omitStages": ["RequestReceived"] });
        let fields = what.as_object().expect("a map").clone();
        rule.as_object_mut().expect("a map").extend(fields);
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "rules": [rule, { "level": "None" }],
        });
        Self {
            policy: dir.write("policy.yaml", policy.to_string()),
            log: dir.join("audit.json"),
        }
    }

    /// What the API server has to be started with.
    pub fn flags(&self) -> Vec<String> {
        let flag = |name: &str, path: &Path| format!("--audit-{name}={}", path.display());
        vec![
            flag("policy-file", &self.policy),
            flag("log-path", &self.log),
            "--audit-log-mode=blocking".into(),
        ]
    }

    /// The requests of members of `group` up to now. `request`, one of the administrator's that
    /// the rule names too, marks the end: what came before it is written once it is.
    pub async fn requests_of(&self, group: &str, request: impl Future) -> Vec<Value> {
        let ours = self.lines(OURS).len();
        request.await;
        let written = async || (self.lines(OURS).len() > ours).then_some(());
        let what = "our own request is in the audit log";
        wait::until(what, Duration::from_secs(10), written).await;
        self.lines(group)
    }

    fn lines(&self, group: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let events = whole
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        events
            .filter(|event: &Value| {
                let groups = event["user"]["groups"].as_array().expect("groups");
                groups.iter().any(|one| one == group)
            })
            .collect()
    }
}
