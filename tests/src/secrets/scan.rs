//! Searches log files.

use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;

use super::{Secret, forms};

/// A secret in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The log.
    pub file: PathBuf,
    /// What the secret is, and how it was written.
    pub what: String,
}

/// What a scan did.
#[derive(Clone, Debug)]
pub struct Report {
    /// How many files were read.
    pub files: usize,
    /// How many bytes.
    pub bytes: u64,
    /// What was found; at most one of a kind in a file.
    pub findings: Vec<Finding>,
}

/// Searches every log (`*.log`, `*.out`, `log`) in `folder` and below it for
/// every form of every secret, and for private keys in PEM, whosever they are.
pub fn scan(folder: &Path, secrets: &[Secret]) -> Report {
    let (what, patterns): (Vec<_>, Vec<_>) = patterns(secrets).into_iter().unzip();
    let automaton = AhoCorasick::new(patterns).expect("an automaton");
    let mut report = Report {
        files: 0,
        bytes: 0,
        findings: Vec::new(),
    };
    let mut files = Vec::new();
    collect(folder, &mut files);
    for file in files {
        let text = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        report.files += 1;
        report.bytes += text.len() as u64;
        for text in [&text, &unwrapped(&text)] {
            for found in automaton.find_iter(text) {
                let finding = Finding {
                    file: file.clone(),
                    what: what[found.pattern()].clone(),
                };
                if !report.findings.contains(&finding) {
                    report.findings.push(finding);
                }
            }
        }
    }
    report
}

fn patterns(secrets: &[Secret]) -> Vec<(String, Vec<u8>)> {
    let mut patterns = vec![(
        "a private key in PEM".to_owned(),
        b"PRIVATEKEY-----".to_vec(),
    )];
    for secret in secrets {
        for (form, pattern) in forms::of(&secret.fragment) {
            patterns.push((format!("{}, {form}", secret.label), pattern));
        }
    }
    patterns
}

/// The text without white space and written-out line ends, so that wrapped
/// base64 and lists of numbers are in one piece.
fn unwrapped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let line_end = byte == b'\\' && matches!(bytes.peek(), Some(b'n' | b'r'));
        if line_end {
            bytes.next();
        } else if !byte.is_ascii_whitespace() {
            out.push(byte);
        }
    }
    out
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries {
        let entry = entry.expect("a folder's entry");
        let path = entry.path();
        let kind = entry.file_type().expect("a file's type");
        if kind.is_dir() {
            collect(&path, files);
        } else if kind.is_file() && is_log(&path) {
            files.push(path);
        }
    }
}

fn is_log(path: &Path) -> bool {
    path.extension()
        .is_some_and(|kind| kind == "log" || kind == "out")
        || path.ends_with("log")
}
