//! `docs/envoy.md`: its parts, as they stand there, in real Envoys on a machine that joined by a
//! token.

use std::net::SocketAddr;

use citadel_tests::dir::TestDir;
use citadel_tests::document::{Here, first};
use citadel_tests::envoy::Envoy;
use citadel_tests::{http, ports, wait};
use serde_json::{Value, json};

use super::{DEADLINE, Site};

const DOCUMENT: &str = include_str!("../../../docs/envoy.md");

/// The list item of a part.
fn item(here: &Here, heading: &str) -> Value {
    let text = here.put(&first(DOCUMENT, heading, "yaml"));
    let items: Value = serde_saphyr::from_str(&text).unwrap();
    items[0].clone()
}

fn bootstrap(name: &str, admin: SocketAddr, listener: &Value, clusters: &[Value]) -> String {
    let address = |at: SocketAddr| json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } });
    let text = json!({
        "node": { "id": name, "cluster": name },
        "admin": { "address": address(admin) },
        "static_resources": { "listeners": [listener], "clusters": clusters },
    });
    text.to_string()
}

/// Plain HTTP to the cluster of the document.
fn plain(at: SocketAddr) -> Value {
    let proxy = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    json!({
        "name": "plain",
        "address": {
            "socket_address": { "address": at.ip().to_string(), "port_value": at.port() },
        },
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": { "@type": proxy, "stat_prefix": "plain", "cluster": "web" },
        }] }],
    })
}

async fn status(at: SocketAddr, wanted: u16) -> http::Answer {
    wait::until("an answer", DEADLINE, async || {
        let answer = http::get(at, "/").await;
        answer.filter(|answer| answer.status == wanted)
    })
    .await
}

#[tokio::test]
async fn every_part_of_the_document_works_in_a_real_envoy() {
    let entries: Value =
        serde_saphyr::from_str(&first(DOCUMENT, "# SDS for an Envoy", "yaml")).unwrap();
    let site = Site::with(|ca| ca.set("entries", entries["entries"].clone())).await;
    let (agent, _state) = site.agent("vm-1").await;
    let delta = first(DOCUMENT, "Delta", "yaml");
    let delta = delta.lines().last().unwrap().to_owned();
    for (form, api_type) in [("sotw", "api_type: GRPC".to_owned()), ("delta", delta)] {
        let mtls = ports::address();
        let here = |client: &str| {
            Here(
                [
                    (
                        "/run/citadel/agent.sock",
                        agent.socket().display().to_string(),
                    ),
                    ("8443", mtls.port().to_string()),
                    ("api_type: GRPC", api_type.clone()),
                    (
                        "spiffe://example.org/client\n",
                        format!("spiffe://example.org/{client}\n"),
                    ),
                ]
                .map(|(there, here)| (there.to_owned(), here))
                .into(),
            )
        };
        let dir = TestDir::new("envoy");
        let as_it_is = here("client");
        let agent_cluster = item(&as_it_is, "The agent");
        let listener = item(&as_it_is, "A listener");
        let admin = ports::address();
        let text = bootstrap(
            "server",
            admin,
            &listener,
            std::slice::from_ref(&agent_cluster),
        );
        let server = Envoy::start("server", &dir, &text, admin).await;
        let mut envoys = vec![server];
        for (name, wanted) in [("client", 200), ("stranger", 403)] {
            let (admin, at) = (ports::address(), ports::address());
            let clusters = [agent_cluster.clone(), item(&here(name), "A cluster")];
            let text = bootstrap(name, admin, &plain(at), &clusters);
            envoys.push(Envoy::start(name, &dir, &text, admin).await);
            let answer = status(at, wanted).await;
            assert_eq!(
                answer.body.contains("hello over mTLS"),
                wanted == 200,
                "{form}"
            );
        }
        // Another server than the one that the cluster names gets no connection.
        let (admin, at) = (ports::address(), ports::address());
        let elsewhere = Here(vec![(
            "spiffe://example.org/web".into(),
            "spiffe://example.org/x".into(),
        )]);
        let part = elsewhere.put(&here("client").put(&first(DOCUMENT, "A cluster", "yaml")));
        let part: Value = serde_saphyr::from_str(&part).unwrap();
        let clusters = [agent_cluster.clone(), part[0].clone()];
        let text = bootstrap("elsewhere", admin, &plain(at), &clusters);
        let envoy = Envoy::start("elsewhere", &dir, &text, admin).await;
        wait::until("the server is refused", DEADLINE, async || {
            let answer = http::get(at, "/").await;
            assert!(answer.is_none_or(|answer| answer.status != 200), "{form}");
            (envoy.stat("cluster.web.ssl.fail_verify_san").await > 0).then_some(())
        })
        .await;
        let streams = agent.metrics().await;
        let protocol = if form == "delta" { "sds_delta" } else { "sds" };
        let line = format!("streams{{protocol=\"{protocol}\"}}");
        let open = streams.lines().find(|line_of| line_of.contains(&line));
        assert!(
            open.is_some_and(|line| !line.ends_with(" 0")),
            "{form}: {streams}"
        );
    }
}
