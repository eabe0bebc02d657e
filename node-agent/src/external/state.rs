//! What the agent of a node outside Kubernetes keeps on the disk: its own SVID and key, so that
//! the node survives a reboot within the SVID's lifetime, and the roots to know its CA by. The
//! keys of workloads are never here.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use citadel_identity::{TrustDomain, join_token};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

const FILE: &str = "agent.json";
const NEW: &str = "agent.json.new";

/// Bytes of the file at most: a bundle may have 4 MiB.
const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Why the state can't be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A system call failed.
    #[error("can't {doing} {path}: {error}", path = .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// How it failed.
        #[source]
        error: io::Error,
    },
    /// Others could read the key, or put another one there.
    #[error(
        "{path} has mode {mode:03o} and owner {owner}: it has to be this user's (or root's) alone; \
         `chown` it, and `chmod {want:03o}`",
        path = .path.display()
    )]
    OpenToOthers {
        /// Folder or file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner.
        owner: u32,
        /// The mode that it should have.
        want: u32,
    },
    /// The file is not what this program wrote.
    #[error(
        "{path} is damaged: remove it, and let the node join anew",
        path = .0.display()
    )]
    Damaged(PathBuf),
}

/// What is kept. Prints nothing of the key.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// `host:port` of the CA.
    pub ca_addresses: Vec<String>,
    /// The join token that was used, if one was.
    pub joined_with: Option<[u8; join_token::ID_BYTES]>,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8.
    pub key: Zeroizing<Vec<u8>>,
    /// Roots of the trust domain, DER.
    pub authorities: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    trust_domain: String,
    ca_addresses: Vec<String>,
    joined_with: Option<String>,
    chain: Vec<String>,
    key: String,
    authorities: Vec<String>,
}

impl Drop for Written {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// A folder of mode 0700 with one file of mode 0600.
#[derive(Debug, Clone)]
pub struct StateFolder(PathBuf);

impl StateFolder {
    /// Makes the folder with mode 0700 where it is missing.
    ///
    /// # Errors
    /// It can't be made, or is another user's, or open to others.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("make the folder", path))?;
        let folder = Self(path.to_owned());
        folder.check()?;
        Ok(folder)
    }

    /// The folder, which may be missing.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn check(&self) -> Result<(), StateError> {
        let there = fs::metadata(&self.0).map_err(failed("read", &self.0))?;
        ours_alone(&self.0, &there, 0o700)
    }

    /// What is kept; `None` where nothing is.
    ///
    /// # Errors
    /// It can't be read, is damaged, or open to others.
    pub fn read(&self) -> Result<Option<Kept>, StateError> {
        let path = self.0.join(FILE);
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        self.check()?;
        let there = file.metadata().map_err(failed("read", &path))?;
        ours_alone(&path, &there, 0o600)?;
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed("read", &path))?;
        match parse(&bytes) {
            Some(kept) => Ok(Some(kept)),
            None => Err(StateError::Damaged(path)),
        }
    }

    /// Puts this in place of what is kept: all of it or nothing, and on the disk.
    ///
    /// # Errors
    /// It could not be written.
    pub fn write(&self, kept: &Kept) -> Result<(), StateError> {
        self.check()?;
        let text = |der: &Vec<u8>| STANDARD.encode(der);
        let written = Written {
            trust_domain: kept.trust_domain.to_string(),
            ca_addresses: kept.ca_addresses.clone(),
            joined_with: kept.joined_with.map(hex::encode),
            chain: kept.chain.iter().map(text).collect(),
            key: STANDARD.encode(kept.key.as_slice()),
            authorities: kept.authorities.iter().map(text).collect(),
        };
        // A struct of strings is always JSON.
        let json = Zeroizing::new(serde_json::to_vec(&written).unwrap_or_default());
        let new = self.0.join(NEW);
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .map_err(failed("make", &new))?;
        file.write_all(&json)
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &new))?;
        fs::rename(&new, self.0.join(FILE)).map_err(failed("rename", &new))?;
        File::open(&self.0)
            .and_then(|folder| folder.sync_all())
            .map_err(failed("sync", &self.0))
    }
}

fn parse(bytes: &[u8]) -> Option<Kept> {
    let mut written: Written = serde_json::from_slice(bytes).ok()?;
    let ders = |texts: &[String]| -> Option<Vec<Vec<u8>>> {
        texts
            .iter()
            .map(|text| STANDARD.decode(text).ok())
            .collect()
    };
    let joined_with = match &written.joined_with {
        None => None,
        Some(text) => {
            let mut id = [0; join_token::ID_BYTES];
            hex::decode_to_slice(text, &mut id).ok()?;
            Some(id)
        }
    };
    Some(Kept {
        trust_domain: TrustDomain::new(&written.trust_domain).ok()?,
        chain: ders(&written.chain)?,
        key: Zeroizing::new(STANDARD.decode(&written.key).ok()?),
        authorities: ders(&written.authorities)?,
        ca_addresses: std::mem::take(&mut written.ca_addresses),
        joined_with,
    })
}

fn ours_alone(path: &Path, there: &fs::Metadata, want: u32) -> Result<(), StateError> {
    let ours = nix::unistd::geteuid().as_raw();
    if there.mode() & 0o077 != 0 || ![0, ours].contains(&there.uid()) {
        return Err(StateError::OpenToOthers {
            path: path.to_owned(),
            mode: there.mode() & 0o777,
            owner: there.uid(),
            want,
        });
    }
    Ok(())
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |error| StateError::Io {
        doing,
        path: path.to_owned(),
        error,
    }
}
