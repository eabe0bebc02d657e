//! The key `store`: where issuances are recorded.

use std::path::{Path, PathBuf};

use citadel_runtime::config::Checker;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::StoreLocation;
use crate::store::{PostgresOptions, SslMode, UrlError};

const FORMS: &str = "write sqlite:/path/to/citadel.db, or \
                     postgres://user@host:5432/database";

/// A URL, or a section for what does not go into one.
#[derive(Debug)]
pub(super) enum Store {
    Url(String),
    Section(Section),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    pub(super) postgres: Postgres,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Postgres {
    pub(super) url: String,
    #[serde(default)]
    pub(super) schema: Option<String>,
    #[serde(default)]
    pub(super) password_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) root_certificate: Option<PathBuf>,
    #[serde(default)]
    pub(super) client_certificate: Option<PathBuf>,
    #[serde(default)]
    pub(super) client_key: Option<PathBuf>,
}

/// What counts, from what stands there.
pub(super) fn check(
    checker: &mut Checker<'_>,
    store: Option<Store>,
    data_dir: &Path,
) -> Option<StoreLocation> {
    match store {
        None => Some(StoreLocation::Sqlite(data_dir.join("citadel.db"))),
        Some(Store::Url(url)) => location(checker, &url),
        Some(Store::Section(section)) => postgres(checker, section.postgres),
    }
}

fn location(checker: &mut Checker<'_>, url: &str) -> Option<StoreLocation> {
    let scheme = url.split(':').next().unwrap_or_default();
    if ["postgres", "postgresql"].contains(&scheme) && url.contains(':') {
        return options(checker, "store", url).map(|url| StoreLocation::Postgres(Box::new(url)));
    }
    let Some(path) = url.strip_prefix("sqlite:") else {
        checker.problem(
            "store",
            format_args!("there is no store of the kind `{scheme}`"),
            FORMS,
        );
        return None;
    };
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() || path.contains(['?', '#']) || path == ":memory:" {
        checker.problem(
            "store",
            format_args!("`{url}` names no file"),
            "write sqlite:/path/to/citadel.db",
        );
        return None;
    }
    Some(StoreLocation::Sqlite(PathBuf::from(path)))
}

/// The URL is never shown: it may hold a password.
fn options(checker: &mut Checker<'_>, key: &str, url: &str) -> Option<PostgresOptions> {
    let parsed = PostgresOptions::from_url(url);
    let fix = match &parsed {
        Err(UrlError::Password) => {
            "take it out, change it, and name a file that holds it with \
             store.postgres.password_file (or PGPASSFILE)"
        }
        Err(UrlError::Parameter(_)) => {
            "use sslmode, sslrootcert, sslcert, sslkey, host, port, user, dbname and \
             application_name alone"
        }
        Err(UrlError::SslMode) => {
            "choose one of them; allow and prefer leave it to whoever is on the way"
        }
        Err(UrlError::SocketTls) => "leave sslmode out",
        _ => "write postgres://user@host:5432/database",
    };
    checker.take(key, parsed, fix)
}

fn postgres(checker: &mut Checker<'_>, section: Postgres) -> Option<StoreLocation> {
    let mut options = options(checker, "store.postgres.url", &section.url)?;
    if let Some(schema) = &section.schema
        && !PostgresOptions::is_schema_name(schema)
    {
        checker.problem(
            "store.postgres.schema",
            format_args!("`{schema}` is not the name of a schema"),
            "write up to 63 lower-case letters, digits and underscores, such as citadel",
        );
    }
    if section.root_certificate.is_some() && !options.ssl_mode.verifies() {
        checker.problem(
            "store.postgres.root_certificate",
            "has no effect, since the URL's sslmode checks no certificate",
            "write sslmode=verify-full, or leave sslmode out",
        );
    }
    for (key, this, other) in [
        (
            "store.postgres.client_certificate",
            &section.client_certificate,
            &section.client_key,
        ),
        (
            "store.postgres.client_key",
            &section.client_key,
            &section.client_certificate,
        ),
    ] {
        if this.is_some() && other.is_none() {
            checker.problem(
                key,
                "stands alone",
                "give both client_certificate and client_key, or none",
            );
        }
        if this.is_some() && options.ssl_mode == SslMode::Disable {
            checker.problem(
                key,
                "has no effect without TLS",
                "leave it out, or write another sslmode",
            );
        }
    }
    options.schema = section.schema;
    options.password_file = section.password_file;
    options.root_certificate = section.root_certificate;
    options.client_certificate = section.client_certificate;
    options.client_key = section.client_key;
    Some(StoreLocation::Postgres(Box::new(options)))
}

// === impl Store ===

impl<'de> Deserialize<'de> for Store {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UrlOrSection;

        impl<'de> Visitor<'de> for UrlOrSection {
            type Value = Store;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a URL (sqlite:… or postgres://…) or a section `postgres`")
            }

            fn visit_str<E>(self, url: &str) -> Result<Store, E> {
                Ok(Store::Url(url.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Store, A::Error> {
                Section::deserialize(MapAccessDeserializer::new(map)).map(Store::Section)
            }
        }

        deserializer.deserialize_any(UrlOrSection)
    }
}

impl Serialize for Store {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Url(url) => serializer.serialize_str(url),
            Self::Section(section) => section.serialize(serializer),
        }
    }
}
