//! The endpoint itself: where it listens, what it asks of a caller, and what is on it.

use std::collections::HashSet;
use std::net::SocketAddr;

use citadel_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use citadel_proto::workload::{X509svidRequest, X509svidResponse};
use citadel_tests::peer::channel_to;
use citadel_tests::secrets;
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use http::{Request, Response};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::ServiceExt;

use super::requirements::{PROMPT, next, node, with_header};
use crate::sds_protocol::script::{Pushed, request};

const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
const SDS: &str = "envoy.service.secret.v3.SecretDiscoveryService";

#[tokio::test]
async fn spiffe_req_21_the_agent_serves_a_unix_socket_alone() {
    let node = node("req21", &[("/unix/root", "")], "1h").await;
    let sockets = Sockets::of(node.agent.process().pid());
    // The kernel knows the name that each was bound under, before it took its place. Two of
    // them, in a folder of their own, are for administrators and for the agent's successor, and
    // no endpoints either.
    let admin = node.agent.admin_socket();
    let folder = admin.parent().unwrap().to_str().unwrap();
    let in_folder = |bound: &&String| bound.starts_with(folder);
    let (of_admin, others): (Vec<_>, Vec<_>) = sockets.unix.iter().partition(in_folder);
    assert_eq!(of_admin.len(), 2, "{:?}", sockets.unix);
    let [unix] = others.as_slice() else {
        panic!("one socket: {:?}", sockets.unix);
    };
    let placed = node.agent.socket();
    assert!(unix.starts_with(placed.to_str().unwrap()), "{unix}");
    let answer = SpiffeWorkloadApiClient::new(channel_to(&admin))
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(sockets.tcp, [node.agent.admin()], "the admin pages alone");
    assert_eq!(sockets.udp, 0);

    // And the admin pages are no endpoint.
    let address = format!("http://{}", node.agent.admin());
    let channel = Channel::from_shared(address).unwrap().connect_lazy();
    let answer = SpiffeWorkloadApiClient::new(channel)
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await;
    assert_ne!(answer.unwrap_err().code(), Code::PermissionDenied);
}

/// HTTP/2 in the clear, written by hand so that all that a caller sends is in sight:
/// no TLS, no token, no certificate, nothing but the header that the standard wants.
#[tokio::test]
async fn spiffe_req_23_a_plain_connection_without_any_credential_gets_its_svid() {
    let node = node("req23", &[("/unix/root", "")], "1h").await;
    let mut plain = UnixStream::connect(node.agent.socket()).await.unwrap();
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", FETCH),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("workload.spiffe.io", "true"),
    ];
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(SETTINGS, 0, 0, &[]));
    sent.extend(frame(HEADERS, END_HEADERS, 1, &literal(&headers)));
    // A message without fields: not compressed, of no bytes.
    sent.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
    plain.write_all(&sent).await.unwrap();

    let message = tokio::time::timeout(PROMPT, first_message(&mut plain)).await;
    let message = X509svidResponse::decode(message.expect("an answer").as_slice()).unwrap();
    let [svid] = message.svids.as_slice() else {
        panic!("{} SVIDs", message.svids.len());
    };
    secrets::register_key("SVID key", &svid.x509_svid_key);
    assert_eq!(svid.spiffe_id, "spiffe://example.org/unix/root");
    assert!(!svid.x509_svid.is_empty() && !svid.x509_svid_key.is_empty());
}

/// The Workload API is a service of its own; SDS beside it, on the very same connection,
/// is as Envoy has it: neither has the other's methods, and nothing else is there.
#[tokio::test]
async fn spiffe_req_25_the_workload_api_is_a_service_of_its_own_beside_sds() {
    let node = node("req25", &[("/unix/root", "")], "1h").await;
    let channel = channel_to(&node.agent.socket());

    let svids = SpiffeWorkloadApiClient::new(channel.clone())
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await;
    let mut svids = svids.expect("a stream").into_inner();
    let message = next(&mut svids, PROMPT).await;
    assert_eq!(message.svids.len(), 1);
    // While that stream is open. SDS knows nothing of the Workload API's header.
    let answer = SecretDiscoveryServiceClient::new(channel.clone())
        .fetch_secrets(request(&["default", "ROOTCA"]))
        .await;
    let pushed = Pushed::read(answer.expect("secrets").into_inner());
    assert_eq!(pushed.names, ["ROOTCA", "default"]);

    for path in [
        "/SpiffeWorkloadAPI/NoSuchMethod".to_owned(),
        "/SpiffeWorkloadAPI/StreamSecrets".to_owned(),
        "/SpiffeWorkloadAPI/FetchSecrets".to_owned(),
        // The service has no package, and its name is not spelled otherwise.
        "/spiffe.workload.SpiffeWorkloadAPI/FetchX509SVID".to_owned(),
        "/spiffeworkloadapi/FetchX509SVID".to_owned(),
        format!("/{SDS}/FetchX509SVID"),
        format!("/{SDS}/FetchX509Bundles"),
        format!("/{SDS}/NoSuchMethod"),
        // What the CA serves to agents is not for workloads.
        "/citadel.v1.AgentService/IssueBatch".to_owned(),
        "/citadel.v1.WorkloadService/IssueSvid".to_owned(),
        "/citadel.v1.AdminService/GetServerInfo".to_owned(),
        "/istio.v1.auth.IstioCertificateService/CreateCertificate".to_owned(),
    ] {
        assert_eq!(
            code_of(&channel, &path).await,
            Code::Unimplemented,
            "{path}"
        );
    }
    // The control: this is how a method that exists answers.
    let code = code_of(&channel, FETCH).await;
    assert_eq!(code, Code::Ok);
}

