#![allow(clippy::unwrap_used)]
use std::path::PathBuf;

use citadel_identity::pem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::{
    files::{
        folder::Access,
        formats::{BUNDLE, CERTIFICATE, KEY, PKCS12},
        reload::Reload,
    },
    testing::{World, id, trust_domain},
    testing_agent::{nothing_from, set_entries, soon, this_user},
};

struct Scene {
    world: World,
    entries: watch::Sender<Option<Arc<Entries>>>,
    hook: TcpListener,
    folder: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let scene = Self {
            world: World::new(),
            entries: watch::Sender::new(None),
            hook: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            folder: tempfile::tempdir().unwrap(),
        };
        scene.world.ca.lifetime(Duration::from_secs(2));
        scene
    }

    fn start(&self, change: impl FnOnce(&mut Rule)) {
        let owner = (nix::unistd::getuid().into(), nix::unistd::getgid().into());
        let hook = format!("http://{}/", self.hook.local_addr().unwrap());
        let mut rule = Rule {
            directory: self.directory(),
            owner,
            spiffe_id: None,
            access: Access {
                owner: Some(owner),
                ..Access::default()
            },
            combined: false,
            pkcs12_password_file: None,
            reload: Reload {
                http: Some(hook.parse().unwrap()),
                ..Reload::default()
            },
        };
        change(&mut rule);
        let identities = Identities {
            manager: self.world.manager.clone(),
            trust_domain: trust_domain(),
            entries: self.entries.subscribe(),
            bundles: self.world.bundles.subscribe(),
            ttl_seconds: 0,
            pods: crate::pods::Pods::default(),
        };
        let keeper = Keeper {
            rule,
            identities,
            metrics: self.world.metrics.clone(),
        };
        tokio::spawn(keeper.run(self.world.shutdown.signal()));
    }

    fn directory(&self) -> PathBuf {
        self.folder.path().join("tls")
    }

    fn entries(&self, entries: &[(&str, &[&str])]) {
        set_entries(&self.entries, entries);
    }

    /// Waits until the reader is told.
    async fn told(&self) {
        let (mut stream, _) = self.hook.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await.unwrap();
        let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    }

    fn leaf(&self) -> Vec<u8> {
        let text = fs::read(self.directory().join(CERTIFICATE)).unwrap();
        pem::decode(&text, 65_536).unwrap().remove(0).der.to_vec()
    }

    fn spiffe_id(&self) -> String {
        let id = citadel_identity::verify::spiffe_id(&self.leaf()).unwrap();
        id.to_string()
    }
}

#[tokio::test]
async fn each_certificate_is_written_and_its_reader_told() {
    let scene = Scene::new().await;
    scene.start(|_| {});
    nothing_from(scene.told()).await;
    scene.entries(&[("db", &[&this_user()])]);
    soon(scene.told()).await;
    assert_eq!(scene.spiffe_id(), "spiffe://example.org/db");
    let first = scene.leaf();
    assert!(!scene.directory().join(PKCS12).exists());
    for name in [KEY, BUNDLE] {
        assert!(scene.directory().join(name).exists(), "{name}");
    }
    // Another revision of the same entries is no news to who reads the files.
    scene.entries(&[("db", &[&this_user()])]);
    soon(scene.told()).await;
    assert_ne!(scene.leaf(), first, "told of nothing new");
}

#[tokio::test]
async fn the_ca_being_away_takes_no_file_away() {
    let scene = Scene::new().await;
    scene.start(|_| {});
    scene.entries(&[("db", &[&this_user()])]);
    soon(scene.told()).await;
    let first = scene.leaf();
    scene.world.ca.mode(crate::testing::Mode::Down);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(scene.leaf(), first);
    scene.world.ca.mode(crate::testing::Mode::Good);
    soon(scene.told()).await;
    assert_ne!(scene.leaf(), first);
}

#[tokio::test]
async fn only_what_is_for_the_owner_of_the_files_is_written() {
    let scene = Scene::new().await;
    scene.start(|_| {});
    let me = this_user();
    scene.entries(&[
        ("other", &["unix:uid:4242"]),
        ("a-program", &[&me, "unix:path:/usr/bin/db"]),
        ("a-pod", &[&me, "k8s:ns:shop"]),
    ]);
    nothing_from(scene.told()).await;
    scene.entries(&[("other", &["unix:uid:4242"]), ("own", &[&me])]);
    soon(scene.told()).await;
    assert_eq!(scene.spiffe_id(), "spiffe://example.org/own");
}

#[tokio::test]
async fn a_rule_names_one_of_several_identities() {
    let scene = Scene::new().await;
    scene.start(|rule| rule.spiffe_id = Some(id("second")));
    let me = this_user();
    scene.entries(&[("first", &[&me]), ("second", &[&me])]);
    soon(scene.told()).await;
    assert_eq!(scene.spiffe_id(), "spiffe://example.org/second");
}

#[tokio::test]
async fn a_failure_is_counted_and_tried_again() {
    let scene = Scene::new().await;
    let password = scene.folder.path().join("password");
    scene.start(|rule| rule.pkcs12_password_file = Some(password.clone()));
    scene.entries(&[("db", &[&this_user()])]);
    nothing_from(scene.told()).await;
    assert!(!scene.directory().exists(), "half a set was written");
    fs::write(&password, "changeit\n").unwrap();
    soon(scene.told()).await;
    assert!(scene.directory().join(PKCS12).exists());
}

#[test]
fn passwords_are_one_bounded_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        read_password(&path).map(|password| password.to_string())
    };
    assert_eq!(read("secret\nmore").unwrap(), "secret");
    assert!(read("\n").unwrap_err().contains("empty"));
    assert_eq!(read(&"x".repeat(MAX_PASSWORD)).unwrap().len(), MAX_PASSWORD);
    assert!(
        read(&"x".repeat(MAX_PASSWORD + 1))
            .unwrap_err()
            .contains("longer")
    );
}
