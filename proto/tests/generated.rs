//! The committed code under `src/gen/` is what the `.proto` files say.

use std::{error::Error, fs, path::Path};

use prost::Message as _;

/// Messages whose `Debug` is written by hand, since they carry a key or a token.
const SECRET_MESSAGES: [&str; 9] = [
    ".citadel.v1.JoinToken",
    ".citadel.v1.CreateJoinTokenResponse",
    ".citadel.v1.RelayedToken",
    ".citadel.agent.v1.Offer",
    ".citadel.agent.v1.HandedSvid",
    ".citadel.agent.v1.HandedToken",
    ".X509SVID",
    ".JWTSVID",
    ".ValidateJWTSVIDRequest",
];

const FILES: [&str; 6] = [
    "citadel/v1/citadel.proto",
    "citadel/agent/v1/agent.proto",
    "citadel/agent/v1/handover.proto",
    "citadel/log/v1/entry.proto",
    "istio/v1/auth/ca.proto",
    WORKLOAD_FILE,
];

const WORKLOAD_FILE: &str = "spiffe/workload.proto";

const GENERATED: [&str; 5] = [
    "citadel.v1.rs",
    "citadel.agent.v1.rs",
    "citadel.log.v1.rs",
    "istio.v1.auth.rs",
    "_.rs",
];

/// The Workload API as a `FileDescriptorSet`, for gRPC reflection.
const WORKLOAD: &str = "workload.bin";

#[test]
fn generated_code_is_current() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir()?;
    let descriptors = protox::compile(FILES.map(|file| root.join(file)), [root])?;
    let workload = protox::compile([root.join(WORKLOAD_FILE)], [root])?;
    fs::write(fresh.path().join(WORKLOAD), workload.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    config.skip_debug(SECRET_MESSAGES);
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(fresh.path())
        .compile_fds_with_config(descriptors, config)?;

    let committed = root.join("src/gen");
    if std::env::var_os("CITADEL_REGENERATE").is_some() {
        fs::create_dir_all(&committed)?;
        for name in GENERATED.into_iter().chain([WORKLOAD]) {
            fs::copy(fresh.path().join(name), committed.join(name))?;
        }
    }
    for name in GENERATED.into_iter().chain([WORKLOAD]) {
        let same = fs::read(fresh.path().join(name))? == fs::read(committed.join(name))?;
        assert!(
            same,
            "src/gen/{name} is stale: CITADEL_REGENERATE=1 cargo test -p citadel-proto"
        );
    }
    Ok(())
}

/// The Workload API is a service of its own, without a package, with the standard's
/// methods and no more; no service of another kind has one of them.
#[test]
fn spiffe_req_25_the_workload_api_has_the_standard_s_methods_alone() -> Result<(), Box<dyn Error>> {
    // Whether the server streams its answer.
    const METHODS: [(&str, bool); 5] = [
        ("FetchX509SVID", true),
        ("FetchX509Bundles", true),
        ("FetchJWTSVID", false),
        ("FetchJWTBundles", true),
        ("ValidateJWTSVID", false),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(FILES.map(|file| root.join(file)), [root])?;
    let mut found = 0;
    for file in &descriptors.file {
        for service in &file.service {
            let methods: Vec<_> = service
                .method
                .iter()
                .map(|method| (method.name(), method.server_streaming()))
                .collect();
            if service.name() == "SpiffeWorkloadAPI" {
                assert_eq!(file.package(), "");
                assert_eq!(methods, METHODS);
                assert!(service.method.iter().all(|it| !it.client_streaming()));
                found += 1;
            } else {
                for (name, _) in METHODS {
                    let other = service.name();
                    assert!(methods.iter().all(|it| it.0 != name), "{name} of {other}");
                }
            }
        }
    }
    assert_eq!(found, 1);
    Ok(())
}
