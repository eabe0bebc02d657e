//! Secrets in files, under the names that istio-proxy gives them:
//! `file-cert:CHAIN~KEY` and `file-root:PATH`.
//!
//! In a sidecar such a path is one of the proxy's own container. This agent reads with its
//! own rights, so a path that a workload chose is opened only where the configuration names
//! the folder and who may have what is in it.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Component, Path},
    sync::Arc,
    time::Duration,
};

use citadel_identity::{
    SpiffeId, crypto,
    pem::{self, Block},
};
use rustls::{
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
    },
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use super::folders::FolderRule;

/// How a name of a certificate with its key begins.
const CERTIFICATE: &str = "file-cert:";

/// How a name of roots begins.
const ROOTS: &str = "file-root:";

/// Between the chain's path and the key's.
const SEPARATOR: char = '~';

/// The largest file, in bytes: a system's roots are a quarter of that.
const MAX_FILE: usize = 1024 * 1024;

/// The most such names that one stream may ask for.
pub const MAX_FILE_NAMES: usize = 8;

/// How often the files of a stream are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// True if `name` stands for files.
pub fn names_files(name: &str) -> bool {
    name.starts_with(CERTIFICATE) || name.starts_with(ROOTS)
}

/// What was read of files. The key wipes itself.
pub enum FileSecret {
    /// A certificate with its key.
    Certificate {
        /// PEM, leaf first.
        chain: Vec<u8>,
        /// PEM.
        key: Zeroizing<Vec<u8>>,
        /// Over the chain, which holds the public key.
        version: String,
    },
    /// Roots.
    Roots {
        /// PEM.
        roots: Vec<u8>,
        /// Over the roots.
        version: String,
    },
}

impl FileSecret {
    /// Changes with the content.
    pub fn version(&self) -> &str {
        match self {
            Self::Certificate { version, .. } | Self::Roots { version, .. } => version,
        }
    }
}

