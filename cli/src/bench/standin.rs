//! The stand-in for an API server, on loopback: lists in pages, watches with bookmarks,
//! single objects, the signing keys and the probes. For load only; nothing in it decides
//! about identity.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::population::{ISSUER, Pod, Population};
use super::server::CLUSTER;
use crate::exit::Failure;

/// The version of all that is there from the start. What is added later has higher ones.
const VERSION: u64 = 1_000;
/// An API server sends one about once a minute; more often costs nothing here.
const BOOKMARK_EVERY: Duration = Duration::from_secs(20);

/// A running stand-in; it ends with the runtime that it runs on.
pub(crate) struct StandIn {
    pub(crate) address: SocketAddr,
    api: Arc<Api>,
}

/// One kind of object.
struct Kind {
    /// `Pod`, `ServiceAccount`, `Node`.
    name: &'static str,
    objects: Mutex<Objects>,
    /// The version of the newest object.
    newest: watch::Sender<u64>,
}

/// Those of one kind, in the order of the list, which is that of their versions.
#[derive(Default)]
struct Objects {
    list: Vec<Object>,
    /// `namespace/name`, or `name` where there are no namespaces, to its place.
    places: HashMap<String, usize>,
}

/// One object, ready to be sent.
#[derive(Clone)]
struct Object {
    version: u64,
    json: Bytes,
    /// Of a pod: its node.
    node: Option<Arc<str>>,
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
    /// What a watch has seen already.
    version: u64,
    /// `fieldSelector=spec.nodeName=…`, the only one that our programs have.
    node: Option<String>,
}

impl StandIn {
    /// Listens on an ephemeral loopback port.
    pub(crate) async fn start(population: &Population, jwks: &Value) -> Result<Self, Failure> {
        let api = Arc::new(Api::new(population, jwks));
        let cannot = |error| Failure::local(format!("can't listen on loopback: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let answer = |State(api): State<Arc<Api>>, uri: Uri| async move { api.answer(&uri) };
        let router = Router::new().fallback(answer).with_state(Arc::clone(&api));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, api })
    }

    /// A pod is bound to its node: who watches is told at once.
    pub(crate) fn bind(&self, population: &Population, pod: &Pod) {
        let Population { accounts, .. } = population;
        let key = format!("{}/{}", accounts[pod.account].namespace, pod.name);
        let node = population.nodes[pod.node].name.as_str();
        let pods = &self.api.pods;
        pods.add(key, Some(node), |version| {
            population.pod_object(pod, version)
        });
    }

    /// Writes a kubeconfig that leads here.
    pub(crate) fn write_kubeconfig(&self, path: &Path) -> Result<(), Failure> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": CLUSTER,
            "clusters": [{ "name": CLUSTER, "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "bench", "user": {} }],
            "contexts": [{ "name": CLUSTER, "context": { "cluster": CLUSTER, "user": "bench" } }],
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
                    let node = population.nodes[pod.node].name.as_str();
                    (key, Some(node), population.pod_object(pod, VERSION))
                }),
            ),
            accounts: Kind::new(
                "ServiceAccount",
                population.accounts.iter().map(|account| {
                    let key = format!("{}/{}", account.namespace, account.name);
                    (key, None, Population::account_object(account, VERSION))
                }),
            ),
            nodes: Kind::new(
                "Node",
                population.nodes.iter().map(|node| {
                    let object = Population::node_object(node, VERSION);
                    (node.name.clone(), None, object)
                }),
            ),
            jwks: jwks.to_string().into(),
            discovery: discovery.to_string().into(),
        }
    }

    fn kind(&self, name: &str) -> &Kind {
        let kinds = [&self.accounts, &self.nodes];
        let named = kinds.into_iter().find(|kind| kind.name == name);
        named.unwrap_or(&self.pods)
    }

    fn answer(self: &Arc<Self>, uri: &Uri) -> Response {
        let query = ListQuery::parse(uri.query().unwrap_or_default());
        let segments: Vec<&str> = uri.path().trim_start_matches('/').split('/').collect();
        match segments[..] {
            ["api", "v1", "pods"] => self.pods.answer(self, query),
            ["api", "v1", "serviceaccounts"] => self.accounts.answer(self, query),
            ["api", "v1", "nodes"] => self.nodes.answer(self, query),
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
    /// Keys that are not known here (`timeoutSeconds`, …) change nothing.
    fn parse(query: &str) -> Self {
        let value = |wanted: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .find(|(key, _)| *key == wanted)
                .map(|(_, value)| value)
        };
        let fields = value("fieldSelector").map(|fields| fields.replace("%3D", "="));
        Self {
            watch: value("watch").is_some_and(|value| matches!(value, "true" | "1")),
            limit: value("limit")
                .and_then(|value| value.parse().ok())
                .filter(|limit| *limit > 0),
            from: value("continue")
                .and_then(|value| value.parse().ok())
                .unwrap_or(0),
            version: value("resourceVersion")
                .and_then(|value| value.parse().ok())
                .unwrap_or(VERSION),
            node: fields.and_then(|fields| Some(fields.strip_prefix("spec.nodeName=")?.to_owned())),
        }
    }

    fn selects(&self, object: &Object) -> bool {
        let node = self.node.as_deref();
        node.is_none_or(|node| object.node.as_deref() == Some(node))
    }
}

