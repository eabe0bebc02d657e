//! TLS between the store and its server.

use std::path::PathBuf;

use citadel_tests::dir::TestDir;
use citadel_tests::postgres::Postgres;
use rcgen::{CertificateParams, DnType, Issuer};

use super::contract::{Sample, fill};
use super::{PostgresOptions, PostgresStore, Store, StoreError};
use crate::cacerts::made::{ca, key, pair};

/// Files of clients.
struct Made {
    root: PathBuf,
    other_root: PathBuf,
    client: (PathBuf, PathBuf),
}

/// A root's certificate, and a leaf of it with its key.
fn leaf(root: &str, common_name: &str, names: &[&str]) -> (String, String, String) {
    let (root_key, params) = (pair(&key("P-256")), ca(root, None));
    let root = params.self_signed(&root_key).unwrap().pem();
    let issuer = Issuer::new(params, root_key);
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let leaf_key = key("P-256");
    let leaf = params.signed_by(&pair(&leaf_key), &issuer).unwrap().pem();
    (root, leaf, leaf_key)
}

/// A server for `localhost` that knows the role `by_certificate` by its certificate alone.
async fn server() -> (Postgres, Made) {
    let mut postgres = Postgres::start().await;
    let dir = TestDir::new("pg-tls");
    let (root, server, server_key) = leaf("server root", "localhost", &["localhost"]);
    let (client_root, client, client_key) = leaf("client root", "by_certificate", &[]);
    let (other_root, ..) = leaf("other root", "localhost", &["localhost"]);
    postgres
        .query("CREATE ROLE by_certificate LOGIN; GRANT ALL ON DATABASE citadel TO by_certificate")
        .await;
    let hba = "local all all trust\nhostssl all by_certificate all cert\n\
               hostssl all all all scram-sha-256\n";
    for (setting, path) in [
        ("ssl_cert_file", postgres.give("server.pem", &server)),
        ("ssl_key_file", postgres.give("server-key.pem", &server_key)),
        (
            "ssl_ca_file",
            postgres.give("client-root.pem", &client_root),
        ),
        ("hba_file", postgres.give("hba", hba)),
    ] {
        postgres.set(setting, path.to_str().unwrap());
    }
    postgres.set("ssl", "on");
    postgres.stop().await;
    postgres.start_again().await;
    let made = Made {
        root: dir.write("root.pem", root),
        other_root: dir.write("other-root.pem", other_root),
        client: (
            dir.write("client.pem", client),
            dir.write("client-key.pem", client_key),
        ),
    };
    (postgres, made)
}

#[tokio::test]
async fn the_server_is_known_by_its_certificate_and_name_and_may_know_its_client_so() {
    let (postgres, made) = server().await;
    let port = postgres.address().port();
    let options = |user: &str, host: &str, mode: &str, root: &PathBuf| {
        let url = format!("postgres://{user}@{host}:{port}/citadel{mode}");
        let mut options: PostgresOptions = super::options(&postgres, &url);
        options.root_certificate = Some(root.clone());
        options
    };
    let refused = async |options: PostgresOptions| {
        let error = PostgresStore::open(options).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        error.to_string()
    };

    let store = PostgresStore::open(options("citadel", "localhost", "", &made.root))
        .await
        .unwrap();
    fill(&store, 0..3).await;
    assert_eq!(store.size().await.unwrap(), 3);
    let sessions = "SELECT bool_and(ssl) AND count(*) >= 2 FROM pg_stat_ssl \
                    JOIN pg_stat_activity USING (pid) WHERE application_name = 'citadel-ca'";
    assert_eq!(postgres.query(sessions).await, "t");
    store.close().await;

    // Another root, and another name than the certificate's.
    let said = refused(options("citadel", "localhost", "", &made.other_root)).await;
    assert!(
        said.contains("UnknownIssuer") || said.contains("certificate"),
        "{said}"
    );
    let said = refused(options("citadel", "127.0.0.1", "", &made.root)).await;
    assert!(said.contains("not valid for name"), "{said}");
    let store = PostgresStore::open(options(
        "citadel",
        "127.0.0.1",
        "?sslmode=verify-ca",
        &made.root,
    ))
    .await
    .unwrap();
    store.append(vec![Sample(3).entry()]).await.unwrap();
    store.close().await;
    // The server takes nobody without TLS.
    let said = refused(options(
        "citadel",
        "localhost",
        "?sslmode=disable",
        &made.root,
    ))
    .await;
    assert!(said.contains("no encryption"), "{said}");

    // By a client certificate, without any password.
    let mut by_certificate = options("by_certificate", "localhost", "", &made.root);
    by_certificate.password_file = None;
    by_certificate.schema = Some("of_certificate".into());
    let said = refused(by_certificate.clone()).await;
    assert!(said.contains("certificate"), "{said}");
    let (certificate, key) = made.client.clone();
    (by_certificate.client_certificate, by_certificate.client_key) = (Some(certificate), Some(key));
    let store = PostgresStore::open(by_certificate).await.unwrap();
    fill(&store, 0..3).await;
    store.close().await;
}
