//! Configuration files: YAML into typed structs, and errors that name file, line, key and
//! what to do.
//!
//! A program reads its file into a [`Document`], parses that into a struct whose fields have
//! defaults and which denies unknown keys, lays flags and environment variables over it
//! ([`Document::overridden`] remembers which), and then judges the values with a [`Checker`].

mod check;
mod document;
mod error;
mod places;

use std::path::Path;

use serde::de::DeserializeOwned;

pub use self::{
    check::Checker,
    document::Document,
    error::{ConfigError, Origin, Problem},
    places::Place,
};

/// Reads and parses the file at `path`.
///
/// # Errors
/// The file can't be read, is too large, is no YAML, or does not fit `T`.
pub fn load_yaml<T: DeserializeOwned>(path: &Path) -> Result<(Document, T), ConfigError> {
    let document = Document::read(path)?;
    let value = document.parse()?;
    Ok((document, value))
}

#[cfg(test)]
mod tests;
