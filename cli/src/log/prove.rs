//! `citadel log prove` and `citadel log verify-receipt`.

use std::path::PathBuf;

use citadel_ca_server::store::{LogIndex, StoredEntry};
use citadel_identity::serial::Serial;
use citadel_ledger::{MAX_RECEIPT_BYTES, Receipt};
use serde_json::{Value, json};

use super::entry;
use super::source::{SourceArgs, parse_serial, read_bounded};
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format};

/// Prints the receipt of a certificate: the proof that the log holds it.
///
/// Whoever has the receipt and the log's public key verifies it offline, with
/// citadel log verify-receipt or any program that knows C2SP tlog-proof.
#[derive(Debug, clap::Args)]
pub(crate) struct ProveArgs {
    /// Its serial, in hex.
    #[arg(value_name = "SERIAL", value_parser = parse_serial)]
    serial: Serial,
}

/// Verifies a receipt, offline, with the log's public key alone.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyReceiptArgs {
    /// The receipt; - is standard input.
    #[arg(value_name = "FILE")]
    receipt: PathBuf,
}

impl ProveArgs {
    pub(crate) async fn run(self, source: &SourceArgs) -> Result<Outcome, Ended> {
        let log = source.auditor().await?;
        let stored = log.issued(&self.serial).await?;
        let found = log.receipt(stored.index).await?;
        let Some(receipt) = found else {
            return Err(Failure::unavailable(format!(
                "no checkpoint covers entry {} yet",
                stored.index
            ))
            .next("The server signs one within a second; try again.")
            .into());
        };
        output::text(&receipt)?;
        Ok(Outcome::Done)
    }
}

impl VerifyReceiptArgs {
    pub(crate) fn run(self, source: &SourceArgs, format: Format) -> Result<Outcome, Ended> {
        let key = source.key()?;
        let bytes = read_bounded(&self.receipt, MAX_RECEIPT_BYTES as u64)?;
        let refused = |error: &dyn std::fmt::Display| {
            Failure::check(format!("{}: not valid: {error}", self.receipt.display()))
        };
        let receipt = Receipt::parse(&bytes).map_err(|error| refused(&error))?;
        let state = receipt.verify(&[key]).map_err(|error| refused(&error))?;
        let mut shown = entry::to_json(&StoredEntry {
            index: LogIndex(receipt.index),
            bytes: receipt.entry,
        });
        if let Value::Object(fields) = &mut shown {
            fields.insert(
                "checkpoint".into(),
                json!({ "origin": state.origin, "size": state.size, "root": state.root.to_string() }),
            );
        }
        match format {
            Format::Json => output::json(&shown)?,
            Format::Text => output::text(&format!(
                "valid: entry {} of the log {}, as of {} entries\n{}",
                receipt.index,
                state.origin,
                state.size,
                entry::to_text(&shown)
            ))?,
        }
        Ok(Outcome::Done)
    }
}
