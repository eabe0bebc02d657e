//! `citadel bench agent`: what a node's agent costs, and how soon it answers.
//!
//! A real CA and a real agent, each a process of its own; the API server is a stand-in that
//! shows live pods. The CA, the agent and the load share the cores of this machine.

mod fetch;
mod first;
mod identities;
mod report;
mod scene;
mod socket;
mod streams;

use std::path::PathBuf;
use std::time::Duration;

use citadel_runtime::limits;

pub(crate) use self::first::FirstArgs;
use self::report::Report;
use super::{program, server};
use crate::duration::parse_duration;
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format};

/// Measures a node agent: memory and pushes of its streams, first and cached answers,
/// re-issuance of all that it holds, and what it costs while nothing happens.
///
/// Starts the citadel-ca and the citadel-agent that lie beside this program, each as a process
/// of its own, and stands in for the API server on loopback.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::exit::EXIT_CODES)]
pub(crate) struct AgentArgs {
    /// What to measure; repeatable. [default: all]
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    only: Vec<Part>,

    /// Identities that a restarted agent has issued again.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=16_000))]
    identities: u32,

    /// SDS streams, two on each connection.
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(2..=8_000))]
    streams: u32,

    /// Pushes to all of these streams.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pushes: u32,

    /// New pods whose first request is measured, prepared and not.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=400))]
    pods: u32,

    /// Requests in flight of FetchX509SVID, on a connection each.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    concurrency: u32,

    /// How long FetchX509SVID is measured, after a second of warming up.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    duration: Duration,

    /// Identities of an agent that has nothing to do, with an SDS stream for each.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=4_000))]
    idle_identities: u32,

    /// How long that is looked at.
    #[arg(long, value_name = "TIME", default_value = "40s", value_parser = parse_duration)]
    idle: Duration,

    /// Where CA and agent keep their files; kept afterwards. [default: a new folder under the
    /// temporary folder, elsewhere where that is in memory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// The citadel-ca to start. [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    server_binary: Option<PathBuf>,

    /// The citadel-agent to start. [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    agent_binary: Option<PathBuf>,
}

/// What is measured together.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// All identities again, after a restart of the agent.
    Reissue,
    /// Memory of SDS streams, and pushes to them.
    Push,
    /// The first request of a new pod.
    First,
    /// FetchX509SVID of what is there.
    Fetch,
    /// An agent that holds identities and streams and has nothing to do.
    Idle,
}

impl Part {
    const ALL: [Self; 5] = [
        Self::Reissue,
        Self::Push,
        Self::First,
        Self::Fetch,
        Self::Idle,
    ];
}

/// The programs under test, and where they keep their files.
struct Programs {
    server: PathBuf,
    agent: PathBuf,
    dir: Option<PathBuf>,
}

impl AgentArgs {
    pub(crate) fn run(&self, format: Format) -> Result<Outcome, Ended> {
        let report = super::uninterrupted(self.measure())?;
        match format {
            Format::Json => output::json(&report)?,
            Format::Text => output::text(&report.table())?,
        }
        Ok(Outcome::Done)
    }

    async fn measure(&self) -> Result<Report, Failure> {
        // Here, and in what is started from here.
        limits::raise_open_files()
            .map_err(|error| Failure::local(format!("the limit of open files: {error}")))?;
        let programs = Programs {
            server: server::binary(self.server_binary.as_deref())?,
            agent: program::beside(
                "citadel-agent",
                self.agent_binary.as_deref(),
                "--agent-binary",
            )?,
            dir: self.dir.clone(),
        };
        let mut report = Report::default();
        for part in Part::ALL {
            if !self.only.is_empty() && !self.only.contains(&part) {
                continue;
            }
            match part {
                Part::Reissue => {
                    let count = self.identities as usize;
                    report.reissue = Some(identities::reissue(&programs, count).await?);
                }
                Part::Push => {
                    let (streams, pushes) = (self.streams as usize, self.pushes as usize);
                    report.push = Some(streams::measure(&programs, streams, pushes).await?);
                }
                Part::First => {
                    let pods = self.pods as usize;
                    report.first = Some(first::measure(&programs, pods).await?);
                }
                Part::Fetch => {
                    let load = (self.concurrency as usize, self.duration);
                    report.fetch = Some(fetch::measure(&programs, load).await?);
                }
                Part::Idle => {
                    let count = self.idle_identities as usize;
                    report.idle = Some(identities::idle(&programs, count, self.idle).await?);
                }
            }
        }
        Ok(report)
    }
}
