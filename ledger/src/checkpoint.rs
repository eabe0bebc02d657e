//! Checkpoints (C2SP tlog-checkpoint): the state of a log as a signed note.

use std::str::FromStr;

use thiserror::Error;

use crate::{
    hash::Hash,
    key::{LogKey, VerifierKey},
    note::{Note, NoteError},
    tree::MAX_SIZE,
};

/// A checkpoint was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CheckpointError {
    /// Signature or form of the note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The note's text is no checkpoint.
    #[error("malformed checkpoint: {0}")]
    Malformed(&'static str),
    /// It is another log's.
    #[error("the checkpoint is of the log {found}, not {expected}")]
    Origin {
        /// Whose it should be.
        expected: String,
        /// Whose it is.
        found: String,
    },
}

/// The state of a log: so many entries, with this root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Names the log.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Hash,
}

impl Checkpoint {
    /// The checkpoint as a note that the log's key has signed, and others where given:
    /// each key signs under its own name.
    pub fn sign(&self, keys: &[&LogKey]) -> Result<String, CheckpointError> {
        let text = format!("{}\n{}\n{}\n", self.origin, self.size, self.root);
        // What can't be read again is not written.
        text.parse::<Self>()?;
        Ok(Note::sign(&text, keys)?.encode())
    }

    /// What a note says, whoever signed it: for those who only pass it on.
    pub fn unverified(note: &[u8]) -> Result<Self, CheckpointError> {
        Note::parse(note)?.unverified_text().parse()
    }

    /// The checkpoint of this note, signed by one of these keys, of the log that the
    /// first of them names.
    pub fn open(note: &[u8], keys: &[VerifierKey]) -> Result<Self, CheckpointError> {
        let note = Note::parse(note)?;
        let checkpoint: Self = note.verify(keys)?.parse()?;
        match keys.first() {
            Some(key) if key.name() != checkpoint.origin => Err(CheckpointError::Origin {
                expected: key.name().to_owned(),
                found: checkpoint.origin,
            }),
            _ => Ok(checkpoint),
        }
    }
}

/// The text of a checkpoint, without signatures. Extension lines are allowed, and
/// ignored.
impl FromStr for Checkpoint {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, CheckpointError> {
        let malformed = CheckpointError::Malformed;
        let body = text
            .strip_suffix('\n')
            .ok_or(malformed("no last newline"))?;
        let mut lines = body.split('\n');
        let mut line = |what| lines.next().ok_or(malformed(what));
        let origin = line("no origin")?;
        let size = line("no size")?;
        let root = line("no root hash")?;
        if origin.is_empty() || lines.any(str::is_empty) {
            return Err(malformed("an empty line"));
        }
        let number: u64 = size
            .parse()
            .map_err(|_| malformed("the size is no number"))?;
        if number.to_string() != size || number > MAX_SIZE {
            return Err(malformed(
                "the size is written in another form or too large",
            ));
        }
        Ok(Self {
            origin: origin.to_owned(),
            size: number,
            root: Hash::from_base64(root).ok_or(malformed("the root is no hash in base64"))?,
        })
    }
}
