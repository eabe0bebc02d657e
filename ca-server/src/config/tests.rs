#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn config(text: &str) -> Config {
    Config::from_yaml("ca.yaml", text).unwrap()
}

/// The error of a configuration that has a trust domain and this text.
fn error(text: &str) -> String {
    let text = format!("trust_domain: example.org\n{text}");
    Config::from_yaml("ca.yaml", &text).unwrap_err().to_string()
}

const FULL: &str = r#"
trust_domain: example.org
listen: "[::]:15012"
admin_listen: "[::]:15014"
public_listen: "[::]:8443"
admin_socket: /run/citadel/ca-admin.sock
data_dir: /var/lib/citadel
store: sqlite:/var/lib/citadel/citadel.db
ca:
  cacerts_dir: null
  replaces_key: null
  dns_names: [citadel-ca.citadel-system.svc]
  serving_ttl: 24h
clusters:
  - name: default
    kubeconfig: null
    mode: local
    api_deadline: 3s
    max_staleness: 10m
  - name: west
    kubeconfig: /etc/citadel/west.kubeconfig
    mode: token_review
audiences: [citadel, istio-ca]
id_template: /ns/{namespace}/sa/{account}
allow_unbound: [ci/deployer]
agents: { accounts: [citadel-system/citadel-agent] }
impersonation: { accounts: [istio-system/ztunnel] }
lifetimes: { default: 1h, istio_default: 24h, min: 10s, max: 24h }
max_renewal_age: 7d
entries:
  - { id: /unix/alice, dns_names: [], ttl: 1h, nodes: [default/node-1], selectors: ["unix:uid:1000"], hint: "" }
  - id: /db
    dns_names: [Db.Example.org]
    nodes: all
    selectors: ["k8s:ns:db", "k8s:pod-label:app:postgres"]
  - { id: /vm, nodes: [external/vm-1], selectors: ["unix:path:/usr/bin/app"] }
bundle_configmap: { namespace: citadel-system, name: citadel-bundle }
admin: { auditor: ["spiffe://example.org/ns/ops/sa/audit"], operator: [ops/admin] }
limits: { queue: 4096, queue_per_node: 1024, request_deadline: 10s, connections: 4096, connections_per_address: 512, streams_per_connection: 256 }
log: { level: "info,citadel_ca_server=debug", format: json, public_hashes: true, retention: 30d, refusals: /var/log/refused.jsonl }
"#;

#[test]
fn the_documented_file_is_read() {
    let config = config(FULL);
    assert_eq!(config.trust_domain.as_str(), "example.org");
    assert_eq!(config.clusters[1].mode, ClusterMode::TokenReview);
    assert_eq!(
        config.clusters[1].max_staleness,
        HumanDuration::from_mins(10)
    );
    assert_eq!(
        config.entries[0].id.to_string(),
        "spiffe://example.org/unix/alice"
    );
    let node = NodeRef {
        cluster: "default".into(),
        node: "node-1".into(),
    };
    assert_eq!(config.entries[0].nodes, EntryNodes::Listed(vec![node]));
    assert_eq!(config.entries[1].nodes, EntryNodes::All);
    assert_eq!(config.entries[1].dns_names, ["db.example.org"]);
    assert_eq!(config.allow_unbound[0].to_string(), "ci/deployer");
    assert_eq!(config.impersonation.accounts[0].namespace, "istio-system");
    assert!(
        matches!(&config.admin.auditor[0], AdminSubject::SpiffeId(id) if id.path() == "/ns/ops/sa/audit")
    );
    assert!(matches!(
        &config.admin.operator[0],
        AdminSubject::Account(_)
    ));
    assert_eq!(config.log.format, Format::Json);
    assert!(config.log.public_hashes);
    assert_eq!(
        config.log.refusals.as_deref(),
        Some("/var/log/refused.jsonl".as_ref())
    );
    assert_eq!(config.log.retention, HumanDuration::from_days(30));
    assert_eq!(config.public_listen.unwrap().port(), 8443);
    assert_eq!(config.bundle_configmap.unwrap().name, "citadel-bundle");
}

