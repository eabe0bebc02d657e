//! The state on its way: in memory that has no name in any file system and that nobody can
//! change any more, enciphered, so that a page which is swapped out says nothing.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use citadel_identity::crypto::{self, NotSealed, OneTimeKey};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use zeroize::Zeroizing;

/// The largest state, in bytes: the most identities that an agent holds by default, and as
/// many again, take less.
pub(super) const MAX_STATE: usize = 128 * 1024 * 1024;

/// All that keep the content as it is.
fn seals() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE
}

/// Memory that can't be made, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel refused.
    #[error("sealed memory (memfd): {0}")]
    Io(#[from] io::Error),
    /// Larger than [`MAX_STATE`].
    #[error("the state has {0} bytes; {MAX_STATE} are the most")]
    TooLarge(u64),
    /// Who handed it over could still change it.
    #[error("the memory that was handed over is not sealed")]
    Unsealed,
    /// See [`NotSealed`].
    #[error(transparent)]
    Cipher(#[from] NotSealed),
}

/// Enciphers the state and puts it into sealed memory.
pub(super) fn write(state: Zeroizing<Vec<u8>>) -> Result<(OwnedFd, OneTimeKey), MemoryError> {
    if state.len() > MAX_STATE {
        return Err(MemoryError::TooLarge(state.len() as u64));
    }
    let (key, sealed) = crypto::seal(state);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = memfd_create(c"citadel-handover", flags | MemfdFlags::NOEXEC_SEAL)
        // Linux before 6.3 does not know that it is never executed.
        .or_else(|_| memfd_create(c"citadel-handover", flags))
        .map_err(io::Error::from)?;
    let mut file = File::from(memory);
    file.write_all(&sealed)?;
    fcntl_add_seals(&file, seals()).map_err(io::Error::from)?;
    Ok((file.into(), key))
}

/// Reads what [`write()`] made, and nothing that could change meanwhile.
pub(super) fn read(memory: OwnedFd, key: OneTimeKey) -> Result<Zeroizing<Vec<u8>>, MemoryError> {
    let sealed = fcntl_get_seals(memory.as_fd()).is_ok_and(|set| set.contains(seals()));
    if !sealed {
        return Err(MemoryError::Unsealed);
    }
    let file = File::from(memory);
    let length = file.metadata()?.len();
    let size = usize::try_from(length)
        .ok()
        .filter(|size| *size <= MAX_STATE + 64)
        .ok_or(MemoryError::TooLarge(length))?;
    let mut bytes = vec![0; size];
    // Its position is the writer's, at the end.
    file.read_exact_at(&mut bytes, 0)?;
    Ok(key.open(bytes)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SECRET: &[u8] = b"the private key of a workload";

    #[test]
    fn nobody_can_change_or_read_it_without_the_key() {
        let (memory, key) = write(Zeroizing::new(SECRET.to_vec())).unwrap();
        let mut file = File::from(memory.try_clone().unwrap());
        assert_eq!(
            file.write_all(b"x").unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
        assert_eq!(
            file.set_len(0).unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
        let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let mut raw = vec![0; size];
        file.read_exact_at(&mut raw, 0).unwrap();
        assert!(
            !raw.windows(7)
                .any(|part| SECRET.windows(7).any(|own| own == part))
        );
        assert_eq!(read(memory, key).unwrap().as_slice(), SECRET);
    }

    #[test]
    fn memory_that_is_not_sealed_and_files_are_not_read() {
        let key = || OneTimeKey::from_bytes(&[7; 32]).unwrap();
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let open = memfd_create(c"test", flags).unwrap();
        fcntl_add_seals(&open, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        assert!(matches!(read(open, key()), Err(MemoryError::Unsealed)));
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(
            read(file.into(), key()),
            Err(MemoryError::Unsealed)
        ));
        let (memory, _) = write(Zeroizing::new(SECRET.to_vec())).unwrap();
        assert!(matches!(read(memory, key()), Err(MemoryError::Cipher(_))));
    }

    #[test]
    fn its_size_is_bounded() {
        let memory = memfd_create(c"test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        let file = File::from(memory.unwrap());
        file.set_len(1 << 40).unwrap();
        fcntl_add_seals(&file, seals()).unwrap();
        let key = OneTimeKey::from_bytes(&[7; 32]).unwrap();
        assert!(matches!(
            read(file.into(), key),
            Err(MemoryError::TooLarge(_))
        ));
    }
}
