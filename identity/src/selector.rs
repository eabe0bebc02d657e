//! Selectors: what must be true of a workload for an entry to be its own. Spelt as
//! SPIRE spells them, `type:value`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::limits;

/// One condition. An entry's selectors must all match.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// `k8s:ns:NAMESPACE`
    Namespace(String),
    /// `k8s:sa:ACCOUNT`
    Account(String),
    /// `k8s:pod-name:NAME`
    PodName(String),
    /// `k8s:pod-uid:UID`
    PodUid(String),
    /// `k8s:pod-label:KEY:VALUE`
    PodLabel {
        /// The label's key.
        key: String,
        /// The label's value; may be empty.
        value: String,
    },
    /// `k8s:container-name:NAME`
    ContainerName(String),
    /// `k8s:container-image:IMAGE`, as the pod's spec spells it.
    ContainerImage(String),
    /// `unix:uid:NUMBER`
    Uid(u32),
    /// `unix:gid:NUMBER`, the primary group.
    Gid(u32),
    /// `unix:supplementary-gid:NUMBER`
    SupplementaryGid(u32),
    /// `unix:path:/ABSOLUTE/PATH` of the executable.
    Path(String),
    /// `unix:sha256:HEX` of the executable, lowercase.
    Sha256(String),
}

/// Why text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SelectorError {
    /// The kind is not known.
    #[error(
        "{0:?} is no known selector; there are k8s:ns, k8s:sa, k8s:pod-name, k8s:pod-uid, \
         k8s:pod-label, k8s:container-name, k8s:container-image, unix:uid, unix:gid, \
         unix:supplementary-gid, unix:path and unix:sha256"
    )]
    Unknown(String),
    /// The value is missing.
    #[error("the selector {0:?} has no value")]
    Empty(String),
    /// The value does not go with the kind.
    #[error("the selector {0:?} is malformed: {1}")]
    Value(String, &'static str),
    /// The text is too long.
    #[error("a selector has at most {max} bytes; this one has {0}", max = limits::SELECTOR_BYTES)]
    TooLong(usize),
}

/// What is known of a pod. At the CA, all its containers; at the agent, the one that asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub account: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// Name and image of each container that counts.
    pub containers: Vec<(String, String)>,
    /// True for the mirror of a static pod: any kubelet can make one that says anything.
    pub is_mirror: bool,
}

/// What is known of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnixFacts {
    /// Effective user ID.
    pub uid: u32,
    /// Effective group ID.
    pub gid: u32,
    /// Supplementary group IDs.
    pub groups: Vec<u32>,
    /// Path of the executable, where it could be read.
    pub path: Option<String>,
    /// SHA-256 of the executable in lowercase hex, where it was computed.
    pub sha256: Option<String>,
}

impl Selector {
    /// True for the `unix:` kinds, which only the agent can check.
    pub fn is_unix(&self) -> bool {
        match self {
            Self::Uid(_)
            | Self::Gid(_)
            | Self::SupplementaryGid(_)
            | Self::Path(_)
            | Self::Sha256(_) => true,
            Self::Namespace(_)
            | Self::Account(_)
            | Self::PodName(_)
            | Self::PodUid(_)
            | Self::PodLabel { .. }
            | Self::ContainerName(_)
            | Self::ContainerImage(_) => false,
        }
    }

    /// True for the kinds that tell the containers of one pod apart.
    pub fn names_a_container(&self) -> bool {
        matches!(self, Self::ContainerName(_) | Self::ContainerImage(_))
    }

    /// Whether it holds for the pod; false for `unix:` kinds. Label, image and account
    /// never hold for a mirror pod.
    pub fn matches_pod(&self, pod: &PodFacts) -> bool {
        match self {
            Self::Namespace(namespace) => pod.namespace == *namespace,
            Self::PodName(name) => pod.name == *name,
            Self::PodUid(uid) => pod.uid == *uid,
            Self::ContainerName(name) => pod.containers.iter().any(|(own, _)| own == name),
            Self::Account(account) => !pod.is_mirror && pod.account == *account,
            Self::PodLabel { key, value } => !pod.is_mirror && pod.labels.get(key) == Some(value),
            Self::ContainerImage(image) => {
                !pod.is_mirror && pod.containers.iter().any(|(_, own)| own == image)
            }
            Self::Uid(_)
            | Self::Gid(_)
            | Self::SupplementaryGid(_)
            | Self::Path(_)
            | Self::Sha256(_) => false,
        }
    }

