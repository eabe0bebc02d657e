//! `citadel bench store`: what the store costs as it grows to millions of certificates.
//!
//! The log is filled in this process, by the code that a server runs: group commits, the
//! indexer, the tree with its checkpoints. At each size it is measured, and a real server is
//! started on it.

mod fill;
mod fleet;
mod queries;
mod report;

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use citadel_ca_server::log::verify;
use citadel_ca_server::store::{LogIndex, SqliteStore, Store, StoreError};
use citadel_ledger::VerifierKey;
use citadel_proto::log::{Entry, Issued, entry::Kind};
use nix::sys::statvfs::statvfs;
use prost::Message as _;
use serde_json::json;

use self::fill::Filling;
use self::fleet::Fleet;
use self::report::Row;
use super::args::Path;
use super::floor::Floor;
use super::population::Population;
use super::rsa_key::RsaKey;
use super::server::{self, Server, Workplace};
use super::standin::StandIn;
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format};
use crate::progress::Progress;

/// What an entry takes on the disk at most, WAL and all, for the look at the free space.
const ROOM: u64 = 2_600;

/// Measures the store as it grows: room, queries, start, appending, verification.
///
/// Fills a fresh SQLite store with the certificates of a fleet of 20,000 pods and measures it
/// at 100,000 entries, at each power of ten, and at the end.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::exit::EXIT_CODES)]
pub(crate) struct StoreArgs {
    /// Certificates in the end. 10 million take 20 GB and some minutes.
    #[arg(long, value_name = "N", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    entries: u64,

    /// Where the store is made; on the disk to be measured, and kept. [default: a new folder
    /// under the temporary folder, elsewhere where that is in memory; removed afterwards]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// The citadel-ca to start. [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    server_binary: Option<PathBuf>,
}

impl StoreArgs {
    pub(crate) fn run(self, format: Format) -> Result<Outcome, Ended> {
        let rows = super::uninterrupted(self.measure())?;
        match format {
            Format::Json => output::json(&rows)?,
            Format::Text => output::text(&report::table(&rows))?,
        }
        Ok(Outcome::Done)
    }

    /// 100,000, each power of ten above it, and the end.
    fn sizes(&self) -> Vec<u64> {
        let mut sizes: Vec<u64> = std::iter::successors(Some(100_000), |size| Some(size * 10))
            .take_while(|size| *size < self.entries)
            .collect();
        sizes.push(self.entries);
        sizes
    }

    async fn measure(&self) -> Result<Vec<Row>, Failure> {
        let place = Workplace::new(self.dir.as_deref(), "store")?;
        enough_room(place.path(), self.entries)?;
        let scene = Scene::new(place, self.server_binary.as_deref()).await?;
        // Makes the keys, and the first certificate: its own.
        scene.server().await?.stop().await;
        let fleet = Fleet::new(self.entries, scene.first_certificate().await?);
        let mut filling = Filling::new(fleet);
        let mut rows = Vec::new();
        for size in self.sizes() {
            rows.push(scene.at(size, &mut filling).await?);
        }
        Ok(rows)
    }
}

/// A server's folder, and what the server needs.
struct Scene {
    place: Workplace,
    binary: PathBuf,
    kubeconfig: PathBuf,
    floor: Floor,
    _standin: StandIn,
}

impl Scene {
    async fn new(place: Workplace, binary: Option<&FilePath>) -> Result<Self, Failure> {
        let key = RsaKey::generate()?;
        let standin = StandIn::start(&Population::new(200), &key.jwks()).await?;
        let kubeconfig = place.path().join("kubeconfig");
        standin.write_kubeconfig(&kubeconfig)?;
        Ok(Self {
            binary: server::binary(binary)?,
            kubeconfig,
            floor: Floor::new(&key)?,
            _standin: standin,
            place,
        })
    }

    fn data(&self) -> PathBuf {
        self.place.path().join("data")
    }

    fn database(&self) -> PathBuf {
        self.data().join("citadel.db")
    }

    async fn server(&self) -> Result<Server, Failure> {
        let settings = json!({ "store": format!("sqlite:{}", self.database().display()) });
        Server::start(&self.binary, self.place.path(), &self.kubeconfig, &settings).await
    }

