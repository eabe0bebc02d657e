//! One agent with all rules of the document, and the servers that read the files.

use citadel_tests::citadel::Agent;
use citadel_tests::dir::TestDir;
use citadel_tests::document::Here;
use citadel_tests::foreign::Foreign;
use citadel_tests::postgres::Postgres;
use citadel_tests::process::{Launch, Process};
use citadel_tests::{secrets, wait};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{DEADLINE, first, path, port, renews_twice, shell};
use crate::node::Node;

/// A certificate's lifetime: each server has to load a new one every few seconds.
const TTL: &str = "12s";

struct Scene {
    dir: TestDir,
    here: Here,
    /// Of the database, nginx, `HAProxy`.
    ports: [u16; 3],
    agent: Agent,
}

impl Scene {
    async fn file(&self, name: &str) {
        let path = self.dir.join(name);
        wait::until("the files", DEADLINE, async || path.exists().then_some(())).await;
    }

    /// A TLS client of a server that asks for an SVID, with that of nginx.
    async fn get(&self, host: &str, port: u16, credentials: &str) -> Result<String, String> {
        let command = format!(
            "curl -sS --fail --max-time 10 {credentials} --cacert nginx/svid_bundle.pem \
             --resolve {host}:{port}:127.0.0.1 https://{host}:{port}/"
        );
        shell(&self.dir, &command, &[]).await
    }
}

const CREDENTIALS: &str = "--cert nginx/svid.pem --key nginx/svid_key.pem";

#[tokio::test]
async fn every_recipe_of_the_document_works() {
    let dir = TestDir::new("files");
    let hook = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let database = TestDir::new("pg");
    let place = |name: &str| dir.join(name).display().to_string();
    let ports = [port(), port(), port()];
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    dir.write("app-password", "changeit\n");
    let here = [
        ("\"26\"", format!("\"{}\"", nobody.uid)),
        ("unix:uid:26", format!("unix:uid:{}", nobody.uid)),
        (
            "/var/lib/pgsql/data",
            database.join("data").display().to_string(),
        ),
        ("/etc/citadel", dir.path().display().to_string()),
        ("/etc/nginx", dir.path().display().to_string()),
        ("/etc/haproxy", dir.path().display().to_string()),
        ("/run/nginx.pid", place("nginx.pid")),
        ("/run/haproxy.pid", place("haproxy.pid")),
        (
            "listen 443 ssl",
            format!("listen 127.0.0.1:{} ssl", ports[1]),
        ),
        ("bind :8443", format!("bind 127.0.0.1:{}", ports[2])),
        (
            "http://127.0.0.1:9000",
            format!("http://{}", hook.local_addr().unwrap()),
        ),
        // What a package makes: folders for bodies that never come here.
        (
            "http {",
            format!(
                "http {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0}; \
                 fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};",
                place("tmp")
            ),
        ),
        (
            "nginx -c",
            format!("nginx -e {} -c", place("nginx-errors.log")),
        ),
    ];
    let here = Here(here.map(|(there, here)| (there.to_owned(), here)).into());
    let yaml = |text: &str| -> Value { serde_saphyr::from_str(&here.put(text)).unwrap() };
    let rules: Vec<Value> = ["PostgreSQL", "HAProxy", "Java", "gRPC"]
        .iter()
        .flat_map(|heading| {
            let rules = yaml(&first(heading, "yaml"));
            rules["files"].as_array().unwrap().clone()
        })
        .collect();
    let entries = yaml(&first("# Certificates", "yaml"))["entries"].clone();
    let java = tokio::spawn(is_posted_to(hook, dir.join("app/svid.p12")));
    let node = Node::with(
        "node-1",
        |ca| ca.set("entries", entries),
        |agent| agent.set("svid_ttl", TTL).set("files", rules),
    )
    .await;
    let scene = Scene {
        dir,
        here,
        ports,
        agent: node.agent,
    };
    let _renewed = nginx(&scene).await;
    tokio::join!(postgres(&scene, database), haproxy(&scene), grpc(&scene));
    java.await.unwrap();
    for folder in ["nginx", "haproxy", "postgres", "app", "grpc"] {
        let key = scene.dir.join(folder).join("svid_key.pem");
        secrets::register_key_file("SVID key", &key);
    }
}

