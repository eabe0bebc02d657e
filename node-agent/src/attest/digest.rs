//! SHA-256 of executables: few are read at once, each is read once, and no caller makes
//! the others wait for more than one of its own.

use std::{
    collections::{HashMap, VecDeque},
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use citadel_identity::crypto;
use rustls::crypto::{CryptoProvider, hash::HashAlgorithm};
use tokio::sync::Semaphore;

/// Executables that are read at once.
const AT_ONCE: usize = 2;

/// The largest executable that is read, in bytes.
const MAX_EXECUTABLE: u64 = 512 * 1024 * 1024;

/// Digests that are remembered.
const REMEMBERED: usize = 256;

/// A file that was changed this short a time ago may change again without another
/// time stamp: its digest is not remembered.
const SETTLED: Duration = Duration::from_secs(2);

/// The digests of executables.
#[derive(Debug)]
pub(super) struct Digests {
    reading: Arc<Semaphore>,
    /// Of each principal one at a time.
    turns: Mutex<HashMap<Arc<str>, Weak<Semaphore>>>,
    known: Mutex<Known>,
}

/// The content of a file, as far as the file system tells one from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Content {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Debug, Default)]
struct Known {
    digests: HashMap<Content, String>,
    oldest_first: VecDeque<Content>,
}

impl Default for Digests {
    fn default() -> Self {
        Self {
            reading: Arc::new(Semaphore::new(AT_ONCE)),
            turns: Mutex::default(),
            known: Mutex::default(),
        }
    }
}

impl Digests {
    /// The SHA-256 of the file that `open` opens, in lowercase hex. A read that hangs
    /// keeps its place until it returns: more threads would hang beside it.
    pub(super) async fn sha256_of(
        self: &Arc<Self>,
        principal: &Arc<str>,
        open: impl FnOnce() -> io::Result<File> + Send + 'static,
    ) -> io::Result<String> {
        let turn = acquire(self.turn_of(principal)).await?;
        let place = acquire(Arc::clone(&self.reading)).await?;
        let digests = Arc::clone(self);
        let reading = tokio::task::spawn_blocking(move || {
            let _held = (turn, place);
            digests.of_file(&open()?, SystemTime::now())
        });
        reading.await.map_err(io::Error::other)?
    }

    fn turn_of(&self, principal: &Arc<str>) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(principal).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Semaphore::new(1));
        turns.insert(Arc::clone(principal), Arc::downgrade(&turn));
        turn
    }

    fn of_file(&self, file: &File, now: SystemTime) -> io::Result<String> {
        let content = Content::of(&file.metadata()?);
        if content.size > MAX_EXECUTABLE {
            return Err(io::Error::other("the executable is too large to hash"));
        }
        if let Some(digest) = self.known().digests.get(&content) {
            return Ok(digest.clone());
        }
        let digest = sha256_hex(&crypto::provider(), file.take(MAX_EXECUTABLE))?;
        if Content::of(&file.metadata()?) != content {
            return Err(io::Error::other("the executable changed while it was read"));
        }
        if content.is_settled(now) {
            self.known().remember(content, &digest);
        }
        Ok(digest)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A semaphore's permit, which outlives the semaphore's last other owner.
async fn acquire(semaphore: Arc<Semaphore>) -> io::Result<tokio::sync::OwnedSemaphorePermit> {
    semaphore.acquire_owned().await.map_err(io::Error::other)
}

impl Content {
    fn of(file: &Metadata) -> Self {
        Self {
            file: (file.dev(), file.ino()),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let changed = u64::try_from(self.changed.0).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(changed);
        now.duration_since(changed).is_ok_and(|age| age > SETTLED)
    }
}

impl Known {
    fn remember(&mut self, content: Content, digest: &str) {
        if self.digests.insert(content, digest.to_owned()).is_none() {
            self.oldest_first.push_back(content);
        }
        if self.oldest_first.len() > REMEMBERED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.digests.remove(&oldest);
        }
    }
}

/// The SHA-256 of everything that `reader` yields, in lowercase hex. Piece by piece:
/// executables can be larger than the agent.
fn sha256_hex(provider: &CryptoProvider, mut reader: impl Read) -> io::Result<String> {
    // rustls knows the provider's hash functions by its cipher suites.
    let hash = provider
        .cipher_suites
        .iter()
        .filter_map(rustls::SupportedCipherSuite::tls13)
        .map(|suite| suite.common.hash_provider)
        .find(|hash| hash.algorithm() == HashAlgorithm::SHA256)
        .ok_or_else(|| io::Error::other("the crypto provider has no SHA-256"))?;
    let mut context = hash.start();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(context.finish().as_ref())),
            Ok(read) => context.update(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::{path::Path, sync::mpsc};

    use super::*;

    #[test]
    fn digests_are_the_standards() {
        let provider = crypto::provider();
        assert_eq!(
            sha256_hex(&provider, &b"abc"[..]).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let long = vec![7u8; 200_000];
        let whole = hex::encode(crypto::sha256(&long));
        assert_eq!(sha256_hex(&provider, long.as_slice()).unwrap(), whole);
    }

    /// Asks for the digest of a file whose opening says `name` and then waits for its
    /// `go`.
    fn ask(
        digests: &Arc<Digests>,
        principal: &str,
        opened: &mpsc::Sender<&'static str>,
        name: &'static str,
    ) -> (
        mpsc::Sender<()>,
        tokio::task::JoinHandle<io::Result<String>>,
    ) {
        let (go, wait) = mpsc::channel();
        let (digests, opened) = (Arc::clone(digests), opened.clone());
        let principal = principal.into();
        let asking = async move {
            let open = move || {
                opened.send(name).unwrap();
                let _ = wait.recv();
                File::open("/dev/null")
            };
            digests.sha256_of(&principal, open).await
        };
        (go, tokio::spawn(asking))
    }

    async fn next(opened: &mpsc::Receiver<&'static str>) -> &'static str {
        let waiting = async {
            loop {
                if let Ok(name) = opened.try_recv() {
                    return name;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn few_executables_are_read_at_once_and_of_each_caller_one() {
        let digests = Arc::new(Digests::default());
        let (opened, opens) = mpsc::channel();
        let (go_a1, a1) = ask(&digests, "a", &opened, "a1");
        assert_eq!(next(&opens).await, "a1");
        let (go_a2, a2) = ask(&digests, "a", &opened, "a2");
        let (go_b, b) = ask(&digests, "b", &opened, "b");
        // b goes before the second of a, though there are two places.
        assert_eq!(next(&opens).await, "b");
        let (go_c, c) = ask(&digests, "c", &opened, "c");
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(digests.reading.available_permits(), 0);
        assert!(opens.try_recv().is_err(), "a third is read");
        for go in [go_a1, go_b, go_a2, go_c] {
            drop(go);
        }
        for asked in [a1, a2, b, c] {
            asked.await.unwrap().unwrap();
        }
        assert_eq!(digests.reading.available_permits(), AT_ONCE);
    }

    fn settled() -> SystemTime {
        SystemTime::now() + 2 * SETTLED
    }

    fn digest_of(digests: &Digests, path: &Path, now: SystemTime) -> io::Result<String> {
        digests.of_file(&File::open(path).unwrap(), now)
    }

    #[test]
    fn what_was_read_is_remembered_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::write(&path, "one").unwrap();
        let digests = Digests::default();
        let one = hex::encode(crypto::sha256(b"one"));
        // Changed just now: it may change again and look the same.
        assert_eq!(digest_of(&digests, &path, SystemTime::now()).unwrap(), one);
        assert!(digests.known().digests.is_empty());
        assert_eq!(digest_of(&digests, &path, settled()).unwrap(), one);
        // Not read again …
        for digest in digests.known().digests.values_mut() {
            *digest = "remembered".to_owned();
        }
        assert_eq!(digest_of(&digests, &path, settled()).unwrap(), "remembered");
        // … until it is another file, or another content.
        let other = dir.path().join("other");
        std::fs::write(&other, "one").unwrap();
        assert_eq!(digest_of(&digests, &other, settled()).unwrap(), one);
        std::fs::write(&path, "other").unwrap();
        let other = hex::encode(crypto::sha256(b"other"));
        assert_eq!(digest_of(&digests, &path, settled()).unwrap(), other);
    }

    #[test]
    fn memory_and_size_are_bounded() {
        let mut known = Known::default();
        for size in 0..2 * REMEMBERED as u64 {
            let content = Content {
                file: (1, 2),
                size,
                modified: (3, 4),
                changed: (5, 6),
            };
            known.remember(content, "digest");
        }
        assert_eq!(known.digests.len(), REMEMBERED);
        assert_eq!(known.oldest_first.len(), REMEMBERED);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        let huge = File::create(&path).unwrap();
        huge.set_len(MAX_EXECUTABLE + 1).unwrap();
        let refused = digest_of(&Digests::default(), &path, settled()).unwrap_err();
        assert!(refused.to_string().contains("too large"), "{refused}");
    }
}
