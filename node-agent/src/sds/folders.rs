//! Which folders secrets in files may come from, and who may have them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use citadel_identity::SpiffeId;
use citadel_runtime::config::Checker;
use serde::Deserialize;

/// A folder with certificates, keys and roots (`file-cert:CHAIN~KEY`, `file-root:PATH`), as
/// it is written in the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SdsFolder {
    /// The folder, as this agent sees it.
    pub folder: PathBuf,
    /// Who may have what is in it and below: callers with one of these identities.
    pub spiffe_ids: Vec<String>,
}

/// Who may have the secrets in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderRule {
    /// Absolute.
    pub folder: PathBuf,
    /// The callers: who has one of these identities.
    pub spiffe_ids: BTreeSet<SpiffeId>,
}

impl FolderRule {
    /// True if the rule is for this path and a caller with these identities.
    pub(super) fn allows(&self, path: &Path, caller: &[SpiffeId]) -> bool {
        path.starts_with(&self.folder)
            && path != self.folder
            && caller.iter().any(|id| self.spiffe_ids.contains(id))
    }
}

/// Gives `sds_files` its type, or says what is wrong with it.
pub(crate) fn check(folders: &[SdsFolder], check: &mut Checker<'_>) -> Arc<[FolderRule]> {
    let mut rules = Vec::new();
    for (at, rule) in folders.iter().enumerate() {
        let folder = &rule.folder;
        if !folder.is_absolute() || folder.parent().is_none() {
            check.problem(
                format!("sds_files[{at}].folder"),
                "is not the absolute path of a folder below /",
                "write one like /etc/citadel/sds",
            );
        }
        if rule.spiffe_ids.is_empty() {
            check.problem(
                format!("sds_files[{at}].spiffe_ids"),
                "is empty, so that nobody gets anything of the folder",
                "name the workloads that may have its keys",
            );
        }
        let ids = rule.spiffe_ids.iter().enumerate().filter_map(|(of, id)| {
            let key = format!("sds_files[{at}].spiffe_ids[{of}]");
            check.take(key, SpiffeId::new(id), "write a workload's whole SPIFFE ID")
        });
        rules.push(FolderRule {
            spiffe_ids: ids.collect(),
            folder: folder.clone(),
        });
    }
    rules.into()
}
