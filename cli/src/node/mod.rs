//! `citadel node`: nodes outside Kubernetes, at the CA and on the node itself.

mod admin;
mod join;
mod list;
mod token;

use clap::Subcommand;

use crate::exit::{Ended, Outcome};
use crate::output::Format;

/// Lets nodes outside Kubernetes join, lists them, and ends them.
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::exit::EXIT_CODES)]
pub(crate) struct NodeArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Token(token::TokenArgs),
    Join(join::JoinArgs),
    List(list::ListArgs),
    Evict(list::EvictArgs),
    Admit(list::AdmitArgs),
}

impl NodeArgs {
    pub(crate) fn run(self, format: Format) -> Result<Outcome, Ended> {
        match self.what {
            What::Token(args) => args.run(format),
            What::Join(args) => crate::asynchronous(args.run(format)),
            What::List(args) => crate::asynchronous(args.run(format)),
            What::Evict(args) => crate::asynchronous(args.run()),
            What::Admit(args) => crate::asynchronous(args.run()),
        }
    }
}
