#![allow(clippy::unwrap_used, clippy::expect_used)]

use clap::Parser as _;

use super::*;
use crate::{
    handover::{HandoverSettings, Then},
    pods::{Source, config::PrepareFor},
};

fn load(yaml: &str, flags: &[&str]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.yaml");
    std::fs::write(&path, yaml).unwrap();
    let args = ["citadel-agent", "--config", path.to_str().unwrap()];
    ConfigArgs::parse_from(args.iter().chain(flags)).load()
}

fn problem(yaml: &str) -> String {
    load(yaml, &[]).unwrap_err().to_string()
}

#[test]
fn only_the_trust_domain_has_no_default() {
    let settings = load("trust_domain: example.org\n", &[])
        .unwrap()
        .settings()
        .unwrap();
    assert_eq!(
        settings.first_trust,
        FirstTrust::BundleFile(DEFAULT_BUNDLE_FILE.into())
    );
    assert_eq!((settings.cluster.as_str(), settings.ttl_seconds), ("", 0));
    assert!(settings.sds_files.is_empty() && settings.admin_socket.is_none());
    assert_eq!(
        default_admin_socket(&settings.socket),
        Path::new("/run/citadel-admin/agent.sock")
    );
    let missing = problem("cluster: a\n");
    assert!(missing.contains("trust_domain"), "{missing}");
}

#[test]
fn every_key_is_read() {
    let yaml = format!(
        "trust_domain: example.org\n\
         ca:\n  addresses: ['ca.a:1', '[::1]:2']\n  root_sha256: '{}'\n\
         cluster: east\ntoken_file: /t\nsocket: /s/agent.sock\n\
         admin_socket: /a/admin.sock\n\
         sds_files: [{{ folder: /files, spiffe_ids: ['spiffe://example.org/p'] }}]\n\
         admin_listen: 127.0.0.1:0\ncgroup_root: /n2\nproc_root: /host/proc\n\
         svid_ttl: 15s\n\
         limits: {{ connections: 1, connections_per_peer: 2, streams_per_connection: 3, identities: 4 }}\n\
         log: {{ level: debug, format: json }}\n",
        "ab".repeat(32)
    );
    let settings = load(&yaml, &[]).unwrap().settings().unwrap();
    assert_eq!(settings.first_trust, FirstTrust::RootSha256([0xab; 32]));
    assert_eq!(settings.addresses.len(), 2);
    assert_eq!(
        (settings.cluster.as_str(), settings.ttl_seconds),
        ("east", 15)
    );
    assert_eq!(settings.admin_socket.unwrap(), Path::new("/a/admin.sock"));
    assert_eq!(settings.sds_files[0].folder, Path::new("/files"));
    assert_eq!(settings.sds_files[0].spiffe_ids.len(), 1);
    assert_eq!(settings.limits.streams_per_connection, 3);
    assert_eq!(settings.manager.identities, 4);
}

#[test]
fn folders_of_certificates_are_read() {
    let yaml = "trust_domain: a.org\n\
        files:\n\
        - directory: /etc/db/tls\n  owner: root\n  combined: true\n  spiffe_id: spiffe://a.org/db\n  \
          key_mode: '0640'\n  reload: { pid_file: /run/db.pid, signal: USR1, \
          command: [db, reload], http: 'http://127.0.0.1:1/x' }\n\
        - { directory: /etc/web/tls, owner: '4242' }\n";
    let rules = load(yaml, &[]).unwrap().settings().unwrap().files;
    assert_eq!(rules[0].owner, (0, 0));
    assert_eq!(rules[0].access.key_mode, 0o640);
    assert_eq!(rules[0].reload.command, ["db", "reload"]);
    assert!(rules[0].combined && !rules[1].combined);
    assert!(rules[0].reload.signal.is_some() && rules[0].reload.http.is_some());
    assert_eq!(rules[1].owner, (4242, 4242));
    assert_eq!(
        (&rules[1].spiffe_id, rules[1].access.key_mode),
        (&None, 0o600)
    );
    for (rule, key) in [
        ("directory: tls, owner: root", "files[0].directory"),
        ("directory: /tls", "files[0].owner"),
        ("directory: /tls, owner: nobody-at-all", "files[0].owner"),
        (
            "directory: /tls, owner: root, group: no-group",
            "files[0].group",
        ),
        (
            "directory: /tls, owner: root, spiffe_id: 'spiffe://b.org/x'",
            "files[0].spiffe_id",
        ),
        (
            "directory: /tls, owner: root, key_mode: '0644'",
            "files[0].key_mode",
        ),
        (
            "directory: /tls, owner: root, reload: { signal: HUP }",
            "files[0].reload.signal",
        ),
        (
            "directory: /tls, owner: root, reload: { pid_file: /p, signal: KILL }",
            "files[0].reload.signal",
        ),
        (
            "directory: /tls, owner: root, reload: { http: 'http://b.org/' }",
            "files[0].reload.http",
        ),
    ] {
        let problem = problem(&format!("trust_domain: a.org\nfiles: [{{ {rule} }}]\n"));
        assert!(problem.contains(key), "{rule}: {problem}");
    }
    let twice = "trust_domain: a.org\nfiles: [{directory: /a, owner: root}, {directory: /a, owner: root}]\n";
    assert!(problem(twice).contains("files[1].directory"));
}

#[test]
fn flags_beat_the_file() {
    let flags = [
        "--trust-domain",
        "b.org",
        "--svid-ttl",
        "20s",
        "--ca-address",
        "x:1,y:2",
    ];
    let config = load("trust_domain: a.org\nsvid_ttl: 10s\n", &flags).unwrap();
    assert_eq!(config.trust_domain, "b.org");
    assert_eq!(config.ca.addresses, ["x:1", "y:2"]);
    assert_eq!(config.settings().unwrap().ttl_seconds, 20);
}

