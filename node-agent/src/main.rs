//! `citadel-agent`: the node agent.

use std::{io::Write as _, process::ExitCode};

use citadel_node_agent::{
    Parts, build,
    config::{Config, ConfigArgs},
    handover::{self, Afterwards},
    passed::Passed,
};
use citadel_runtime::{Mimalloc, Shutdown, harden, limits, telemetry, without_huge_pages};
use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: Mimalloc = Mimalloc;

/// Exit code for a configuration that can't be used, as `--check-config` has it too.
const BAD_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let args = ConfigArgs::parse();
    let config = match args.load() {
        Ok(config) => config,
        Err(error) => return fail(BAD_CONFIG, &error),
    };
    if args.check_config {
        let _ = writeln!(std::io::stdout().lock(), "the configuration is good");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = telemetry::init(&config.log.level, config.log.format) {
        return fail(BAD_CONFIG, &error);
    }
    if let Err(error) = harden() {
        tracing::warn!(%error, "this process could not be hardened");
    }
    if let Err(error) = without_huge_pages() {
        tracing::debug!(%error, "memory may come in huge pages");
    }
    if let Err(error) = limits::raise_open_files() {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    // It takes variables of the environment away: before there are threads.
    let passed = Passed::from_env();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &error),
    };
    match runtime.block_on(run(config, passed)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

async fn run(config: Config, mut passed: Passed) -> anyhow::Result<()> {
    // As it is found now: by the time of an upgrade another file may have its name.
    let program = std::env::current_exe()?;
    let arguments = std::env::args_os().skip(1).collect();
    handover::on_hangup(program, arguments, config.handover.enabled)?;
    loop {
        let shutdown = Shutdown::new();
        shutdown.on_signals()?;
        let parts = Parts {
            passed: std::mem::take(&mut passed),
            ..Parts::new(shutdown)
        };
        let bound = build(config.clone(), parts).await?;
        let Afterwards::HandedOver(successor) = bound.serve().await? else {
            return Ok(());
        };
        let shutdown = Shutdown::new();
        shutdown.on_signals()?;
        if !handover::wait(successor, &config.settings()?, &shutdown).await {
            return Ok(());
        }
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "citadel-agent: {error}");
    ExitCode::from(code)
}
