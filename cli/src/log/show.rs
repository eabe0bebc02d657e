//! `citadel log show` and `citadel log stats`.

use citadel_ca_server::store::{Filter, Query, StoredEntry};
use citadel_identity::serial::Serial;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::auditor::{Auditor, Extent};
use super::entry;
use super::source::{SourceArgs, parse_serial};
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format};

/// Everything that is known of one certificate.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Its serial, in hex.
    #[arg(value_name = "SERIAL", value_parser = parse_serial)]
    serial: Serial,
}

/// How large the log is, and how far its tree and its checkpoint reach.
#[derive(Debug, clap::Args)]
pub(crate) struct StatsArgs {}

impl ShowArgs {
    pub(crate) async fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        let log = source.auditor().await?;
        let stored = log.issued(&self.serial).await?;
        let covered = covered(&log.extent().await?);
        let mut shown = entry::to_json(&stored);
        if let Value::Object(fields) = &mut shown {
            let proven = stored.index.0 < covered;
            fields.insert("proven".into(), proven.into());
        }
        match format {
            Format::Json => output::json(&shown)?,
            Format::Text => output::text(&entry::to_text(&shown))?,
        }
        Ok(Outcome::Done)
    }
}

impl StatsArgs {
    pub(crate) async fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        let log = source.auditor().await?;
        let stats = stats(log.as_ref()).await?;
        match format {
            Format::Json => output::json(&stats)?,
            Format::Text => output::text(&entry::to_text(&stats))?,
        }
        Ok(Outcome::Done)
    }
}

/// Entries that the newest checkpoint covers.
fn covered(extent: &Extent) -> u64 {
    extent.checkpoint.as_ref().map_or(0, |(_, size)| *size)
}

async fn stats(log: &dyn Auditor) -> Result<Value, Failure> {
    let extent = log.extent().await?;
    let newest = log.page(&Query::newest(Filter::default(), 1)).await?;
    let oldest = log.read(0, 1).await?;
    let time = |entries: &[StoredEntry]| {
        entries
            .first()
            .map(|stored| entry::to_json(stored)["time"].clone())
    };
    Ok(json!({
        "at": output::instant(OffsetDateTime::now_utc()),
        "entries": extent.size,
        "entries_in_checkpoint": covered(&extent),
        "minimum_index": extent.minimum,
        "oldest_entry": time(&oldest),
        "newest_entry": time(&newest),
        "checkpoint": extent.checkpoint.map(|(note, _)| note),
    }))
}
