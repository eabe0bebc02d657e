//! Signed notes (C2SP signed-note): a text, an empty line, and signatures over the text.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use thiserror::Error;

use crate::key::{LogKey, VerifierKey, is_name};

/// Bytes of a note at most.
pub const MAX_NOTE_BYTES: usize = 64 * 1024;

/// Signatures of a note at most.
const MAX_SIGNATURES: usize = 100;

/// A note was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoteError {
    /// Not the form of a note.
    #[error("malformed note: {0}")]
    Malformed(&'static str),
    /// A known key's signature is not one over this text.
    #[error("the signature of {0} does not verify")]
    Signature(String),
    /// None of the known keys has signed.
    #[error("the note is not signed by {0}")]
    NotSigned(String),
}

/// A text with signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

/// One signature of a note.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    name: String,
    key_id: u32,
    bytes: Vec<u8>,
}

impl Note {
    /// This text, signed by these keys. It has to end with a newline and to have no
    /// other control characters.
    pub fn sign(text: &str, keys: &[&LogKey]) -> Result<Self, NoteError> {
        check_text(text)?;
        let signatures = keys.iter().map(|key| Signature {
            name: key.verifier().name().to_owned(),
            key_id: key.verifier().id(),
            bytes: key.sign(text.as_bytes()).to_vec(),
        });
        Ok(Self {
            text: text.to_owned(),
            signatures: signatures.collect(),
        })
    }

    /// Reads a note; nothing is verified yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > MAX_NOTE_BYTES {
            return Err(NoteError::Malformed("it is longer than 64 KiB"));
        }
        let all = std::str::from_utf8(bytes).map_err(|_| NoteError::Malformed("not UTF-8"))?;
        let blank = all
            .rfind("\n\n")
            .ok_or(NoteError::Malformed("no empty line before signatures"))?;
        let (text, block) = (&all[..=blank], &all[blank + 2..]);
        check_text(text)?;
        let lines = block
            .strip_suffix('\n')
            .ok_or(NoteError::Malformed("its end is missing"))?;
        let signatures = lines
            .split('\n')
            .take(MAX_SIGNATURES + 1)
            .map(Signature::parse)
            .collect::<Result<Vec<_>, _>>()?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(NoteError::Malformed("more than 100 signatures"));
        }
        Ok(Self {
            text: text.to_owned(),
            signatures,
        })
    }

    /// The text, if at least one of these keys has signed it. A signature of one of
    /// them that does not verify is an error whatever the others are; signatures of
    /// other keys are ignored.
    pub fn verify(&self, keys: &[VerifierKey]) -> Result<&str, NoteError> {
        let mut signed = false;
        for signature in &self.signatures {
            let key = keys
                .iter()
                .find(|key| key.name() == signature.name && key.id() == signature.key_id);
            if let Some(key) = key {
                if !key.verifies(self.text.as_bytes(), &signature.bytes) {
                    return Err(NoteError::Signature(key.name().to_owned()));
                }
                signed = true;
            }
        }
        if signed {
            return Ok(&self.text);
        }
        let names: Vec<_> = keys.iter().map(VerifierKey::name).collect();
        Err(NoteError::NotSigned(names.join(" or ")))
    }

    /// The text, whoever signed it. Nothing may rest on it.
    pub fn unverified_text(&self) -> &str {
        &self.text
    }

    /// The note as it is sent.
    pub fn encode(&self) -> String {
        let mut note = format!("{}\n", self.text);
        for signature in &self.signatures {
            let bytes = [&signature.key_id.to_be_bytes(), signature.bytes.as_slice()].concat();
            // Writing to a string can't fail.
            let _ = writeln!(
                note,
                "\u{2014} {} {}",
                signature.name,
                STANDARD.encode(bytes)
            );
        }
        note
    }
}

impl Signature {
    fn parse(line: &str) -> Result<Self, NoteError> {
        let malformed = NoteError::Malformed("a line of the signatures is none");
        let (name, base64) = line
            .strip_prefix("\u{2014} ")
            .and_then(|rest| rest.split_once(' '))
            .filter(|(name, _)| is_name(name))
            .ok_or(malformed.clone())?;
        let bytes = STANDARD.decode(base64).map_err(|_| malformed.clone())?;
        match bytes.split_first_chunk() {
            Some((id, bytes)) if !bytes.is_empty() => Ok(Self {
                name: name.to_owned(),
                key_id: u32::from_be_bytes(*id),
                bytes: bytes.to_vec(),
            }),
            _ => Err(malformed),
        }
    }
}

fn check_text(text: &str) -> Result<(), NoteError> {
    if !text.ends_with('\n') {
        return Err(NoteError::Malformed("its text does not end with a newline"));
    }
    if text.chars().any(|one| one < ' ' && one != '\n') {
        return Err(NoteError::Malformed("control characters in its text"));
    }
    Ok(())
}
