//! Searches a suite's logs for the secrets that the suite made.
#![allow(
    clippy::print_stdout,
    reason = "its output is for the person who runs the tests"
)]

use std::path::Path;
use std::process::ExitCode;

use citadel_tests::secrets;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        println!("usage: citadel-test-scan SUITE-FOLDER");
        return ExitCode::from(2);
    };
    let folder = Path::new(&folder);
    let registered = secrets::registered_in(folder);
    let report = secrets::scan(folder, &registered);
    for finding in &report.findings {
        println!("{}: {}", finding.file.display(), finding.what);
    }
    println!(
        "{} secrets, {} logs of {} KB searched, {} found",
        registered.len(),
        report.files,
        report.bytes / 1024,
        report.findings.len()
    );
    if report.findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
