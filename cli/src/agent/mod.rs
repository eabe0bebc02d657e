//! `citadel agent`: what node agents hold and serve, and what their workloads run on.

mod list;
mod show;
mod status;

use clap::Subcommand;

use crate::exit::{Ended, Outcome};
use crate::output::Format;

/// Shows what the agent of this node holds and serves, or what the workloads of all nodes
/// run on.
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::exit::EXIT_CODES)]
pub(crate) struct AgentArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Status(status::StatusArgs),
    List(list::ListArgs),
}

impl AgentArgs {
    pub(crate) fn run(self, format: Format) -> Result<Outcome, Ended> {
        match self.what {
            What::Status(args) => crate::asynchronous(args.run(format)),
            What::List(args) => crate::asynchronous(args.run(format)),
        }
    }
}
