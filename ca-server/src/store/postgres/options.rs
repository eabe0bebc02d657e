//! Where a PostgreSQL database is, and how to get in.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr as _,
    time::Duration,
};

use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgSslMode},
};
use url::Url;

use crate::store::{BatchOptions, StoreError};

/// Bytes of a password file at most.
const MAX_PASSWORD_FILE: u64 = 4096;

/// How long a start waits for an answer, at least.
const AT_START: Duration = Duration::from_secs(5);

/// Where the database is, how to get in, and how the writer batches. Holds no password:
/// that is read at each connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresOptions {
    /// `postgres://user@host:port/database`, without a password.
    url: String,
    /// How the connection is protected.
    pub ssl_mode: SslMode,
    /// A file with the password and nothing else. Without one: `PGPASSWORD`, else the file
    /// that `PGPASSFILE` names, or `~/.pgpass`.
    pub password_file: Option<PathBuf>,
    /// Certificates, PEM, that the server's may chain to, beside the public roots.
    pub root_certificate: Option<PathBuf>,
    /// The client's certificate chain, PEM.
    pub client_certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub client_key: Option<PathBuf>,
    /// The schema that holds the tables, made if it is missing; `None`: the first one of
    /// the role's `search_path`.
    pub schema: Option<String>,
    /// How the writer batches.
    pub batch: BatchOptions,
    /// How long an append may take, from the call on: what failed without effect is tried
    /// again within it. Locks are waited for half of it.
    pub deadline: Duration,
    /// Entries that the indexer takes in one transaction at most.
    pub index_run: usize,
    /// Between two looks of the indexer at a log that it has caught up with.
    pub index_delay: Duration,
}

/// How a connection is protected, with libpq's names. `allow` and `prefer` are not among
/// them: whoever is on the way would choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS with anybody.
    Require,
    /// TLS with a server whose certificate is good, whatever its name.
    VerifyCa,
    /// TLS with the named server.
    VerifyFull,
}

/// What is wrong with a URL. Never shows the URL: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It is none, or not of PostgreSQL.
    #[error("it is not of the form postgres://user@host:5432/database")]
    Malformed,
    /// It holds a password.
    #[error("it holds a password, which logs and process lists would show")]
    Password,
    /// It names no database.
    #[error("it names no database")]
    NoDatabase,
    /// A parameter that is not known.
    #[error("it has the unknown parameter `{0}`")]
    Parameter(String),
    /// `sslmode` has another value.
    #[error("its sslmode is none of verify-full, verify-ca, require and disable")]
    SslMode,
    /// TLS on a Unix socket.
    #[error("a server on a Unix socket speaks no TLS: its sslmode can only be disable")]
    SocketTls,
}

/// For whom a connection is: each has time limits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Opens the store; then [`Role::Writer`]. No request waits for it yet.
    Start,
    Writer,
    Reader,
    /// A reader beside the servers that could not write if it wanted to.
    Auditor,
    Indexer,
    Migration,
}

// === impl PostgresOptions ===

impl PostgresOptions {
    /// The defaults for this URL. It may have the parameters `sslmode` (default
    /// `verify-full`, and `disable` on a Unix socket), `sslrootcert`, `sslcert`, `sslkey`,
    /// `host` (also a folder with a Unix socket), `port`, `user`, `dbname` and
    /// `application_name`.
    ///
    /// # Errors
    /// [`UrlError`], which never shows the URL.
    pub fn from_url(text: &str) -> Result<Self, UrlError> {
        let url = Url::parse(text).map_err(|_| UrlError::Malformed)?;
        if !["postgres", "postgresql"].contains(&url.scheme()) || url.fragment().is_some() {
            return Err(UrlError::Malformed);
        }
        if url.password().is_some() {
            return Err(UrlError::Password);
        }
        let mut database = !url.path().trim_matches('/').is_empty();
        let mut socket = url
            .host_str()
            .is_some_and(|host| host.to_ascii_lowercase().starts_with("%2f"));
        let mut host = url.host_str().is_some_and(|host| !host.is_empty());
        let mut ssl_mode = None;
        for (key, value) in url.query_pairs() {
            match &*key {
                "sslmode" => ssl_mode = Some(SslMode::parse(&value).ok_or(UrlError::SslMode)?),
                "host" => {
                    host = !value.is_empty();
                    socket = value.starts_with('/');
                }
                "dbname" => database = !value.is_empty(),
                "password" => return Err(UrlError::Password),
                "port" if value.parse::<u16>().is_err() => return Err(UrlError::Malformed),
                "sslrootcert" | "sslcert" | "sslkey" | "port" | "user" | "application_name" => {}
                unknown => return Err(UrlError::Parameter(unknown.to_owned())),
            }
        }
        if !host {
            return Err(UrlError::Malformed);
        }
        if !database {
            return Err(UrlError::NoDatabase);
        }
        let ssl_mode = match (ssl_mode, socket) {
            (Some(SslMode::Disable) | None, true) => SslMode::Disable,
            (Some(_), true) => return Err(UrlError::SocketTls),
            (Some(mode), false) => mode,
            (None, false) => SslMode::VerifyFull,
        };
        let this = Self {
            url: text.to_owned(),
            ssl_mode,
            password_file: None,
            root_certificate: None,
            client_certificate: None,
            client_key: None,
            schema: None,
            batch: BatchOptions::default(),
            deadline: Duration::from_secs(5),
            index_run: 4096,
            index_delay: Duration::from_millis(500),
        };
        PgConnectOptions::from_str(&this.url).map_err(|_| UrlError::Malformed)?;
        Ok(this)
    }