    /// Whether it holds for the process; false for `k8s:` kinds.
    pub fn matches_unix(&self, process: &UnixFacts) -> bool {
        match self {
            Self::Uid(uid) => process.uid == *uid,
            Self::Gid(gid) => process.gid == *gid,
            Self::SupplementaryGid(gid) => process.groups.contains(gid),
            Self::Path(path) => process.path.as_ref() == Some(path),
            Self::Sha256(digest) => process.sha256.as_ref() == Some(digest),
            Self::Namespace(_)
            | Self::Account(_)
            | Self::PodName(_)
            | Self::PodUid(_)
            | Self::PodLabel { .. }
            | Self::ContainerName(_)
            | Self::ContainerImage(_) => false,
        }
    }
}

const KINDS: [(&str, &str); 12] = [
    ("k8s", "ns"),
    ("k8s", "sa"),
    ("k8s", "pod-name"),
    ("k8s", "pod-uid"),
    ("k8s", "pod-label"),
    ("k8s", "container-name"),
    ("k8s", "container-image"),
    ("unix", "uid"),
    ("unix", "gid"),
    ("unix", "supplementary-gid"),
    ("unix", "path"),
    ("unix", "sha256"),
];

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.len() > limits::SELECTOR_BYTES {
            return Err(SelectorError::TooLong(text.len()));
        }
        let mut parts = text.splitn(3, ':');
        let (Some(group), Some(kind)) = (parts.next(), parts.next()) else {
            return Err(SelectorError::Unknown(text.to_owned()));
        };
        let value = parts.next().unwrap_or("");
        let wrong = |why| SelectorError::Value(text.to_owned(), why);
        if value.is_empty() && KINDS.contains(&(group, kind)) {
            return Err(SelectorError::Empty(text.to_owned()));
        }
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| wrong("an ID is a number below 2^32"))
        };
        let name = || value.to_owned();
        let selector = match (group, kind) {
            ("k8s", "ns") => Self::Namespace(name()),
            ("k8s", "sa") => Self::Account(name()),
            ("k8s", "pod-name") => Self::PodName(name()),
            ("k8s", "pod-uid") => Self::PodUid(name()),
            ("k8s", "container-name") => Self::ContainerName(name()),
            ("k8s", "container-image") => Self::ContainerImage(name()),
            ("k8s", "pod-label") => match value.split_once(':') {
                Some(("", _)) => return Err(wrong("the label's key is missing")),
                Some((key, value)) => Self::PodLabel {
                    key: key.to_owned(),
                    value: value.to_owned(),
                },
                None => return Err(wrong("a label is written KEY:VALUE")),
            },
            ("unix", "uid") => Self::Uid(number()?),
            ("unix", "gid") => Self::Gid(number()?),
            ("unix", "supplementary-gid") => Self::SupplementaryGid(number()?),
            ("unix", "path") if value.starts_with('/') => Self::Path(name()),
            ("unix", "path") => return Err(wrong("the path is not absolute")),
            ("unix", "sha256") => {
                if value.len() != 64 || !value.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    return Err(wrong("a SHA-256 is 64 hexadecimal digits"));
                }
                Self::Sha256(value.to_ascii_lowercase())
            }
            _ => return Err(SelectorError::Unknown(text.to_owned())),
        };
        Ok(selector)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(value) => write!(f, "k8s:ns:{value}"),
            Self::Account(value) => write!(f, "k8s:sa:{value}"),
            Self::PodName(value) => write!(f, "k8s:pod-name:{value}"),
            Self::PodUid(value) => write!(f, "k8s:pod-uid:{value}"),
            Self::PodLabel { key, value } => write!(f, "k8s:pod-label:{key}:{value}"),
            Self::ContainerName(value) => write!(f, "k8s:container-name:{value}"),
            Self::ContainerImage(value) => write!(f, "k8s:container-image:{value}"),
            Self::Uid(value) => write!(f, "unix:uid:{value}"),
            Self::Gid(value) => write!(f, "unix:gid:{value}"),
            Self::SupplementaryGid(value) => write!(f, "unix:supplementary-gid:{value}"),
            Self::Path(value) => write!(f, "unix:path:{value}"),
            Self::Sha256(value) => write!(f, "unix:sha256:{value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    const ALL: [&str; 12] = [
        "k8s:ns:shop",
        "k8s:sa:web",
        "k8s:pod-name:web-0",
        "k8s:pod-uid:6ad1b1b2-8fc0-4b6c-9a4b-a3a9c3a0a001",
        "k8s:pod-label:app.example.org/name:web",
        "k8s:container-name:main",
        "k8s:container-image:registry.example.org:5000/web@sha256:00",
        "unix:uid:1000",
        "unix:gid:100",
        "unix:supplementary-gid:27",
        "unix:path:/usr/bin/web: strange",
        "unix:sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
    ];

    fn web() -> (PodFacts, UnixFacts) {
        let pod = PodFacts {
            namespace: "shop".into(),
            account: "web".into(),
            name: "web-0".into(),
            uid: "6ad1b1b2-8fc0-4b6c-9a4b-a3a9c3a0a001".into(),
            labels: BTreeMap::from([("app.example.org/name".into(), "web".into())]),
            containers: vec![
                ("proxy".into(), "proxy:1".into()),
                (
                    "main".into(),
                    "registry.example.org:5000/web@sha256:00".into(),
                ),
            ],
            is_mirror: false,
        };
        let process = UnixFacts {
            uid: 1000,
            gid: 100,
            groups: vec![4, 27],
            path: Some("/usr/bin/web: strange".into()),
            sha256: Some("00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff".into()),
        };
        (pod, process)
    }

    #[test]
    fn every_kind_is_read_written_and_matched() {
        let (pod, process) = web();
        for text in ALL {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.to_string(), text);
            assert_eq!(selector.is_unix(), text.starts_with("unix:"));
            assert_eq!(selector.matches_pod(&pod), !selector.is_unix(), "{text}");
            assert_eq!(
                selector.matches_unix(&process),
                selector.is_unix(),
                "{text}"
            );
            assert!(!selector.matches_pod(&PodFacts::default()), "{text}");
            assert!(!selector.matches_unix(&UnixFacts::default()), "{text}");
        }
    }

    #[test]
    fn label_image_and_account_never_match_a_mirror_pod() {
        let (mut pod, _) = web();
        pod.is_mirror = true;
        for text in ALL.into_iter().filter(|text| text.starts_with("k8s:")) {
            let trusted = [
                "k8s:ns:",
                "k8s:pod-name:",
                "k8s:pod-uid:",
                "k8s:container-name:",
            ]
            .iter()
            .any(|prefix| text.starts_with(prefix));
            assert_eq!(
                text.parse::<Selector>().unwrap().matches_pod(&pod),
                trusted,
                "{text}"
            );
        }
    }

    #[test]
    fn a_label_may_be_empty_and_must_be_there() {
        let empty: Selector = "k8s:pod-label:canary:".parse().unwrap();
        let mut pod = PodFacts::default();
        assert!(!empty.matches_pod(&pod));
        pod.labels.insert("canary".into(), String::new());
        assert!(empty.matches_pod(&pod));
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| text.parse::<Selector>().unwrap_err();
        for text in [
            "",
            "k8s",
            "k8s:nonsense:x",
            "docker:label:x",
            "UNIX:uid:1",
            "unix:user:alice",
        ] {
            assert_eq!(error(text), SelectorError::Unknown(text.into()));
        }
        for text in [
            "k8s:ns:",
            "k8s:ns",
            "k8s:pod-label:",
            "unix:uid:",
            "unix:path:",
            "unix:sha256",
        ] {
            assert_eq!(error(text), SelectorError::Empty(text.into()));
        }
        for text in [
            "k8s:pod-label:app",
            "k8s:pod-label::web",
            "unix:uid:alice",
            "unix:uid:-1",
            "unix:uid:4294967296",
            "unix:path:bin/web",
            "unix:sha256:abcd",
            "unix:sha256:zz112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
        ] {
            assert!(matches!(error(text), SelectorError::Value(..)), "{text}");
        }
        assert_eq!(error(&"x".repeat(5000)), SelectorError::TooLong(5000));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails(text in ".{0,60}", kind in prop::sample::select(&ALL[..])) {
            let stem = &kind[..=kind[5..].find(':').unwrap() + 5];
            for text in [text.clone(), format!("{stem}{text}")] {
                if let Ok(selector) = text.parse::<Selector>() {
                    prop_assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector));
                }
            }
        }
    }
}
