//! A flood of tokens that name keys nobody has.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use citadel_tests::client::Client;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::{
    ApiServer, KeyType, Options, Signer, SigningKey, assemble, claims_of,
};
use citadel_tests::wait;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::Code;

use super::{both_accept, issue};
use crate::support::Scene;

const JWKS: &str = "/openid/v1/jwks";
/// The CA fetches keys at most this often.
const INTERVAL: Duration = Duration::from_secs(10);
/// Requests at once.
const FLOOD: usize = 300;

#[tokio::test]
async fn a_flood_of_unknown_key_ids_costs_one_refetch() {
    let audit = Audit::new();
    let api = ApiServer::start_with(Options {
        flags: audit.flags(),
        ..Default::default()
    })
    .await;
    let scene = Scene::on(&api, |ca| ca).await;
    let web = scene.workload("flood").await;
    both_accept(&scene.client_of(&web), "a key that is known").await;
    let size = scene.admin.size().await;

    // The keys were fetched at the start, so the flood begins in the shadow of
    // that fetch, and goes on until it has had its refetch.
    let mut flood = Flood::new(scene.client().build(), claims_of(&web.token));
    let refetched = wait::until("an unknown key is final", 3 * INTERVAL, async || {
        let codes = flood.wave(5).await;
        codes.contains(&Code::Unauthenticated).then(Instant::now)
    })
    .await;
    let fetches = audit.fetches(&api).await;
    assert!(
        fetches.len() >= 2,
        "the audit log sees the first fetch and the flood's"
    );
    let codes = flood.wave(FLOOD).await;
    both_accept(&scene.client_of(&web), "a known key beside the flood").await;
    let after = audit.fetches(&api).await;
    // On a slow machine the next refetch is due before the flood is over; but never two in
    // one interval.
    let intervals = refetched.elapsed().as_secs() / INTERVAL.as_secs();
    assert!(
        after.len() as u64 <= fetches.len() as u64 + intervals,
        "the flood got more than its one refetch: {after:?}"
    );
    // Nothing is known about a key while no refetch is allowed.
    let unknown = codes.iter().filter(|code| **code == Code::Unavailable);
    if intervals == 0 {
        assert_eq!(unknown.count(), FLOOD);
    } else {
        assert!(unknown.count() > FLOOD / 2, "{codes:?}");
    }
    for pair in after.windows(2) {
        assert!(
            pair[1] - pair[0] > INTERVAL.mul_f32(0.95),
            "fetches too close: {after:?}"
        );
    }

    // Two by `both_accept`, and nothing else.
    assert_eq!(scene.admin.size().await, size + 2);
    let reasons = scene.ca.refusals();
    let said = |part: &str| {
        reasons
            .iter()
            .any(|line| line["reason"].as_str().unwrap_or_default().contains(part))
    };
    assert!(said("in a fresh JWKS"), "no line for the refetch");
    assert!(
        said("can't be fetched again right now"),
        "no line for the flood"
    );
}

/// Requests with tokens that each have a key ID of its own.
struct Flood {
    client: Client,
    claims: Value,
    key: SigningKey,
    sent: usize,
}

impl Flood {
    fn new(client: Client, claims: Value) -> Self {
        Self {
            client,
            claims,
            key: SigningKey::generate(KeyType::P256),
            sent: 0,
        }
    }

    /// So many requests at once; their codes.
    async fn wave(&mut self, count: usize) -> Vec<Code> {
        let numbers = self.sent..self.sent + count;
        self.sent = numbers.end;
        let answers = numbers.map(|number| {
            let kid = format!("{number}-{}", self.key.kid());
            let header = json!({ "alg": "ES256", "kid": kid });
            let token = assemble(&header, &self.claims, Signer::Key(&self.key));
            let client = self.client.with_token(&token);
            async move { issue(&client).await.expect_err("an unknown key").code() }
        });
        futures::future::join_all(answers).await
    }
}

/// The API server's own record of who asked for what.
struct Audit {
    policy: PathBuf,
    log: PathBuf,
}

impl Audit {
    fn new() -> Self {
        let dir = TestDir::new("audit");
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "rules": [
                { "level": "Metadata", "nonResourceURLs": [JWKS], "omitStages": ["RequestReceived"] },
                { "level": "None" },
            ],
        });
        Self {
            policy: dir.write("policy.yaml", policy.to_string()),
            log: dir.join("audit.json"),
        }
    }

    fn flags(&self) -> Vec<String> {
        let flag = |name: &str, path: &Path| format!("--audit-{name}={}", path.display());
        vec![
            flag("policy-file", &self.policy),
            flag("log-path", &self.log),
            "--audit-log-mode=blocking".into(),
        ]
    }

    /// When the CA fetched the keys. A request of our own marks the end: what
    /// came before it is written once it is.
    async fn fetches(&self, api: &ApiServer) -> Vec<OffsetDateTime> {
        let ours = self.lines("system:masters").len();
        api.request(http::Method::GET, JWKS, None)
            .await
            .expect("the keys");
        wait::until(
            "our own request is in the audit log",
            Duration::from_secs(10),
            async || (self.lines("system:masters").len() > ours).then_some(()),
        )
        .await;
        let times = self
            .lines("system:serviceaccounts:citadel-system")
            .into_iter()
            .map(|event| {
                let time = event["requestReceivedTimestamp"].as_str().expect("a time");
                OffsetDateTime::parse(time, &Rfc3339).expect("a time")
            });
        times.collect()
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
                event["requestURI"] == JWKS && groups.iter().any(|one| one == group)
            })
            .collect()
    }
}
