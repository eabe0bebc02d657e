//! The files of a store: their modes, and the lock that keeps a second writer out.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::store::StoreError;

/// Nobody but the owner reads the log: it names workloads.
pub(super) const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Makes the directory and an empty database file where they are missing. SQLite gives
/// its `-wal` and `-shm` files the mode of the database.
pub(super) fn prepare(database: &Path) -> Result<(), StoreError> {
    if let Some(directory) = parent(database) {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .map_err(|e| StoreError::io("cannot make the directory", directory, &e))?;
    }
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(database)
    {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(StoreError::io("cannot create", database, &e)),
    }
}

/// Where the index over this log is: `citadel.db` has `citadel-index.db`.
pub(super) fn index_path(database: &Path) -> PathBuf {
    let mut name = database.file_stem().unwrap_or_default().to_owned();
    name.push("-index");
    if let Some(extension) = database.extension() {
        name.push(".");
        name.push(extension);
    }
    database.with_file_name(name)
}

/// Removes a database with what SQLite keeps beside it.
pub(super) fn remove_database(database: &Path) -> Result<(), StoreError> {
    for suffix in ["-wal", "-shm", ""] {
        let path = with_suffix(database, suffix);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(StoreError::io("cannot remove", &path, &e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Held by the one writer, for as long as it lives; the kernel lets go of it when the
/// process dies.
#[derive(Debug)]
pub(super) struct WriterLock(#[expect(dead_code, reason = "held, not read")] File);

impl WriterLock {
    /// Takes the lock, or says who has it.
    pub(super) fn take(database: &Path) -> Result<Self, StoreError> {
        let path = with_suffix(database, ".lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(|e| StoreError::io("cannot open", &path, &e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::AnotherWriter {
                    path: database.to_owned(),
                    holder: holder(&mut file),
                });
            }
            Err(TryLockError::Error(e)) => {
                return Err(StoreError::io("cannot lock", &path, &e));
            }
        }
        // For the message above alone: that it cannot be written stops nobody.
        let _ = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self(file))
    }
}

/// The process that a lock file names.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let pid: Option<u32> = file
        .take(32)
        .read_to_string(&mut text)
        .ok()
        .and_then(|_| text.trim().parse().ok());
    match pid {
        Some(pid) if pid == std::process::id() => "this process".to_owned(),
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

fn parent(path: &Path) -> Option<&Path> {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