impl Kind {
    fn new<'n>(
        name: &'static str,
        objects: impl Iterator<Item = (String, Option<&'n str>, Value)>,
    ) -> Self {
        let kind = Self {
            name,
            objects: Mutex::default(),
            newest: watch::Sender::new(VERSION),
        };
        let mut all = kind.objects();
        for (key, node, object) in objects {
            all.push(key, VERSION, node, &object);
        }
        drop(all);
        kind
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an object, made for the version that it gets.
    fn add(&self, key: String, node: Option<&str>, object: impl FnOnce(u64) -> Value) {
        let mut objects = self.objects();
        let version = *self.newest.borrow() + 1;
        objects.push(key, version, node, &object(version));
        self.newest.send_replace(version);
    }

    fn answer(&self, api: &Arc<Api>, query: ListQuery) -> Response {
        if query.watch {
            self.watch(api, query)
        } else {
            self.list(&query)
        }
    }

    /// One page; the token for the next is its place in the list.
    fn list(&self, query: &ListQuery) -> Response {
        let objects = self.objects();
        let selected = objects.list.iter().filter(|object| query.selects(object));
        let count = selected.clone().count();
        let from = query.from.min(count);
        let limit = query.limit.unwrap_or(usize::MAX);
        let to = from.saturating_add(limit).min(count);
        let mut metadata = json!({ "resourceVersion": self.newest.borrow().to_string() });
        if to < count {
            metadata["continue"] = json!(to.to_string());
            metadata["remainingItemCount"] = json!(count - to);
        }
        let mut body = format!(
            r#"{{"kind":"{}List","apiVersion":"v1","metadata":{metadata},"items":["#,
            self.name
        )
        .into_bytes();
        for (place, object) in selected.skip(from).take(to - from).enumerate() {
            if place > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&object.json);
        }
        body.extend_from_slice(b"]}");
        json_response(body)
    }

    /// What is added, and bookmarks, for as long as the client listens.
    fn watch(&self, api: &Arc<Api>, query: ListQuery) -> Response {
        let ticks = tokio::time::interval(BOOKMARK_EVERY);
        let (api, name) = (Arc::clone(api), self.name);
        let state = (ticks, self.newest.subscribe(), query);
        let lines = stream::unfold(state, move |(mut ticks, mut newest, mut query)| {
            let api = Arc::clone(&api);
            async move {
                loop {
                    let version = *newest.borrow_and_update();
                    if version > query.version {
                        let lines = api.kind(name).added_after(query.version, &query);
                        query.version = version;
                        if !lines.is_empty() {
                            return Some((Ok(lines), (ticks, newest, query)));
                        }
                    }
                    tokio::select! {
                        _ = ticks.tick() => {
                            return Some((Ok(bookmark(name, version)), (ticks, newest, query)));
                        }
                        // The sender is in `api`.
                        _ = newest.changed() => {}
                    }
                }
            }
        });
        json_response(Body::from_stream(
            lines
                .map(|line: Result<Bytes, std::convert::Infallible>| line)
                .boxed(),
        ))
    }

