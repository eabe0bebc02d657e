//! A backup of the log while it is written to, and the way back.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::{
    SqliteStore,
    files::{self, WriterLock},
};
use crate::store::StoreError;

/// What is not whole yet ends so.
const UNFINISHED: &str = ".unfinished";

impl SqliteStore {
    /// Writes a copy of the log as of this moment into a new database file, which is on the
    /// disk when this returns. Servers may write meanwhile; their WAL grows for as long. The
    /// index is not in it: it is derived anew.
    ///
    /// # Errors
    /// The file exists already; or what the disk says. Nothing is left of a copy that failed.
    pub async fn back_up(&self, to: &Path) -> Result<(), StoreError> {
        if to.exists() {
            return Err(StoreError::Settings(format!(
                "{} exists already",
                to.display()
            )));
        }
        // Made with its mode; SQLite fills an empty file.
        files::prepare(to)?;
        let copied = self.copy_into(to).await;
        if copied.is_err() {
            let _ = fs::remove_file(to);
        }
        copied
    }

    async fn copy_into(&self, to: &Path) -> Result<(), StoreError> {
        let name = to
            .to_str()
            .ok_or_else(|| StoreError::Settings(format!("{} is no name in UTF-8", to.display())))?;
        sqlx::query("VACUUM INTO ?")
            .bind(name)
            .execute(self.reader.log())
            .await?;
        // VACUUM INTO leaves that to its caller.
        File::open(to)
            .and_then(|file| file.sync_all())
            .map_err(|error| StoreError::io("cannot sync", to, &error))?;
        sync_folder_of(to)
    }

    /// Puts a copy of a log where there is none, durably. Nothing but the file is looked at:
    /// verify it before.
    ///
    /// # Errors
    /// A server holds the place, there is a log already, or what the disk says.
    pub fn restore(backup: &Path, to: &Path) -> Result<(), StoreError> {
        if let Some(folder) = to.parent().filter(|folder| !folder.as_os_str().is_empty())
            && !folder.exists()
        {
            fs::create_dir_all(folder)
                .map_err(|error| StoreError::io("cannot make", folder, &error))?;
        }
        let _lock = WriterLock::take(to)?;
        if to.exists() {
            return Err(StoreError::Settings(format!(
                "{} exists: nothing is overwritten; move it away first",
                to.display()
            )));
        }
        let unfinished = files::with_suffix(to, UNFINISHED);
        let written = copy(backup, &unfinished)
            // A WAL that is left there would be taken for the restored file's.
            .and_then(|()| files::remove_database(to))
            .and_then(|()| files::remove_database(&files::index_path(to)))
            .and_then(|()| {
                fs::rename(&unfinished, to)
                    .map_err(|error| StoreError::io("cannot rename to", to, &error))
            });
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        sync_folder_of(to)
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let reading = |error| StoreError::io("cannot read", from, &error);
    let writing = |error| StoreError::io("cannot write", to, &error);
    let mut source = File::open(from).map_err(reading)?;
    let mut target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(files::FILE_MODE)
        .open(to)
        .map_err(writing)?;
    io::copy(&mut source, &mut target).map_err(writing)?;
    target.sync_all().map_err(writing)
}

fn sync_folder_of(path: &Path) -> Result<(), StoreError> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| StoreError::io("cannot sync", folder, &error))
}
