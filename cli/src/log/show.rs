//! `citadel log show` and `citadel log stats`.

use citadel_ca_server::store::{Filter, Query, Store};
use citadel_identity::serial::Serial;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::entry;
use super::source::{SourceArgs, issued, parse_serial, store_failure};
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
        let store = source.open().await?;
        let stored = issued(store.as_ref(), &self.serial).await?;
        let tree = store.tree().await.map_err(|error| store_failure(&error))?;
        let mut shown = entry::to_json(&stored);
        if let Value::Object(fields) = &mut shown {
            let proven = stored.index.0 < tree.size;
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
        let store = source.open().await?;
        let stats = stats(store.as_ref()).await?;
        match format {
            Format::Json => output::json(&stats)?,
            Format::Text => output::text(&entry::to_text(&stats))?,
        }
        Ok(Outcome::Done)
    }
}

async fn stats(store: &dyn Store) -> Result<Value, Failure> {
    let failed = |error| store_failure(&error);
    let tree = store.tree().await.map_err(failed)?;
    let size = store.size().await.map_err(failed)?;
    let newest = store
        .list(&Query::newest(Filter::default(), 1))
        .await
        .map_err(failed)?;
    let oldest = store
        .read(citadel_ca_server::store::LogIndex(0), 1)
        .await
        .map_err(failed)?;
    let time = |entries: &[citadel_ca_server::store::StoredEntry]| {
        entries
            .first()
            .map(|stored| entry::to_json(stored)["time"].clone())
    };
    Ok(json!({
        "at": output::instant(OffsetDateTime::now_utc()),
        "entries": size,
        "entries_in_checkpoint": tree.size,
        "minimum_index": tree.minimum,
        "oldest_entry": time(&oldest),
        "newest_entry": time(&newest),
        "checkpoint": tree.checkpoint,
    }))
}
