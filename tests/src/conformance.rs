//! `docs/spiffe-conformance.md` against the tree: a requirement that the document claims
//! has tests of its number where it says, and no such test is left out of it. The same for
//! the rules of SDS in its second table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A numbered checklist.
struct List {
    /// How names of tests begin.
    prefix: &'static str,
    /// What stands before the number in the document's table.
    row: &'static str,
    numbers: std::ops::RangeInclusive<u32>,
}

/// The standards'.
const SPIFFE: List = List {
    prefix: "spiffe_req_",
    row: "",
    numbers: 1..=41,
};

/// Envoy's SDS: our own.
const SDS: List = List {
    prefix: "sds_req_",
    row: "SDS-",
    numbers: 1..=24,
};

/// Where tests of a number are: the crate's folder, and the parts of the file's path.
type Places = BTreeMap<u32, BTreeSet<(String, Vec<String>)>>;

#[test]
fn the_document_and_the_tests_name_the_same_requirements() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = std::fs::read_to_string(root.join("docs/spiffe-conformance.md")).unwrap();
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let mut problems = Vec::new();
    for list in [SPIFFE, SDS] {
        let mut places = Places::new();
        for file in &files {
            let text = std::fs::read_to_string(file).unwrap();
            let path = file.strip_prefix(&root).unwrap();
            note_tests(&list, path, &text, &mut places);
        }
        problems.extend(differences(&list, &document, &places));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What is wrong with the document, or with the tests' names.
fn differences(list: &List, document: &str, places: &Places) -> Vec<String> {
    let (prefix, row) = (list.prefix, list.row);
    let mut problems = Vec::new();
    let mut claimed = BTreeSet::new();
    for line in document.lines() {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, _, tests] = cells.as_slice() else {
            continue;
        };
        let number = number.strip_prefix(row).unwrap_or_default();
        let Ok(number) = number.parse::<u32>() else {
            continue;
        };
        if !claimed.insert(number) {
            problems.push(format!("{row}{number} has two rows"));
        }
        let mentions = mentions(tests);
        let found = places.get(&number).cloned().unwrap_or_default();
        for (folder, module) in &mentions {
            let here = |place: &(String, Vec<String>)| {
                place.0 == *folder && place.1.iter().any(|part| part == module)
            };
            if !found.iter().any(here) {
                problems.push(format!(
                    "{row}{number}: no {prefix}{number:02}_… in {folder}: {module}"
                ));
            }
        }
        for (folder, parts) in &found {
            let told = mentions
                .iter()
                .any(|(crate_, module)| crate_ == folder && parts.contains(module));
            if !told {
                let path = parts.join("/");
                problems.push(format!(
                    "{row}{number}: its row leaves out {folder}: {path}"
                ));
            }
        }
        if found.is_empty() {
            problems.push(format!(
                "{row}{number}: no test {prefix}{number:02}_… anywhere"
            ));
        }
    }
    for number in places.keys().filter(|number| !claimed.contains(number)) {
        problems.push(format!("{row}{number}: it has a test, and no row"));
    }
    let unbuilt = document
        .split_once("Not built yet:")
        .map_or("", |(_, rest)| rest);
    let unbuilt = numbers_in_text(unbuilt);
    for number in list.numbers.clone() {
        let unbuilt = row.is_empty() && unbuilt.contains(&number);
        if !claimed.contains(&number) && !unbuilt {
            problems.push(format!(
                "{row}{number}: neither a row nor \"not built yet\""
            ));
        }
    }
    problems
}

/// ``identity: `bundles`, `tls`; suite: `workload_api` `` as pairs of folder and module.
fn mentions(tests: &str) -> Vec<(String, String)> {
    let groups = tests.split(';').filter_map(|group| group.split_once(':'));
    groups
        .flat_map(|(folder, modules)| {
            let folder = match folder.trim() {
                "suite" => "tests",
                other => other,
            };
            let modules = modules.split('`').skip(1).step_by(2);
            modules.map(|module| (folder.to_owned(), module.to_owned()))
        })
        .collect()
}

/// `35, 37–41` as numbers.
fn numbers_in_text(text: &str) -> BTreeSet<u32> {
    let words = text.split(|c: char| !c.is_ascii_digit() && c != '–');
    words
        .flat_map(|word| {
            let mut ends = word.split('–').filter_map(|end| end.parse::<u32>().ok());
            let first = ends.next();
            let last = ends.next().or(first);
            let range = first.zip(last).map(|(first, last)| first..=last);
            range.into_iter().flatten()
        })
        .collect()
}

