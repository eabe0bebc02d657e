//! The code blocks of a document, as they stand there.

use std::path::PathBuf;

/// What stands in a document, and what it is here.
#[derive(Clone, Debug, Default)]
pub struct Here(pub Vec<(String, String)>);

impl Here {
    /// The text with all of it in its place.
    pub fn put(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (there, here)| {
            text.replace(there.as_str(), here)
        })
    }
}

/// The part of a document under a heading of the second level; the first line's heading is
/// the part before all others.
pub fn section<'d>(document: &'d str, heading: &str) -> &'d str {
    document
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .unwrap_or_else(|| panic!("no section {heading}"))
}

/// The code blocks of this language under a heading, in their order.
pub fn blocks(document: &str, heading: &str, language: &str) -> Vec<String> {
    let (opening, mut open) = (format!("```{language}"), None::<String>);
    let mut blocks = Vec::new();
    for line in section(document, heading).lines() {
        match &mut open {
            None if line == opening => open = Some(String::new()),
            None => {}
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    assert!(!blocks.is_empty(), "{heading}: no block of {language}");
    blocks
}

/// The first block of a language under a heading.
pub fn first(document: &str, heading: &str, language: &str) -> String {
    blocks(document, heading, language).swap_remove(0)
}

/// The commands of shell blocks, one after the other; a backslash goes on with the next line.
pub fn commands(blocks: &[String]) -> Vec<String> {
    let mut commands = Vec::new();
    let mut open = None::<String>;
    for line in blocks.iter().flat_map(|block| block.lines()) {
        let command = open.take().map_or_else(String::new, |begun| begun + "\n") + line;
        if command.ends_with('\\') {
            open = Some(command);
        } else if !command.trim().is_empty() {
            commands.push(command);
        }
    }
    commands
}

/// All shell blocks of a document.
pub fn shell_blocks(document: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open = None::<String>;
    for line in document.lines() {
        match &mut open {
            None if line == "```sh" => open = Some(String::new()),
            None => {}
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks
}

/// `PATH` with this workspace's programs, these folders, and the system's.
pub fn path(folders: &[PathBuf]) -> String {
    let citadel = crate::parts::program("citadel");
    let ours = citadel.parent().expect("a folder").to_owned();
    let system = std::env::var_os("PATH").unwrap_or_default();
    let system: Vec<PathBuf> = std::env::split_paths(&system).collect();
    let all = std::iter::once(&ours).chain(folders).chain(&system);
    let joined = std::env::join_paths(all).expect("folders without a colon");
    joined.into_string().expect("plain paths")
}
