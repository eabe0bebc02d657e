//! How the command ends: the exit codes and the one error type that carries them.

use std::fmt;
use std::process::ExitCode;

/// The table that `--help` prints; kept next to the codes that it documents.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  a check failed: the certificate is not valid, or what came back is wrong
  2  usage: an unknown flag, or a value or combination that makes no sense
  3  unavailable: the endpoint or the server can't be reached, or has nothing yet
  4  permission denied: the server knows no identity for the caller, or refuses it
  5  local trouble: a file, folder, port or program on this machine
`citadel dev -- CMD` ends with CMD's own code; 128 + N when signal N ended CMD,
126 when CMD can't be run, 127 when it isn't found.";

/// An exit code of the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// A verification or another check failed.
    CheckFailed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Nobody answers, or not yet.
    Unavailable = 3,
    /// The server answered, and refuses.
    Denied = 4,
    /// A file, folder, port or program on this machine.
    Local = 5,
}

/// Why a command failed, and what its user can do next.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    next: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            next: None,
        }
    }

    pub(crate) fn check(message: impl Into<String>) -> Self {
        Self::new(Exit::CheckFailed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unavailable, message)
    }

    pub(crate) fn denied(message: impl Into<String>) -> Self {
        Self::new(Exit::Denied, message)
    }

    pub(crate) fn local(message: impl Into<String>) -> Self {
        Self::new(Exit::Local, message)
    }

    /// Adds what to do next: a sentence, printed on a line of its own.
    #[must_use]
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// What went wrong, without what to do next.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if let Some(next) = &self.next {
            write!(f, "\n  {next}")?;
        }
        Ok(())
    }
}

/// How a command that did not fail ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything went well.
    Done,
    /// A program that was run on the user's behalf decides.
    Code(u8),
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Code(code) => Self::from(code),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Trouble with standard output ends the command; a reader that went away
/// (`citadel … | head -1`) ends it quietly, see `main`.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Something to tell the user.
    Failure(Failure),
    /// Standard output is closed.
    OutputClosed,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Failure(Failure::local(format!(
                "can't write to standard output: {error}"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_next_is_on_a_line_of_its_own() {
        let failure = Failure::unavailable("nobody listens").next("start `citadel dev`");
        assert_eq!(failure.to_string(), "nobody listens\n  start `citadel dev`");
        assert_eq!(failure.exit() as u8, 3);
    }

    #[test]
    fn each_code_is_documented() {
        for exit in [
            Exit::CheckFailed,
            Exit::Usage,
            Exit::Unavailable,
            Exit::Denied,
            Exit::Local,
        ] {
            let line = format!("\n  {}  ", exit as u8);
            assert!(EXIT_CODES.contains(&line), "{exit:?}");
        }
    }
}
