//! `--write`, `--renew` and `--exec`: an SVID as files, kept new for a program that reads
//! nothing else.

use std::path::PathBuf;

use citadel_node_agent::files::folder::{Access, Folder, FolderError};
use citadel_node_agent::files::{Material, formats, keeper, reload};
use tokio::process::Command;

use super::update::Svid;
use crate::exit::Failure;

/// What of `citadel fetch` is about files.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
pub(super) struct WriteArgs {
    /// Write svid.pem, svid_key.pem (mode 0600) and svid_bundle.pem to this folder.
    ///
    /// They change all at once: each is a link into ..data, which one rename points to the
    /// new set.
    #[arg(long, value_name = "DIR")]
    pub(super) write: Option<PathBuf>,

    /// With --write, the identity to write; default: the endpoint's first.
    #[arg(long, value_name = "SPIFFE_ID", requires = "write")]
    pub(super) id: Option<String>,

    /// With --write, svid_combined.pem too: chain and key in one file, as HAProxy wants them.
    #[arg(long, requires = "write")]
    pub(super) combined: bool,

    /// With --write, svid.p12 too (PKCS#12 with key, chain and bundle), under the password in
    /// this file's first line.
    #[arg(long, value_name = "FILE", requires = "write")]
    pub(super) pkcs12_password_file: Option<PathBuf>,

    /// With --write, stay and write each renewed certificate, without printing it.
    #[arg(long, requires = "write", conflicts_with = "watch")]
    pub(super) renew: bool,

    /// With --write, a command for the shell after each write, such as "nginx -s reload".
    /// SIGHUP to a process: "kill -HUP $(cat /run/x.pid)".
    #[arg(long, value_name = "CMD", requires = "write")]
    pub(super) exec: Option<String>,
}

/// A folder that holds one SVID.
pub(super) struct Files {
    folder: Folder,
    combined: bool,
    pkcs12_password_file: Option<PathBuf>,
    exec: Option<String>,
}

impl WriteArgs {
    /// The folder to write to, if one was named.
    pub(super) fn files(&self) -> Result<Option<Files>, Failure> {
        let Some(path) = &self.write else {
            return Ok(None);
        };
        Ok(Some(Files {
            folder: Folder::open(path, Access::default()).map_err(|error| cannot(&error))?,
            combined: self.combined,
            pkcs12_password_file: self.pkcs12_password_file.clone(),
            exec: self.exec.clone(),
        }))
    }
}

impl Files {
    pub(super) fn display(&self) -> std::path::Display<'_> {
        self.folder.path().display()
    }

    /// Replaces the files.
    pub(super) fn write(&self, svid: &Svid) -> Result<(), Failure> {
        svid.key_belongs().map_err(|problem| {
            Failure::check(format!(
                "nothing is written to {}: {problem}",
                self.display()
            ))
        })?;
        let owned = |ders: &[Vec<u8>]| ders.iter().map(|der| der.clone().into()).collect();
        let material = Material {
            chain: owned(&svid.chain),
            key: svid.key.clone(),
            authorities: owned(&svid.authorities),
        };
        let mut files = formats::pem(&material);
        if self.combined {
            files.push(formats::combined(&material));
        }
        if let Some(path) = &self.pkcs12_password_file {
            let password = keeper::read_password(path).map_err(|reason| {
                Failure::local(format!("{}: {reason}", path.display())).next(
                    "Write the password into its first line, or leave out --pkcs12-password-file.",
                )
            })?;
            let pkcs12 = formats::pkcs12(&material, &password);
            files.push(pkcs12.map_err(|error| Failure::local(error.to_string()))?);
        }
        self.folder.write(&files).map_err(|error| cannot(&error))
    }

    /// Runs `--exec`, if there is one.
    pub(super) async fn tell(&self) -> Result<(), Failure> {
        let Some(command) = &self.exec else {
            return Ok(());
        };
        let mut shell = Command::new("sh");
        shell.args(["-c", command]);
        reload::run_to_end(shell).await.map_err(|what| {
            Failure::local(format!("--exec {command:?} {what}"))
                .next("The files are written; the program that reads them does not know it yet.")
        })
    }
}

fn cannot(error: &FolderError) -> Failure {
    Failure::local(error.to_string()).next("Choose a folder with --write that is this user's own.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::certificate;
    use crate::testing::TestCa;

    fn files(folder: &Path, exec: Option<&str>) -> Files {
        let args = WriteArgs {
            write: Some(folder.to_owned()),
            id: None,
            combined: false,
            pkcs12_password_file: None,
            renew: false,
            exec: exec.map(ToOwned::to_owned),
        };
        args.files().unwrap().unwrap()
    }

    #[test]
    fn the_files_hold_the_svid() {
        let ca = TestCa::new();
        let svid = ca.svid("spiffe://example.org/a");
        let folder = tempfile::tempdir().unwrap();
        files(folder.path(), None).write(&svid).unwrap();
        let read = |name: &str| certificate::read(&fs::read(folder.path().join(name)).unwrap());
        assert_eq!(read("svid.pem").unwrap(), svid.chain);
        assert_eq!(read("svid_bundle.pem").unwrap(), svid.authorities);
    }

    #[test]
    fn a_key_that_does_not_fit_is_not_written_and_the_old_set_stays() {
        let ca = TestCa::new();
        let folder = tempfile::tempdir().unwrap();
        let first = ca.svid("spiffe://example.org/a");
        let opened = files(folder.path(), None);
        opened.write(&first).unwrap();
        let mut mixed = ca.svid("spiffe://example.org/a");
        mixed.key = ca.svid("spiffe://example.org/a").key.clone();
        let failure = opened.write(&mixed).unwrap_err();
        assert!(failure.to_string().contains("does not fit"), "{failure}");
        let left = fs::read(folder.path().join(formats::CERTIFICATE)).unwrap();
        assert_eq!(certificate::read(&left).unwrap(), first.chain);
    }

    #[tokio::test]
    async fn the_command_is_the_shells_and_its_failure_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("told");
        let command = format!("echo once >> {}", told.display());
        files(folder.path(), Some(&command)).tell().await.unwrap();
        assert_eq!(fs::read_to_string(told).unwrap(), "once\n");
        let failed = files(folder.path(), Some("exit 3")).tell().await;
        let failed = failed.unwrap_err().to_string();
        assert!(failed.contains("exit status: 3"), "{failed}");
    }
}
