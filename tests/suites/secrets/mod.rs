//! No key and no token in any log, at the most verbose level.
//!
//! Every suite's logs are searched after it has ended. Here is traffic that
//! tempts a program to log what it should not, and the proof that the search
//! would find it.

mod proxy;
mod tampered;
mod traffic;

use std::path::Path;

use citadel_tests::dir::TestDir;
use citadel_tests::secrets::{self, Secret};

/// What this suite has registered so far.
fn registered() -> Vec<Secret> {
    let suite = std::env::var_os("CITADEL_TEST_DIR").expect("set by tests/run");
    secrets::registered_in(Path::new(&suite))
}

/// Panics if any log in these folders shows any secret, and if the search
/// would not find `planted`, written into one of the same logs.
fn searched(folders: &[&TestDir], log: &str, planted: &str) {
    for folder in folders {
        let report = secrets::scan(folder.path(), &registered());
        assert!(
            report.files > 0 && report.bytes > 1000,
            "nothing to search: {report:?}"
        );
        assert_eq!(report.findings, [], "{}", folder.path().display());
    }
    // Outside of the suite's folder, which is searched at the end.
    let copy = tempfile::tempdir().expect("a folder");
    let lines = std::fs::read_to_string(folders[0].join(log)).expect("a log");
    let with_it = format!("{lines}{{\"message\":\"got {planted}\"}}\n{lines}");
    std::fs::write(copy.path().join(log), with_it).expect("a copy");
    let report = secrets::scan(copy.path(), &registered());
    assert_eq!(
        report.findings.len(),
        1,
        "the planted one is to be found: {report:?}"
    );
}
