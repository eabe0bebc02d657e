//! Keeps the folders of the agent's rules: each certificate that comes is written, and the
//! program that reads it is told.
//!
//! The identity is one of the node's entries whose unix selectors match the files' owner: who
//! writes the configuration is root of this node, which may have these entries anyway; the
//! CA's entries stay the bound of what it gets. An entry that names an executable is for a
//! process, never for a file.

use std::{fs, io::Read as _, path::Path, sync::Arc, time::Duration};

use citadel_identity::{
    bundle::{Bundle, BundleSet},
    selector::UnixFacts,
};
use citadel_runtime::ShutdownSignal;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{
    Material,
    config::Rule,
    folder::{Folder, FolderError},
    formats::{self, MAX_PASSWORD, Pkcs12Error},
};
use crate::{
    ca_client::{Entries, NodeEntry},
    identities::Identities,
    metrics::Metrics,
    secrets::{SecretKey, State, Subscription, Svid, Wanted},
};

/// When to look again after a failure, and after a refusal.
const AGAIN: Duration = Duration::from_secs(10);

/// Why files are not written.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Pkcs12(#[from] Pkcs12Error),
    #[error("the password file {path}: {reason}")]
    Password { path: String, reason: String },
    #[error("the trust bundle is not there yet")]
    NoBundle,
    #[error("writing was interrupted")]
    Interrupted,
}

/// Keeps one rule's folder.
pub struct Keeper {
    /// The rule.
    pub rule: Rule,
    /// Where identities come from.
    pub identities: Identities,
    /// Counters.
    pub metrics: Metrics,
}

/// What to do once an identity is followed no longer.
enum Next {
    /// The entries changed.
    Choose,
    /// The CA refused it: later it may not.
    LookAgain,
}

/// What is in the files now.
#[derive(PartialEq)]
struct Written {
    serial: String,
    bundle: Option<Bundle>,
}

impl Written {
    fn of(svid: &Svid, bundle: Option<&Bundle>) -> Self {
        Self {
            serial: svid.serial.clone(),
            bundle: bundle.cloned(),
        }
    }
}