#[test]
fn all_but_the_trust_domain_has_a_default() {
    let config = config("trust_domain: example.org");
    assert_eq!(config.listen.to_string(), "[::]:15012");
    assert_eq!(config.admin_listen.to_string(), "[::]:15014");
    assert_eq!(
        config.store,
        StoreLocation::Sqlite("/var/lib/citadel/citadel.db".into())
    );
    assert_eq!(
        (config.clusters.len(), config.clusters[0].name.as_str()),
        (1, "default")
    );
    assert_eq!(config.clusters[0].mode, ClusterMode::Local);
    assert_eq!(config.clusters[0].api_deadline, HumanDuration::from_secs(3));
    assert_eq!(config.audiences, ["citadel", "istio-ca"]);
    assert_eq!(config.id_template.as_str(), "/ns/{namespace}/sa/{account}");
    assert_eq!(
        config.agents.accounts[0].to_string(),
        "citadel-system/citadel-agent"
    );
    assert!(config.impersonation.accounts.is_empty() && config.allow_unbound.is_empty());
    assert!(config.admin.auditor.is_empty() && config.admin.operator.is_empty());
    assert_eq!(config.lifetimes.default, HumanDuration::from_hours(1));
    assert_eq!(
        config.lifetimes.istio_default,
        HumanDuration::from_hours(24)
    );
    assert_eq!(config.lifetimes.min, HumanDuration::from_secs(10));
    assert_eq!(config.max_renewal_age, HumanDuration::from_days(7));
    assert!(config.bundle_configmap.is_none() && config.admin_socket.is_none());
    assert!(config.public_listen.is_none() && !config.log.public_hashes);
    let error = Config::from_yaml("ca.yaml", "").unwrap_err().to_string();
    assert!(
        error.contains("trust_domain: is not set; set it"),
        "{error}"
    );
}

#[test]
fn the_digest_is_of_the_values_however_they_are_written() {
    let plain = config("trust_domain: example.org").digest;
    assert_eq!(plain.len(), 64);
    assert_eq!(
        config("# words\ntrust_domain:   \"example.org\"\nmax_renewal_age: 168h").digest,
        plain
    );
    assert_ne!(config("trust_domain: example.com").digest, plain);
}

#[test]
fn the_store_follows_the_data_directory() {
    let config = |store: &str| config(&format!("trust_domain: a.b\ndata_dir: /d\n{store}")).store;
    assert_eq!(config(""), StoreLocation::Sqlite("/d/citadel.db".into()));
    assert_eq!(
        config("store: sqlite:s.db"),
        StoreLocation::Sqlite("s.db".into())
    );
    assert_eq!(
        config("store: sqlite:///s.db"),
        StoreLocation::Sqlite("/s.db".into())
    );
}

#[test]
fn a_store_on_postgresql_has_a_section_of_its_own() {
    let store = "store:\n  postgres:\n    url: postgres://ca@db.example:5433/citadel\n    \
                 schema: citadel\n    password_file: /run/secrets/db\n    \
                 root_certificate: /etc/db.pem\n    client_certificate: /c.pem\n    \
                 client_key: /k.pem\n";
    let StoreLocation::Postgres(options) = config(&format!("trust_domain: a.b\n{store}")).store
    else {
        panic!("another store");
    };
    assert_eq!(options.to_string(), "postgres://ca@db.example:5433/citadel");
    assert_eq!(options.schema.as_deref(), Some("citadel"));
    for (path, expected) in [
        (options.password_file, "/run/secrets/db"),
        (options.root_certificate, "/etc/db.pem"),
        (options.client_certificate, "/c.pem"),
        (options.client_key, "/k.pem"),
    ] {
        assert_eq!(path, Some(expected.into()));
    }
}

