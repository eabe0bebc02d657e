//! Secrets that the harness made, none of which may show up in a log.
//!
//! Every key and token is registered when it is made. When a suite has ended,
//! `tests/run` has all its logs searched for all of them (`citadel-test-scan`),
//! and a find fails the run. A suite can look earlier with [`assert_none_in`].

mod forms;
mod fragment;
mod scan;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

pub use scan::{Finding, Report, scan};

use crate::dir::suite_dir;

/// The file in a suite's folder that hands the secrets to the scan.
const FILE: &str = "secrets";

static REGISTERED: Mutex<Vec<Secret>> = Mutex::new(Vec::new());

/// A part of a secret that is secret itself, and long enough to be no accident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    label: String,
    fragment: Vec<u8>,
}

/// Registers a bearer token.
pub fn register_token(label: &str, token: &str) {
    register(label, fragment::of_token(token));
}

/// Registers a private key in DER: PKCS#8, SEC 1 or PKCS#1.
pub fn register_key(label: &str, der: &[u8]) {
    register(label, fragment::of_key(der));
}

/// Registers each private key in a PEM text.
pub fn register_key_pem(label: &str, pem: &str) {
    let mut keys = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.expect("PEM");
        if block.label.ends_with("PRIVATE KEY") {
            register_key(label, &block.contents);
            keys += 1;
        }
    }
    assert!(keys > 0, "{label}: no private key in this PEM text");
}

/// Registers the private keys in a PEM file, such as a CA's own.
pub fn register_key_file(label: &str, path: &Path) {
    let pem = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    register_key_pem(label, &pem);
}

/// Makes a random bearer token, and registers it.
pub fn random_token(label: &str) -> String {
    let mut random = [0; 32];
    let mut source = std::fs::File::open("/dev/urandom").expect("random bytes");
    std::io::Read::read_exact(&mut source, &mut random).expect("random bytes");
    let token = URL_SAFE_NO_PAD.encode(random);
    register_token(label, &token);
    token
}

/// Panics if a log in `folder` or below it shows a secret registered so far.
pub fn assert_none_in(folder: &Path) {
    let secrets = REGISTERED
        .lock()
        .expect("no panic while it is held")
        .clone();
    let report = scan(folder, &secrets);
    assert!(
        report.findings.is_empty(),
        "secrets in logs: {:#?}",
        report.findings
    );
}

/// What the test program of a suite registered, read back by another program.
pub fn registered_in(suite: &Path) -> Vec<Secret> {
    let Ok(text) = std::fs::read_to_string(suite.join(FILE)) else {
        return Vec::new();
    };
    text.lines().map(Secret::from_line).collect()
}

fn register(label: &str, fragment: Vec<u8>) {
    let secret = Secret {
        label: label.into(),
        fragment,
    };
    let mut registered = REGISTERED.lock().expect("no panic while it is held");
    if registered.contains(&secret) {
        return;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(suite_dir().join(FILE))
        .expect("the suite's list of secrets");
    writeln!(file, "{}", secret.to_line()).expect("the suite's list of secrets");
    registered.push(secret);
}

impl Secret {
    fn to_line(&self) -> String {
        format!("{} {}", hex::encode(&self.fragment), self.label)
    }

    fn from_line(line: &str) -> Self {
        let (fragment, label) = line.split_once(' ').expect("a line of ours");
        Self {
            label: label.into(),
            fragment: hex::decode(fragment).expect("a line of ours"),
        }
    }
}
