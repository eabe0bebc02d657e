//! `citadel-agent`: the node agent.

use std::{io::Write as _, process::ExitCode};

use citadel_node_agent::{Parts, build, config::ConfigArgs};
use citadel_runtime::{Shutdown, harden, telemetry};
use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &error),
    };
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::new();
        shutdown.on_signals()?;
        let bound = build(config, Parts::new(shutdown)).await?;
        anyhow::Ok(bound.serve().await?)
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "citadel-agent: {error}");
    ExitCode::from(code)
}
