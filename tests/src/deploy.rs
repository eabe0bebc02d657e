//! The files under `deploy/`, as shipped: tests run these very files.

use std::net::SocketAddr;
use std::path::Path;

/// What a user changes in a file of `deploy/envoy`.
#[derive(Clone, Debug)]
pub struct Mtls<'a> {
    /// The agent's socket.
    pub socket: &'a Path,
    /// Envoy's admin address.
    pub admin: SocketAddr,
    /// Where the mTLS server listens.
    pub server: SocketAddr,
    /// The other side's exact SPIFFE ID.
    pub expected: &'a str,
}

/// `deploy/envoy/server.yaml`.
pub fn envoy_server(mtls: &Mtls<'_>) -> String {
    let text = include_str!("../../deploy/envoy/server.yaml");
    let text = common(text, mtls, 9901);
    replace_once(&text, "spiffe://example.org/example/client", mtls.expected)
}

/// `deploy/envoy/client.yaml`, whose plain listener is at `plain`.
pub fn envoy_client(mtls: &Mtls<'_>, plain: SocketAddr) -> String {
    let text = include_str!("../../deploy/envoy/client.yaml");
    let text = common(text, mtls, 9902);
    let text = replace_once(
        &text,
        "port_value: 8080",
        &format!("port_value: {}", plain.port()),
    );
    replace_once(&text, "spiffe://example.org/example/server", mtls.expected)
}

/// One of these files, with SDS in its incremental form.
pub fn by_delta(text: &str) -> String {
    replace_once(text, "api_type: GRPC", "api_type: DELTA_GRPC")
}

/// `deploy/envoy/server.yaml` with another bundle than that of the own trust domain.
pub fn with_bundle(text: &str, name: &str) -> String {
    replace_once(text, "name: ROOTCA", &format!("name: \"{name}\""))
}

fn common(text: &str, mtls: &Mtls<'_>, admin: u16) -> String {
    let port = |port: u16| format!("port_value: {port}");
    let text = replace_once(text, &port(admin), &port(mtls.admin.port()));
    let text = replace_once(&text, &port(8443), &port(mtls.server.port()));
    let socket = mtls.socket.to_str().expect("a plain path");
    replace_once(&text, "/run/citadel/agent.sock", socket)
}

/// Panics unless the file has it exactly once: the test would run another
/// configuration than it says.
fn replace_once(text: &str, from: &str, to: &str) -> String {
    assert_eq!(
        text.matches(from).count(),
        1,
        "{from} in a file of deploy/envoy"
    );
    text.replace(from, to)
}
