//! Where the testbed's real parts are.

use std::path::PathBuf;

/// A part that `tests/testbed/provision` wrote down: `ETCD`, `ENVOY`, …
pub fn part(name: &str) -> PathBuf {
    variable(&format!("CITADEL_TESTBED_{name}")).into()
}

/// A program of this workspace, built beside the test program.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test program's own path");
    let folder = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("target/debug/deps");
    let program = folder.join(name);
    assert!(
        program.exists(),
        "{} is not built: run the suites by tests/run",
        program.display()
    );
    program
}

pub(crate) fn variable(name: &str) -> std::ffi::OsString {
    std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set: run the suites by tests/run"))
}
