//! `citadel log search` and `citadel log tail`.

use std::time::Duration;

use citadel_ca_server::store::{Filter, LogIndex, MAX_PAGE, Query};
use serde_json::Value;
use time::OffsetDateTime;

use super::entry;
use super::source::{SourceArgs, parse_serial};
use crate::duration::parse_instant;
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format, Table};

/// How often `tail -f` looks for new entries.
const LOOK: Duration = Duration::from_millis(250);

/// Finds entries, newest first. All conditions that are given must hold.
#[derive(Debug, clap::Args)]
pub(crate) struct SearchArgs {
    /// The SPIFFE ID; one that ends with * is a prefix.
    #[arg(long, value_name = "SPIFFE_ID")]
    id: Option<String>,
    /// The certificate's serial, in hex.
    #[arg(long, value_name = "SERIAL", value_parser = parse_serial)]
    serial: Option<citadel_identity::serial::Serial>,
    /// SHA-256 of the certificate's public key (SubjectPublicKeyInfo), in hex.
    #[arg(long, value_name = "SHA256")]
    key_sha256: Option<String>,
    /// UID of the pod.
    #[arg(long, value_name = "UID")]
    pod: Option<String>,
    /// Name of the node.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Namespace of the service account.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Name of the service account.
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// Name of the cluster.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Subject key id of the issuing CA, in hex.
    #[arg(long, value_name = "KEY_ID")]
    issuer: Option<String>,
    /// Valid at this time or later: RFC 3339 or seconds since the epoch.
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    valid_since: Option<OffsetDateTime>,
    /// Valid at this time or earlier. With --valid-since: at some instant between the two.
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    valid_until: Option<OffsetDateTime>,
    /// Recorded at this time or later.
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    since: Option<OffsetDateTime>,
    /// Recorded before this time.
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    until: Option<OffsetDateTime>,
    /// Expires before this time.
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    expires_before: Option<OffsetDateTime>,
    /// Only entries before this index: the last one of the page before.
    #[arg(long, value_name = "INDEX")]
    before: Option<u64>,
    /// Entries at most.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Says only how many there are.
    #[arg(long, conflicts_with_all = ["before", "limit"])]
    count: bool,
}

/// Prints the newest entries, oldest first.
#[derive(Debug, clap::Args)]
pub(crate) struct TailArgs {
    /// Goes on with what is recorded from now on, until it is interrupted.
    #[arg(long, short)]
    follow: bool,
    /// Entries to begin with.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 10)]
    lines: u64,
}

impl SearchArgs {
    pub(crate) async fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        let filter = self.filter()?;
        let log = source.auditor().await?;
        if self.count {
            let count = log.count(filter).await?;
            match format {
                Format::Json => output::json(&serde_json::json!({ "count": count }))?,
                Format::Text => output::text(&format!("{count}\n"))?,
            }
            return Ok(Outcome::Done);
        }
        let mut found = Vec::new();
        let mut before = self.before.map(LogIndex);
        while found.len() < self.limit {
            let limit = (self.limit - found.len()).min(MAX_PAGE);
            let query = Query {
                filter: filter.clone(),
                before,
                limit,
            };
            let page = log.page(&query).await?;
            let full = page.len() == limit;
            before = page.last().map(|last| last.index);
            found.extend(page);
            if !full {
                break;
            }
        }
        let shown: Vec<Value> = found.iter().map(entry::to_json).collect();
        match format {
            Format::Json => output::json(&shown)?,
            Format::Text => output::text(&table(&shown))?,
        }
        Ok(Outcome::Done)
    }

    fn filter(&self) -> Result<Filter, Failure> {
        let hex = |name: &str, text: &Option<String>| {
            text.as_ref()
                .map(|text| hex::decode(text.replace(':', "")))
                .transpose()
                .map_err(|_| Failure::usage(format!("--{name}: write it in hex")))
        };
        let seconds = |at: Option<OffsetDateTime>| at.map(OffsetDateTime::unix_timestamp);
        let (exact, prefix) = match &self.id {
            Some(id) => match id.strip_suffix('*') {
                Some(prefix) => (None, Some(prefix.to_owned())),
                None => (Some(id.clone()), None),
            },
            None => (None, None),
        };
        Ok(Filter {
            recorded_since_ms: seconds(self.since).map(|s| s * 1000),
            recorded_until_ms: seconds(self.until).map(|s| s * 1000),
            serial: self.serial.as_ref().map(|s| s.as_bytes().to_vec()),
            spki_sha256: hex("key-sha256", &self.key_sha256)?,
            spiffe_id: exact,
            spiffe_id_prefix: prefix,
            cluster: self.cluster.clone(),
            namespace: self.namespace.clone(),
            account: self.account.clone(),
            pod_uid: self.pod.clone(),
            node: self.node.clone(),
            issuer_key_id: hex("issuer", &self.issuer)?,
            valid_since: seconds(self.valid_since),
            valid_until: seconds(self.valid_until),
            expires_before: seconds(self.expires_before),
            ..Filter::default()
        })
    }
}

fn table(entries: &[Value]) -> String {
    let mut table = Table::new(6, &["index", "time", "what", "serial", "expires", "origin"]);
    for entry in entries {
        table.row(row(entry));
    }
    table.render()
}

/// One line of an entry.
fn row(entry: &Value) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let issued = entry["kind"] == "issued";
    let origin = &entry["origin"];
    let place = [&origin["node"], &origin["pod"]].map(text);
    vec![
        text(&entry["index"]),
        text(&entry["time"]),
        text(if issued {
            &entry["spiffe_id"]
        } else {
            &entry["kind"]
        }),
        text(&entry["serial"]),
        text(&entry["not_after"]),
        place.join(" ").trim().to_owned(),
    ]
}

impl TailArgs {
    pub(crate) async fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        let log = source.auditor().await?;
        let size = log.extent().await?.size;
        let mut next = size.saturating_sub(self.lines);
        loop {
            let entries = log.read(next, MAX_PAGE).await?;
            for stored in &entries {
                let shown = entry::to_json(stored);
                match format {
                    Format::Json => output::json_line(&shown)?,
                    Format::Text => {
                        output::text(&format!("{}\n", row(&shown).join("  ").trim_end()))?;
                    }
                }
                next = stored.index.0 + 1;
            }
            if entries.is_empty() {
                if !self.follow {
                    return Ok(Outcome::Done);
                }
                tokio::select! {
                    () = crate::interrupted() => return Ok(Outcome::Done),
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        }
    }
}
