//! The `citadel` command: dev, fetch, verify, log, agent, node, bench.

mod agent;
mod bench;
mod certificate;
mod dev;
mod duration;
mod endpoint;
mod exit;
mod fetch;
mod log;
#[cfg(test)]
#[path = "../../identity/tests/identity/mutation.rs"]
mod mutation;
mod node;
mod output;
mod progress;
#[cfg(test)]
mod testing;
mod trust;
mod uid;
mod verify;

use std::future::Future;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use exit::{EXIT_CODES, Ended, Failure, Outcome};
use output::Format;

#[global_allocator]
static ALLOCATOR: citadel_runtime::Mimalloc = citadel_runtime::Mimalloc;

/// SPIFFE identities for workloads: try Citadel out, fetch and verify SVIDs, read and verify
/// the log of what was issued, measure a CA.
#[derive(Debug, Parser)]
#[command(name = "citadel", version, after_help = EXIT_CODES, propagate_version = true)]
#[command(disable_help_subcommand = true)]
struct Cli {
    /// How facts are printed; before or after the subcommand.
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(dev::DevArgs),
    Fetch(fetch::FetchArgs),
    Verify(verify::VerifyArgs),
    Log(log::LogArgs),
    Agent(agent::AgentArgs),
    Node(node::NodeArgs),
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    // clap ends with 2 where the command line makes no sense.
    let cli = Cli::parse();
    citadel_identity::crypto::install_default();
    match cli.run() {
        Ok(outcome) => outcome.into(),
        // `citadel … | head -1`: whoever read has enough.
        Err(Ended::OutputClosed) => ExitCode::SUCCESS,
        Err(Ended::Failure(failure)) => {
            output::note(&format!("citadel: {failure}"));
            failure.exit().into()
        }
    }
}

impl Cli {
    fn run(self) -> Result<Outcome, Ended> {
        match self.command {
            Command::Dev(args) => args.run(self.output),
            Command::Fetch(args) => args.run(self.output),
            Command::Verify(args) => args.run(self.output),
            Command::Log(args) => args.run(self.output),
            Command::Agent(args) => args.run(self.output),
            Command::Node(args) => args.run(self.output),
            Command::Bench(args) => args.run(self.output),
        }
    }
}

/// Runs a command's asynchronous part.
fn asynchronous<T>(work: impl Future<Output = Result<T, Ended>>) -> Result<T, Ended> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local(format!("can't start the runtime: {error}")))?
        .block_on(work)
}

/// Ctrl-C, or a polite end from outside.
pub(crate) async fn interrupted() {
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn output_is_accepted_before_and_after_the_subcommand() {
        for line in [
            "citadel --output json verify a.pem --bundle b.pem",
            "citadel verify --output json a.pem --bundle b.pem",
            "citadel verify a.pem --bundle b.pem --output=json",
            "citadel fetch --output json",
            "citadel -o json dev",
            "citadel dev --output json",
            "citadel bench issue --output json",
            "citadel bench --output json issue",
            "citadel --output json bench issue",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.output, Format::Json, "{line}");
        }
        let cli = Cli::try_parse_from(["citadel", "fetch"]).unwrap();
        assert_eq!(cli.output, Format::Text);
    }

    #[test]
    fn what_follows_two_dashes_is_the_program_s() {
        let line = "citadel dev -- citadel fetch --output json";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(cli.output, Format::Text);
        let Command::Dev(dev) = cli.command else {
            panic!("not dev")
        };
        assert_eq!(dev.command, ["citadel", "fetch", "--output", "json"]);
    }

    #[test]
    fn usage_errors_end_with_2() {
        for line in [
            "citadel",
            "citadel nonsense",
            "citadel verify",
            "citadel fetch --nonsense",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn help_documents_the_exit_codes() {
        for words in [
            &["citadel", "--help"][..],
            &["citadel", "dev", "--help"],
            &["citadel", "bench", "issue", "--help"],
            &["citadel", "agent", "--help"],
        ] {
            let help = Cli::try_parse_from(words).unwrap_err().to_string();
            assert!(help.contains("Exit codes:"), "{help}");
        }
    }
}