/// The code that a call without a message's fields, and with the header, begins with.
async fn code_of(channel: &Channel, path: &str) -> Code {
    let call = Request::post(format!("http://agent.invalid{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("workload.spiffe.io", "true")
        .body(Body::new("\0".repeat(5)))
        .unwrap();
    let answer: Response<Body> = channel.clone().oneshot(call).await.unwrap();
    assert_eq!(answer.status(), 200, "{path}: gRPC's codes are not HTTP's");
    // A stream that goes on has no status yet.
    Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code())
}

/// The state of a TCP socket that listens, as the kernel's tables have it.
const LISTEN: &str = "0A";

/// What a process listens on.
struct Sockets {
    unix: Vec<String>,
    tcp: Vec<SocketAddr>,
    udp: usize,
}

impl Sockets {
    /// From the open files of the process and the socket tables of its namespace.
    fn of(pid: i32) -> Self {
        let proc = format!("/proc/{pid}");
        let files = std::fs::read_dir(format!("{proc}/fd")).unwrap();
        let own: HashSet<String> = files
            .filter_map(|file| std::fs::read_link(file.unwrap().path()).ok())
            .filter_map(|target| {
                let inode = target.to_str()?.strip_prefix("socket:[")?;
                Some(inode.trim_end_matches(']').to_owned())
            })
            .collect();
        let table = |name: &str, inode: usize| -> Vec<Vec<String>> {
            let text = std::fs::read_to_string(format!("{proc}/net/{name}")).unwrap();
            let rows = text
                .lines()
                .skip(1)
                .map(|line| line.split_whitespace().map(str::to_owned).collect());
            rows.filter(|row: &Vec<String>| own.contains(&row[inode]))
                .collect()
        };
        let listening = |row: &Vec<String>| row[3] == LISTEN;
        let v4 = |row: Vec<String>| {
            let (ip, port) = row[1].split_once(':').unwrap();
            let ip = u32::from_str_radix(ip, 16).unwrap().to_ne_bytes();
            SocketAddr::from((ip, u16::from_str_radix(port, 16).unwrap()))
        };
        let v6 = table("tcp6", 9).into_iter().filter(listening).count();
        assert_eq!(v6, 0, "a listener on IPv6 that nobody configured");
        // `__SO_ACCEPTCON`: it accepts connections.
        let accepting = |row: &Vec<String>| row[3] == "00010000";
        Self {
            unix: table("unix", 6)
                .into_iter()
                .filter(accepting)
                .map(|row| row.get(7).cloned().unwrap_or_default())
                .collect(),
            tcp: table("tcp", 9)
                .into_iter()
                .filter(listening)
                .map(v4)
                .collect(),
            udp: table("udp", 9).len() + table("udp6", 9).len(),
        }
    }
}

// Frames of HTTP/2 (RFC 9113, sections 4.1 and 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Literal fields without indexing, without Huffman's code (RFC 7541, section 6.2.2).
fn literal(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.bytes());
        }
    }
    block
}

/// The first gRPC message of stream 1.
async fn first_message(connection: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let mut head = [0; 9];
        connection.read_exact(&mut head).await.expect("HTTP/2");
        let [high, middle, low, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        let mut payload = vec![0; length.try_into().unwrap()];
        connection.read_exact(&mut payload).await.expect("HTTP/2");
        if u32::from_be_bytes(stream) != 1 {
            continue;
        }
        if kind == DATA {
            bytes.extend(payload);
        }
        if let [0, a, b, c, d, rest @ ..] = bytes.as_slice() {
            let length: usize = u32::from_be_bytes([*a, *b, *c, *d]).try_into().unwrap();
            if let Some(message) = rest.get(..length) {
                return message.to_vec();
            }
        }
        assert_eq!(flags & END_STREAM, 0, "an end without a message");
    }
}
