//! PEM as RFC 7468 writes it: certificates, requests and keys as text.
//!
//! Text around the blocks is skipped (openssl prints facts there); inside a block
//! only base64 passes.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use thiserror::Error;
use zeroize::Zeroizing;

/// Label of a certificate's block.
pub const CERTIFICATE: &str = "CERTIFICATE";
/// Label of a certificate signing request's block.
pub const CERTIFICATE_REQUEST: &str = "CERTIFICATE REQUEST";
/// Label of a PKCS#8 key's block.
pub const PRIVATE_KEY: &str = "PRIVATE KEY";

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";
/// Characters of base64 in a line.
const LINE: usize = 64;

/// Why text is not PEM.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PemError {
    /// The text is longer than what is read.
    #[error("the PEM text has {size} bytes; at most {max} are read")]
    TooLarge {
        /// Bytes in the text.
        size: usize,
        /// Bytes that are read at most.
        max: usize,
    },
    /// The bytes are no text.
    #[error("PEM is text; these bytes are not UTF-8 (is this a DER file?)")]
    NotText,
    /// A block's end line is missing or names something else.
    #[error("the PEM block {0:?} has no matching END line")]
    Unfinished(String),
    /// A block holds something else than base64.
    #[error("the PEM block {0:?} holds something else than base64 (encrypted keys are not read)")]
    NotBase64(String),
    /// A BEGIN or END line is malformed, or an END line has no beginning.
    #[error("line {0} is a malformed or stray PEM boundary")]
    Boundary(usize),
}

/// One block. The content is wiped when dropped, since it may be a private key.
pub struct Block {
    /// What the BEGIN line says.
    pub label: String,
    /// The decoded content.
    pub der: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:?}, {} bytes)", self.label, self.der.len())
    }
}

/// All blocks of a text of at most `max` bytes, in order.
pub fn decode(text: &[u8], max: usize) -> Result<Vec<Block>, PemError> {
    if text.len() > max {
        return Err(PemError::TooLarge {
            size: text.len(),
            max,
        });
    }
    let text = std::str::from_utf8(text).map_err(|_| PemError::NotText)?;
    let mut blocks = Vec::new();
    let mut open: Option<(&str, Zeroizing<String>)> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix(BEGIN) {
            let label = rest
                .strip_suffix(DASHES)
                .ok_or(PemError::Boundary(number + 1))?;
            if let Some((unfinished, _)) = open {
                return Err(PemError::Unfinished(unfinished.to_owned()));
            }
            // Room for all that may come: a growing string would leave copies of a key.
            open = Some((label, Zeroizing::new(String::with_capacity(text.len()))));
        } else if let Some(rest) = line.strip_prefix(END) {
            let label = rest
                .strip_suffix(DASHES)
                .ok_or(PemError::Boundary(number + 1))?;
            let (opened, base64) = open.take().ok_or(PemError::Boundary(number + 1))?;
            if opened != label {
                return Err(PemError::Unfinished(opened.to_owned()));
            }
            let der = BASE64_STANDARD
                .decode(base64.as_bytes())
                .map_err(|_| PemError::NotBase64(label.to_owned()))?;
            blocks.push(Block {
                label: label.to_owned(),
                der: Zeroizing::new(der),
            });
        } else if let Some((_, base64)) = &mut open {
            base64.push_str(line);
        }
    }
    match open {
        Some((label, _)) => Err(PemError::Unfinished(label.to_owned())),
        None => Ok(blocks),
    }
}

/// One block as text, with lines of 64 characters and a final line end.
pub fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(BASE64_STANDARD.encode(der));
    let room = base64.len() + base64.len() / LINE + 2 * label.len() + 64;
    let mut text = Zeroizing::new(String::with_capacity(room));
    text.push_str(BEGIN);
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(END);
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_around_blocks_is_skipped_and_line_ends_do_not_matter() {
        let one = encode(CERTIFICATE, &[1; 100]);
        let two = encode(PRIVATE_KEY, &[2; 48]).replace('\n', "\r\n");
        let text = format!("subject=CN = x\n{}\nmore words\n{two}", *one);
        let blocks = decode(text.as_bytes(), 10_000).unwrap();
        assert_eq!(blocks.len(), 2);
        assert_eq!(
            (blocks[0].label.as_str(), blocks[0].der.as_slice()),
            (CERTIFICATE, &[1; 100][..])
        );
        assert_eq!(
            (blocks[1].label.as_str(), blocks[1].der.as_slice()),
            (PRIVATE_KEY, &[2; 48][..])
        );
    }

    #[test]
    fn broken_blocks_are_refused_with_their_reason() {
        let text = |body: &str| decode(body.as_bytes(), 1000).unwrap_err();
        assert_eq!(
            text("-----BEGIN A-----\nAAAA\n"),
            PemError::Unfinished("A".into())
        );
        assert_eq!(
            text("-----BEGIN A-----\n-----BEGIN B-----\n-----END B-----\n"),
            PemError::Unfinished("A".into())
        );
        assert_eq!(
            text("-----BEGIN A-----\nAAAA\n-----END B-----"),
            PemError::Unfinished("A".into())
        );
        assert_eq!(text("-----END A-----"), PemError::Boundary(1));
        assert_eq!(text("\n-----BEGIN A----"), PemError::Boundary(2));
        assert_eq!(
            text("-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\n-----END A-----"),
            PemError::NotBase64("A".into())
        );
        assert_eq!(decode(&[0xff, 0xfe], 10).unwrap_err(), PemError::NotText);
        assert_eq!(
            decode(b"xxxx", 3).unwrap_err(),
            PemError::TooLarge { size: 4, max: 3 }
        );
    }

    #[test]
    fn a_blocks_debug_output_holds_no_content() {
        let text = encode(PRIVATE_KEY, &[0xab; 48]);
        let shown = format!("{:?}", decode(text.as_bytes(), 1000).unwrap());
        assert_eq!(shown, "[Block(\"PRIVATE KEY\", 48 bytes)]");
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_and_anything_else_never_panics(
            der in prop::collection::vec(any::<u8>(), 0..300),
            noise in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
        ) {
            let text = encode("X", &der);
            prop_assert_eq!(decode(text.as_bytes(), 10_000).unwrap()[0].der.to_vec(), der);
            let _ = decode(&noise, 1000);
            let mut mutated = text.as_bytes().to_vec();
            let place = at.index(mutated.len());
            mutated.splice(place..place, noise);
            let _ = decode(&mutated, 10_000);
        }
    }
}