#[test]
fn what_is_wrong_is_named_with_its_key_and_line() {
    let unknown = problem("trust_domain: a.org\nsokcet: /x\n");
    assert!(
        unknown.contains("sokcet") && unknown.contains('2'),
        "{unknown}"
    );
    for (yaml, key) in [
        ("ca: { addresses: [nonsense] }", "ca.addresses[0]"),
        ("ca: { addresses: [] }", "ca.addresses"),
        ("ca: { root_sha256: abc }", "ca.root_sha256"),
        (
            "ca: { bundle_file: /x, root_sha256: abc }",
            "ca.root_sha256",
        ),
        ("socket: agent.sock", "socket"),
        ("admin_socket: agent.sock", "admin_socket"),
        ("admin_socket: /run/citadel/admin.sock", "admin_socket"),
        (
            "sds_files: [{ folder: x, spiffe_ids: [spiffe://a/b] }]",
            "sds_files[0].folder",
        ),
        (
            "sds_files: [{ folder: /x, spiffe_ids: [] }]",
            "sds_files[0].spiffe_ids",
        ),
        (
            "sds_files: [{ folder: /x, spiffe_ids: [b] }]",
            "sds_files[0].spiffe_ids[0]",
        ),
        ("sds_files: [{ folder: /x }]", "spiffe_ids"),
        ("cgroup_root: n2", "cgroup_root"),
        ("proc_root: proc", "proc_root"),
        ("svid_ttl: 0s", "svid_ttl"),
        ("svid_ttl: soon", "svid_ttl"),
        ("cluster: 'a b'", "cluster"),
        ("limits: { connections: 0 }", "limits.connections"),
        ("log: { format: xml }", "log.format"),
        ("ca: { address: x }", "address"),
    ] {
        let problem = problem(&format!("trust_domain: a.org\n{yaml}\n"));
        assert!(problem.contains(key), "{yaml}: {problem}");
    }
    let domain = problem("trust_domain: 'spiffe://A.org/x'\n");
    assert!(domain.contains("trust_domain"), "{domain}");
}

#[test]
fn the_pods_of_the_node_are_read_where_that_is_configured() {
    let settings = |yaml: &str, flags: &[&str]| {
        let yaml = format!("trust_domain: example.org\nsocket: /s/agent.sock\n{yaml}");
        load(&yaml, flags).unwrap().settings().unwrap().pods
    };
    assert!(settings("", &["--node-name", "n1", "--kubelet", "10.0.0.7"]).is_none());
    let pods = settings("pods: { source: api_server, node: n1 }\n", &[]).unwrap();
    assert!(matches!(pods.source, Source::ApiServer { node, kubeconfig: None } if node == "n1"));
    assert_eq!(
        (pods.prepare, pods.limit, pods.keep.as_secs()),
        (PrepareFor::Mounted, 512, 300)
    );
    assert_eq!(pods.folder, PathBuf::from("/s"));
    let yaml = "svid_ttl: 15s\npods: { source: kubelet, kubelet_port: 1, kubelet_ca_file: /ca, \
                kubelet_token_file: /t, prepare: all, prepare_limit: 2, prepare_keep: 7s }\n";
    let pods = settings(yaml, &["--node-name", "n2", "--kubelet", "fd00::7"]).unwrap();
    let Source::Kubelet { node, address, .. } = pods.source else {
        panic!("the kubelet");
    };
    assert_eq!(
        (node.as_str(), address.to_string().as_str()),
        ("n2", "[fd00::7]:1")
    );
    assert_eq!(
        (
            pods.prepare,
            pods.limit,
            pods.keep.as_secs(),
            pods.ttl_seconds
        ),
        (PrepareFor::All, 2, 7, 15)
    );
}

#[test]
fn what_is_wrong_with_the_pods_source_is_named() {
    for (pods, expected) in [
        ("{ source: api_server }", "pods.node"),
        ("{ source: api_server, node: 'a/b' }", "pods.node"),
        ("{ source: kubelet, node: n1 }", "pods.kubelet"),
        ("{ source: docker, node: n1 }", "docker"),
        ("{ node: n1 }", "source"),
        (
            "{ source: api_server, node: n1, prepare_keep: 0s }",
            "pods.prepare_keep",
        ),
        (
            "{ source: api_server, node: n1, kubelet_adress: 10.0.0.1 }",
            "kubelet_adress",
        ),
    ] {
        let told = problem(&format!("trust_domain: example.org\npods: {pods}\n"));
        assert!(told.contains(expected), "{pods}: {told}");
    }
}

#[test]
fn who_takes_over_asks_in_the_folder_of_the_administrators() {
    let handover = |yaml: &str| {
        let yaml = format!("trust_domain: example.org\n{yaml}");
        load(&yaml, &[]).unwrap().settings().unwrap().handover
    };
    let at = |path: &str, then| {
        let socket = PathBuf::from(path);
        Some(HandoverSettings { socket, then })
    };
    assert_eq!(
        handover(""),
        at("/run/citadel-admin/handover.sock", Then::Exit)
    );
    assert_eq!(
        handover("admin_socket: /run/own/agent.sock\nhandover: { then: wait }\n"),
        at("/run/own/handover.sock", Then::Wait)
    );
    assert_eq!(handover("handover: { enabled: false }\n"), None);
    let told = problem("trust_domain: example.org\nhandover: { then: stay }\n");
    assert!(told.contains("stay"), "{told}");
}