#[test]
fn each_mistake_is_named_with_its_place_and_what_to_do() {
    for (text, says) in [
        (
            "lisen: x",
            "ca.yaml:2:1: lisen: is not a known key; did you mean `listen`?",
        ),
        (
            "listen: 15012",
            "ca.yaml:2:1: listen: `15012` is not an address; write address:port",
        ),
        (
            "admin_listen: localhost:1",
            "admin_listen: `localhost:1` is not an address",
        ),
        (
            "store: mysql://db",
            "store: there is no store of the kind `mysql`; write sqlite:",
        ),
        (
            "store: postgres://u@db",
            "store: it names no database; write postgres://user@host:5432/database",
        ),
        (
            "store: postgres://u:hunter2@db/x",
            "ca.yaml:2:1: store: it holds a password, which logs and process lists would show; \
             take it out, change it, and name a file",
        ),
        (
            "store:\n  postgres:\n    url: postgres://u:hunter2@db/x",
            "ca.yaml:4:5: store.postgres.url: it holds a password",
        ),
        (
            "store: {postgres: {url: 'postgres://u@db/x?sslmode=prefer'}}",
            "store.postgres.url: its sslmode is none of verify-full",
        ),
        (
            "store: {postgres: {url: postgres://u@db/x, password: hunter2}}",
            "store.postgres.password: is not a known key; did you mean `password_file`?",
        ),
        ("store: {postgres: {}}", "url"),
        (
            "store: {postgres: {url: postgres://u@db/x, schema: 'a;b'}}",
            "store.postgres.schema: `a;b` is not the name of a schema; write",
        ),
        (
            "store: {postgres: {url: postgres://u@db/x, client_key: /k}}",
            "store.postgres.client_key: stands alone; give both",
        ),
        (
            "store: {postgres: {url: 'postgres://u@db/x?sslmode=require', root_certificate: /r}}",
            "store.postgres.root_certificate: has no effect, since the URL's sslmode",
        ),
        ("store: 'sqlite:'", "store: `sqlite:` names no file"),
        ("data_dir: ''", "data_dir: is empty"),
        (
            "clusters:\n  - name: a\n  - {name: a, kubeconfig: /k}",
            "ca.yaml:4:6: clusters[1].name: `a` is the name of clusters[0] too; give each",
        ),
        (
            "clusters: [{name: a}, {name: b}]",
            "clusters[1].kubeconfig: is missing, as in clusters[0]",
        ),
        (
            "clusters: [{name: a, kubeconfig: /k}, {name: b, kubeconfig: /k}]",
            "clusters[1].kubeconfig: /k is the kubeconfig of clusters[0] too",
        ),
        (
            "clusters: [{name: external}]",
            "clusters[0].name: `external` is reserved",
        ),
        (
            "clusters: [{name: a/b}]",
            "clusters[0].name: `a/b` is not a cluster's name",
        ),
        (
            "clusters: [{name: ..}]",
            "clusters[0].name: `..` is not a cluster's name",
        ),
        ("clusters: [{mode: local}]", "clusters[0].name: is missing"),
        (
            "clusters: [{name: a, mode: tokenreview}]",
            "clusters[0].mode: `tokenreview` is not a known value; did you mean `token_review`?",
        ),
        (
            "clusters: [{name: a, api_deadline: 0s}]",
            "clusters[0].api_deadline: 0s is out of range",
        ),
        (
            "clusters: [{name: a, max_staleness: 2d}]",
            "choose between 20s and 1d",
        ),
        ("audiences: []", "audiences: is empty"),
        ("audiences: [a, a]", "audiences[1]: `a` is there twice"),
        ("audiences: ['']", "audiences[0]: `` is not an audience"),
        (
            "id_template: ns/{namespace}",
            "id_template: an ID template is a path",
        ),
        (
            "id_template: /citadel/{account}",
            "id_template: /citadel/{account} lies under /citadel/",
        ),
        (
            "id_template: /ns/{pod}",
            "id_template: {pod} is no variable",
        ),
        (
            "allow_unbound: [web]",
            "allow_unbound[0]: `web` is not namespace/account; write namespace/",
        ),
        ("allow_unbound: [a/b/c]", "allow_unbound[0]: `a/b/c` is not"),
        (
            "agents: {accounts: [A/b]}",
            "agents.accounts[0]: `A/b` is not namespace/account",
        ),
        (
            "ca: {cacerts_dir: /c, replaces_key: xyz}",
            "ca.replaces_key: `xyz` is no key id",
        ),
        (
            "ca: {replaces_key: 00ff}",
            "ca.replaces_key: there is no other key",
        ),
        (
            "impersonation: {accounts: [a/]}",
            "impersonation.accounts[0]: `a/` is not",
        ),
        (
            "lifetimes: {min: 2h}",
            "lifetimes.default: 1h is shorter than lifetimes.min (2h)",
        ),
        (
            "lifetimes: {max: 2h}",
            "lifetimes.istio_default: 1d is longer than lifetimes.max (2h)",
        ),
        (
            "lifetimes: {min: 2d}",
            "lifetimes.min: 2d is longer than lifetimes.max (1d)",
        ),
        (
            "lifetimes: {min: 0s}",
            "lifetimes.min: 0s is out of range; choose between 1s and 90d",
        ),
        (
            "lifetimes: {max: 91d}",
            "lifetimes.max: 91d is out of range",
        ),
        (
            "lifetimes: {min: 10}",
            "ca.yaml:2:18: lifetimes.min: `10` has no unit; write 10s",
        ),
        ("max_renewal_age: 0s", "max_renewal_age: 0s is out of range"),
        (
            "log: { retention: 1h }",
            "log.retention: 1h is out of range",
        ),
        (
            "ca: {serving_ttl: 1s}",
            "ca.serving_ttl: 1s is out of range",
        ),
        (
            "ca: {dns_names: ['*.example.org']}",
            "ca.dns_names[0]: `*.example.org` is not a DNS name",
        ),
        (
            "ca: {dns_names: [a.b, A.b]}",
            "ca.dns_names[1]: `a.b` is there twice",
        ),
        (
            "bundle_configmap: {namespace: A, name: b}",
            "bundle_configmap.namespace: `A` is not",
        ),
        (
            "bundle_configmap: {namespace: a}",
            "bundle_configmap.name: is missing",
        ),
        (
            "bundle_configmap: {namespace: a, name: _}",
            "bundle_configmap.name: `_` is not",
        ),
        (
            "admin: {auditor: [root]}",
            "admin.auditor[0]: `root` is not namespace/account; write a SPIFFE",
        ),
        (
            "admin: {operator: ['spiffe://']}",
            "admin.operator[0]: `spiffe://` is not a SPIFFE ID",
        ),
        (
            "admin: {operator: ['https://a/b']}",
            "admin.operator[0]: `https://a/b` is not a SPIFFE ID",
        ),
        (
            "admin: {operator: ['spiffe://other.org/a']}",
            "is of another trust domain",
        ),
        (
            "admin: {operator: ['spiffe://example.org/citadel/agent/a/b']}",
            "is one of Citadel's own identities",
        ),
        (
            "limits: {queue: 0}",
            "limits.queue: is 0, which refuses everything; make it at least 1",
        ),
        (
            "limits: {streams_per_connection: 0}",
            "limits.streams_per_connection: is 0",
        ),
        (
            "limits: {request_deadline: 1h}",
            "limits.request_deadline: 1h is out of range",
        ),
        ("log: {level: loud}", "log.level: `loud` is not a log level"),
        (
            "log: {format: xml}",
            "log.format: `xml` is not a known value; write one of text, json",
        ),
    ] {
        let error = error(text);
        assert!(error.contains(says), "{text}:\n{error}");
    }
    let error = Config::from_yaml("ca.yaml", "trust_domain: Not A Domain")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("trust_domain: `Not A Domain` is not a trust domain"),
        "{error}"
    );
}

