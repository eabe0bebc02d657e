//! The committed code under `src/gen/` is what the `.proto` files say.

use std::{error::Error, fs, path::Path};

/// Messages whose `Debug` is written by hand, since they carry a key or a token.
const SECRET_MESSAGES: [&str; 4] = [
    ".citadel.v1.RelayedToken",
    ".X509SVID",
    ".JWTSVID",
    ".ValidateJWTSVIDRequest",
];

const FILES: [&str; 4] = [
    "citadel/v1/citadel.proto",
    "citadel/log/v1/entry.proto",
    "istio/v1/auth/ca.proto",
    "spiffe/workload.proto",
];

const GENERATED: [&str; 4] = [
    "citadel.v1.rs",
    "citadel.log.v1.rs",
    "istio.v1.auth.rs",
    "_.rs",
];

#[test]
fn generated_code_is_current() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir()?;
    let descriptors = protox::compile(FILES.map(|file| root.join(file)), [root])?;
    let mut config = tonic_prost_build::Config::new();
    config.skip_debug(SECRET_MESSAGES);
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(fresh.path())
        .compile_fds_with_config(descriptors, config)?;

    let committed = root.join("src/gen");
    if std::env::var_os("CITADEL_REGENERATE").is_some() {
        fs::create_dir_all(&committed)?;
        for name in GENERATED {
            fs::copy(fresh.path().join(name), committed.join(name))?;
        }
    }
    for name in GENERATED {
        let same = fs::read(fresh.path().join(name))? == fs::read(committed.join(name))?;
        assert!(
            same,
            "src/gen/{name} is stale: CITADEL_REGENERATE=1 cargo test -p citadel-proto"
        );
    }
    Ok(())
}
