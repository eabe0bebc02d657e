//! The stand-in for an API server, on loopback: lists in pages, watches with bookmarks,
//! single objects, the signing keys and the probes. For load only; nothing in it decides
//! about identity.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::population::{ISSUER, Population};
use crate::exit::Failure;

/// The version of everything: nothing ever changes.
const VERSION: u64 = 1_000;
/// An API server sends one about once a minute; more often costs nothing here.
const BOOKMARK_EVERY: Duration = Duration::from_secs(20);

/// A running stand-in; it ends with the runtime that it runs on.
pub(crate) struct StandIn {
    pub(crate) address: SocketAddr,
}

/// One kind of object, ready to be sent.
struct Kind {
    /// `Pod`, `ServiceAccount`, `Node`.
    name: &'static str,
    /// Each object's JSON, in the order of the list.
    objects: Vec<Bytes>,
    /// `namespace/name`, or `name` where there are no namespaces, to its place.
    places: HashMap<String, usize>,
}

struct Api {
    pods: Kind,
    accounts: Kind,
    nodes: Kind,
    jwks: Bytes,
    discovery: Bytes,
}

/// What a list or watch asks for.
struct ListQuery {
    watch: bool,
    limit: Option<usize>,
    /// `continue`: the place of the page's first object.
    from: usize,
}

impl StandIn {
    /// Listens on an ephemeral loopback port.
    pub(crate) async fn start(population: &Population, jwks: &Value) -> Result<Self, Failure> {
        let api = Arc::new(Api::new(population, jwks));
        let cannot = |error| Failure::local(format!("can't listen on loopback: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let answer = |State(api): State<Arc<Api>>, uri: Uri| async move { api.answer(&uri) };
        let router = Router::new().fallback(answer).with_state(api);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address })
    }

    /// Writes a kubeconfig that leads here.
    pub(crate) fn write_kubeconfig(&self, path: &Path) -> Result<(), Failure> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{ "name": "bench", "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "bench", "user": {} }],
            "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "bench" } }],
        });
        // JSON is YAML.
        std::fs::write(path, config.to_string())
            .map_err(|error| Failure::local(format!("can't write {}: {error}", path.display())))
    }
}

impl Api {
    fn new(population: &Population, jwks: &Value) -> Self {
        let account = |pod: &super::population::Pod| &population.accounts[pod.account];
        let discovery = json!({
            "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        });
        Self {
            pods: Kind::new(
                "Pod",
                population.pods.iter().map(|pod| {
                    let key = format!("{}/{}", account(pod).namespace, pod.name);
                    (key, population.pod_object(pod, VERSION))
                }),
            ),
            accounts: Kind::new(
                "ServiceAccount",
                population.accounts.iter().map(|account| {
                    let key = format!("{}/{}", account.namespace, account.name);
                    (key, Population::account_object(account, VERSION))
                }),
            ),
            nodes: Kind::new(
                "Node",
                population
                    .nodes
                    .iter()
                    .map(|node| (node.name.clone(), Population::node_object(node, VERSION))),
            ),
            jwks: jwks.to_string().into(),
            discovery: discovery.to_string().into(),
        }
    }

    fn answer(&self, uri: &Uri) -> Response {
        let query = ListQuery::parse(uri.query().unwrap_or_default());
        let segments: Vec<&str> = uri.path().trim_start_matches('/').split('/').collect();
        match segments[..] {
            ["api", "v1", "pods"] => self.pods.answer(&query),
            ["api", "v1", "serviceaccounts"] => self.accounts.answer(&query),
            ["api", "v1", "nodes"] => self.nodes.answer(&query),
            ["api", "v1", "nodes", name] => self.nodes.one(name),
            ["api", "v1", "namespaces", namespace, "pods", name] => {
                self.pods.one(&format!("{namespace}/{name}"))
            }
            [
                "api",
                "v1",
                "namespaces",
                namespace,
                "serviceaccounts",
                name,
            ] => self.accounts.one(&format!("{namespace}/{name}")),
            ["openid", "v1", "jwks"] => json_response(self.jwks.clone()),
            [".well-known", "openid-configuration"] => json_response(self.discovery.clone()),
            ["version"] => json_response(r#"{"major":"1","minor":"37","gitVersion":"v1.37.0"}"#),
            ["readyz" | "livez", ..] => "ok".into_response(),
            _ => not_found("the server could not find the requested resource"),
        }
    }
}

impl ListQuery {
    /// Keys that are not known here (`resourceVersion`, `timeoutSeconds`, …) change nothing
    /// where nothing ever changes.
    fn parse(query: &str) -> Self {
        let value = |wanted: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .find(|(key, _)| *key == wanted)
                .map(|(_, value)| value)
        };
        Self {
            watch: value("watch").is_some_and(|value| matches!(value, "true" | "1")),
            limit: value("limit")
                .and_then(|value| value.parse().ok())
                .filter(|limit| *limit > 0),
            from: value("continue")
                .and_then(|value| value.parse().ok())
                .unwrap_or(0),
        }
    }
}

impl Kind {
    fn new(name: &'static str, objects: impl Iterator<Item = (String, Value)>) -> Self {
        let (mut list, mut places) = (Vec::new(), HashMap::new());
        for (key, object) in objects {
            places.insert(key, list.len());
            list.push(Bytes::from(object.to_string()));
        }
        Self {
            name,
            objects: list,
            places,
        }
    }

    fn answer(&self, query: &ListQuery) -> Response {
        if query.watch {
            self.watch()
        } else {
            self.list(query)
        }
    }

    /// One page; the token for the next is its place in the list.
    fn list(&self, query: &ListQuery) -> Response {
        let from = query.from.min(self.objects.len());
        let limit = query.limit.unwrap_or(usize::MAX);
        let to = from.saturating_add(limit).min(self.objects.len());
        let mut metadata = json!({ "resourceVersion": VERSION.to_string() });
        if to < self.objects.len() {
            metadata["continue"] = json!(to.to_string());
            metadata["remainingItemCount"] = json!(self.objects.len() - to);
        }
        let mut body = format!(
            r#"{{"kind":"{}List","apiVersion":"v1","metadata":{metadata},"items":["#,
            self.name
        )
        .into_bytes();
        for (place, object) in self.objects[from..to].iter().enumerate() {
            if place > 0 {
                body.push(b',');
            }
            body.extend_from_slice(object);
        }
        body.extend_from_slice(b"]}");
        json_response(body)
    }

    /// Nothing changes: only bookmarks, for as long as the client listens.
    fn watch(&self) -> Response {
        let bookmark = json!({
            "type": "BOOKMARK",
            "object": {
                "kind": self.name, "apiVersion": "v1",
                "metadata": { "resourceVersion": VERSION.to_string(), "creationTimestamp": null },
            },
        });
        let line = Bytes::from(format!("{bookmark}\n"));
        let ticks = tokio::time::interval(BOOKMARK_EVERY);
        let lines = stream::unfold((ticks, line), |(mut ticks, line)| async move {
            ticks.tick().await;
            Some((
                Ok::<_, std::convert::Infallible>(line.clone()),
                (ticks, line),
            ))
        });
        json_response(Body::from_stream(lines.boxed()))
    }

    fn one(&self, key: &str) -> Response {
        match self.places.get(key) {
            Some(place) => json_response(self.objects[*place].clone()),
            None => not_found(&format!("{} {key:?} not found", self.name)),
        }
    }
}

fn not_found(message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": "NotFound", "code": 404,
    });
    (StatusCode::NOT_FOUND, json_response(status.to_string())).into_response()
}