#[test]
fn entries_that_would_give_too_much_are_refused() {
    let good = ["id: /a", "nodes: [default/n]", "selectors: ['unix:uid:1']"];
    for (replaced, says) in [
        (
            "id: a",
            "entries[0].id: `a` does not begin with /; write the path",
        ),
        (
            "id: 'spiffe://example.org/a'",
            "entries[0].id: `spiffe://example.org/a` is a whole SPIFFE ID",
        ),
        (
            "id: /a//b",
            "entries[0].id: `/a//b` is not the path of a SPIFFE ID",
        ),
        ("id: /a b", "entries[0].id: `/a b` is not the path"),
        (
            "id: /citadel/ca",
            "entries[0].id: `/citadel/ca` is under /citadel/, which is reserved",
        ),
        (
            "id: /citadel",
            "entries[0].id: `/citadel` is under /citadel/",
        ),
        (
            "nodes: all",
            "entries[0].nodes: is `all` beside unix selectors",
        ),
        (
            "nodes: none",
            "entries[0].nodes: `none` is neither `all` nor a list",
        ),
        ("nodes: []", "entries[0].nodes: is empty"),
        (
            "nodes: [n]",
            "entries[0].nodes[0]: `n` is not <cluster>/<node>",
        ),
        (
            "nodes: [west/n]",
            "entries[0].nodes[0]: there is no cluster `west`; the clusters are default",
        ),
        (
            "nodes: null",
            "entries[0].nodes: is missing; list the nodes",
        ),
        (
            "selectors: []",
            "entries[0].selectors: is empty: every process would match",
        ),
        ("selectors: ['unix:user:me']", "entries[0].selectors[0]: "),
        ("selectors: ['docker:label:a:b']", "is no known selector"),
        (
            "selectors: ['unix:uid:me']",
            "entries[0].selectors[0]: the selector \"unix:uid:me\"",
        ),
    ] {
        let key = replaced.split(':').next().unwrap();
        let keys = good.map(|field| {
            if field.starts_with(key) {
                replaced
            } else {
                field
            }
        });
        let error = error(&format!("entries:\n  - {{{}}}", keys.join(", ")));
        assert!(error.contains(says), "{replaced}:\n{error}");
        assert!(
            error.starts_with("ca.yaml:3:") || error.contains("\n  ca.yaml:3:"),
            "{error}"
        );
    }
    let entry = good.join(", ");
    for (more, says) in [
        (
            "ttl: 5s",
            "entries[0].ttl: 5s is outside of lifetimes.min … max (10s … 1d)",
        ),
        ("ttl: 25h", "entries[0].ttl: 1d1h is outside"),
        (
            "dns_names: [10.0.0.1]",
            "entries[0].dns_names[0]: `10.0.0.1` is not a DNS name: it is an IP",
        ),
        (
            "dns_names: ['*.b.c']",
            "entries[0].dns_names[0]: `*.b.c` is a wildcard",
        ),
        (
            "dns_names: [a.b, A.B]",
            "entries[0].dns_names[1]: `a.b` is there twice",
        ),
        ("hint: \"a\\tb\"", "entries[0].hint: is longer than"),
        (
            "ttls: 1h",
            "entries[0].ttls: is not a known key; did you mean `ttl`?",
        ),
    ] {
        let error = error(&format!("entries:\n  - {{{entry}, {more}}}"));
        assert!(error.contains(says), "{more}:\n{error}");
    }
    let twice = error(&format!("entries: [{{{entry}}}, {{{entry}}}]"));
    assert!(
        twice.contains("entries[1]: has the id, nodes and selectors of entries[0]"),
        "{twice}"
    );
}