    /// True for a name that [`Self::schema`] takes: lower-case letters, digits and
    /// underscores, at most 63, none of PostgreSQL's own.
    pub fn is_schema_name(name: &str) -> bool {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        (1..=63).contains(&name.len())
            && name.bytes().next().is_some_and(letter)
            && name
                .bytes()
                .all(|byte| letter(byte) || byte.is_ascii_digit())
            && !name.starts_with("pg_")
    }

    /// What a connection of this role is made with. Reads the password.
    pub(super) fn connect_options(&self, role: Role) -> Result<PgConnectOptions, StoreError> {
        // The URL holds no password; what this reads besides is libpq's password file.
        let mut options = PgConnectOptions::from_str(&self.url)
            .map_err(|_| StoreError::Settings("the database's URL is malformed".into()))?
            .ssl_mode(self.ssl_mode.into())
            // Statements hold what names workloads.
            .disable_statement_logging()
            .options(self.session(role));
        if let Some(path) = &self.password_file {
            options = options.password(&password(path)?);
        }
        if let Some(path) = &self.root_certificate {
            options = options.ssl_root_cert(path);
        }
        if let Some(path) = &self.client_certificate {
            options = options.ssl_client_cert(path);
        }
        if let Some(path) = &self.client_key {
            options = options.ssl_client_key(path);
        }
        if options.get_application_name().is_none() {
            options = options.application_name("citadel-ca");
        }
        if let Some(schema) = &self.schema {
            options = options.options([("search_path", format!("\"{schema}\""))]);
        }
        Ok(options)
    }

    /// Limits that hold on the server's side, in milliseconds; ours stand in
    /// [`Self::patience`]. The isolation is what the statements are written for.
    pub(super) fn session(&self, role: Role) -> Vec<(&'static str, String)> {
        let deadline = self.deadline.as_millis();
        let patience = self.patience(role).as_millis();
        let (lock, statement, idle) = match role {
            Role::Start => (patience, patience, patience),
            // Other servers wait for its lock, and have to be done within the same deadline
            // when it was lost with a server that hangs.
            Role::Writer => (deadline / 2, deadline * 3 / 4, deadline * 3 / 4),
            Role::Reader | Role::Auditor => (deadline / 2, 2 * deadline, patience),
            // Between two statements it only computes, and others can't index meanwhile.
            Role::Indexer => (deadline / 2, 30_000, 5_000),
            // Another server may be in the middle of it.
            Role::Migration => (60_000, 0, patience),
        };
        let mut session = vec![
            ("lock_timeout", lock.to_string()),
            ("statement_timeout", statement.to_string()),
            ("idle_in_transaction_session_timeout", idle.to_string()),
            // A client that vanished holds no lock for longer than that.
            ("tcp_user_timeout", (2 * deadline).to_string()),
            ("tcp_keepalives_idle", "15".to_owned()),
            ("tcp_keepalives_interval", "5".to_owned()),
            ("default_transaction_isolation", "read committed".to_owned()),
        ];
        if role == Role::Auditor {
            session.push(("default_transaction_read_only", "on".to_owned()));
        }
        session
    }

    /// How long one operation is waited for before the connection is given up: it may
    /// hang where nothing on the server's side ends it.
    pub(super) fn patience(&self, role: Role) -> Duration {
        let margin = Duration::from_secs(1);
        match role {
            Role::Start => self.deadline.max(AT_START) + margin,
            Role::Writer => self.deadline + margin,
            Role::Reader | Role::Auditor => 2 * self.deadline + margin,
            Role::Indexer => Duration::from_secs(60),
            Role::Migration => Duration::from_secs(600),
        }
    }
}

/// Without what a URL can't hold here: a password.
impl fmt::Display for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.url.split('?').next().unwrap_or_default();
        f.write_str(place)
    }
}

fn password(path: &Path) -> Result<String, StoreError> {
    use std::io::Read as _;
    let cannot = |error: &dyn fmt::Display| {
        StoreError::Settings(format!(
            "the password file {} can't be read: {error}",
            path.display()
        ))
    };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_PASSWORD_FILE).read_to_string(&mut text))
        .map_err(|error| cannot(&error))?;
    let password = text.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(cannot(&"it is empty"));
    }
    Ok(password.to_owned())
}

// === impl SslMode ===

impl SslMode {
    /// By libpq's name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "disable" => Some(Self::Disable),
            "require" => Some(Self::Require),
            "verify-ca" => Some(Self::VerifyCa),
            "verify-full" => Some(Self::VerifyFull),
            _ => None,
        }
    }

    /// True where the server's certificate is checked.
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