    async fn first_certificate(&self) -> Result<Issued, Failure> {
        let store = SqliteStore::open_read_only(self.database())
            .await
            .map_err(|error| stored(&error))?;
        let entries = store.read(LogIndex(0), 100).await;
        store.close().await;
        entries
            .map_err(|error| stored(&error))?
            .iter()
            .filter_map(|entry| Entry::decode(entry.bytes.as_slice()).ok()?.kind)
            .find_map(|kind| match kind {
                Kind::Issued(issued) => Some(issued),
                _ => None,
            })
            .ok_or_else(|| Failure::check("the server recorded no certificate of its own"))
    }

    /// Fills the log up to `size` and measures it.
    async fn at(&self, size: u64, filling: &mut Filling) -> Result<Row, Failure> {
        let floor = self.floor.measure(Path::Agent).await?;
        let filled = filling.up_to(size, &self.database(), &self.data()).await?;
        let floor = floor.min(self.floor.measure(Path::Agent).await?);
        let bytes: u64 = queries::files(&self.database())?
            .iter()
            .filter_map(|file| file.metadata().ok())
            .map(|file| file.len())
            .sum();
        let begun = Instant::now();
        let server = self.server().await?;
        let start = begun.elapsed();
        let usage = server
            .usage()
            .map_err(|error| Failure::local(format!("the server's memory: {error}")))?;
        server.stop().await;
        let issued = filling.issued();
        let (database, fleet) = (self.database(), filling.fleet());
        output::note("asking …");
        let warm = queries::warm(&database, fleet, issued).await?;
        let cold = queries::cold(&database, fleet, issued).await?;
        let verified_per_s = self.verify().await?;
        let floors = |time: std::time::Duration| time.as_secs_f64() / floor.as_secs_f64();
        #[allow(clippy::cast_precision_loss)]
        Ok(Row {
            entries: issued,
            bytes_per_certificate: bytes as f64 / issued as f64,
            append_floors: floors(filled.append),
            append_cpu_floors: floors(filled.append_cpu),
            floor_us: floor.as_secs_f64() * 1e6,
            index_backlog: filled.backlog,
            fill_per_s: filled.fill_per_s,
            indexed_per_s: filled.indexed_per_s,
            warm_identity_p99_ms: warm.identity_ms,
            warm_serial_p99_ms: warm.serial_ms,
            cold_identity_p99_ms: cold.identity_ms,
            cold_serial_p99_ms: cold.serial_ms,
            start_ms: start.as_secs_f64() * 1e3,
            server_rss_mb: usage.resident as f64 / 1e6,
            verified_per_s,
        })
    }

    /// Verifies the whole log; entries per second.
    async fn verify(&self) -> Result<f64, Failure> {
        let key = std::fs::read_to_string(self.data().join("log.pub"))
            .map_err(|error| Failure::local(format!("log.pub: {error}")))?;
        let key: VerifierKey = key
            .trim()
            .parse()
            .map_err(|error| Failure::check(format!("log.pub: {error}")))?;
        let store: Arc<dyn Store> = Arc::new(
            SqliteStore::open_read_only(self.database())
                .await
                .map_err(|error| stored(&error))?,
        );
        let size = store.size().await.map_err(|error| stored(&error))?;
        let progress = Progress::new("verifying", size);
        let begun = Instant::now();
        let mut before = 0;
        let verified = verify(&store, &key, &[], |looked_at| {
            progress.advance(looked_at - before);
            before = looked_at;
        })
        .await
        .map_err(|error| Failure::check(error.to_string()))?;
        let seconds = begun.elapsed().as_secs_f64();
        store.close().await;
        #[allow(clippy::cast_precision_loss)]
        Ok(verified.size as f64 / seconds)
    }
}

fn enough_room(folder: &FilePath, entries: u64) -> Result<(), Failure> {
    let space = statvfs(folder)
        .map_err(|error| Failure::local(format!("{}: {error}", folder.display())))?;
    let free = space.blocks_available() * space.fragment_size();
    let wanted = entries * ROOM;
    if free < wanted {
        return Err(Failure::local(format!(
            "{} has {} MB free; {entries} entries need about {} MB",
            folder.display(),
            free / 1_000_000,
            wanted / 1_000_000
        ))
        .next("Name another folder with --dir, or fewer --entries."));
    }
    Ok(())
}

fn stored(error: &StoreError) -> Failure {
    Failure::local(error.to_string())
}
