//! What the documents say of the tests is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A promise whose test was renamed or removed is held by nothing.
#[test]
fn every_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tree");
    let tests = test_names(root);
    let text = fs::read_to_string(root.join("SECURITY.md")).expect("SECURITY.md");
    let named: Vec<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.contains("::") && !code.contains(' '))
        .filter(|code| *code != "suite::file::test")
        .collect();
    assert!(named.len() > 60, "only {} tests are named", named.len());
    let missing: Vec<&&str> = named
        .iter()
        .filter(|path| !tests.contains(path.rsplit("::").next().unwrap_or_default()))
        .collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

/// The names of all functions that stand below a test's attribute.
fn test_names(root: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in sources(root) {
        let text = fs::read_to_string(&file).expect("a source file");
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            is_test |= line.starts_with("#[test") || line.starts_with("#[tokio::test");
            let name = line
                .strip_prefix("async fn ")
                .or_else(|| line.strip_prefix("fn "))
                .and_then(|rest| rest.split_once('('))
                .map(|(name, _)| name);
            if let Some(name) = name {
                if is_test {
                    names.insert(name.to_owned());
                }
                is_test = false;
            }
        }
    }
    names
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
