//! Addresses of Workload API endpoints, as the SPIFFE Workload Endpoint standard
//! has them: `unix:///absolute/path` or `tcp://IP:port`, nothing else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The variable that tells a workload where its endpoint is (section 4).
pub(crate) const VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// The longest path of a Unix socket in bytes: `sun_path` is 108 with its NUL.
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// Where a Workload API endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// Why an address is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error("the address is empty")]
    Empty,
    #[error("a scheme is missing; did you mean unix://{0}?")]
    BarePath(String),
    #[error("only unix:///absolute/path and tcp://IP:port are endpoints")]
    Scheme,
    #[error("a unix address has no host: write unix:///absolute/path, with three slashes")]
    UnixHost,
    #[error("a unix address names an absolute path: unix:///absolute/path")]
    UnixPath,
    #[error("the path has {0} bytes; a Unix socket's has at most {MAX_SOCKET_PATH}")]
    PathLength(usize),
    #[error("an endpoint address has no query, no fragment and no user")]
    Extra,
    #[error(
        "a tcp address is an IP address and a port, without a name or path: tcp://127.0.0.1:8081"
    )]
    TcpAddress,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        if text.starts_with('/') {
            return Err(EndpointError::BarePath(text.to_owned()));
        }
        if text.contains(['?', '#']) {
            return Err(EndpointError::Extra);
        }
        if let Some(path) = text.strip_prefix("unix://") {
            return unix(path);
        }
        if text.starts_with("unix:") {
            return Err(EndpointError::UnixPath);
        }
        match text.strip_prefix("tcp://") {
            Some(address) if address.contains('@') => Err(EndpointError::Extra),
            Some(address) => match address.parse::<SocketAddr>() {
                Ok(address) if address.port() != 0 => Ok(Self::Tcp(address)),
                _ => Err(EndpointError::TcpAddress),
            },
            None => Err(EndpointError::Scheme),
        }
    }
}

fn unix(path: &str) -> Result<Endpoint, EndpointError> {
    if path.is_empty() {
        return Err(EndpointError::UnixPath);
    }
    if !path.starts_with('/') {
        return Err(EndpointError::UnixHost);
    }
    if path == "/" || path.contains('\0') {
        return Err(EndpointError::UnixPath);
    }
    if path.len() > MAX_SOCKET_PATH {
        return Err(EndpointError::PathLength(path.len()));
    }
    Ok(Endpoint::Unix(PathBuf::from(path)))
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl From<&Path> for Endpoint {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_path_buf())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn spiffe_req_24_the_two_forms_are_accepted() {
        for (text, wanted) in [
            (
                "unix:///run/citadel/agent.sock",
                Endpoint::Unix("/run/citadel/agent.sock".into()),
            ),
            (
                "tcp://127.0.0.1:8081",
                Endpoint::Tcp("127.0.0.1:8081".parse().unwrap()),
            ),
            (
                "tcp://[::1]:8081",
                Endpoint::Tcp("[::1]:8081".parse().unwrap()),
            ),
        ] {
            let parsed: Endpoint = text.parse().unwrap();
            assert_eq!(parsed, wanted);
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn spiffe_req_24_nothing_else_is_accepted() {
        for (text, wanted) in [
            ("", EndpointError::Empty),
            (
                "/run/agent.sock",
                EndpointError::BarePath("/run/agent.sock".into()),
            ),
            ("agent.sock", EndpointError::Scheme),
            ("http://127.0.0.1:80", EndpointError::Scheme),
            ("UNIX:///run/agent.sock", EndpointError::Scheme),
            ("unix:run/agent.sock", EndpointError::UnixPath),
            ("unix:/run/agent.sock", EndpointError::UnixPath),
            ("unix://run/agent.sock", EndpointError::UnixHost),
            ("unix://", EndpointError::UnixPath),
            ("unix:///", EndpointError::UnixPath),
            ("unix:///run/a?x=1", EndpointError::Extra),
            ("unix:///run/a#x", EndpointError::Extra),
            ("tcp://127.0.0.1", EndpointError::TcpAddress),
            ("tcp://127.0.0.1:0", EndpointError::TcpAddress),
            ("tcp://localhost:80", EndpointError::TcpAddress),
            ("tcp://127.0.0.1:80/path", EndpointError::TcpAddress),
            ("tcp://user@127.0.0.1:80", EndpointError::Extra),
            ("tcp://:80", EndpointError::TcpAddress),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap_err(), wanted, "{text:?}");
        }
        let long = format!("unix:///{}", "a".repeat(MAX_SOCKET_PATH));
        assert_eq!(
            long.parse::<Endpoint>().unwrap_err(),
            EndpointError::PathLength(MAX_SOCKET_PATH + 1)
        );
    }

    proptest::proptest! {
        #[test]
        fn what_is_accepted_is_printed_as_it_was(text in "(unix|tcp)?:?/{0,3}[a-z0-9.:/@?#\\[\\]]{0,40}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                let again: Endpoint = endpoint.to_string().parse().unwrap();
                proptest::prop_assert_eq!(again, endpoint);
            }
        }
    }
}
