//! A flood of tokens that name keys nobody has.

use std::time::{Duration, Instant};

use citadel_tests::client::Client;
use citadel_tests::kubernetes::{
    ApiServer, Audit, KeyType, Options, Signer, SigningKey, assemble, claims_of,
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
    let audit = Audit::of(&json!({ "nonResourceURLs": [JWKS] }));
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
    let before = fetches(&audit, &api).await;
    assert!(
        before.len() >= 2,
        "the audit log sees the first fetch and the flood's"
    );
    let codes = flood.wave(FLOOD).await;
    both_accept(&scene.client_of(&web), "a known key beside the flood").await;
    let after = fetches(&audit, &api).await;
    // On a slow machine the next refetch is due before the flood is over; but never two in
    // one interval.
    let intervals = refetched.elapsed().as_secs() / INTERVAL.as_secs();
    assert!(
        after.len() as u64 <= before.len() as u64 + intervals,
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

/// When the CA fetched the keys.
async fn fetches(audit: &Audit, api: &ApiServer) -> Vec<OffsetDateTime> {
    let ours = async {
        let answer = api.request(http::Method::GET, JWKS, None).await;
        answer.expect("the keys");
    };
    let events = audit
        .requests_of("system:serviceaccounts:citadel-system", ours)
        .await;
    let times = events.into_iter().map(|event| {
        let time = event["requestReceivedTimestamp"].as_str().expect("a time");
        OffsetDateTime::parse(time, &Rfc3339).expect("a time")
    });
    times.collect()
}
