//! `files` in the agent's configuration: which identity goes into which folder.

use std::path::PathBuf;

use citadel_identity::{SpiffeId, TrustDomain};
use citadel_runtime::config::Checker;
use nix::{
    sys::signal::Signal,
    unistd::{Group, User},
};
use serde::Deserialize;

use super::{
    folder::Access,
    reload::{Hook, Reload},
};

/// The most rules.
pub const MAX_RULES: usize = 256;

/// One folder, as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilesConfig {
    /// The folder.
    pub directory: PathBuf,
    /// The user who reads the files, by name or number: the workload whose identity it is.
    pub owner: String,
    /// The group; without it, the user's own.
    pub group: Option<String>,
    /// Which of that user's identities; without it, the first.
    pub spiffe_id: Option<String>,
    /// Mode of the files with the private key, octal: 0600, or 0640 for the group.
    pub key_mode: Option<String>,
    /// Write `svid_combined.pem` too: chain and key in one file.
    pub combined: bool,
    /// A file with the password of `svid.p12`; without it, none is written.
    pub pkcs12_password_file: Option<PathBuf>,
    /// What to do after each write.
    pub reload: ReloadConfig,
}

/// What to do after each write.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadConfig {
    /// A file with the process's number.
    pub pid_file: Option<PathBuf>,
    /// The signal for it; SIGHUP without one.
    pub signal: Option<String>,
    /// A program and its arguments.
    pub command: Vec<String>,
    /// An `http://` URL of this host, for a POST.
    pub http: Option<String>,
}

/// One folder, found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The folder.
    pub directory: PathBuf,
    /// User and group who read the files.
    pub owner: (u32, u32),
    /// Which identity; `None` for the first.
    pub spiffe_id: Option<SpiffeId>,
    /// Owner and modes of the files.
    pub access: Access,
    /// Whether `svid_combined.pem` is wanted.
    pub combined: bool,
    /// Where the password of `svid.p12` is.
    pub pkcs12_password_file: Option<PathBuf>,
    /// What to do after each write.
    pub reload: Reload,
}

/// Checks all rules; problems go to `check`.
pub fn rules(
    written: &[FilesConfig],
    trust_domain: Option<&TrustDomain>,
    check: &mut Checker<'_>,
) -> Vec<Rule> {
    if written.len() > MAX_RULES {
        check.problem("files", "has too many rules", "write at most 256");
        return Vec::new();
    }
    let mut rules: Vec<Rule> = Vec::new();
    for (at, rule) in written.iter().enumerate() {
        let key = |name: &str| format!("files[{at}].{name}");
        if rules.iter().any(|other| other.directory == rule.directory) {
            check.problem(
                key("directory"),
                "is another rule's too",
                "give each rule a folder of its own",
            );
        }
        rules.extend(rule.check(&key, trust_domain, check));
    }
    rules
}

impl FilesConfig {
    fn check(
        &self,
        key: &impl Fn(&str) -> String,
        trust_domain: Option<&TrustDomain>,
        check: &mut Checker<'_>,
    ) -> Option<Rule> {
        if !self.directory.is_absolute() {
            check.problem(
                key("directory"),
                "is not an absolute path",
                "write one like /etc/citadel/postgres",
            );
        }
        let user = check.take(
            key("owner"),
            user(&self.owner),
            "write the user who reads the files, by name or number",
        );
        let group = match &self.group {
            None => user.map(|(_, gid)| gid),
            Some(name) => check.take(key("group"), group(name), "write a name or a number"),
        };
        let spiffe_id = self.spiffe_id.as_ref().and_then(|text| {
            let of_ours = |id: &SpiffeId| trust_domain.is_none_or(|ours| id.is_member_of(ours));
            let id = SpiffeId::new(text).map_err(|error| error.to_string());
            let id = id.and_then(|id| {
                if of_ours(&id) {
                    Ok(id)
                } else {
                    Err("is of another trust domain".into())
                }
            });
            check.take(key("spiffe_id"), id, "write one of this trust domain")
        });
        let key_mode = match &self.key_mode {
            None => Some(0o600),
            Some(text) => check.take(
                key("key_mode"),
                mode(text),
                "write 0600, 0640, 0400 or 0440",
            ),
        };
        let reload = self.reload.check(key, check)?;
        let owner = (user?.0, group?);
        Some(Rule {
            directory: self.directory.clone(),
            owner,
            spiffe_id,
            access: Access {
                owner: Some(owner),
                key_mode: key_mode?,
                ..Access::default()
            },
            combined: self.combined,
            pkcs12_password_file: self.pkcs12_password_file.clone(),
            reload,
        })
    }
}

impl ReloadConfig {
    fn check(&self, key: &impl Fn(&str) -> String, check: &mut Checker<'_>) -> Option<Reload> {
        let number = match &self.signal {
            None => Some(Signal::SIGHUP),
            Some(name) => check.take(
                key("reload.signal"),
                signal(name),
                "write HUP, USR1, USR2, INT or TERM",
            ),
        };
        if self.signal.is_some() && self.pid_file.is_none() {
            check.problem(
                key("reload.signal"),
                "is for no process",
                "write reload.pid_file beside it",
            );
        }
        let http = match &self.http {
            None => None,
            Some(url) => Some(check.take(
                key("reload.http"),
                url.parse::<Hook>(),
                "write one like http://127.0.0.1:9000/reload",
            )?),
        };
        Some(Reload {
            signal: self.pid_file.clone().zip(number),
            command: self.command.clone(),
            http,
        })
    }
}

/// A user's number and group.
fn user(text: &str) -> Result<(u32, u32), &'static str> {
    if text.is_empty() {
        return Err("is missing");
    }
    if let Ok(uid) = text.parse::<u32>() {
        let known = User::from_uid(uid.into()).ok().flatten();
        // A number without an account has the group of that number.
        return Ok((uid, known.map_or(uid, |user| user.gid.as_raw())));
    }
    let user = User::from_name(text).ok().flatten();
    user.map(|user| (user.uid.as_raw(), user.gid.as_raw()))
        .ok_or("is no user of this host")
}

fn group(text: &str) -> Result<u32, &'static str> {
    if let Ok(gid) = text.parse() {
        return Ok(gid);
    }
    let group = Group::from_name(text).ok().flatten();
    group
        .map(|group| group.gid.as_raw())
        .ok_or("is no group of this host")
}

fn mode(text: &str) -> Result<u32, &'static str> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if [0o600, 0o640, 0o400, 0o440].contains(&mode) => Ok(mode),
        _ => Err("is no mode for a private key"),
    }
}

fn signal(name: &str) -> Result<Signal, &'static str> {
    match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => Ok(Signal::SIGHUP),
        "USR1" => Ok(Signal::SIGUSR1),
        "USR2" => Ok(Signal::SIGUSR2),
        "INT" => Ok(Signal::SIGINT),
        "TERM" => Ok(Signal::SIGTERM),
        _ => Err("is no signal that programs reload by"),
    }
}
