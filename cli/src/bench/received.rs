//! Keeps each certificate that arrived, for a check against the server's store.

use std::path::{Path, PathBuf};

use citadel_proto::v1::X509Svid;

use crate::certificate;
use crate::exit::Failure;

/// A folder with one `SERIAL.pem` (the leaf) for each certificate that arrived.
pub(crate) struct Received {
    folder: PathBuf,
}

impl Received {
    pub(crate) fn open(folder: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(folder)
            .map_err(|error| Failure::local(format!("can't make {}: {error}", folder.display())))?;
        Ok(Self {
            folder: folder.to_path_buf(),
        })
    }

    pub(crate) fn keep(&self, svid: &X509Svid) -> Result<(), Failure> {
        // It becomes a file's name: hex digits and nothing else.
        let serial = &svid.serial;
        if serial.is_empty() || !serial.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Failure::check("the server sent a serial that is not hex"));
        }
        let path = self.folder.join(format!("{serial}.pem"));
        std::fs::write(
            &path,
            certificate::to_pem(svid.certificate_chain.get(..1).unwrap_or(&[])),
        )
        .map_err(|error| Failure::local(format!("can't write {}: {error}", path.display())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn each_certificate_becomes_a_file_that_is_named_by_its_serial() {
        let folder = tempfile::tempdir().unwrap();
        let received = Received::open(&folder.path().join("in")).unwrap();
        let mut svid = X509Svid {
            serial: "0a1b".into(),
            certificate_chain: vec![vec![1, 2, 3], vec![4]],
            ..Default::default()
        };
        received.keep(&svid).unwrap();
        let text = std::fs::read_to_string(folder.path().join("in/0a1b.pem")).unwrap();
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 1);
        svid.serial = "../x".into();
        received.keep(&svid).unwrap_err();
    }
}
