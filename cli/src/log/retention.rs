//! `citadel log retention`.

use std::time::Duration;

use citadel_ca_server::log::plan_retention;
use serde_json::json;
use time::OffsetDateTime;

use super::source::{SourceArgs, store_failure};
use crate::duration::parse_duration;
use crate::exit::{Ended, Outcome};
use crate::output::{self, Format};

/// Says what retention would take away now, and how much room that frees.
///
/// The CA does it by itself, each hour, by the configuration's log.retention.
#[derive(Debug, clap::Args)]
pub(crate) struct RetentionArgs {
    /// Only says what would go: there is nothing else that this command does.
    #[arg(long, required = true)]
    dry_run: bool,

    /// Time after a certificate's expiry, as in log.retention.
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = parse_duration)]
    after: Duration,
}

impl RetentionArgs {
    pub(crate) async fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        let store = source.open().await?;
        let plan = plan_retention(store.as_ref(), self.after, OffsetDateTime::now_utc())
            .await
            .map_err(|error| store_failure(&error))?;
        match format {
            Format::Json => output::json(&json!({
                "minimum_index": plan.from,
                "new_minimum_index": plan.to,
                "certificates": plan.certificates,
                "bytes": plan.bytes,
            }))?,
            Format::Text => output::text(&format!(
                "the minimum index would rise from {} to {}: {} certificates would go, and free \
                 {} bytes for new ones (the database keeps its size)\n",
                plan.from, plan.to, plan.certificates, plan.bytes
            ))?,
        }
        Ok(Outcome::Done)
    }
}