    fn added_after(&self, version: u64, query: &ListQuery) -> Bytes {
        let objects = self.objects();
        let first = objects.list.partition_point(|it| it.version <= version);
        let mut lines = Vec::new();
        for object in objects.list[first..].iter().filter(|it| query.selects(it)) {
            lines.extend_from_slice(br#"{"type":"ADDED","object":"#);
            lines.extend_from_slice(&object.json);
            lines.extend_from_slice(b"}\n");
        }
        lines.into()
    }

    fn one(&self, key: &str) -> Response {
        let objects = self.objects();
        match objects.places.get(key) {
            Some(place) => json_response(objects.list[*place].json.clone()),
            None => not_found(&format!("{} {key:?} not found", self.name)),
        }
    }
}

impl Objects {
    fn push(&mut self, key: String, version: u64, node: Option<&str>, object: &Value) {
        self.places.insert(key, self.list.len());
        self.list.push(Object {
            version,
            json: object.to_string().into(),
            node: node.map(Into::into),
        });
    }
}

fn bookmark(kind: &str, version: u64) -> Bytes {
    let bookmark = json!({
        "type": "BOOKMARK",
        "object": {
            "kind": kind, "apiVersion": "v1",
            "metadata": { "resourceVersion": version.to_string(), "creationTimestamp": null },
        },
    });
    format!("{bookmark}\n").into()
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

    fn api() -> Arc<Api> {
        Arc::new(Api::new(&Population::new(250), &json!({ "keys": [] })))
    }

    async fn body(response: Response) -> Value {
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    fn get(api: &Arc<Api>, path: &str) -> Response {
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

    #[tokio::test]
    async fn who_watches_a_node_is_told_of_its_new_pods_alone() {
        let population = Population::new(250);
        let api = Arc::new(Api::new(&population, &json!({ "keys": [] })));
        let standin = StandIn {
            address: "127.0.0.1:1".parse().unwrap(),
            api: Arc::clone(&api),
        };
        let node = &population.nodes[1].name;
        let selected = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
        let list = body(get(&api, &selected)).await;
        // Its workloads and its agent.
        assert_eq!(list["items"].as_array().unwrap().len(), 101);
        assert_eq!(list["metadata"]["resourceVersion"], "1000");
        let watch = get(&api, &format!("{selected}&watch=1&resourceVersion=1000"));
        let mut lines = watch.into_body().into_data_stream();
        let first: Value = serde_json::from_slice(&lines.next().await.unwrap().unwrap()).unwrap();
        assert_eq!(first["type"], "BOOKMARK");
        let (elsewhere, here) = (population.another(0, 3), population.another(1, 3));
        standin.bind(&population, &elsewhere);
        standin.bind(&population, &here);
        let told: Value = serde_json::from_slice(&lines.next().await.unwrap().unwrap()).unwrap();
        assert_eq!(told["type"], "ADDED");
        assert_eq!(told["object"]["metadata"]["uid"], here.uid);
        assert_eq!(told["object"]["metadata"]["resourceVersion"], "1002");
        // A watch that was away is told what it missed.
        let late = get(&api, "/api/v1/pods?watch=1&resourceVersion=1001");
        let missed = late.into_body().into_data_stream().next().await.unwrap();
        let missed: Value = serde_json::from_slice(&missed.unwrap()).unwrap();
        assert_eq!(missed["object"]["metadata"]["uid"], here.uid);
    }
}