impl From<SslMode> for PgSslMode {
    fn from(mode: SslMode) -> Self {
        match mode {
            SslMode::Disable => Self::Disable,
            SslMode::Require => Self::Require,
            SslMode::VerifyCa => Self::VerifyCa,
            SslMode::VerifyFull => Self::VerifyFull,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tls_with_the_named_server_is_the_default() {
        let mode = |url: &str| PostgresOptions::from_url(url).unwrap().ssl_mode;
        assert_eq!(mode("postgres://u@db.example:5432/x"), SslMode::VerifyFull);
        assert_eq!(mode("postgres://u@127.0.0.1/x"), SslMode::VerifyFull);
        assert_eq!(mode("postgresql://u@h/x?sslmode=require"), SslMode::Require);
        assert_eq!(mode("postgres:///x?host=/run/postgresql"), SslMode::Disable);
        assert_eq!(mode("postgres://u@%2Frun%2Fpg/x"), SslMode::Disable);
        // Whatever the environment says.
        let options = PostgresOptions::from_url("postgres://u@h/x").unwrap();
        let made = options.connect_options(Role::Writer).unwrap();
        assert!(matches!(made.get_ssl_mode(), PgSslMode::VerifyFull));
    }

    #[test]
    fn bad_urls_are_refused_and_never_shown() {
        for (url, error) in [
            ("postgres://u:hunter2@h/x", UrlError::Password),
            ("postgres://u@h/x?password=hunter2", UrlError::Password),
            ("mysql://hunter2@h/x", UrlError::Malformed),
            ("hunter2", UrlError::Malformed),
            ("postgres://hunter2@h:99999/x", UrlError::Malformed),
            ("postgres://hunter2@h", UrlError::NoDatabase),
            ("postgres://hunter2@h/", UrlError::NoDatabase),
            ("postgres:///x", UrlError::Malformed),
            ("postgres://u@h/x?sslmode=prefer", UrlError::SslMode),
            ("postgres://u@h/x?sslmode=allow", UrlError::SslMode),
            (
                "postgres:///x?host=/run&sslmode=require",
                UrlError::SocketTls,
            ),
            (
                "postgres://u@h/x?options=-cfsync=off",
                UrlError::Parameter("options".into()),
            ),
        ] {
            let found = PostgresOptions::from_url(url).unwrap_err();
            assert_eq!(found, error, "{url}");
            assert!(!found.to_string().contains("hunter2"), "{found}");
        }
    }

    #[test]
    fn a_password_is_read_at_each_connect_and_kept_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        let mut options = PostgresOptions::from_url("postgres://u@h/x").unwrap();
        options.password_file = Some(file.clone());
        let error = options.connect_options(Role::Writer).unwrap_err();
        assert!(error.to_string().contains("can't be read"), "{error}");
        std::fs::write(&file, "\n").unwrap();
        let error = options.connect_options(Role::Writer).unwrap_err();
        assert!(error.to_string().contains("empty"), "{error}");
        std::fs::write(&file, "hunter2\n").unwrap();
        let made = options.connect_options(Role::Writer).unwrap();
        assert_eq!(made.to_url_lossy().password(), Some("hunter2"));
        assert!(!format!("{options:?} {options}").contains("hunter2"));
    }

    /// A lock that a hanging server took is let go in time for others to be done with it.
    #[test]
    fn the_writers_limits_end_before_its_deadline() {
        let options = PostgresOptions::from_url("postgres://u@h/x").unwrap();
        let session = options.session(Role::Writer);
        let deadline = options.deadline.as_millis();
        for limit in ["statement_timeout", "idle_in_transaction_session_timeout"] {
            let (_, value) = session.iter().find(|(name, _)| *name == limit).unwrap();
            assert!(
                value.parse::<u128>().unwrap() <= deadline * 3 / 4,
                "{limit}"
            );
        }
    }

    /// Whatever a request's deadline is: a start on a busy machine has time.
    #[test]
    fn a_start_has_more_time_than_a_short_deadline() {
        let mut options = PostgresOptions::from_url("postgres://u@h/x").unwrap();
        options.deadline = Duration::from_millis(500);
        for (name, value) in options.session(Role::Start) {
            if ["lock_timeout", "statement_timeout"].contains(&name) {
                assert_eq!(value, "6000", "{name}");
            }
        }
    }

    #[test]
    fn an_auditor_s_session_is_read_only_by_the_server_s_own_word() {
        let options = PostgresOptions::from_url("postgres://u@h/x").unwrap();
        let read_only = ("default_transaction_read_only", "on".to_owned());
        assert!(options.session(Role::Auditor).contains(&read_only));
        assert!(!options.session(Role::Writer).contains(&read_only));
    }

    #[test]
    fn schema_names_need_no_quotes() {
        for good in ["citadel", "_a", "bench_1"] {
            assert!(PostgresOptions::is_schema_name(good), "{good}");
        }
        for bad in ["", "Citadel", "1a", "a-b", "a\"b", "pg_x", &"a".repeat(64)] {
            assert!(!PostgresOptions::is_schema_name(bad), "{bad}");
        }
    }
}
