//! Flags and environment variables of `citadel-ca`, and how they lie over the file.

use std::path::PathBuf;

use citadel_runtime::config::{ConfigError, Document};
use clap::Parser;

use super::{Config, check, file::File, store::Store};

/// Citadel's certificate authority: gives workloads short-lived SPIFFE identities.
///
/// Flags stand over environment variables, and these over the file.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "citadel-ca", version)]
pub struct ConfigArgs {
    /// The YAML file; without one every key has its default
    #[arg(long, value_name = "FILE", env = "CITADEL_CONFIG")]
    pub config: Option<PathBuf>,
    /// Checks the configuration, says what is wrong, and ends
    #[arg(long)]
    pub check_config: bool,
    /// Starts although the store is older than a checkpoint that was signed before, as after
    /// the restore of a backup. It is recorded in the log; use it for one start
    #[arg(long)]
    pub accept_rollback: bool,
    /// The trust domain, such as example.org: the only setting without a default
    #[arg(long, value_name = "NAME", env = "CITADEL_TRUST_DOMAIN")]
    pub trust_domain: Option<String>,
    /// Where gRPC listens [default: [::]:15012]
    #[arg(long, value_name = "ADDRESS:PORT", env = "CITADEL_LISTEN")]
    pub listen: Option<String>,
    /// Where health and metrics listen [default: [::]:15014]
    #[arg(long, value_name = "ADDRESS:PORT", env = "CITADEL_ADMIN_LISTEN")]
    pub admin_listen: Option<String>,
    /// Where the log's checkpoint and tiles are served over HTTPS, such as [::]:8443
    /// [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT", env = "CITADEL_PUBLIC_LISTEN")]
    pub public_listen: Option<String>,
    /// The local administrators' Unix socket [default: none]
    #[arg(long, value_name = "PATH", env = "CITADEL_ADMIN_SOCKET")]
    pub admin_socket: Option<PathBuf>,
    /// Where keys and the store are kept [default: /var/lib/citadel]
    #[arg(long, value_name = "DIR", env = "CITADEL_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where issuances are recorded: `sqlite:/PATH` or `postgres://USER@HOST/DATABASE` (its
    /// password comes from a file) [default: sqlite:<data dir>/citadel.db]
    #[arg(long, value_name = "URL", env = "CITADEL_STORE")]
    pub store: Option<String>,
    /// A directory with Istio's cacerts files, in place of a CA of its own
    #[arg(long, value_name = "DIR", env = "CITADEL_CACERTS_DIR")]
    pub cacerts_dir: Option<PathBuf>,
    /// The key id of the CA key that the one in that directory takes the place of
    #[arg(long, value_name = "HEX", env = "CITADEL_REPLACES_KEY")]
    pub replaces_key: Option<String>,
    /// error, warn, info, debug, trace, or directives [default: info]
    #[arg(long, value_name = "LEVEL", env = "CITADEL_LOG_LEVEL")]
    pub log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT", env = "CITADEL_LOG_FORMAT")]
    pub log_format: Option<String>,
}

