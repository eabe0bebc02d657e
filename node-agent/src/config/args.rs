//! Flags and `CITADEL_AGENT_…` variables, laid over the file.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use citadel_runtime::{
    HumanDuration,
    config::{ConfigError, Document, load_yaml},
    telemetry::Format,
};

use super::Config;

/// Flags of `citadel-agent`. Each beats its variable, which beats the file.
#[derive(Debug, Default, clap::Parser)]
#[command(name = "citadel-agent", version, about = "Citadel's node agent")]
pub struct ConfigArgs {
    /// Configuration file (YAML).
    #[arg(long, env = "CITADEL_AGENT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration and end: 0 if it is good, 2 if not.
    #[arg(long)]
    pub check_config: bool,
    /// The trust domain.
    #[arg(long, env = "CITADEL_AGENT_TRUST_DOMAIN", value_name = "NAME")]
    pub trust_domain: Option<String>,
    /// Address of the CA, host:port; more than once for several.
    #[arg(
        long = "ca-address",
        env = "CITADEL_AGENT_CA_ADDRESS",
        value_delimiter = ',',
        value_name = "HOST:PORT"
    )]
    pub ca_addresses: Vec<String>,
    /// PEM file of the trust domain's roots.
    #[arg(long, env = "CITADEL_AGENT_CA_BUNDLE_FILE", value_name = "FILE")]
    pub ca_bundle_file: Option<PathBuf>,
    /// SHA-256 of a root certificate's DER, in hex.
    #[arg(long, env = "CITADEL_AGENT_CA_ROOT_SHA256", value_name = "HEX")]
    pub ca_root_sha256: Option<String>,
    /// The CA's name for this agent's cluster.
    #[arg(long, env = "CITADEL_AGENT_CLUSTER", value_name = "NAME")]
    pub cluster: Option<String>,
    /// The agent's service-account token.
    #[arg(long, env = "CITADEL_AGENT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The socket of SDS and the Workload API.
    #[arg(long, env = "CITADEL_AGENT_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The socket for administrators.
    #[arg(long, env = "CITADEL_AGENT_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Address of the admin port.
    #[arg(long, env = "CITADEL_AGENT_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// Lifetime to ask for, such as 15s or 1h.
    #[arg(long, env = "CITADEL_AGENT_SVID_TTL", value_name = "DURATION")]
    pub svid_ttl: Option<HumanDuration>,
    /// This node's name in Kubernetes, where the configuration has `pods`.
    #[arg(long, env = "CITADEL_AGENT_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of this node's kubelet, where the configuration has `pods`.
    #[arg(long, env = "CITADEL_AGENT_KUBELET", value_name = "IP")]
    pub kubelet: Option<IpAddr>,
    /// Log level or filter.
    #[arg(long, env = "CITADEL_AGENT_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Log format: text or json.
    #[arg(long, env = "CITADEL_AGENT_LOG_FORMAT", value_name = "FORMAT", value_parser = format)]
    pub log_format: Option<Format>,
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err("write text or json".to_owned()),
    }
}

impl ConfigArgs {
    /// Reads the file, lays the flags over it, and checks the whole.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let (mut document, mut config): (Document, Config) = match &self.config {
            Some(path) => load_yaml(path)?,
            None => (Document::empty(), Config::default()),
        };
        self.lay_over(&mut config, &mut document);
        config.settings_of(&document)?;
        Ok(config)
    }

    fn lay_over(&self, config: &mut Config, document: &mut Document) {
        let mut set = |key: &str, by: &'static str| document.overridden(key, by);
        macro_rules! over {
            ($flag:ident, $key:literal, $by:literal, $($to:tt)+) => {
                if let Some(value) = &self.$flag {
                    config.$($to)+ = value.clone().into();
                    set($key, $by);
                }
            };
        }
        over!(
            trust_domain,
            "trust_domain",
            "--trust-domain or CITADEL_AGENT_TRUST_DOMAIN",
            trust_domain
        );
        over!(
            ca_bundle_file,
            "ca.bundle_file",
            "--ca-bundle-file or CITADEL_AGENT_CA_BUNDLE_FILE",
            ca.bundle_file
        );
        over!(
            ca_root_sha256,
            "ca.root_sha256",
            "--ca-root-sha256 or CITADEL_AGENT_CA_ROOT_SHA256",
            ca.root_sha256
        );
        over!(
            cluster,
            "cluster",
            "--cluster or CITADEL_AGENT_CLUSTER",
            cluster
        );
        over!(
            token_file,
            "token_file",
            "--token-file or CITADEL_AGENT_TOKEN_FILE",
            token_file
        );
        over!(socket, "socket", "--socket or CITADEL_AGENT_SOCKET", socket);
        over!(
            admin_socket,
            "admin_socket",
            "--admin-socket or CITADEL_AGENT_ADMIN_SOCKET",
            admin_socket
        );
        over!(
            admin_listen,
            "admin_listen",
            "--admin-listen or CITADEL_AGENT_ADMIN_LISTEN",
            admin_listen
        );
        over!(
            svid_ttl,
            "svid_ttl",
            "--svid-ttl or CITADEL_AGENT_SVID_TTL",
            svid_ttl
        );
        over!(
            log_level,
            "log.level",
            "--log-level or CITADEL_AGENT_LOG_LEVEL",
            log.level
        );
        over!(
            log_format,
            "log.format",
            "--log-format or CITADEL_AGENT_LOG_FORMAT",
            log.format
        );
        if let (Some(name), Some(pods)) = (&self.node_name, &mut config.pods) {
            pods.node = Some(name.clone());
            set("pods.node", "--node-name or CITADEL_AGENT_NODE_NAME");
        }
        if let (Some(address), Some(pods)) = (self.kubelet, &mut config.pods) {
            pods.kubelet = Some(address);
            set("pods.kubelet", "--kubelet or CITADEL_AGENT_KUBELET");
        }
        if !self.ca_addresses.is_empty() {
            config.ca.addresses.clone_from(&self.ca_addresses);
            set("ca.addresses", "--ca-address or CITADEL_AGENT_CA_ADDRESS");
        }
    }
}
