//! Two Envoys as two pods of one node. Each has listeners that take mTLS, clusters that lead
//! to the other's listeners, and one plain listener with a path for each of its clusters.

use std::net::SocketAddr;
use std::time::Duration;

use citadel_tests::cgroup::{Cgroup, Version};
use citadel_tests::dir::TestDir;
use citadel_tests::envoy::Envoy;
use citadel_tests::{http, ports};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::node::{Node, NodePod};
use crate::support::series;

/// Listeners of an Envoy, and clusters of it.
pub(crate) const PATHS: usize = 125;

/// Streams of an Envoy that bring its certificate.
pub(crate) const EACH: u64 = 2 * PATHS as u64;

/// All streams: those, and one of each Envoy for the roots, which all its validation contexts
/// share.
pub(crate) const STREAMS: u64 = 2 * (EACH + 1);

/// How often the agent's memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// CA, agent, and the two Envoys.
pub(crate) struct Mesh {
    /// Where each Envoy takes plain HTTP: path `/N` leads to the other's listener `N`.
    pub(crate) plain: [SocketAddr; 2],
    pub(crate) ids: [String; 2],
    envoys: [Envoy; 2],
    node: Node,
    // After what runs in them.
    _cgroups: [Cgroup; 2],
}

/// What the agent counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counted {
    pub(crate) streams: u64,
    pub(crate) acks: u64,
    pub(crate) nacks: u64,
    /// Certificates that it got from the CA.
    pub(crate) renewals: u64,
}

impl Mesh {
    /// With certificates of this lifetime, on a node of this name.
    pub(crate) async fn start(name: &str, ttl: &str) -> Self {
        let pods = NodePod::create(name, &["left", "right"]).await;
        let node = Node::with(
            name,
            |ca| ca,
            // Lines for each push of each stream would be what is measured.
            |agent| agent.set("svid_ttl", ttl).set("log.level", "info"),
        )
        .await;
        let ids = [pods[0].spiffe_id(), pods[1].spiffe_id()];
        let cgroups = [pods[0].cgroup(Version::V1), pods[1].cgroup(Version::V1)];
        let plain = [ports::address(), ports::address()];
        let admin = [ports::address(), ports::address()];
        let listeners: [Vec<SocketAddr>; 2] =
            [(); 2].map(|()| (0..PATHS).map(|_| ports::address()).collect());
        let socket = node.agent.socket();
        let socket = socket.to_str().expect("a plain path");
        let file = |own: usize| {
            let other = 1 - own;
            let side = Side {
                socket,
                other_id: &ids[other],
                stream: 0.into(),
            };
            side.bootstrap(admin[own], plain[own], &listeners[own], &listeners[other])
        };
        let dir = TestDir::new("envoys");
        let wrappers = [cgroups[0].wrapper(), cgroups[1].wrapper()];
        let (left, right) = (file(0), file(1));
        let (left, right) = tokio::join!(
            Envoy::start_quietly("left", &dir, &left, admin[0], &wrappers[0]),
            Envoy::start_quietly("right", &dir, &right, admin[1], &wrappers[1]),
        );
        Self {
            plain,
            ids,
            envoys: [left, right],
            node,
            _cgroups: cgroups,
        }
    }

    /// One request by way of an Envoy and one of its clusters.
    pub(crate) async fn ask(&self, envoy: usize, path: usize) -> Result<http::Answer, String> {
        ask(self.plain[envoy], path).await
    }