fn json_response(body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn api() -> Api {
        Api::new(&Population::new(250), &json!({ "keys": [] }))
    }

    async fn body(response: Response) -> Value {
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    fn get(api: &Api, path: &str) -> Response {
        api.answer(&path.parse().unwrap())
    }

    #[tokio::test]
    async fn pages_cover_the_list_once() {
        let api = api();
        let mut seen = Vec::new();
        let mut from = String::new();
        loop {
            let page = body(get(
                &api,
                &format!("/api/v1/pods?limit=100&continue={from}"),
            ))
            .await;
            assert_eq!(page["kind"], "PodList");
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= 100);
            seen.extend(items.iter().map(|pod| pod["metadata"]["uid"].to_string()));
            match page["metadata"]["continue"].as_str() {
                Some(next) => from = next.into(),
                None => break,
            }
        }
        let count = seen.len();
        assert_eq!(count, 253);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }

    #[tokio::test]
    async fn single_objects_are_found_by_name_and_others_are_not() {
        let api = api();
        let all = body(get(&api, "/api/v1/serviceaccounts")).await;
        assert_eq!(all["kind"], "ServiceAccountList");
        let metadata = &all["items"][0]["metadata"];
        let (namespace, name) = (
            metadata["namespace"].as_str().unwrap(),
            metadata["name"].as_str().unwrap(),
        );
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        let one = body(get(&api, &format!("{path}/{name}"))).await;
        assert_eq!(one["metadata"]["uid"], metadata["uid"]);
        assert_eq!(
            get(&api, &format!("{path}/nobody")).status(),
            StatusCode::NOT_FOUND
        );
        assert_eq!(
            get(&api, "/apis/apps/v1/deployments").status(),
            StatusCode::NOT_FOUND
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_sends_bookmarks() {
        let api = api();
        let watch = get(&api, "/api/v1/nodes?watch=1&allowWatchBookmarks=true");
        let mut lines = watch.into_body().into_data_stream();
        for _ in 0..3 {
            let line: Value =
                serde_json::from_slice(&lines.next().await.unwrap().unwrap()).unwrap();
            assert_eq!(line["type"], "BOOKMARK");
            assert_eq!(line["object"]["metadata"]["resourceVersion"], "1000");
        }
    }
}
