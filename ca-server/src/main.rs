//! `citadel-ca`: the certificate authority.

use std::process::ExitCode;

use citadel_ca_server::{Parts, build, config::ConfigArgs, log::Rollback};
use citadel_runtime::{Mimalloc, Shutdown, harden, telemetry, without_huge_pages};
use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: Mimalloc = Mimalloc;

/// Exit code for a configuration that can't be used, as `--check-config` has it too.
const BAD_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let args = ConfigArgs::parse();
    let config = match args.load() {
        Ok(config) => config,
        Err(error) => return fail(BAD_CONFIG, &error.to_string()),
    };
    if args.check_config {
        report("the configuration is good");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = telemetry::init(&config.log.level, config.log.format) {
        return fail(BAD_CONFIG, &error.to_string());
    }
    if let Err(error) = harden() {
        tracing::warn!(%error, "hardening");
    }
    if let Err(error) = without_huge_pages() {
        tracing::debug!(%error, "memory may come in huge pages");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &error.to_string()),
    };
    runtime.block_on(async {
        let shutdown = Shutdown::new();
        if let Err(error) = shutdown.on_signals() {
            return fail(1, &error.to_string());
        }
        let mut parts = Parts::new(shutdown);
        if args.accept_rollback {
            parts.rollback = Rollback::Accept;
        }
        parts.source = Some(args);
        match build(config, parts).await {
            Ok(bound) => match bound.serve().await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(1, &error.to_string()),
            },
            Err(error) => fail(1, &error.to_string()),
        }
    })
}

fn report(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

fn fail(code: u8, text: &str) -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "citadel-ca: {text}");
    ExitCode::from(code)
}
