//! The blocks of `docs/agent.md`.

const DOCUMENT: &str = include_str!("../../../docs/agent.md");

/// The code block of this language under a heading, by its number there.
fn block(heading: &str, language: &str, number: usize) -> String {
    let section = DOCUMENT
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .unwrap_or_else(|| panic!("no section {heading}"));
    section
        .split("\n```")
        .filter_map(|part| part.strip_prefix(language))
        .filter_map(|text| text.strip_prefix('\n'))
        .nth(number)
        .unwrap_or_else(|| panic!("{heading}: no block {number} of {language}"))
        .to_owned()
        + "\n"
}

/// The first block of a language under a heading.
pub(super) fn first(heading: &str, language: &str) -> String {
    block(heading, language, 0)
}

/// The entries of the CA, before the first heading.
pub(super) fn entries() -> String {
    block("# Certificates", "yaml", 0)
}
