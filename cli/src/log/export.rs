//! `citadel log export`: the log as files that other programs read.

use std::fs;
use std::path::{Path, PathBuf};

use citadel_ca_server::log::bundle;
use citadel_ca_server::store::{LogIndex, MAX_PAGE, Store};
use citadel_ledger::{Checkpoint, Resource, TILE_WIDTH, Tile};
use serde_json::{Value, json};

use super::entry;
use super::source::{SourceArgs, store_failure};
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format};
use crate::progress::Progress;

/// Writes the log out: tiles (C2SP tlog-tiles), JSON lines or CSV.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// The new folder for checkpoint, tiles and entry bundles.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["json_lines", "csv"])]
    tiles: Option<PathBuf>,

    /// The new file for entries as JSON, one a line; - is standard output.
    #[arg(long, value_name = "FILE")]
    json_lines: Option<PathBuf>,

    /// The new file for entries as a table (RFC 4180), one a line; - is standard output.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

/// The columns of a table: field, and the part that it is in.
const COLUMNS: [(&str, Option<&str>); 20] = [
    ("index", None),
    ("time", None),
    ("kind", None),
    ("spiffe_id", None),
    ("serial", None),
    ("not_before", None),
    ("not_after", None),
    ("use", None),
    ("issuer_key_id", None),
    ("spki_sha256", None),
    ("previous_serial", None),
    ("cluster", Some("origin")),
    ("namespace", Some("origin")),
    ("service_account", Some("origin")),
    ("pod", Some("origin")),
    ("pod_uid", Some("origin")),
    ("node", Some("origin")),
    ("method", Some("caller")),
    ("address", Some("caller")),
    ("details", None),
];

impl ExportArgs {
    pub(crate) async fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        let store = source.open().await?;
        let mut written = 0;
        if let Some(folder) = &self.tiles {
            written = tiles(store.as_ref(), folder).await?;
        }
        if let Some(file) = &self.json_lines {
            written = lines(store.as_ref(), file, None, Value::to_string).await?;
        }
        if let Some(file) = &self.csv {
            let names = COLUMNS.map(|(field, _)| field);
            written = lines(store.as_ref(), file, Some(names.join(",")), csv_line).await?;
        }
        match format {
            Format::Json => output::json(&json!({ "entries": written }))?,
            Format::Text => output::note(&format!("{written} entries")),
        }
        Ok(Outcome::Done)
    }
}

/// Everything that the newest checkpoint covers.
async fn tiles(store: &dyn Store, folder: &Path) -> Result<u64, Failure> {
    let failed = |error| store_failure(&error);
    let tree = store.tree().await.map_err(failed)?;
    let note = tree.checkpoint.ok_or_else(|| {
        Failure::unavailable("the log has no checkpoint yet").next("Start its server once.")
    })?;
    let checkpoint = Checkpoint::unverified(note.as_bytes())
        .map_err(|error| Failure::check(format!("the store's checkpoint is damaged: {error}")))?;
    if folder.exists() {
        return Err(Failure::usage(format!(
            "{} exists already",
            folder.display()
        )));
    }
    let progress = Progress::new("exporting", checkpoint.size);
    for tile in Tile::between(0, checkpoint.size) {
        let content = store.tiles(&[tile]).await.map_err(failed)?;
        for content in content {
            write(folder, Resource::Hashes(tile), &content)?;
        }
        // Below the minimum index the hashes alone are left (tlog-tiles, "Pruning").
        if tile.level == 0 && tile.start() < tree.minimum {
            progress.advance(tile.width.get().into());
        } else if tile.level == 0 {
            let content = bundle(store, tile).await.map_err(failed)?.ok_or_else(|| {
                let first = tile.index * u64::from(TILE_WIDTH);
                Failure::check(format!("entries from {first} on are missing"))
            })?;
            write(folder, Resource::Entries(tile), &content)?;
            progress.advance(tile.width.get().into());
        }
    }
    // Last: what it covers is there.
    write(folder, Resource::Checkpoint, note.as_bytes())?;
    Ok(checkpoint.size)
}

fn write(folder: &Path, resource: Resource, content: &[u8]) -> Result<(), Failure> {
    let path = folder.join(resource.to_string());
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(&path, content))
        .map_err(|error| Failure::local(format!("{}: {error}", path.display())))
}

/// An entry as a line of a table.
fn csv_line(entry: &Value) -> String {
    let fields = COLUMNS.map(|(field, part)| {
        let value = part.map_or(&entry[field], |part| &entry[part][field]);
        csv_field(value)
    });
    fields.join(",")
}

/// RFC 4180, section 2. What a spreadsheet would take for a formula begins with an apostrophe:
/// names in the log are chosen by others.
fn csv_field(value: &Value) -> String {
    let mut text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        text.insert(0, '\'');
    }
    if text.contains([',', '"', '\r', '\n']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text
}

/// All entries, one a line.
async fn lines(
    store: &dyn Store,
    file: &Path,
    header: Option<String>,
    line: impl Fn(&Value) -> String,
) -> Result<u64, Ended> {
    use std::io::Write as _;
    let failed = |error| Failure::local(format!("{}: {error}", file.display()));
    let mut out: Box<dyn std::io::Write + Send> = if file == Path::new("-") {
        Box::new(std::io::stdout())
    } else {
        Box::new(fs::File::create_new(file).map_err(failed)?)
    };
    if let Some(header) = header {
        writeln!(out, "{header}")?;
    }
    let mut next = 0;
    loop {
        let entries = store
            .read(LogIndex(next), MAX_PAGE)
            .await
            .map_err(|error| store_failure(&error))?;
        if entries.is_empty() {
            out.flush()?;
            return Ok(next);
        }
        for stored in &entries {
            writeln!(out, "{}", line(&entry::to_json(stored)))?;
            next = stored.index.0 + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_chose_stay_in_their_field() {
        for (text, field) in [
            ("web", "web"),
            ("a,b", "\"a,b\""),
            ("say \"a\"", "\"say \"\"a\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            ("=1+1", "'=1+1"),
            ("-2,=3", "\"'-2,=3\""),
        ] {
            assert_eq!(csv_field(&Value::from(text)), field);
        }
        let line = csv_line(&json!({ "index": 7, "origin": { "pod": "p" } }));
        assert_eq!(line.split(',').count(), COLUMNS.len());
        assert!(line.starts_with("7,") && line.contains(",p,"), "{line}");
    }
}
