//! `citadel log watch`: what a log signed is kept elsewhere, and held against what it signs
//! later.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use citadel_ledger::{
    Checkpoint, Hash, MAX_NOTE_BYTES, Resource, TILE_WIDTH, Tile, TileSet, VerifierKey, proof,
};
use http::Request;
use serde_json::json;
use tonic::body::Body;
use tonic::codegen::Body as _;
use tonic::transport::Channel;
use tower::{Service as _, ServiceExt as _};

use super::source::{SourceArgs, read_bounded};
use crate::duration::parse_duration;
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format};

/// From a question to the end of its answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// Files of kept checkpoints begin so; their size follows.
const KEPT: &str = "checkpoint-";

/// Watches a CA's log from another host: keeps its checkpoints, and checks each against the
/// one before.
///
/// Reads the CA's public HTTPS port, whose hash tiles log.public_hashes opens; else give an
/// auditor's --token-file or --svid. Ends with exit code 1 and says why when the log went back,
/// or is not a continuation of what was signed before; the checkpoint that shows it is kept too.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
pub(crate) struct WatchArgs {
    /// The CA's public HTTPS port, host:port.
    #[arg(value_name = "ADDRESS")]
    address: String,

    /// Folder that keeps the checkpoints; made if it is missing.
    #[arg(long, value_name = "DIR")]
    keep: PathBuf,

    /// Time between two looks.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse_duration)]
    every: Duration,

    /// Checkpoints that are kept; the first one always is.
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(2..))]
    most: u32,

    /// Looks once, and ends.
    #[arg(long)]
    once: bool,
}

/// A checkpoint that was verified, and kept.
struct Kept {
    checkpoint: Checkpoint,
}

impl WatchArgs {
    pub(crate) async fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        let key = source.given_key()?.ok_or_else(|| {
            Failure::usage("--key is needed: the log's public key, from the CA's log.pub")
        })?;
        let mut watcher = Watcher {
            log: Https::new(&self.address, source)?,
            last: newest(&self.keep, &key)?,
            key,
            folder: self.keep,
            most: self.most as usize,
        };
        loop {
            match watcher.look().await {
                Ok(size) => match format {
                    Format::Json => {
                        output::json_line(&json!({ "consistent": true, "entries": size }))?;
                    }
                    Format::Text => output::text(&format!("consistent: {size} entries\n"))?,
                },
                Err(Trouble::Away(failure)) if self.once => return Err(failure.into()),
                // Whoever can silence the CA can't make the alarm go away by it.
                Err(Trouble::Away(failure)) => output::note(&format!("citadel: {failure}")),
                Err(Trouble::Alarm(what)) => {
                    if let Format::Json = format {
                        output::json_line(&json!({ "consistent": false, "alarm": what }))?;
                    }
                    return Err(Failure::check(format!("ALARM: {what}")).into());
                }
            }
            if self.once {
                return Ok(Outcome::Done);
            }
            tokio::select! {
                () = crate::interrupted() => return Ok(Outcome::Done),
                () = tokio::time::sleep(self.every) => {}
            }
        }
    }
}

enum Trouble {
    /// No answer, or this host's own trouble: to be tried again.
    Away(Failure),
    /// The log is not what it was.
    Alarm(String),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Away(failure)
    }
}

struct Watcher {
    log: Https,
    key: VerifierKey,
    folder: PathBuf,
    most: usize,
    last: Option<Kept>,
}

impl Watcher {
    /// One look; the entries that the newest checkpoint covers.
    async fn look(&mut self) -> Result<u64, Trouble> {
        let note = self.log.get(Resource::Checkpoint, MAX_NOTE_BYTES).await?;
        let found = match Checkpoint::open(&note, std::slice::from_ref(&self.key)) {
            Ok(found) => found,
            Err(error) => {
                return Err(self.alarm(&note, &format!("the log's checkpoint is refused: {error}")));
            }
        };
        if let Some(last) = &self.last {
            let last = &last.checkpoint;
            if found.size < last.size {
                let what = format!(
                    "the log went back: its checkpoint covers {} entries, an earlier one {}",
                    found.size, last.size
                );
                return Err(self.alarm(&note, &what));
            }
            if found == *last {
                return Ok(found.size);
            }
            if let Err(why) = self.log.consistent(last, &found).await? {
                let what = format!(
                    "the log of {} entries does not go on from the one of {}: {why}",
                    found.size, last.size
                );
                return Err(self.alarm(&note, &what));
            }
        }
        self.keep(&format!("{KEPT}{:020}", found.size), &note)?;
        self.forget_old()?;
        let size = found.size;
        self.last = Some(Kept { checkpoint: found });
        Ok(size)
    }

    /// Keeps what shows it.
    fn alarm(&self, note: &[u8], what: &str) -> Trouble {
        let name = format!("alarm-{}", time::OffsetDateTime::now_utc().unix_timestamp());
        match self.keep(&name, note) {
            Ok(()) => Trouble::Alarm(format!("{what} (kept as {name})")),
            Err(failure) => Trouble::Alarm(format!("{what} ({failure})")),
        }
    }