/// Why a name of files stands for nothing.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is not one of the forms.
    #[error("it is neither file-cert:CHAIN~KEY nor file-root:PATH")]
    Form,
    /// `file-root:system`: roots of whose system?
    #[error("the system's roots are no secret of this agent: let Envoy read its own file of them")]
    System,
    /// A path that leaves its folder, or is not absolute.
    #[error("{0}: not a plain absolute path")]
    Path(String),
    /// No rule of the configuration is for it and the caller.
    #[error(
        "{0}: this agent reads no such file for this caller; sds_files in its configuration \
         would have to name a folder above it, and an identity of the caller"
    )]
    NotAllowed(String),
    /// More names than one stream may have.
    #[error("more than {MAX_FILE_NAMES} names of files on one stream")]
    TooMany,
    /// The system refused.
    #[error("{path}: {error}")]
    Io {
        /// Of which file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// It holds something else.
    #[error("{path}: {problem}")]
    Content {
        /// Of which file.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// What one stream has of files.
#[derive(Default)]
pub struct Files {
    held: BTreeMap<String, Arc<FileSecret>>,
    /// What was said already, by name: a problem is news once.
    told: BTreeMap<String, String>,
}

impl Files {
    /// What was read last for a name.
    pub fn get(&self, name: &str) -> Option<&FileSecret> {
        self.held.get(name).map(AsRef::as_ref)
    }

    /// Forgets all but these names.
    pub fn keep(&mut self, names: &[String]) {
        self.held.retain(|name, _| names.contains(name));
        self.told.retain(|name, _| names.contains(name));
    }

    /// Reads anew what these names stand for. Reads files: not for an async thread. What
    /// can't be read stays as it was; returned is what went wrong since the last look.
    pub fn refresh(
        &mut self,
        rules: &[FolderRule],
        caller: &[SpiffeId],
        names: &[String],
    ) -> Vec<(String, FileError)> {
        let mut news = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let read = if at < MAX_FILE_NAMES {
                read(rules, caller, name)
            } else {
                Err(FileError::TooMany)
            };
            match read {
                Ok(secret) => {
                    self.told.remove(name);
                    if self.get(name).map(FileSecret::version) != Some(secret.version()) {
                        self.held.insert(name.clone(), Arc::new(secret));
                    }
                }
                Err(error) => {
                    // Who may have it no more is sent nothing more of it.
                    if matches!(error, FileError::NotAllowed(_)) {
                        self.held.remove(name);
                    }
                    let text = error.to_string();
                    if self.told.insert(name.clone(), text.clone()) != Some(text) {
                        news.push((name.clone(), error));
                    }
                }
            }
        }
        news
    }
}

fn read(rules: &[FolderRule], caller: &[SpiffeId], name: &str) -> Result<FileSecret, FileError> {
    if let Some(path) = name.strip_prefix(ROOTS) {
        if path == "system" {
            return Err(FileError::System);
        }
        let text = contents(rules, caller, path)?;
        let bundle = certificates(path, &text)?;
        return Ok(FileSecret::Roots {
            version: version(&bundle),
            roots: to_pem(&bundle),
        });
    }
    let pair = name.strip_prefix(CERTIFICATE).ok_or(FileError::Form)?;
    let (chain_path, key_path) = pair.split_once(SEPARATOR).ok_or(FileError::Form)?;
    if key_path.contains(SEPARATOR) {
        return Err(FileError::Form);
    }
    // Both are looked up before either is read.
    let chain = certificates(chain_path, &contents(rules, caller, chain_path)?)?;
    let key = key_block(key_path, &contents(rules, caller, key_path)?)?;
    let content = |problem: String| FileError::Content {
        path: shortened(key_path),
        problem,
    };
    let signing = to_key(&key)
        .and_then(|key| {
            let provider = crypto::provider().key_provider;
            provider.load_private_key(key.clone_key()).ok()
        })
        .ok_or_else(|| content("is no private key that TLS knows".to_owned()))?;
    // One of the two may have been exchanged a moment before the other.
    CertifiedKey::new(chain.clone(), signing)
        .keys_match()
        .map_err(|_| content(format!("is not the key of {}", shortened(chain_path))))?;
    Ok(FileSecret::Certificate {
        version: version(&chain),
        chain: to_pem(&chain),
        key: Zeroizing::new(pem::encode(&key.label, &key.der).as_bytes().to_vec()),
    })
}

/// The file's bytes, if a rule is for this path and this caller.
fn contents(
    rules: &[FolderRule],
    caller: &[SpiffeId],
    path: &str,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let plain = Path::new(path);
    let is_plain = |component| matches!(component, Component::RootDir | Component::Normal(_));
    if !plain.is_absolute() || !plain.components().all(is_plain) {
        return Err(FileError::Path(shortened(path)));
    }
    // Nothing is looked at on the disk before a rule allows it: not even whether it is there.
    let allowed: Vec<&FolderRule> = rules
        .iter()
        .filter(|rule| rule.allows(plain, caller))
        .collect();
    if allowed.is_empty() {
        return Err(FileError::NotAllowed(shortened(path)));
    }
    let io = |error| FileError::Io {
        path: shortened(path),
        error,
    };
    // Links may lead about within the folder (a mounted Secret is full of them), not out.
    let real = fs::canonicalize(plain).map_err(io)?;
    let within = allowed
        .iter()
        .any(|rule| fs::canonicalize(&rule.folder).is_ok_and(|folder| real.starts_with(folder)));
    if !within {
        return Err(FileError::NotAllowed(shortened(path)));
    }
    let file = open(&real).map_err(io)?;
    let mut bytes = Zeroizing::new(Vec::new());
    let read = file
        .take(MAX_FILE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if read > MAX_FILE {
        return Err(FileError::Content {
            path: shortened(path),
            problem: format!("is longer than {MAX_FILE} bytes"),
        });
    }
    Ok(bytes)
}

/// A regular file, and not by way of a link that took its place meanwhile.
fn open(real: &Path) -> io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(real)?;
    let there = file.metadata()?;
    if !there.is_file() || there.mode() & 0o002 != 0 {
        return Err(io::Error::other(
            "is no regular file, or anyone may write it",
        ));
    }
    Ok(file)
}

fn certificates(path: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let blocks = blocks(path, text)?.into_iter();
    let found: Vec<_> = blocks
        .filter(|block| block.label == pem::CERTIFICATE)
        .map(|block| CertificateDer::from(block.der.to_vec()))
        .collect();
    if found.is_empty() {
        return Err(FileError::Content {
            path: shortened(path),
            problem: "holds no certificate".to_owned(),
        });
    }
    Ok(found)
}

fn key_block(path: &str, text: &[u8]) -> Result<Block, FileError> {
    let mut blocks = blocks(path, text)?.into_iter();
    blocks
        .find(|block| block.label.ends_with(pem::PRIVATE_KEY))
        .ok_or_else(|| FileError::Content {
            path: shortened(path),
            problem: "holds no private key".to_owned(),
        })
}

fn to_key(block: &Block) -> Option<PrivateKeyDer<'_>> {
    let der: &[u8] = &block.der;
    Some(match block.label.as_str() {
        "PRIVATE KEY" => PrivatePkcs8KeyDer::from(der).into(),
        "RSA PRIVATE KEY" => PrivatePkcs1KeyDer::from(der).into(),
        "EC PRIVATE KEY" => PrivateSec1KeyDer::from(der).into(),
        _ => return None,
    })
}

fn blocks(path: &str, text: &[u8]) -> Result<Vec<Block>, FileError> {
    pem::decode(text, MAX_FILE).map_err(|error| FileError::Content {
        path: shortened(path),
        problem: error.to_string(),
    })
}

fn version(certificates: &[CertificateDer<'_>]) -> String {
    let parts: Vec<&[u8]> = certificates.iter().map(AsRef::as_ref).collect();
    hex::encode(crypto::sha256_of(&parts))
}

fn to_pem(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates
        .iter()
        .flat_map(|der| pem::encode(pem::CERTIFICATE, der).as_bytes().to_vec())
        .collect()
}

/// For logs: what a workload wrote.
fn shortened(path: &str) -> String {
    path.chars().filter(|c| !c.is_control()).take(256).collect()
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