impl ConfigArgs {
    /// The configuration: the file, what stands over it, and the defaults, checked.
    ///
    /// # Errors
    /// Everything that is wrong, each with its place or flag, its key and what to do.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let document = match &self.config {
            Some(path) => Document::read(path)?,
            None => Document::empty(),
        };
        self.apply(document)
    }

    fn apply(&self, mut document: Document) -> Result<Config, ConfigError> {
        let mut file: File = document.parse()?;
        let mut over = |key: &str, by: &'static str| document.overridden(key, by);
        if let Some(trust_domain) = &self.trust_domain {
            file.trust_domain = Some(trust_domain.clone());
            over("trust_domain", "--trust-domain or CITADEL_TRUST_DOMAIN");
        }
        if let Some(listen) = &self.listen {
            file.listen.clone_from(listen);
            over("listen", "--listen or CITADEL_LISTEN");
        }
        if let Some(listen) = &self.admin_listen {
            file.admin_listen.clone_from(listen);
            over("admin_listen", "--admin-listen or CITADEL_ADMIN_LISTEN");
        }
        if let Some(listen) = &self.public_listen {
            file.public_listen = Some(listen.clone());
            over("public_listen", "--public-listen or CITADEL_PUBLIC_LISTEN");
        }
        if let Some(socket) = &self.admin_socket {
            file.admin_socket = Some(socket.clone());
            over("admin_socket", "--admin-socket or CITADEL_ADMIN_SOCKET");
        }
        if let Some(directory) = &self.data_dir {
            file.data_dir.clone_from(directory);
            over("data_dir", "--data-dir or CITADEL_DATA_DIR");
        }
        if let Some(store) = &self.store {
            file.store = Some(Store::Url(store.clone()));
            over("store", "--store or CITADEL_STORE");
        }
        if let Some(directory) = &self.cacerts_dir {
            file.ca.cacerts_dir = Some(directory.clone());
            over("ca.cacerts_dir", "--cacerts-dir or CITADEL_CACERTS_DIR");
        }
        if let Some(key) = &self.replaces_key {
            file.ca.replaces_key = Some(key.clone());
            over("ca.replaces_key", "--replaces-key or CITADEL_REPLACES_KEY");
        }
        if let Some(level) = &self.log_level {
            file.log.level.clone_from(level);
            over("log.level", "--log-level or CITADEL_LOG_LEVEL");
        }
        if let Some(format) = &self.log_format {
            let by = "--log-format or CITADEL_LOG_FORMAT";
            over("log.format", by);
            match format.parse() {
                Ok(format) => file.log.format = format,
                Err(problem) => {
                    let mut checker = document.checker();
                    checker.problem("log.format", problem, "correct it");
                    checker.finish()?;
                }
            }
        }
        check::check(file, &document)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use citadel_runtime::telemetry::Format;
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::StoreLocation;

    fn args(flags: &[&str]) -> ConfigArgs {
        ConfigArgs::try_parse_from([&["citadel-ca"], flags].concat()).unwrap()
    }

    #[test]
    fn the_trust_domain_alone_is_enough() {
        let config = args(&["--trust-domain", "example.org"]).load().unwrap();
        assert_eq!(config.trust_domain.to_string(), "example.org");
        assert_eq!(config.listen, "[::]:15012".parse().unwrap());
        let error = args(&[]).load().unwrap_err().to_string();
        assert!(error.contains("trust_domain: is not set; "), "{error}");
        assert!(error.contains("--trust-domain"), "{error}");
    }

    /// Variables can't be set in a test of many threads; what counts is that clap reads them.
    #[test]
    fn each_flag_has_its_variable() {
        let command = ConfigArgs::command();
        command.clone().debug_assert();
        let named = |id: &str| ["help", "version", "check_config", "accept_rollback"].contains(&id);
        for arg in command
            .get_arguments()
            .filter(|arg| !named(arg.get_id().as_str()))
        {
            let expected = format!("CITADEL_{}", arg.get_id().as_str().to_uppercase());
            assert_eq!(arg.get_env(), Some(std::ffi::OsStr::new(&expected)));
            let flag = arg.get_id().as_str().replace('_', "-");
            assert_eq!(arg.get_long(), Some(flag.as_str()));
        }
    }

    #[test]
    fn flags_stand_over_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.yaml");
        let text = "trust_domain: file.example\nlisten: 127.0.0.1:1\nadmin_listen: 127.0.0.1:2\n\
                    log: {level: warn, format: text}\n";
        std::fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        let config = args(&[
            "--config",
            file,
            "--listen",
            "127.0.0.1:9",
            "--data-dir",
            "/data",
            "--admin-socket",
            "/run/a.sock",
            "--cacerts-dir",
            "/cacerts",
            "--log-level",
            "debug",
            "--log-format",
            "json",
        ])
        .load()
        .unwrap();
        assert_eq!(config.trust_domain.to_string(), "file.example");
        assert_eq!((config.listen.port(), config.admin_listen.port()), (9, 2));
        assert_eq!(
            config.store,
            StoreLocation::Sqlite("/data/citadel.db".into())
        );
        assert_eq!(
            config.admin_socket.as_deref(),
            Some(Path::new("/run/a.sock"))
        );
        assert_eq!(
            config.ca.cacerts_dir.as_deref(),
            Some(Path::new("/cacerts"))
        );
        assert_eq!(
            (config.log.level.as_str(), config.log.format),
            ("debug", Format::Json)
        );
        let plain = args(&["--config", file, "--store", "sqlite:/s.db"])
            .load()
            .unwrap();
        assert_eq!(plain.store, StoreLocation::Sqlite("/s.db".into()));
        let postgres = args(&[
            "--config",
            file,
            "--store",
            "postgres://ca@db.example/citadel",
        ]);
        let StoreLocation::Postgres(options) = postgres.load().unwrap().store else {
            panic!("another store");
        };
        assert_eq!(options.to_string(), "postgres://ca@db.example/citadel");
        assert_ne!(plain.digest, config.digest);
    }

    #[test]
    fn an_error_names_the_flag_where_the_value_is_from_one() {
        let error = args(&[
            "--trust-domain",
            "UPPER CASE",
            "--listen",
            "15012",
            "--store",
            "mysql://x",
            "--log-level",
            "loud",
        ])
        .load()
        .unwrap_err()
        .to_string();
        for says in [
            "--trust-domain or CITADEL_TRUST_DOMAIN: trust_domain: ",
            "--listen or CITADEL_LISTEN: listen: `15012` is not an address",
            "--store or CITADEL_STORE: store: ",
            "--log-level or CITADEL_LOG_LEVEL: log.level: ",
        ] {
            assert!(error.contains(says), "{error}");
        }
        let error = args(&["--trust-domain", "a.b", "--log-format", "xml"])
            .load()
            .unwrap_err();
        assert!(
            error.to_string().contains("`xml` is not a log format"),
            "{error}"
        );
    }
}
