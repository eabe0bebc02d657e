//! The administrators' local socket: the file's mode keeps others out, and where it does not, the
//! peer's uid does.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use citadel_proto::v1::admin_service_client::AdminServiceClient;
use citadel_proto::v1::{
    GetCertificateRequest, GetServerInfoRequest, ListCertificatesRequest, ServerInfo,
};
use citadel_tests::dir::TestDir;
use citadel_tests::peer::Peer;
use citadel_tests::process::Launch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::Scene;

/// Nobody on this machine, and not the CA, which is root here.
const STRANGER: u32 = 64_123;

#[tokio::test]
async fn the_admin_socket_is_for_root_and_the_server_s_own_user() {
    let scene = Scene::start().await;
    let (socket, dir) = (scene.ca.admin_socket(), TestDir::new("admin"));
    opened(&dir);
    let file = std::fs::metadata(&socket).unwrap();
    assert_eq!(file.mode() & 0o7777, 0o600);
    assert_eq!(file.uid(), 0);

    // By its mode the file is closed to others.
    let shut_out = Launch::new(
        "stranger",
        citadel_tests::parts::program("citadel-test-peer"),
    )
    .arg("connect")
    .arg(&socket)
    .arg(dir.join("never"))
    .wrapped(user(STRANGER))
    .start(&dir);
    let status = shut_out.wait(Duration::from_secs(10)).await;
    assert!(!status.success());
    let said = shut_out.log();
    assert!(said.contains("Permission denied"), "{said}");

    // With the file open to all, the peer's uid decides.
    std::fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    let lines = scene.ca.refusals().len();
    let stranger = peer(&dir, &socket, STRANGER).await;
    let (info, one, list) = ask(stranger.channel()).await;
    for refused in [info.map(drop), one.map(drop), list.map(drop)] {
        let status = refused.expect_err("a stranger");
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    }
    let refusals = scene.ca.refusals();
    assert_eq!(refusals.len(), lines + 3);
    for line in &refusals[lines..] {
        let reason = line["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(&STRANGER.to_string()), "{line}");
    }

    let root = peer(&dir, &socket, 0).await;
    let (info, one, list) = ask(root.channel()).await;
    assert_eq!(info.unwrap().trust_domain, "example.org");
    assert_eq!(one.unwrap_err().code(), Code::NotFound);
    list.unwrap();
}

/// A CA that is not root serves its own user and root, and nobody else.
#[tokio::test]
async fn the_admin_socket_of_a_ca_without_privileges() {
    const OWN: u32 = 64_124;
    // Its files have to be its own: the folder of its data, socket and configuration.
    let scene = Scene::with(|ca| {
        for file in ["", "ca.kubeconfig"] {
            let path = ca.dir().join(file);
            std::os::unix::fs::chown(path, Some(OWN), Some(OWN)).unwrap();
        }
        opened(ca.dir());
        ca.wrapped(user(OWN))
    })
    .await;
    let (socket, dir) = (scene.ca.admin_socket(), TestDir::new("admin"));
    opened(&dir);
    let file = std::fs::metadata(&socket).unwrap();
    assert_eq!((file.mode() & 0o7777, file.uid()), (0o600, OWN));
    for uid in [OWN, 0] {
        let served = peer(&dir, &socket, uid).await;
        let (info, ..) = ask(served.channel()).await;
        info.unwrap_or_else(|status| panic!("uid {uid}: {status:?}"));
    }
    std::fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    let stranger = peer(&dir, &socket, STRANGER).await;
    let (info, ..) = ask(stranger.channel()).await;
    let status = info.expect_err("a stranger");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
}

type Answers = (
    Result<ServerInfo, Status>,
    Result<(), Status>,
    Result<(), Status>,
);

/// Each RPC of the service once.
async fn ask(channel: Channel) -> Answers {
    let mut service = AdminServiceClient::new(channel);
    let one = GetCertificateRequest {
        serial: "0123456789abcdef".into(),
    };
    let info = service.get_server_info(GetServerInfoRequest {}).await;
    let one = service.get_certificate(one).await;
    let list = service
        .list_certificates(ListCertificatesRequest::default())
        .await;
    (
        info.map(tonic::Response::into_inner),
        one.map(drop),
        list.map(drop),
    )
}

/// A connection that this user opened.
async fn peer(dir: &TestDir, socket: &Path, uid: u32) -> Peer {
    Peer::connect(dir, socket, &user(uid)).await
}

/// A wrapper into this user, without any other group.
fn user(uid: u32) -> Vec<String> {
    let (reuid, regid) = (format!("--reuid={uid}"), format!("--regid={uid}"));
    ["setpriv", &reuid, &regid, "--clear-groups", "--"]
        .map(str::to_owned)
        .into()
}

/// Lets other users into a folder of the test, so that a socket's own mode is what counts.
fn opened(dir: &TestDir) {
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
}