impl Keeper {
    /// Writes until the shutdown. The files stay then: who reads them lives on.
    pub async fn run(self, shutdown: ShutdownSignal) {
        tokio::select! {
            () = shutdown.wait() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let mut entries = self.identities.entries.clone();
        let mut bundles = self.identities.bundles.clone();
        let (mut told, mut written) = (false, None);
        loop {
            let wanted = entries
                .borrow_and_update()
                .as_deref()
                .map(|entries| (self.choose(entries), entries.revision));
            let Some((Some(entry), revision)) = wanted else {
                // Before the CA sent them, nothing is wrong.
                if wanted.is_some() && !told {
                    told = true;
                    tracing::warn!(
                        directory = %self.rule.directory.display(),
                        owner = self.rule.owner.0,
                        "no entry of this node is for the owner of these files"
                    );
                }
                changed(&mut entries).await;
                continue;
            };
            told = false;
            match self
                .identities
                .manager
                .subscribe(self.wanted(&entry, revision))
            {
                Ok(state) => {
                    let next = self.follow(state, &mut entries, &mut bundles, &mut written);
                    if matches!(next.await, Next::Choose) {
                        continue;
                    }
                }
                Err(reason) => tracing::warn!(
                    directory = %self.rule.directory.display(), %reason,
                    "no certificate for these files"
                ),
            }
            tokio::select! {
                () = changed(&mut entries) => {}
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    /// Writes what a subscription yields, until another entry may be the right one.
    async fn follow(
        &self,
        mut state: Subscription,
        entries: &mut watch::Receiver<Option<Arc<Entries>>>,
        bundles: &mut watch::Receiver<Option<Arc<BundleSet>>>,
        written: &mut Option<Written>,
    ) -> Next {
        loop {
            let now = state.borrow_and_update().clone();
            let bundle = bundles.borrow_and_update().clone();
            let mut failed = false;
            match (now, bundle) {
                (State::Ready(svid), Some(bundle)) => {
                    let news = Written::of(&svid, bundle.get(&self.identities.trust_domain));
                    if written.as_ref() != Some(&news) {
                        match self.write(&svid, &bundle).await {
                            Ok(()) => *written = Some(news),
                            Err(error) => {
                                failed = true;
                                self.metrics.files_failed();
                                tracing::warn!(
                                    directory = %self.rule.directory.display(), %error,
                                    "the files of a certificate were not written"
                                );
                            }
                        }
                    }
                }
                (State::Denied(reason), _) => {
                    tracing::warn!(
                        directory = %self.rule.directory.display(), %reason,
                        "the CA refuses the identity of these files; what is written stays"
                    );
                    return Next::LookAgain;
                }
                (State::Ready(_) | State::Waiting { .. }, _) => {}
            }
            tokio::select! {
                () = changed(&mut state) => {}
                () = changed(bundles) => {}
                () = changed(entries) => return Next::Choose,
                () = tokio::time::sleep(AGAIN), if failed => {}
            }
        }
    }

    /// The entry for the files' owner: the one that the rule names, else the first.
    fn choose(&self, entries: &Entries) -> Option<NodeEntry> {
        let (uid, gid) = self.rule.owner;
        let owner = UnixFacts {
            uid,
            gid,
            ..UnixFacts::default()
        };
        let named = |entry: &&NodeEntry| {
            let wanted = self.rule.spiffe_id.as_ref();
            wanted.is_none_or(|id| *id == entry.spiffe_id)
        };
        let of_owner = |entry: &&NodeEntry| {
            entry.is_for(false) && entry.selectors().iter().all(|it| it.matches_unix(&owner))
        };
        entries.list.iter().filter(of_owner).find(named).cloned()
    }

    fn wanted(&self, entry: &NodeEntry, revision: u64) -> Wanted {
        Wanted {
            key: SecretKey::Entry {
                entry_id: entry.entry_id.clone(),
                pod_uid: None,
            },
            principal: format!("files {}", self.rule.directory.display()).into(),
            revision,
            spiffe_id: Some(entry.spiffe_id.clone()),
            ttl_seconds: self.identities.ttl_seconds,
            token: None,
        }
    }

    async fn write(&self, svid: &Svid, bundles: &BundleSet) -> Result<(), KeepError> {
        let bundle = bundles
            .get(&self.identities.trust_domain)
            .ok_or(KeepError::NoBundle)?;
        let material = Material {
            chain: svid.chain.clone(),
            key: Zeroizing::new(svid.key.pkcs8_der().to_vec()),
            authorities: bundle.authorities.clone(),
        };
        let rule = self.rule.clone();
        // fsync, and a password that is stretched, off the async threads.
        tokio::task::spawn_blocking(move || write_all(&rule, &material))
            .await
            .map_err(|_| KeepError::Interrupted)??;
        tracing::info!(
            directory = %self.rule.directory.display(),
            spiffe_id = %svid.id,
            serial = svid.serial,
            "certificate written"
        );
        self.metrics.files_written();
        for error in self.rule.reload.run().await {
            self.metrics.files_failed();
            tracing::warn!(
                directory = %self.rule.directory.display(), %error,
                "the program that reads these files could not be told"
            );
        }
        Ok(())
    }
}

fn write_all(rule: &Rule, material: &Material) -> Result<(), KeepError> {
    let mut files = formats::pem(material);
    if rule.combined {
        files.push(formats::combined(material));
    }
    if let Some(path) = &rule.pkcs12_password_file {
        files.push(formats::pkcs12(material, &password(path)?)?);
    }
    Folder::open(&rule.directory, rule.access)?.write(&files)?;
    Ok(())
}

/// The first line of a password file. Read for each write: it may have been changed.
fn password(path: &Path) -> Result<Zeroizing<String>, KeepError> {
    read_password(path).map_err(|reason| KeepError::Password {
        path: path.display().to_string(),
        reason,
    })
}

/// The first line of a password file.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that begins with its path.
pub fn read_password(path: &Path) -> Result<Zeroizing<String>, String> {
    let mut text = Zeroizing::new(String::new());
    fs::File::open(path)
        .and_then(|file| file.take(MAX_PASSWORD as u64 + 2).read_to_string(&mut text))
        .map_err(|error| error.to_string())?;
    let line = text.lines().next().unwrap_or_default();
    match line.len() {
        0 => Err("is empty".into()),
        length if length > MAX_PASSWORD => Err(format!("is longer than {MAX_PASSWORD} bytes")),
        _ => Ok(Zeroizing::new(line.to_owned())),
    }
}

/// Resolves when it changed; never once its other side is gone.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
