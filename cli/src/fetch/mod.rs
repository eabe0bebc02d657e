//! `citadel fetch`: the identities that the Workload API gives this process.

mod client;
#[cfg(test)]
mod hostile_bytes;
pub(crate) mod update;
mod write;

use std::time::Duration;

use time::OffsetDateTime;

use crate::duration::parse_duration;
use crate::endpoint::{self, Endpoint};
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format};

pub(crate) use client::Updates;
use update::{Svid, Update};
use write::{Files, WriteArgs};

/// Fetches this process's X.509-SVIDs and trust bundles over the SPIFFE Workload API.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::exit::EXIT_CODES)]
pub(crate) struct FetchArgs {
    /// The endpoint: unix:///absolute/path or tcp://IP:port.
    #[arg(long, value_name = "ADDRESS", env = endpoint::VARIABLE)]
    socket: Option<String>,

    /// Stay, and print (and write) each update; --renew does so without printing.
    #[arg(long)]
    watch: bool,

    #[command(flatten)]
    write: WriteArgs,

    /// How long to wait for the first answer; what may pass is retried until then.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

impl FetchArgs {
    pub(crate) fn run(self, format: Format) -> Result<Outcome, Ended> {
        let endpoint = self.endpoint()?;
        let files = self.write.files()?;
        let stays = self.watch || self.write.renew;
        crate::asynchronous(async {
            let mut updates = Updates::new(endpoint);
            let mut timeout = Some(self.timeout);
            loop {
                let update = tokio::select! {
                    update = updates.next(timeout, |reason| output::note(&format!("citadel: {reason}; trying again"))) => update?,
                    _ = tokio::signal::ctrl_c() => return Ok(Outcome::Done),
                };
                let now = OffsetDateTime::now_utc();
                if !self.write.renew {
                    self.show(&update, format, now)?;
                }
                if let Some(problem) = update.problem(now) {
                    let failure =
                        Failure::check(format!("what the endpoint gave is not valid: {problem}"))
                            .next("Nothing was written. The agent's log and the CA's say more.");
                    if !stays {
                        return Err(failure.into());
                    }
                    output::note(&format!("citadel: {failure}"));
                } else if let Some(files) = &files {
                    let written = self.write(files, &update, format).await;
                    match written {
                        Err(failure) if stays => output::note(&format!("citadel: {failure}")),
                        written => written?,
                    }
                }
                if !stays {
                    return Ok(Outcome::Done);
                }
                // Once there was an answer, an outage is something to wait out.
                timeout = None;
            }
        })
    }

    async fn write(&self, files: &Files, update: &Update, format: Format) -> Result<(), Failure> {
        files.write(self.chosen(update)?)?;
        if format == Format::Text {
            output::note(&format!("written to {}", files.display()));
        }
        files.tell().await
    }

    fn endpoint(&self) -> Result<Endpoint, Failure> {
        let Some(text) = &self.socket else {
            return Err(
                Failure::usage("no Workload API endpoint is named").next(format!(
                    "Give --socket unix:///path, set {}, or run inside `citadel dev -- CMD`.",
                    endpoint::VARIABLE
                )),
            );
        };
        text.parse().map_err(|error| {
            Failure::usage(format!("{text:?} is no Workload API endpoint: {error}"))
                .next(format!("Correct --socket or {}.", endpoint::VARIABLE))
        })
    }

    fn show(&self, update: &Update, format: Format, now: OffsetDateTime) -> std::io::Result<()> {
        match format {
            Format::Json if self.watch => output::json_line(&update.json(now)),
            Format::Json => output::json(&update.json(now)),
            Format::Text if self.watch => output::text(&format!(
                "--- {}\n{}",
                output::instant(now),
                update.text(now)
            )),
            Format::Text => output::text(&update.text(now)),
        }
    }

    fn chosen<'u>(&self, update: &'u Update) -> Result<&'u Svid, Failure> {
        let Some(id) = &self.write.id else {
            // `Update::parse` refuses an answer without one.
            return Ok(&update.svids[0]);
        };
        update
            .svids
            .iter()
            .find(|svid| &svid.spiffe_id == id)
            .ok_or_else(|| {
                let offered: Vec<_> = update
                    .svids
                    .iter()
                    .map(|svid| svid.spiffe_id.as_str())
                    .collect();
                Failure::denied(format!("the endpoint does not offer {id}"))
                    .next(format!("It offers {}.", offered.join(", ")))
            })
    }
}
