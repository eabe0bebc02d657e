//! What is wrong with a configuration, in words that name the place and the fix.

use std::{fmt, io, path::PathBuf};

use super::Place;

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: cannot be read: {source}; name an existing file that this user may read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Everything found wrong, in the order of the file.
    #[error("{}", Lines(.0))]
    Invalid(Vec<Problem>),
}

/// One thing wrong with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the value comes from.
    pub origin: Origin,
    /// The key's path, such as `clusters[1].name`; empty if it is the document itself.
    pub key: String,
    /// What is wrong: a phrase that follows the key.
    pub problem: String,
    /// What to do about it.
    pub fix: String,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file, and where in it if that is known.
    File {
        /// Its name as it was given.
        name: String,
        /// Where in it.
        place: Option<Place>,
    },
    /// A flag or an environment variable, as the user knows it.
    Override(&'static str),
    /// A built-in default, or a value that is missing and has none.
    Default,
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [only] => only.fmt(f),
            all => {
                write!(f, "{} problems in the configuration", all.len())?;
                all.iter()
                    .try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File {
                name,
                place: Some(place),
            } => {
                write!(f, "{name}:{}:{}: ", place.line, place.column)?;
            }
            Origin::File { name, place: None } => write!(f, "{name}: ")?,
            Origin::Override(by) => write!(f, "{by}: ")?,
            Origin::Default => {}
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.problem, self.fix)
    }
}