    pub(crate) async fn counted(&self) -> Counted {
        let metrics = self.node.agent.metrics().await;
        let number = |name: &str| {
            let value = series(&metrics, &format!("citadel_agent_{name}")).unwrap_or(0.0);
            // What is counted here stays far below 2^52.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let value = value as u64;
            value
        };
        Counted {
            streams: number(r#"streams{protocol="sds"}"#),
            acks: number("sds_acks_total"),
            nacks: number("sds_nacks_total"),
            renewals: number(r#"renewals_total{outcome="ok"}"#),
        }
    }

    /// What is counted at a moment when each stream has answered what it was sent: nothing
    /// changes for a second.
    pub(crate) async fn settled(&self, deadline: Duration) -> Counted {
        let begun = Instant::now();
        let mut last = (self.counted().await, Instant::now());
        loop {
            let now = self.counted().await;
            if now != last.0 {
                last = (now, Instant::now());
            }
            if last.1.elapsed() > Duration::from_secs(1) {
                return now;
            }
            assert!(begun.elapsed() < deadline, "it never rests: {now:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The most that the agent holds in memory within this time, in bytes.
    pub(crate) async fn memory(&self, time: Duration) -> f64 {
        let end = Instant::now() + time;
        let mut most = 0.0_f64;
        while Instant::now() < end {
            let metrics = self.node.agent.metrics().await;
            let resident = series(&metrics, "process_resident_memory_bytes");
            most = most.max(resident.expect("the agent's memory"));
            sleep(LOOK_EVERY).await;
        }
        most
    }

    /// How many secrets each Envoy refused.
    pub(crate) async fn rejected(&self) -> [u64; 2] {
        let mut rejected = [0; 2];
        for (count, envoy) in rejected.iter_mut().zip(&self.envoys) {
            let stats = envoy.get("/stats?filter=sds.*update_rejected").await;
            let stats = stats.expect("Envoy's stats");
            let values = stats.lines().filter_map(|line| line.rsplit_once(": "));
            let values: Vec<u64> = values
                .map(|(_, value)| value.parse().expect("a number"))
                .collect();
            assert!(!values.is_empty(), "Envoy counts no updates: {stats}");
            *count = values.iter().sum();
        }
        rejected
    }
}

pub(crate) async fn ask(plain: SocketAddr, path: usize) -> Result<http::Answer, String> {
    match http::get(plain, &format!("/{path}")).await {
        Some(answer) if answer.status == 200 => Ok(answer),
        Some(other) => Err(format!("/{path}: {other:?}")),
        None => Err(format!("/{path}: no answer")),
    }
}

/// What one Envoy's file is made of.
struct Side<'a> {
    socket: &'a str,
    other_id: &'a str,
    /// Tells config sources apart: Envoy shares a stream between equal ones.
    stream: std::cell::Cell<usize>,
}

impl Side<'_> {
    fn bootstrap(
        &self,
        admin: SocketAddr,
        plain: SocketAddr,
        own: &[SocketAddr],
        others: &[SocketAddr],
    ) -> String {
        let mut listeners: Vec<Value> = own.iter().map(|address| self.listener(*address)).collect();
        listeners.push(plain_listener(plain));
        let mut clusters: Vec<Value> = others
            .iter()
            .enumerate()
            .map(|(path, address)| self.cluster(path, *address))
            .collect();
        clusters.push(self.agent());
        // JSON is YAML.
        json!({
            "node": { "id": "streams", "cluster": "streams" },
            "admin": { "address": socket_address(admin) },
            "static_resources": { "listeners": listeners, "clusters": clusters },
        })
        .to_string()
    }

    /// An SDS subscription on a stream of its own.
    fn own_stream(&self) -> Value {
        let number = self.stream.get();
        self.stream.set(number + 1);
        let metadata = json!([{ "key": "x-stream", "value": number.to_string() }]);
        json!({ "name": "default", "sds_config": source(&metadata) })
    }

    fn tls(&self, kind: &str, beside: &Value) -> Value {
        let mut context = json!({
            "@type": format!(
                "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext"
            ),
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [self.own_stream()],
                "combined_validation_context": {
                    "default_validation_context": { "match_typed_subject_alt_names": [
                        { "san_type": "URI", "matcher": { "exact": self.other_id } },
                    ] },
                    "validation_context_sds_secret_config":
                        { "name": "ROOTCA", "sds_config": source(&json!([])) },
                },
            },
        });
        let fields = context.as_object_mut().expect("a map");
        fields.extend(beside.as_object().expect("a map").clone());
        json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
    }

    fn listener(&self, address: SocketAddr) -> Value {
        let answer = json!([{
            "match": { "prefix": "/" },
            "direct_response": { "status": 200, "body": { "inline_string": "hello" } },
        }]);
        json!({
            "address": socket_address(address),
            "filter_chains": [{
                "transport_socket": self.tls("Downstream", &json!({
                    "require_client_certificate": true,
                    // A resumed session would carry a certificate that is not verified anew.
                    "disable_stateless_session_resumption": true,
                    "disable_stateful_session_resumption": true,
                })),
                "filters": [http_filter(&json!({ "virtual_hosts": [{
                    "name": "all", "domains": ["*"], "routes": answer,
                    "response_headers_to_add": [
                        header("x-client-id", "%DOWNSTREAM_PEER_URI_SAN%"),
                        header("x-client-serial", "%DOWNSTREAM_PEER_SERIAL%"),
                    ],
                }] }))],
            }],
        })
    }

    fn cluster(&self, path: usize, address: SocketAddr) -> Value {
        json!({
            "name": format!("path-{path}"),
            "connect_timeout": "2s",
            "load_assignment": endpoint(&format!("path-{path}"), &socket_address(address)),
            "transport_socket": self.tls("Upstream", &json!({ "max_session_keys": 0 })),
            "typed_extension_protocol_options": options(&json!({
                // Each request is a handshake.
                "common_http_protocol_options": { "max_requests_per_connection": 1 },
                "explicit_http_config": { "http_protocol_options": {} },
            })),
        })
    }

    fn agent(&self) -> Value {
        let pipe = json!({ "pipe": { "path": self.socket } });
        json!({
            "name": "agent",
            "connect_timeout": "1s",
            "load_assignment": endpoint("agent", &pipe),
            "typed_extension_protocol_options": options(&json!({
                "explicit_http_config": { "http2_protocol_options": {} },
            })),
        })
    }
}

fn source(metadata: &Value) -> Value {
    json!({
        "resource_api_version": "V3",
        // Wait for the first secret for ever, never serve without one.
        "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{
                "envoy_grpc": { "cluster_name": "agent" }, "initial_metadata": metadata,
            }],
        },
    })
}

fn plain_listener(address: SocketAddr) -> Value {
    let routes: Vec<Value> = (0..PATHS)
        .map(|path| {
            json!({
                "match": { "path": format!("/{path}") },
                "route": { "cluster": format!("path-{path}") },
            })
        })
        .collect();
    json!({
        "address": socket_address(address),
        "filter_chains": [{ "filters": [http_filter(&json!({ "virtual_hosts": [
            { "name": "all", "domains": ["*"], "routes": routes },
        ] }))] }],
    })
}

fn http_filter(routes: &Value) -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "streams",
            "route_config": routes,
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                },
            }],
        },
    })
}

fn options(options: &Value) -> Value {
    let mut options = options.clone();
    options["@type"] =
        json!("type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions");
    json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options })
}

fn endpoint(cluster: &str, address: &Value) -> Value {
    json!({
        "cluster_name": cluster,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

fn header(key: &str, value: &str) -> Value {
    json!({ "header": { "key": key, "value": value } })
}