    /// Whole or not at all, and on the disk.
    fn keep(&self, name: &str, note: &[u8]) -> Result<(), Failure> {
        use std::io::Write as _;
        let path = self.folder.join(name);
        let unfinished = self.folder.join(format!(".{name}"));
        let written = fs::create_dir_all(&self.folder)
            .and_then(|()| fs::File::create(&unfinished))
            .and_then(|mut file| file.write_all(note).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| fs::File::open(&self.folder)?.sync_all());
        written.map_err(|error| Failure::local(format!("{}: {error}", path.display())))
    }

    fn forget_old(&self) -> Result<(), Failure> {
        let names = kept_names(&self.folder)?;
        // The first one stays: everything goes on from it.
        let too_many = names.len().saturating_sub(self.most);
        for name in names.iter().skip(1).take(too_many) {
            let path = self.folder.join(name);
            fs::remove_file(&path)
                .map_err(|error| Failure::local(format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }
}

/// The newest one that was kept before.
fn newest(folder: &Path, key: &VerifierKey) -> Result<Option<Kept>, Failure> {
    let names = kept_names(folder)?;
    let Some(name) = names.last() else {
        return Ok(None);
    };
    let path = folder.join(name);
    let note = read_bounded(&path, MAX_NOTE_BYTES as u64)?;
    let checkpoint = Checkpoint::open(&note, std::slice::from_ref(key)).map_err(|error| {
        Failure::check(format!("{}: {error}", path.display()))
            .next("Is it another log's folder, or was the log's key replaced?")
    })?;
    Ok(Some(Kept { checkpoint }))
}

fn kept_names(folder: &Path) -> Result<BTreeSet<String>, Failure> {
    let failed = |error| Failure::local(format!("{}: {error}", folder.display()));
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = BTreeSet::new();
    for file in files {
        let name = file.map_err(failed)?.file_name();
        names.extend(
            name.to_str()
                .filter(|name| name.starts_with(KEPT))
                .map(str::to_owned),
        );
    }
    Ok(names)
}

/// The CA's public port.
struct Https {
    channel: Channel,
    authorization: Option<tonic::metadata::MetadataValue<tonic::metadata::Ascii>>,
}

impl Https {
    fn new(address: &str, source: &SourceArgs) -> Result<Self, Failure> {
        let address = address.strip_prefix("https://").unwrap_or(address);
        Ok(Self {
            channel: source.server.channel(address.trim_end_matches('/'))?,
            authorization: source.server.authorization()?,
        })
    }

    /// Whether the later checkpoint goes on from the earlier one, by the log's own tiles.
    async fn consistent(
        &self,
        old: &Checkpoint,
        new: &Checkpoint,
    ) -> Result<Result<(), String>, Failure> {
        let plan = match proof::consistency(old.size, new.size) {
            Ok(plan) => plan,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let wanted: BTreeSet<Tile> = plan
            .nodes()
            .iter()
            .filter_map(|node| Tile::of(*node, new.size))
            .collect();
        let mut tiles = TileSet::new();
        for tile in wanted {
            let most = usize::from(TILE_WIDTH) * Hash::BYTES;
            let content = self.get(Resource::Hashes(tile), most).await?;
            if let Err(error) = tiles.insert(tile, &content) {
                return Ok(Err(error.to_string()));
            }
        }
        let steps = match plan.prove(&tiles) {
            Ok(steps) => steps,
            Err(error) => return Ok(Err(error.to_string())),
        };
        Ok(
            proof::verify_consistency(old.size, old.root, new.size, new.root, &steps)
                .map_err(|error| error.to_string()),
        )
    }

    /// A resource of at most so many bytes.
    async fn get(&self, resource: Resource, most: usize) -> Result<Vec<u8>, Failure> {
        tokio::time::timeout(DEADLINE, self.ask(resource, most))
            .await
            .map_err(|_| Failure::unavailable(format!("{resource}: no answer in time")))?
    }

    async fn ask(&self, resource: Resource, most: usize) -> Result<Vec<u8>, Failure> {
        let away =
            |error: &dyn std::fmt::Display| Failure::unavailable(format!("{resource}: {error}"));
        let mut request = Request::get(format!("/{resource}"))
            .body(Body::empty())
            .map_err(|error| away(&error))?;
        if let Some(authorization) = &self.authorization {
            let value = http::HeaderValue::from_bytes(authorization.as_encoded_bytes());
            let mut value = value.map_err(|error| away(&error))?;
            value.set_sensitive(true);
            request
                .headers_mut()
                .insert(http::header::AUTHORIZATION, value);
        }
        let mut channel = self.channel.clone();
        let ready = channel
            .ready()
            .await
            .map_err(|error| away(&Chain(&error)))?;
        let answer = ready
            .call(request)
            .await
            .map_err(|error| away(&Chain(&error)))?;
        match answer.status().as_u16() {
            200 => {}
            401 | 403 => {
                return Err(Failure::denied(format!("{resource}: the CA refuses it"))
                    .next("Set log.public_hashes, or give an auditor's --token-file or --svid."));
            }
            status => return Err(away(&format!("status {status}"))),
        }
        let mut body = std::pin::pin!(answer.into_body());
        let mut content = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let frame = frame.map_err(|error| away(&error))?;
            if let Some(data) = frame.data_ref() {
                content.extend_from_slice(data);
            }
            if content.len() > most {
                return Err(away(&format!("longer than {most} bytes")));
            }
        }
        Ok(content)
    }
}

/// An error with what caused it: tonic's own says "transport error".
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
