//! Reads `/proc/<pid>/cgroup`: which pod, if any, a process belongs to.
//!
//! Pure: text in, verdict out. The rules keep a workload from naming a pod that it is
//! not in: paths are anchored at the kubelet's tree, so that a cgroup made elsewhere
//! (`/user.slice/…/kubepods/pod…`) says nothing; the outermost pod segment counts, so
//! that a cgroup made below a container says nothing either; and hierarchies that name
//! a pod must name the same one.

use std::fmt;

/// The longest `/proc/<pid>/cgroup` that is read, in bytes.
pub const MAX_CGROUP_FILE: usize = 64 * 1024;

/// The UID of a pod, as the kubelet put it into the cgroup's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PodUid {
    /// The pod's UID in the API server.
    Api(String),
    /// A static pod's configuration hash: its mirror pod in the API server has another UID.
    Static(String),
}

impl PodUid {
    /// The UID as text: with dashes for a pod of the API server, without for a static pod.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Api(uid) | Self::Static(uid) => uid,
        }
    }

    /// Parses what stands after `pod`; systemd names carry `_` in place of `-`.
    fn parse(text: &str) -> Option<Self> {
        let is_hex = |part: &str| {
            part.bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        if text.len() == 32 && is_hex(text) {
            return Some(Self::Static(text.to_owned()));
        }
        let uid = text.replace('_', "-");
        let groups: Vec<&str> = uid.split('-').collect();
        let lengths = [8, 4, 4, 4, 12];
        let shaped = groups.len() == lengths.len()
            && groups
                .iter()
                .zip(lengths)
                .all(|(part, len)| part.len() == len && is_hex(part));
        shaped.then_some(Self::Api(uid))
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The pod of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCgroup {
    /// Which pod.
    pub uid: PodUid,
    /// The runtime's ID of the container (64 hex digits), where the path has one.
    pub container: Option<String>,
}

/// Why a cgroup file is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    /// A line is not `number:controllers:/path`.
    #[error("a line of the cgroup file is malformed")]
    Malformed,
    /// A pod segment at a pod's place whose UID is none.
    #[error("the cgroup names a pod whose UID is neither a UUID nor a configuration hash")]
    StrangePod,
    /// Two hierarchies name different pods or containers.
    #[error("the cgroup hierarchies name different pods")]
    Disagreement,
    /// The file is longer than [`MAX_CGROUP_FILE`].
    #[error("the cgroup file is too long")]
    TooLong,
}

/// Where the kubelet's cgroup tree begins (its `cgroupRoot`).
#[derive(Debug, Clone)]
pub struct CgroupRoot {
    segments: Vec<String>,
    /// systemd repeats the parent slice in each name: `kubelet-kubepods.slice`.
    slice_prefix: String,
}

impl CgroupRoot {
    /// `path` as in the kubelet's configuration: `/`, `/n2`, `/kubelet.slice`.
    pub fn new(path: &str) -> Self {
        let segments: Vec<String> = path
            .split('/')
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect();
        let slice_prefix = segments
            .last()
            .and_then(|last| last.strip_suffix(".slice"))
            .map(|name| format!("{name}-"))
            .unwrap_or_default();
        Self {
            segments,
            slice_prefix,
        }
    }

    /// The pod that a whole `/proc/<pid>/cgroup` names; `None` outside of any pod.
    pub fn pod_of(&self, file: &str) -> Result<Option<PodCgroup>, CgroupError> {
        if file.len() > MAX_CGROUP_FILE {
            return Err(CgroupError::TooLong);
        }
        let mut found: Option<PodCgroup> = None;
        for line in file.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(number), Some(_controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                return Err(CgroupError::Malformed);
            };
            if number.parse::<u32>().is_err() || !path.starts_with('/') {
                return Err(CgroupError::Malformed);
            }
            // A hierarchy that names no pod says nothing: v1 controllers that the
            // runtime does not use, and the empty unified hierarchy of a hybrid host.
            let Some(pod) = self.pod_of_path(path)? else {
                continue;
            };
            match &mut found {
                None => found = Some(pod),
                Some(first) if first.uid != pod.uid => return Err(CgroupError::Disagreement),
                Some(first) => match (&first.container, pod.container) {
                    (Some(a), Some(b)) if *a != b => return Err(CgroupError::Disagreement),
                    (None, Some(b)) => first.container = Some(b),
                    _ => {}
                },
            }
        }
        Ok(found)
    }

    fn pod_of_path(&self, path: &str) -> Result<Option<PodCgroup>, CgroupError> {
        let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        let ups = segments.iter().take_while(|s| **s == "..").count();
        let rest = segments.get(ups..).unwrap_or_default();
        if rest.contains(&"..") {
            return Err(CgroupError::Malformed);
        }
        if ups == 0 {
            return match self.strip_root(rest, 0) {
                Some(rest) => self.below_root(rest),
                None => Ok(None),
            };
        }
        // In a private cgroup namespace a path starts at the common ancestor of the
        // agent's own cgroup and the peer's. That is some part of the root …
        for from in 0..=self.segments.len() {
            if let Some(rest) = self.strip_root(rest, from) {
                let found = self.below_root(rest)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        // … or, where the agent runs in a pod itself, the pods' common slice: that is
        // at least its own pod and container away.
        if ups >= 2 {
            self.inside_kubepods(rest)
        } else {
            Ok(None)
        }
    }

    fn strip_root<'p, 's>(&self, path: &'p [&'s str], from: usize) -> Option<&'p [&'s str]> {
        let root = self.segments.get(from..)?;
        let (head, tail) = path.split_at_checked(root.len())?;
        head.iter().zip(root).all(|(a, b)| a == b).then_some(tail)
    }

    /// `path` starts where the kubelet's tree has its top: `kubepods…`.
    fn below_root(&self, path: &[&str]) -> Result<Option<PodCgroup>, CgroupError> {
        let Some((top, rest)) = path.split_first() else {
            return Ok(None);
        };
        if *top == "kubepods" {
            return self.inside_kubepods(rest);
        }
        let Some(name) = top.strip_prefix(self.slice_prefix.as_str()) else {
            return Ok(None);
        };
        if name == "kubepods.slice" {
            return self.inside_kubepods(rest);
        }
        // A kubelet that names slices over a runtime that does not: one flat name,
        // `kubepods-burstable-pod<uid>.slice:cri-containerd:<id>`.
        let Some((slice, runtime_and_id)) = name.split_once(':') else {
            return Ok(None);
        };
        let Some(uid) = systemd_pod(slice, None) else {
            return Ok(None);
        };
        let container = runtime_and_id.rsplit(':').next().and_then(container_id);
        Ok(Some(PodCgroup {
            uid: uid?,
            container,
        }))
    }

    /// `path` starts inside `kubepods`: `[QoS class/]pod/container/…`.
    fn inside_kubepods(&self, path: &[&str]) -> Result<Option<PodCgroup>, CgroupError> {
        let Some((first, rest)) = path.split_first() else {
            return Ok(None);
        };
        let found = match *first {
            "burstable" | "besteffort" => {
                let Some((pod, rest)) = rest.split_first() else {
                    return Ok(None);
                };
                cgroupfs_pod(pod).map(|uid| (uid, rest))
            }
            name if name.starts_with("pod") => cgroupfs_pod(name).map(|uid| (uid, rest)),
            name => {
                let Some(name) = name.strip_prefix(self.slice_prefix.as_str()) else {
                    return Ok(None);
                };
                match name {
                    "kubepods-burstable.slice" | "kubepods-besteffort.slice" => {
                        let class = name.trim_end_matches(".slice");
                        let Some((pod, rest)) = rest.split_first() else {
                            return Ok(None);
                        };
                        pod.strip_prefix(self.slice_prefix.as_str())
                            .and_then(|pod| systemd_pod(pod, Some(class)))
                            .map(|uid| (uid, rest))
                    }
                    name => systemd_pod(name, None).map(|uid| (uid, rest)),
                }
            }
        };
        let Some((uid, rest)) = found else {
            return Ok(None);
        };
        // What follows the container's ID belongs to the workload and is not read.
        Ok(Some(PodCgroup {
            uid: uid?,
            container: rest.first().copied().and_then(container_id),
        }))
    }
}

type MaybePod = Option<Result<PodUid, CgroupError>>;

fn cgroupfs_pod(name: &str) -> MaybePod {
    Some(PodUid::parse(name.strip_prefix("pod")?).ok_or(CgroupError::StrangePod))
}

/// `kubepods[-class]-pod<uid>.slice`; below a class's slice the class must be repeated.
fn systemd_pod(name: &str, class: Option<&str>) -> MaybePod {
    let name = name.strip_suffix(".slice")?;
    let (parent, uid) = name.split_once("-pod")?;
    let known = match class {
        Some(class) => parent == class,
        None => ["kubepods", "kubepods-burstable", "kubepods-besteffort"].contains(&parent),
    };
    known.then(|| PodUid::parse(uid).ok_or(CgroupError::StrangePod))
}

/// `<64 hex>` (cgroupfs) or `<runtime>-<64 hex>.scope` (systemd).
fn container_id(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let id = name.rsplit('-').next()?;
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
