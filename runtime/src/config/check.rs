//! Judging parsed values, all of them before the first error is shown.

use std::fmt::Display;

use super::{ConfigError, Document, Problem};

/// Collects what is wrong, so that a user sees all problems at once.
#[derive(Debug)]
pub struct Checker<'d> {
    document: &'d Document,
    problems: Vec<Problem>,
}

impl<'d> Checker<'d> {
    pub(super) fn new(document: &'d Document) -> Self {
        Self {
            document,
            problems: Vec::new(),
        }
    }

    /// Notes that the value at `key` is wrong: `problem` follows the key in a sentence, `fix`
    /// says what to do.
    pub fn problem(&mut self, key: impl AsRef<str>, problem: impl Display, fix: impl Display) {
        self.problems
            .push(self.document.problem(key.as_ref(), problem, fix));
    }

    /// The value of a result, or a problem in the error's words.
    pub fn take<T, E: Display>(
        &mut self,
        key: impl AsRef<str>,
        result: Result<T, E>,
        fix: impl Display,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(key, error, fix);
                None
            }
        }
    }

    /// Whether nothing wrong was found so far.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// All that was found, as one error.
    ///
    /// # Errors
    /// At least one problem was noted.
    pub fn finish(self) -> Result<(), ConfigError> {
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Invalid(self.problems))
        }
    }
}
