//! Our logs to the Go checksum database's code: it knows nothing of ours.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use citadel_ledger::proof::{consistency, inclusion};
use citadel_ledger::{
    Checkpoint, CompactRange, Hash, LogKey, Node, Nodes, Resource, TILE_WIDTH, Tile, bundle,
    leaf_hash,
};
use citadel_tests::dir::TestDir;
use citadel_tests::foreign::Foreign;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn go_verifies_random_trees_and_agrees_on_every_proof() {
    let mut random = StdRng::seed_from_u64(20_261_125);
    let sizes = [1, 2, 255, 256, 257, 65_536, 65_537, 100_000];
    let more: [u64; 4] = std::array::from_fn(|_| random.random_range(2..100_000));
    for size in sizes.into_iter().chain(more) {
        let log = Log::random(size, &mut random);
        let dir = TestDir::new("log");
        log.write(dir.path());
        let proofs = dir.write("proofs.json", log.proofs(&mut random).to_string());
        let older = log.write_older(&dir, &mut random);
        let line = log
            .verified(
                &dir,
                &["--older", &older, "--proofs", proofs.to_str().unwrap()],
            )
            .await
            .unwrap_or_else(|error| panic!("size {size}: {error}"));
        assert_eq!(line["size"], size);
        assert_eq!(line["root"], log.tree.root().to_string());
        assert_eq!(line["entries"], ENTRIES);
        assert_eq!(line["proofs"], 2 * PROOFS);
        assert_eq!(line["older"], OLDER);
    }
}

#[tokio::test]
async fn go_refuses_a_log_with_one_changed_byte() {
    let mut random = StdRng::seed_from_u64(7);
    let log = Log::random(1000, &mut random);
    for changed in [
        "checkpoint",
        "tile/0/001",
        "tile/0/003.p/232",
        "tile/1/000.p/3",
        "tile/entries/002",
    ] {
        let dir = TestDir::new("log");
        log.write(dir.path());
        log.verified(&dir, &[]).await.expect("the log as it is");
        let path = dir.path().join(changed);
        let mut content = std::fs::read(&path).unwrap();
        let at = random.random_range(4..content.len());
        content[at] ^= 1;
        std::fs::write(&path, content).unwrap();
        let refused = log.verified(&dir, &[]).await;
        assert!(refused.is_err(), "{changed} at {at}: {refused:?}");
    }
}

/// Random entries that are looked up: with 1000 of 1000, each bundle is.
const ENTRIES: u64 = 1000;
/// Proofs of each kind.
const PROOFS: usize = 200;
/// Earlier checkpoints.
const OLDER: usize = 20;

/// A log in memory, with all that it takes to serve it.
struct Log {
    key: LogKey,
    entries: Vec<Vec<u8>>,
    tree: CompactRange,
    nodes: Stored,
}

#[derive(Default)]
struct Stored(HashMap<Node, Hash>);

impl Nodes for Stored {
    fn hash(&self, node: Node) -> Option<Hash> {
        self.0.get(&node).copied()
    }
}

impl Log {
    fn random(size: u64, random: &mut StdRng) -> Self {
        let mut log = Self {
            key: LogKey::generate("citadel/example.org").unwrap(),
            entries: Vec::new(),
            tree: CompactRange::new(),
            nodes: Stored::default(),
        };
        for _ in 0..size {
            let mut entry = vec![0; random.random_range(0..60)];
            random.fill(entry.as_mut_slice());
            log.tree.append(leaf_hash(&entry), |node, hash| {
                log.nodes.0.insert(node, hash);
            });
            log.entries.push(entry);
        }
        log
    }

    fn checkpoint(&self, size: u64) -> String {
        let root = citadel_ledger::root(size, &self.nodes).unwrap();
        let origin = self.key.verifier().name().to_owned();
        let state = Checkpoint { origin, size, root };
        state.sign(&[&self.key]).unwrap()
    }

    /// The resources of the log as files.
    fn write(&self, folder: &Path) {
        let put = |resource: Resource, content: &[u8]| {
            let path = folder.join(resource.to_string());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        let checkpoint = self.checkpoint(self.tree.size());
        put(Resource::Checkpoint, checkpoint.as_bytes());
        for tile in Tile::between(0, self.tree.size()) {
            let first = tile.index * u64::from(TILE_WIDTH);
            let nodes = (first..first + u64::from(tile.width.get())).map(|index| Node {
                level: 8 * tile.level,
                index,
            });
            let content: Vec<u8> = nodes
                .flat_map(|node| *self.nodes.0[&node].as_bytes())
                .collect();
            put(Resource::Hashes(tile), &content);
            if tile.level == 0 {
                let first = usize::try_from(first).unwrap();
                let entries = &self.entries[first..][..usize::from(tile.width.get())];
                let content = bundle::encode(entries.iter().map(Vec::as_slice)).unwrap();
                put(Resource::Entries(tile), &content);
            }
        }
    }

    /// The folder with checkpoints of random earlier states.
    fn write_older(&self, dir: &TestDir, random: &mut StdRng) -> String {
        for number in 0..OLDER {
            let size = random.random_range(1..=self.tree.size());
            let name = format!("older/{number}");
            std::fs::create_dir_all(dir.join("older")).unwrap();
            dir.write(&name, self.checkpoint(size));
        }
        dir.join("older").to_str().unwrap().to_owned()
    }

    /// Our proofs for random questions.
    fn proofs(&self, random: &mut StdRng) -> Value {
        let text =
            |hashes: Vec<Hash>| -> Vec<String> { hashes.iter().map(Hash::to_string).collect() };
        // Of the whole tree: its tiles alone are what the other side has.
        let size = self.tree.size();
        let inclusion = (0..PROOFS).map(|_| {
            let index = random.random_range(0..size);
            let hashes = inclusion(index, size).unwrap().prove(&self.nodes).unwrap();
            json!({ "index": index, "size": size, "hashes": text(hashes) })
        });
        let inclusion: Vec<Value> = inclusion.collect();
        let consistency = (0..PROOFS).map(|_| {
            let old = random.random_range(1..=size);
            let hashes = consistency(old, size).unwrap().prove(&self.nodes).unwrap();
            json!({ "old": old, "new": size, "hashes": text(hashes) })
        });
        let consistency: Vec<Value> = consistency.collect();
        json!({ "inclusion": inclusion, "consistency": consistency })
    }

    /// What the Go program says of the log in this folder.
    async fn verified(&self, dir: &TestDir, more: &[&str]) -> Result<Value, String> {
        let key = self.key.verifier().to_string();
        let entries = ENTRIES.to_string();
        let source = dir.path().to_str().unwrap();
        let args = ["--source", source, "--key", &key, "--entries", &entries];
        Foreign::verify_log(dir, &[&args, more].concat(), DEADLINE).await
    }
}