#[test]
fn the_names_of_the_ca_are_reserved() {
    let with = |ca: &str, entry: &str| {
        format!(
            "trust_domain: example.org\nca: {{dns_names: ['{ca}']}}\nentries:\n  - {{id: /a, \
             nodes: all, selectors: ['k8s:ns:a'], dns_names: ['{entry}']}}"
        )
    };
    for entry in ["ca.example.org", "CA.example.ORG", "*.example.org"] {
        let error = Config::from_yaml("ca.yaml", &with("Ca.Example.org", entry))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("covers `ca.example.org`, which is the CA's own name"),
            "{error}"
        );
        assert!(error.contains("entries[0].dns_names[0]"), "{error}");
    }
    for entry in ["cb.example.org", "a.ca.example.org", "ca.example.com"] {
        config(&with("ca.example.org", entry));
    }
}

#[test]
fn all_mistakes_are_shown_at_once() {
    let error = error("listen: x\nmax_renewal_age: 0s\naudiences: []\n");
    assert!(error.starts_with("3 problems"), "{error}");
    assert_eq!(error.lines().count(), 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_text_makes_it_panic(line in 0usize..60, text in "\\PC{0,24}") {
        let mut lines: Vec<&str> = FULL.lines().collect();
        let index = line % lines.len();
        lines.insert(index, &text);
        let _ = Config::from_yaml("ca.yaml", &lines.join("\n"));
        lines.remove(index + 1);
        let _ = Config::from_yaml("ca.yaml", &lines.join("\n"));
    }
}