/// Notes the tests of a file by their numbers. A function that is no test counts for
/// nothing.
fn note_tests(list: &List, path: &Path, text: &str, places: &mut Places) {
    let mut parts: Vec<String> = path
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    let folder = parts.remove(0);
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            continue;
        }
        let name = line
            .strip_prefix("async ")
            .unwrap_or(line)
            .strip_prefix("fn ");
        if let Some(name) = name.and_then(|name| name.strip_prefix(list.prefix))
            && is_test
        {
            let numbers = numbers_of(name);
            assert!(
                !numbers.is_empty(),
                "{}: {}{name}: two digits follow",
                path.display(),
                list.prefix
            );
            for number in numbers {
                let place = (folder.clone(), parts.clone());
                places.entry(number).or_default().insert(place);
            }
        }
        if !line.is_empty() && !line.starts_with("//") {
            is_test = false;
        }
    }
}

/// `06_to_12_…` is a range, `09_11_…` are two; each has two digits.
fn numbers_of(name: &str) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    let mut last = None;
    let mut range = false;
    for word in name.split('_') {
        let number = (word.len() == 2)
            .then(|| word.parse::<u32>().ok())
            .flatten();
        match (number, last) {
            (Some(number), Some(from)) if range => {
                numbers.extend(from..=number);
                range = false;
            }
            (Some(number), _) => {
                numbers.insert(number);
            }
            (None, Some(_)) if word == "to" && !range => {
                range = true;
                continue;
            }
            (None, _) => break,
        }
        last = number;
    }
    numbers
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        let name = entry.file_name();
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                rust_files(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn each_kind_of_difference_is_found() {
    let mut places = Places::new();
    let text = "#[test]\nfn spiffe_req_01_to_03_a() {}\n\n/// Why.\n#[tokio::test]\n/// More.\n\
                async fn spiffe_req_05_07_b() {}\nfn spiffe_req_09_no_test() {}\n";
    let path = Path::new("identity/src/template.rs");
    note_tests(&SPIFFE, path, text, &mut places);
    assert_eq!(places.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 5, 7]);

    let rest = "Not built yet: 4, 6 (recommended), 8–41.";
    let row = |number: u32, tests: &str| format!("| {number} | what | {tests} |\n");
    let rows: String = [1, 2, 3, 5, 7]
        .map(|n| row(n, "identity: `template`"))
        .concat();
    let whole = format!("{rows}\n{rest}");
    assert_eq!(differences(&SPIFFE, &whole, &places), [""; 0]);
    for (changed, problem) in [
        (
            whole.replace(&row(7, "identity: `template`"), ""),
            "7: it has a test, and no row",
        ),
        (whole.replace("8–41", "8–40"), "41: neither a row"),
        (
            format!("{}{whole}", row(4, "cli: `fetch`")),
            "4: no test spiffe_req_04_",
        ),
        (
            whole.replacen("`template`", "`template`, `tls`", 1),
            "1: no spiffe_req_01_… in identity: tls",
        ),
        (
            whole.replacen("identity: `template`", "cli: `template`", 1),
            "1: its row leaves out identity: src/template",
        ),
    ] {
        let problems = differences(&SPIFFE, &changed, &places).join("\n");
        assert!(problems.contains(problem), "{problem}: {problems}");
    }

    // The lists are apart.
    let mut of_sds = Places::new();
    let text = "#[test]\nfn sds_req_01_to_24_a() {}\n#[test]\nfn spiffe_req_01_b() {}\n";
    note_tests(&SDS, Path::new("node-agent/src/sds.rs"), text, &mut of_sds);
    assert_eq!(of_sds.len(), 24);
    let row = |number: u32| format!("| SDS-{number} | what | node-agent: `sds` |\n");
    let rows = (1..=23).map(row).collect::<Vec<_>>().concat();
    let problems = differences(&SDS, &format!("{rows}{rest}"), &of_sds);
    assert_eq!(
        problems,
        [
            "SDS-24: it has a test, and no row",
            "SDS-24: neither a row nor \"not built yet\""
        ]
    );
    assert_eq!(
        differences(&SPIFFE, &format!("{whole}{rows}"), &places),
        [""; 0]
    );
}