/// nginx by `citadel fetch`, which is given back: its SVID is that of the other servers' client.
async fn nginx(scene: &Scene) -> Process {
    let fetch = scene
        .here
        .put(&first("Nginx", "sh"))
        .replace("unix:///run/citadel/agent.sock", &scene.agent.endpoint());
    let config = scene.here.put(&first("Nginx", "nginx"));
    scene.dir.write("nginx.conf", config);
    let start = |name: &str, command: String| {
        let launch = Launch::new(name, "bash").args(["-c", &format!("exec {command}")]);
        launch.env("PATH", path()).start(&scene.dir)
    };
    let fetch = start("fetch", fetch.trim().to_owned());
    scene.file("nginx/svid.pem").await;
    let run = format!(
        "nginx -e {0}/nginx-errors.log -c {0}/nginx.conf -g 'daemon off;'",
        scene.dir.path().display()
    );
    let server = start("nginx", run);
    let port = scene.ports[1];
    let as_client = format!(
        "-cert {0}/nginx/svid.pem -key {0}/nginx/svid_key.pem",
        scene.dir.path().display()
    );
    renews_twice(&scene.dir, port, &as_client).await;
    let answer = scene.get("web.example.org", port, CREDENTIALS).await;
    assert_eq!(answer.unwrap(), "hello from nginx");
    scene
        .get("web.example.org", port, "")
        .await
        .expect_err("a client without an SVID");
    scene
        .get("other.example.org", port, CREDENTIALS)
        .await
        .expect_err("another name");
    server.terminate(DEADLINE).await;
    fetch
}

async fn haproxy(scene: &Scene) {
    scene.file("haproxy/svid_combined.pem").await;
    let config = scene.here.put(&first("HAProxy", "haproxy"));
    scene.dir.write("haproxy.cfg", config);
    // In the foreground, so that it ends with the test.
    let command = scene.here.put(&first("HAProxy", "sh")).replace("-D ", "");
    let _server = Launch::new("haproxy", "bash")
        .args(["-c", &format!("exec {command}")])
        .env("PATH", path())
        .start(&scene.dir);
    let port = scene.ports[2];
    renews_twice(&scene.dir, port, "").await;
    let answer = scene.get("lb.example.org", port, CREDENTIALS).await;
    assert_eq!(answer.unwrap(), "hello from haproxy");
    scene
        .get("lb.example.org", port, "")
        .await
        .expect_err("a client without an SVID");
}

/// gRPC-Go's certificate provider.
async fn grpc(scene: &Scene) {
    scene.file("grpc/svid.pem").await;
    let bootstrap = first("gRPC", "json").replace("\"60s\"", "\"0.2s\"");
    let bootstrap = scene
        .dir
        .write("bootstrap.json", scene.here.put(&bootstrap));
    let id = "spiffe://example.org/web";
    let provided = Foreign::provided(&scene.dir, &bootstrap, id, 3, DEADLINE).await;
    let mut serials: Vec<_> = provided.iter().map(|line| &line["serial"]).collect();
    serials.dedup();
    assert_eq!(serials.len(), 3, "{provided:#?}");
}

async fn postgres(scene: &Scene, dir: TestDir) {
    scene.file("postgres/svid.pem").await;
    let config = scene.here.put(&first("PostgreSQL", "ini"));
    let settings: Vec<(&str, &str)> = config
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, value)| (name, value.trim_matches('\'')))
        .collect();
    assert_eq!(settings.len(), 4, "{config}");
    let server = Postgres::start_in(dir, &settings).await;
    let port = server.address().port();
    let shown = scene.here.put(&first("PostgreSQL", "sh"));
    let ask = async |host: &str| {
        let command = shown.replace(
            "host=db.example.org",
            &format!("host={host} hostaddr=127.0.0.1 port={port}"),
        );
        let password = [("PGPASSWORD", server.password())];
        shell(&scene.dir, &command, &password).await
    };
    let before = ask("db.example.org").await.unwrap();
    assert!(before.contains("(1 row)"), "{before}");
    renews_twice(&scene.dir, port, "-starttls postgres").await;
    ask("db.example.org").await.unwrap();
    let other = ask("other.example.org").await.unwrap_err();
    assert!(other.contains("does not match"), "{other}");
}

/// What a Java program would be told, and then reads.
async fn is_posted_to(hook: TcpListener, file: std::path::PathBuf) {
    for _ in 0..2 {
        let (mut stream, _) = hook.accept().await.unwrap();
        let mut seen = [0; 1024];
        let length = stream.read(&mut seen).await.unwrap();
        assert!(seen[..length].starts_with(b"POST /reload HTTP/1.1\r\n"));
        let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let dir = TestDir::new("java");
        let read = format!(
            "openssl pkcs12 -in {} -passin pass:changeit -nokeys -info",
            file.display()
        );
        let text = shell(&dir, &read, &[]).await.unwrap();
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 3, "{text}");
    }
}
