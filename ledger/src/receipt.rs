//! Receipts (C2SP tlog-proof): that an entry is in the log, in one small file that is
//! verified with the log's public key alone.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use thiserror::Error;

use crate::{
    bundle::MAX_ENTRY_BYTES,
    checkpoint::{Checkpoint, CheckpointError},
    hash::{Hash, leaf_hash},
    key::VerifierKey,
    note::MAX_NOTE_BYTES,
    proof::{MAX_PROOF, ProofError, verify_inclusion},
};

const MAGIC: &str = "c2sp.org/tlog-proof@v1";

/// Bytes of a receipt at most: entry, proof and checkpoint in their encodings.
pub const MAX_RECEIPT_BYTES: usize =
    MAX_ENTRY_BYTES * 4 / 3 + MAX_PROOF * 45 + MAX_NOTE_BYTES + 256;

/// A receipt was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReceiptError {
    /// Not the form of a receipt.
    #[error("malformed receipt: {0}")]
    Malformed(&'static str),
    /// Its checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Its proof.
    #[error(transparent)]
    Proof(#[from] ProofError),
}

/// An entry, its place in the log, and the proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The entry itself, in the format's line for extra data. [`Receipt::verify`]
    /// makes sure of it.
    pub entry: Vec<u8>,
    /// Index of the entry.
    pub index: u64,
    /// From the leaf's sibling to a child of the root.
    pub proof: Vec<Hash>,
    /// The signed note.
    pub checkpoint: String,
}

impl Receipt {
    /// The file's text.
    pub fn encode(&self) -> String {
        let mut text = format!("{MAGIC}\nextra {}\n", STANDARD.encode(&self.entry));
        // Writing to a string can't fail.
        let _ = writeln!(text, "index {}", self.index);
        for hash in &self.proof {
            let _ = writeln!(text, "{hash}");
        }
        text.push('\n');
        text.push_str(&self.checkpoint);
        text
    }

    /// Reads a receipt; nothing is verified yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReceiptError> {
        let malformed = ReceiptError::Malformed;
        if bytes.len() > MAX_RECEIPT_BYTES {
            return Err(malformed("it is too long"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("not UTF-8"))?;
        let (head, checkpoint) = text
            .split_once("\n\n")
            .ok_or(malformed("no empty line before the checkpoint"))?;
        let mut lines = head.split('\n');
        if lines.next() != Some(MAGIC) {
            return Err(malformed("its first line is not c2sp.org/tlog-proof@v1"));
        }
        let entry = lines
            .next()
            .and_then(|line| line.strip_prefix("extra "))
            .and_then(|base64| STANDARD.decode(base64).ok())
            .ok_or(malformed("its second line is not the entry"))?;
        let index = lines
            .next()
            .and_then(|line| line.strip_prefix("index "))
            .and_then(|digits| {
                let number: u64 = digits.parse().ok()?;
                (number.to_string() == digits).then_some(number)
            })
            .ok_or(malformed("its third line is not the index"))?;
        let proof = lines
            .map(|line| Hash::from_base64(line).ok_or(malformed("a line is no hash in base64")))
            .take(MAX_PROOF + 1)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            entry,
            index,
            proof,
            checkpoint: checkpoint.to_owned(),
        })
    }

    /// Verifies that the entry is in the log of these keys (see [`Checkpoint::open`]).
    /// The state of the log in which it is.
    pub fn verify(&self, keys: &[VerifierKey]) -> Result<Checkpoint, ReceiptError> {
        let state = Checkpoint::open(self.checkpoint.as_bytes(), keys)?;
        let leaf = leaf_hash(&self.entry);
        verify_inclusion(leaf, self.index, state.size, &self.proof, state.root)?;
        Ok(state)
    }
}
