//! `citadel bench`: measures a CA under load, its store as it grows, and a node's agent.

mod agent;
mod agents;
mod args;
mod database;
mod floor;
mod http_get;
mod issue;
mod load;
mod material;
mod measure;
mod overload;
mod pauses;
mod population;
mod program;
mod received;
mod report;
mod rsa_key;
mod server;
mod standin;
mod store;
mod target;
mod wire;

use clap::Subcommand;

use crate::exit::{Ended, Failure, Outcome};
use crate::output::Format;

/// Measures a CA under load, its store as it grows, and a node's agent.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Issue(Box<args::IssueArgs>),
    Overload(overload::OverloadArgs),
    Store(store::StoreArgs),
    Agent(Box<agent::AgentArgs>),
    #[command(hide = true)]
    AgentFirst(agent::FirstArgs),
}

impl BenchArgs {
    pub(crate) fn run(self, format: Format) -> Result<Outcome, Ended> {
        match self.what {
            What::Issue(args) => issue::run(&args, format),
            What::Overload(args) => args.run(format),
            What::Store(args) => args.run(format),
            What::Agent(args) => args.run(format),
            What::AgentFirst(args) => args.run(),
        }
    }
}

/// What was measured; nothing where it was interrupted.
fn uninterrupted<T>(measure: impl Future<Output = Result<T, Failure>>) -> Result<T, Ended> {
    crate::asynchronous(async {
        tokio::select! {
            measured = measure => Ok(measured?),
            () = crate::interrupted() => {
                Err(Failure::local("interrupted: nothing is reported").into())
            }
        }
    })
}
