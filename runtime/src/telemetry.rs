//! Logs: to stderr, as text or JSON, with a cap that no setting lifts.
//!
//! Some libraries print what they carry: kube-client logs a whole response body at WARN when
//! it can't decode it, and the body of a `TokenReview` repeats the token; hyper, h2 and
//! rustls print frames and buffers at DEBUG and TRACE. No log level that a user asks for may
//! bring a token or a key into a log, so these targets are capped here, behind the user's
//! own filter.

use std::{
    fmt,
    io::{self, IsTerminal},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, Targets},
    fmt::MakeWriter,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Target prefixes and the most verbose level each may ever log at. A prefix covers what
/// begins with it: `hyper` covers `hyper_util` too.
const CAPS: &[(&str, LevelFilter)] = &[
    ("axum", LevelFilter::INFO),
    ("h2", LevelFilter::INFO),
    ("hyper", LevelFilter::INFO),
    ("jsonwebtoken", LevelFilter::INFO),
    // WARN prints response bodies.
    ("kube_client", LevelFilter::ERROR),
    ("kube", LevelFilter::WARN),
    ("reqwest", LevelFilter::INFO),
    ("rustls", LevelFilter::INFO),
    ("sqlx", LevelFilter::WARN),
    ("tokio_rustls", LevelFilter::INFO),
    ("tonic", LevelFilter::INFO),
    ("tower", LevelFilter::INFO),
];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people: coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line, fields at the top level.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error(
        "`{filter}` is not a log level or filter ({problem}); write error, warn, info, debug or \
         trace, or directives such as info,citadel=debug"
    )]
    Filter {
        /// What was asked for.
        filter: String,
        /// What is wrong with it.
        problem: String,
    },
    /// `init` was called before, or something else logs already.
    #[error("logging is set up already")]
    AlreadySet,
}

/// Starts logging to stderr for the whole process. `filter` is a level (`info`) or
/// directives (`info,citadel_ca_server=debug`).
///
/// # Errors
/// The filter does not parse, or logging was started before.
pub fn init(filter: &str, format: Format) -> Result<(), TelemetryError> {
    let ansi = io::stderr().is_terminal();
    subscriber(filter, format, ansi, io::stderr)?
        .try_init()
        .map_err(|_| TelemetryError::AlreadySet)
}

/// Whether `filter` parses, for a check of the configuration.
///
/// # Errors
/// The filter does not parse.
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse_filter(filter).map(drop)
}

fn subscriber<W>(
    filter: &str,
    format: Format,
    ansi: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = parse_filter(filter)?.and(caps());
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = match format {
        Format::Text => lines.with_ansi(ansi).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    Ok(Registry::default().with(layer.with_filter(filter)))
}

fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let error = |problem: String| TelemetryError::Filter {
        filter: filter.to_owned(),
        problem,
    };
    if filter.trim().is_empty() {
        return Err(error("it is empty".to_owned()));
    }
    // EnvFilter takes any single word for a target at TRACE: `inof` would silence all else.
    if !filter.contains(['=', ',', '[']) {
        return LevelFilter::from_str(filter)
            .map(|level| EnvFilter::default().add_directive(level.into()))
            .map_err(|e| error(e.to_string()));
    }
    EnvFilter::builder()
        .parse(filter)
        .map_err(|e| error(e.to_string()))
}

fn caps() -> Targets {
    Targets::new()
        .with_default(LevelFilter::TRACE)
        .with_targets(CAPS.iter().copied())
}

// === impl Format ===

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("`{other}` is not a log format; write text or json")),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, format: Format, log: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = subscriber(filter, format, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// The most verbose filters that a user could write, the capped targets by name too.
    const VERBOSE: [&str; 3] = [
        "trace",
        "trace,kube_client=trace,hyper=trace,hyper_util=trace,h2=trace,tonic=trace,rustls=trace,\
         sqlx=trace",
        "kube_client::client=trace,kube_client[request]=trace,h2::codec=trace,[{body}]=trace",
    ];

    #[test]
    fn no_filter_lifts_the_cap_of_a_library_that_prints_bodies() {
        for filter in VERBOSE {
            let text = logged(filter, Format::Text, || {
                tracing::warn!(target: "kube_client::client", body = "planted");
                tracing::warn!(target: "kube_client", "planted");
                tracing::trace!(target: "hyper::proto::h1", "planted");
                tracing::debug!(target: "hyper_util::client", "planted");
                tracing::trace!(target: "h2::codec::framed_write", "planted");
                tracing::debug!(target: "tonic::transport", "planted");
                tracing::trace!(target: "tower::buffer::worker", "planted");
                tracing::trace!(target: "rustls::conn", "planted");
                tracing::info!(target: "sqlx::query", "planted");
                let span = tracing::trace_span!(target: "kube_client", "request", body = "planted");
                span.in_scope(|| tracing::error!(target: "kube_client::client", "seen"));
            });
            assert!(!text.contains("planted"), "{filter}: {text}");
            assert!(text.contains("seen"), "{filter}: {text}");
        }
    }

    #[test]
    fn the_cap_holds_for_the_log_crate_too() {
        tracing_log::LogTracer::init().unwrap();
        let text = logged("trace", Format::Text, || {
            log::debug!(target: "rustls::client::hs", "planted");
            log::trace!(target: "citadel_log_crate", "seen");
        });
        assert!(!text.contains("planted"), "{text}");
        assert!(text.contains("seen"), "{text}");
    }

    #[test]
    fn our_own_targets_follow_the_filter() {
        let log = || {
            tracing::trace!(target: "citadel_ca_server::grpc", "fine");
            tracing::info!(target: "citadel_ca_server", "coarse");
        };
        assert!(logged("trace", Format::Text, log).contains("fine"));
        let info = logged("info", Format::Text, log);
        assert!(info.contains("coarse") && !info.contains("fine"), "{info}");
        let directive = logged("warn,citadel_ca_server=trace", Format::Text, log);
        assert!(directive.contains("fine"), "{directive}");
    }

    #[test]
    fn json_has_the_fields_at_the_top() {
        let line = logged("info", Format::Json, || {
            tracing::warn!(target: "citadel::refused", reason = "token expired", rpc = "Issue");
        });
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["reason"], "token expired");
        assert_eq!(value["target"], "citadel::refused");
        assert_eq!(value["level"], "WARN");
    }

    #[test]
    fn a_misspelt_level_is_an_error_that_names_the_levels() {
        for filter in ["inof", "", "info,citadel=loud", "verbose"] {
            let error = check_filter(filter).unwrap_err().to_string();
            assert!(
                error.contains("error, warn, info, debug or trace"),
                "{error}"
            );
        }
        for filter in ["info", "INFO", "off", "warn,citadel=debug"] {
            check_filter(filter).unwrap();
        }
    }
}
