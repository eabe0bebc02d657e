//! `citadel log`: what was issued, to whom, and the proof of it.

mod auditor;
mod backup;
mod entry;
mod export;
mod prove;
mod reindex;
mod retention;
mod search;
mod server;
mod show;
mod source;
mod verify;
mod watch;

use clap::Subcommand;

pub(crate) use auditor::refused;
pub(crate) use server::{ServerArgs, local as local_channel};

use crate::exit::{Ended, Outcome};
use crate::output::Format;

/// Reads, proves and verifies the log of what a CA issued.
///
/// Reads the store itself, beside a running server or without one; or asks a running server,
/// with --server. Only reindex and restore write to a store.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::exit::EXIT_CODES)]
pub(crate) struct LogArgs {
    #[command(flatten)]
    source: source::SourceArgs,

    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Search(Box<search::SearchArgs>),
    Show(show::ShowArgs),
    Tail(search::TailArgs),
    Stats(show::StatsArgs),
    Prove(prove::ProveArgs),
    VerifyReceipt(prove::VerifyReceiptArgs),
    Verify(verify::VerifyArgs),
    Export(export::ExportArgs),
    Watch(watch::WatchArgs),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    Reindex(reindex::ReindexArgs),
    Retention(retention::RetentionArgs),
}

impl LogArgs {
    pub(crate) fn run(self, format: Format) -> Result<Outcome, Ended> {
        let source = self.source;
        match self.what {
            What::VerifyReceipt(args) => args.run(&source, format),
            What::Search(args) => crate::asynchronous(args.run(&source, format)),
            What::Show(args) => crate::asynchronous(args.run(&source, format)),
            What::Tail(args) => crate::asynchronous(args.run(&source, format)),
            What::Stats(args) => crate::asynchronous(args.run(&source, format)),
            What::Prove(args) => crate::asynchronous(args.run(&source)),
            What::Verify(args) => crate::asynchronous(args.run(&source, format)),
            What::Export(args) => crate::asynchronous(args.run(&source, format)),
            What::Watch(args) => crate::asynchronous(args.run(&source, format)),
            What::Backup(args) => crate::asynchronous(args.run(&source, format)),
            What::Restore(args) => crate::asynchronous(args.run(&source, format)),
            What::Reindex(args) => crate::asynchronous(args.run(&source, format)),
            What::Retention(args) => crate::asynchronous(args.run(&source, format)),
        }
    }
}
