#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::HumanDuration;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sample {
    listen: String,
    ttl: HumanDuration,
    address: SocketAddr,
    mode: Mode,
    workers: u16,
    enabled: bool,
    clusters: Vec<Cluster>,
    limits: Limits,
    nested: Option<Limits>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    #[default]
    Local,
    TokenReview,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cluster {
    name: String,
    #[serde(default)]
    deadline: HumanDuration,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    queue: u32,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            listen: String::new(),
            ttl: HumanDuration::default(),
            address: ([127, 0, 0, 1], 1).into(),
            mode: Mode::Local,
            workers: 1,
            enabled: false,
            clusters: Vec::new(),
            limits: Limits::default(),
            nested: None,
        }
    }
}

fn error(text: &str) -> String {
    Document::from_text("ca.yaml", text)
        .parse::<Sample>()
        .unwrap_err()
        .to_string()
}

#[test]
fn a_good_file_and_an_empty_one_parse() {
    let text =
        "listen: x\nttl: 1h30m\nmode: token_review\nclusters:\n  - {name: a, deadline: 3s}\n";
    let sample: Sample = Document::from_text("ca.yaml", text).parse().unwrap();
    assert_eq!(sample.ttl, HumanDuration::from_mins(90));
    assert_eq!(sample.clusters[0].name, "a");
    assert_eq!(sample.clusters[0].deadline, HumanDuration::from_secs(3));
    assert!(matches!(sample.mode, Mode::TokenReview));
    assert_eq!(
        (sample.listen.as_str(), sample.workers, sample.enabled),
        ("x", 1, false)
    );
    assert!(sample.nested.is_none() && sample.limits.queue == 0);
    assert_eq!(sample.address.port(), 1);
    for empty in ["", "# nothing\n", "---\n"] {
        Document::from_text("ca.yaml", empty)
            .parse::<Sample>()
            .unwrap();
    }
    Document::empty().parse::<Sample>().unwrap();
}

#[test]
fn errors_name_file_line_key_and_fix() {
    for (text, says) in [
        (
            "listen: a\nlisten_on: b\n",
            "ca.yaml:2:1: listen_on: is not a known key; ",
        ),
        (
            "lisen: a\n",
            "ca.yaml:1:1: lisen: is not a known key; did you mean `listen`?",
        ),
        ("zzz: a\n", "write one of listen, ttl, address"),
        (
            "limits:\n  quue: 1\n",
            "ca.yaml:2:3: limits.quue: is not a known key; did you mean `queue`?",
        ),
        (
            "clusters:\n  - name: a\n  - name: b\n    dedline: 1s\n",
            "ca.yaml:4:5: clusters[1].dedline: is not a known key; did you mean `deadline`?",
        ),
        (
            "clusters:\n  - deadline: 1s\n",
            "ca.yaml:2:5: clusters[0].name: is missing; set it",
        ),
        (
            "clusters: [{deadline: 1s}]\n",
            "ca.yaml:1:13: clusters[0].name: is missing; set it",
        ),
        ("clusters: [{}]\n", "clusters[0].name: is missing; set it"),
        (
            "clusters:\n  - {name: a}\n  -\n",
            "clusters[1].name: is missing; set it",
        ),
        (
            "ttl: 15\n",
            "ca.yaml:1:6: ttl: `15` has no unit; write 15s, 15m, 15h or 15d",
        ),
        (
            "limits: {queue: many}\n",
            "ca.yaml:1:17: limits.queue: is not a whole number",
        ),
        (
            "workers: 70000\n",
            "workers: is not a whole number from 0 to 65535",
        ),
        (
            "workers: -1\n",
            "workers: is not a whole number from 0 to 65535",
        ),
        ("enabled: maybe\n", "enabled: is not true or false"),
        (
            "mode: tokenreview\n",
            "mode: `tokenreview` is not a known value; did you mean `token_review`?",
        ),
        (
            "clusters: a\n",
            "clusters: has another shape: a list is expected here",
        ),
        (
            "limits: a\n",
            "limits: has another shape: keys with values are expected here",
        ),
        (
            "listen: [a]\n",
            "ca.yaml:1:9: listen: has another shape: a single text is expected here",
        ),
        ("listen: ~\n", "listen: is empty; give it a value"),
        (
            "listen: a\nttl: 1s\nlisten: b\n",
            "ca.yaml:3:1: listen: is there twice; keep one",
        ),
        (
            "listen: a\n---\nlisten: b\n",
            "a second document begins here",
        ),
        ("listen: 'a\n", "ca.yaml:2"),
        ("listen: *a\n", "ca.yaml:1:9: "),
        ("- a\n", "ca.yaml:1:1: has another shape: keys with values"),
        ("address: nowhere\n", "ca.yaml:1:10: address: "),
    ] {
        let error = error(text);
        assert!(error.contains(says), "{text:?}: {error}");
        assert!(
            !error.contains("Options") && !error.contains("serde"),
            "{error}"
        );
    }
}

#[test]
fn all_problems_are_shown_each_with_its_origin() {
    let text = "listen: nowhere\nclusters:\n  - name: a\n  - name: a\n";
    let mut document = Document::from_text("ca.yaml", text);
    let _: Sample = document.parse().unwrap();
    document.overridden("ttl", "--ttl or CITADEL_TTL");
    let mut checker = document.checker();
    assert!(checker.is_clean());
    checker.problem(
        "clusters[1].name",
        "`a` is taken by clusters[0]",
        "give it another name",
    );
    checker.problem("ttl", "is shorter than a second", "make it longer");
    checker.problem(
        "clusters[1].kubeconfig",
        "does not exist",
        "name an existing file",
    );
    checker.take(
        "listen",
        "nowhere".parse::<SocketAddr>(),
        "write address:port",
    );
    let error = checker.finish().unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines[0], "4 problems in the configuration");
    assert_eq!(
        lines[1],
        "  ca.yaml:4:5: clusters[1].name: `a` is taken by clusters[0]; give it another name"
    );
    assert!(
        lines[2].contains("--ttl or CITADEL_TTL: ttl: is shorter"),
        "{error}"
    );
    // A key that is not in the file stands where what is around it stands.
    assert!(
        lines[3].contains("ca.yaml:4:5: clusters[1].kubeconfig"),
        "{error}"
    );
    assert!(
        lines[4].contains("ca.yaml:1:1: listen: invalid socket address"),
        "{error}"
    );
    document.checker().finish().unwrap();
}

#[test]
fn without_a_file_only_the_key_is_named() {
    let document = Document::empty();
    let mut checker = document.checker();
    checker.problem("trust_domain", "is not set", "set it");
    assert_eq!(
        checker.finish().unwrap_err().to_string(),
        "trust_domain: is not set; set it"
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none.yaml");
    let error = load_yaml::<Sample>(&missing).unwrap_err().to_string();
    assert!(
        error.contains("none.yaml: cannot be read: No such file"),
        "{error}"
    );

    let large = directory.path().join("large.yaml");
    std::fs::write(&large, vec![b'#'; (4 << 20) + 1]).unwrap();
    let error = load_yaml::<Sample>(&large).unwrap_err().to_string();
    assert!(error.contains("larger than 4 MiB"), "{error}");

    let binary = directory.path().join("binary.yaml");
    std::fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
    load_yaml::<Sample>(&binary).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_text_makes_it_panic(text in "[a-z:\\-\\[\\]{}&*'\"#|> \n\t,!?%@`~0-9é]{0,120}") {
        let document = Document::from_text("ca.yaml", text);
        let _ = document.parse::<Sample>();
        document.checker().problem("clusters[3].name", "x", "y");
    }
}
