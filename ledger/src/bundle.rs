//! Entry bundles (C2SP tlog-tiles): entries behind their length in two bytes.

use thiserror::Error;

/// Bytes of an entry at most.
pub const MAX_ENTRY_BYTES: usize = u16::MAX as usize;

/// A bundle that was not made or not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BundleError {
    /// The length does not fit in its two bytes.
    #[error("an entry of {0} bytes: {MAX_ENTRY_BYTES} are the most")]
    TooLarge(usize),
    /// The bundle ends in the middle of an entry.
    #[error("the bundle ends within its entry number {0}")]
    Truncated(usize),
    /// It has another number of entries than its path says.
    #[error("the bundle has {found} entries instead of {expected}")]
    Count {
        /// As the path says.
        expected: usize,
        /// As it is; with one more at most.
        found: usize,
    },
}

/// The bundle of these entries.
pub fn encode<'a>(entries: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<u8>, BundleError> {
    let mut bundle = Vec::new();
    for entry in entries {
        let length = u16::try_from(entry.len()).map_err(|_| BundleError::TooLarge(entry.len()))?;
        bundle.extend_from_slice(&length.to_be_bytes());
        bundle.extend_from_slice(entry);
    }
    Ok(bundle)
}

/// The entries of a bundle, which has to have `count`.
pub fn decode(bundle: &[u8], count: usize) -> Result<Vec<&[u8]>, BundleError> {
    let mut entries = Vec::new();
    let mut rest = bundle;
    while !rest.is_empty() && entries.len() <= count {
        let truncated = BundleError::Truncated(entries.len());
        let (length, tail) = rest.split_first_chunk().ok_or(truncated)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, tail) = tail.split_at_checked(length).ok_or(truncated)?;
        entries.push(entry);
        rest = tail;
    }
    if entries.len() == count {
        Ok(entries)
    } else {
        Err(BundleError::Count {
            expected: count,
            found: entries.len(),
        })
    }
}
