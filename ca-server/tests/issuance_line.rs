//! The issuance line holds by construction: what skips a stage does not compile.
//!
//! The cases are compiled against the library that these tests were built with, by
//! `rustc` alone: nothing is built a second time, and what counts is the error's code
//! and its place, not the compiler's wording.
#![allow(clippy::expect_used, reason = "a panic is a failed test")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

/// The one order that compiles. Without it the cases below could fail for a reason of
/// their surroundings.
#[test]
fn the_whole_line_compiles() {
    assert_eq!(compile("whole_line"), Vec::<Error>::new());
}

#[test]
fn an_unlinted_certificate_cannot_be_signed() {
    fails("sign_unlinted", MISMATCH, "template");
}

#[test]
fn a_prepared_certificate_cannot_be_signed_before_its_intent() {
    fails("sign_unintended", NO_METHOD, "sign");
}

#[test]
fn an_unrecorded_certificate_cannot_be_released() {
    fails("release_unrecorded", NO_METHOD, "release");
}

#[test]
fn a_certificate_is_recorded_once() {
    fails("record_twice", MOVED, "signed");
}

#[test]
fn nobody_but_the_policy_makes_a_grant() {
    fails("make_grant", PRIVATE, "lifetime");
}

#[test]
fn nobody_but_the_linters_stage_makes_what_is_signed() {
    fails("make_prepared", PRIVATE, "template");
}

const MISMATCH: &str = "E0308";
const MOVED: &str = "E0382";
const NO_METHOD: &str = "E0599";
const PRIVATE: &str = "E0451";

/// An error's code, and the code that it points to.
#[derive(Debug, PartialEq)]
struct Error {
    code: String,
    at: String,
}

/// Panics unless this case has an error of this code at this piece of it.
fn fails(case: &str, code: &str, at: &str) {
    let errors = compile(case);
    assert!(
        errors
            .iter()
            .any(|e| e.code == code && e.at.starts_with(at)),
        "{case} should fail with {code} at `{at}`: {errors:#?}"
    );
}

fn compile(case: &str) -> Vec<Error> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/compile_fail")
        .join(case)
        .with_extension("rs");
    let dependencies = dependencies();
    let out = tempfile::tempdir().expect("a folder");
    let run = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition=2024", "--crate-type=bin", "--emit=metadata"])
        .args(["--error-format=json", "--out-dir"])
        .arg(out.path())
        .arg("-L")
        .arg(format!("dependency={}", dependencies.display()))
        .arg(format!(
            "--extern=citadel_ca_server={}",
            newest(&dependencies).display()
        ))
        .arg(&file)
        .output()
        .expect("rustc");
    let messages = String::from_utf8(run.stderr).expect("UTF-8");
    let errors: Vec<Error> = messages.lines().filter_map(error).collect();
    assert_eq!(
        run.status.success(),
        errors.is_empty(),
        "{case}: {messages}"
    );
    errors
}

fn error(message: &str) -> Option<Error> {
    let message: serde_json::Value = serde_json::from_str(message).expect("JSON");
    if message["level"] != "error" || message["spans"] == serde_json::json!([]) {
        return None;
    }
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let spans = message["spans"].as_array().expect("spans");
    let span = spans.iter().find(|span| span["is_primary"] == true)?;
    let line: Vec<char> = text(&span["text"][0]["text"]).chars().collect();
    let column = |name: &str| {
        let number = span[name].as_u64().expect("a column");
        usize::try_from(number).expect("a column") - 1
    };
    Some(Error {
        code: text(&message["code"]["code"]),
        at: line[column("column_start")..column("column_end")]
            .iter()
            .collect(),
    })
}

/// The folder that this test lies in is the one that its libraries lie in.
fn dependencies() -> PathBuf {
    let test = env::current_exe().expect("the test's path");
    test.parent().expect("a folder").to_owned()
}

/// Several builds of the library may lie beside each other (other features). This test's
/// own is up to date, and so is any that is newer.
fn newest(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).expect("the folder");
    let libraries = files.filter_map(|file| {
        let path = file.expect("a file").path();
        let name = path.file_stem()?.to_str()?;
        let is_library = name.starts_with("libcitadel_ca_server-")
            && path
                .extension()
                .is_some_and(|extension| extension == "rlib");
        let time = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
        is_library.then(|| (time(&path).unwrap_or(SystemTime::UNIX_EPOCH), path))
    });
    let newest = libraries.max().map(|(_, path)| path);
    newest.unwrap_or_else(|| panic!("no library in {}", folder.display()))
}
