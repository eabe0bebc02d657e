//! The agent's own service-account token.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use zeroize::Zeroizing;

/// The longest token, in bytes; the CA takes no longer one.
const MAX_TOKEN: u64 = 8 * 1024;

/// Where the agent's token comes from. Asked for each use: the kubelet renews it.
pub trait TokenSource: fmt::Debug + Send + Sync + 'static {
    /// The token of the moment.
    fn token(&self) -> io::Result<Zeroizing<String>>;
}

/// A projected token in a file.
#[derive(Debug, Clone)]
pub struct FileToken(pub PathBuf);

impl TokenSource for FileToken {
    fn token(&self) -> io::Result<Zeroizing<String>> {
        let named = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("token file {}: {error}", self.0.display()),
            )
        };
        let mut text = Zeroizing::new(String::new());
        let file = File::open(&self.0).map_err(named)?;
        file.take(MAX_TOKEN + 1)
            .read_to_string(&mut text)
            .map_err(named)?;
        let token = Zeroizing::new(text.trim().to_owned());
        if token.is_empty() {
            return Err(named(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is empty",
            )));
        }
        if token.len() as u64 > MAX_TOKEN {
            return Err(named(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is longer than 8192 bytes",
            )));
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn the_file_is_read_anew_each_time_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let source = FileToken(path.clone());
        assert!(source.token().unwrap_err().to_string().contains("token"));
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(source.token().unwrap().as_str(), "one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(source.token().unwrap().as_str(), "two");
        std::fs::write(&path, " \n").unwrap();
        source.token().unwrap_err();
        std::fs::write(&path, "x".repeat(8193)).unwrap();
        source.token().unwrap_err();
    }
}
