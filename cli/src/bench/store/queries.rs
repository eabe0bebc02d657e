//! How long questions take: with the files in memory, and read from the disk.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use citadel_ca_server::store::{Filter, Query, SqliteStore, Store as _};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rand::Rng as _;

use super::super::measure::percentile;
use super::fleet::Fleet;
use super::stored;
use crate::exit::Failure;

/// Entries on a page: what `citadel log search` shows.
const PAGE: usize = 50;

/// Asked before it counts.
const WARM_UP: usize = 200;
const WARM: usize = 1_000;
const COLD: usize = 100;

/// Percentile 99 of one kind of question, in milliseconds.
pub(super) struct Times {
    pub(super) identity_ms: f64,
    pub(super) serial_ms: f64,
}

/// Everything in memory that a system leaves there.
pub(super) async fn warm(path: &Path, fleet: &Fleet, issued: u64) -> Result<Times, Failure> {
    let store = open(path).await?;
    let mut identity = Vec::new();
    let mut serial = Vec::new();
    for round in 0..WARM_UP + WARM {
        let times = (
            by_identity(&store, issued).await?,
            by_serial(&store, fleet, issued).await?,
        );
        if round >= WARM_UP {
            identity.push(times.0);
            serial.push(times.1);
        }
    }
    store.close().await;
    Ok(Times::of(identity, serial))
}

/// Each question on a store that was just opened, with nothing of its files in memory.
pub(super) async fn cold(path: &Path, fleet: &Fleet, issued: u64) -> Result<Times, Failure> {
    let mut identity = Vec::new();
    let mut serial = Vec::new();
    for _ in 0..COLD {
        let store = opened_cold(path).await?;
        identity.push(by_identity(&store, issued).await?);
        store.close().await;
        let store = opened_cold(path).await?;
        serial.push(by_serial(&store, fleet, issued).await?);
        store.close().await;
    }
    Ok(Times::of(identity, serial))
}

async fn opened_cold(path: &Path) -> Result<SqliteStore, Failure> {
    let store = open(path).await?;
    for file in files(path)? {
        evict(&file)?;
    }
    Ok(store)
}

async fn open(path: &Path) -> Result<SqliteStore, Failure> {
    SqliteStore::open_read_only(path)
        .await
        .map_err(|error| stored(&error))
}

/// Whose an identity's newest certificates are; microseconds.
async fn by_identity(store: &SqliteStore, issued: u64) -> Result<u32, Failure> {
    let spiffe_id = Fleet::spiffe_id(any(issued));
    let filter = Filter {
        spiffe_id: Some(spiffe_id.clone()),
        ..Filter::default()
    };
    let begun = Instant::now();
    let found = store.list(&Query::newest(filter, PAGE)).await;
    let time = micros(begun);
    let found = found.map_err(|error| stored(&error))?;
    if found.is_empty() {
        return Err(Failure::check(format!("{spiffe_id} is not found")));
    }
    Ok(time)
}

/// One certificate; microseconds.
async fn by_serial(store: &SqliteStore, fleet: &Fleet, issued: u64) -> Result<u32, Failure> {
    let serial = fleet.serial(any(issued));
    let begun = Instant::now();
    let found = store.issued_by_serial(&serial).await;
    let time = micros(begun);
    match found.map_err(|error| stored(&error))? {
        Some(_) => Ok(time),
        None => Err(Failure::check(format!(
            "serial {} is not found",
            hex::encode(serial)
        ))),
    }
}

fn any(issued: u64) -> u64 {
    rand::rng().random_range(0..issued)
}

fn micros(begun: Instant) -> u32 {
    u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX)
}

impl Times {
    fn of(mut identity: Vec<u32>, mut serial: Vec<u32>) -> Self {
        identity.sort_unstable();
        serial.sort_unstable();
        let p99 = |times: &[u32]| f64::from(percentile(times, 99.0)) / 1e3;
        Self {
            identity_ms: p99(&identity),
            serial_ms: p99(&serial),
        }
    }
}

/// The store's files: log, index, and what SQLite keeps beside them.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let cannot = |error: std::io::Error| Failure::local(format!("{}: {error}", path.display()));
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut found = Vec::new();
    for file in std::fs::read_dir(path.parent().unwrap_or(path)).map_err(cannot)? {
        let file = file.map_err(cannot)?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&*stem) && name.contains(".db") {
            found.push(file.path());
        }
    }
    Ok(found)
}

/// Makes the system forget what it has of a file.
fn evict(path: &Path) -> Result<(), Failure> {
    let cannot = |error: &dyn std::fmt::Display| {
        Failure::local(format!(
            "{} can't be taken out of memory: {error}",
            path.display()
        ))
    };
    let file = File::open(path).map_err(|error| cannot(&error))?;
    // Only what is on the disk can go.
    file.sync_all().map_err(|error| cannot(&error))?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .map_err(|error| cannot(&error))
}
