//! Tiles and bundles are those of C2SP tlog-tiles.

use std::num::NonZeroU16;

use citadel_ledger::proof::{consistency, inclusion, verify_consistency, verify_inclusion};
use citadel_ledger::{
    CompactRange, Hash, Node, Resource, TILE_WIDTH, Tile, TileSet, bundle, leaf_hash, root,
};
use proptest::prelude::*;

use crate::naive;

fn tile(level: u8, index: u64, width: u16) -> Tile {
    Tile {
        level,
        index,
        width: NonZeroU16::new(width).unwrap(),
    }
}

/// The tiles of a log of this size, as a server would keep them.
fn tiles_of(size: u64) -> Vec<(Tile, Vec<u8>)> {
    let mut levels: Vec<Vec<Hash>> = Vec::new();
    let mut tree = CompactRange::new();
    for index in 0..size {
        tree.append(leaf_hash(&naive::entry(index)), |node: Node, hash| {
            if node.level.is_multiple_of(8) {
                let level = usize::from(node.level / 8);
                levels.resize_with(levels.len().max(level + 1), Vec::new);
                levels[level].push(hash);
            }
        });
    }
    Tile::between(0, size)
        .map(|tile| {
            let from = usize::try_from(tile.index).unwrap() * usize::from(TILE_WIDTH);
            let hashes = &levels[usize::from(tile.level)][from..][..usize::from(tile.width.get())];
            let content = hashes.iter().flat_map(|hash| *hash.as_bytes()).collect();
            (tile, content)
        })
        .collect()
}

#[test]
fn the_tiles_of_70_000_entries() {
    // The example of the specification.
    let tiles: Vec<Tile> = Tile::between(0, 70_000).collect();
    let full = |level| {
        tiles
            .iter()
            .filter(|tile| tile.level == level && tile.is_full())
            .count()
    };
    assert_eq!((full(0), full(1), full(2)), (273, 1, 0));
    let partial: Vec<Tile> = tiles
        .iter()
        .copied()
        .filter(|tile| !tile.is_full())
        .collect();
    assert_eq!(partial, [tile(0, 273, 112), tile(1, 1, 17), tile(2, 0, 1)]);
    let small: Vec<Tile> = Tile::between(0, 256).collect();
    assert_eq!(small, [tile(0, 0, 256), tile(1, 0, 1)]);
    assert_eq!(Tile::between(0, 0).count(), 0);
}

#[test]
fn what_grew_is_all_that_is_between_two_sizes() {
    let between: Vec<Tile> = Tile::between(255, 513).collect();
    assert_eq!(
        between,
        [
            tile(0, 0, 256),
            tile(0, 1, 256),
            tile(0, 2, 1),
            tile(1, 0, 2)
        ]
    );
    assert_eq!(Tile::between(512, 512).count(), 0);
    // Nothing of level 1 is new.
    let between: Vec<Tile> = Tile::between(513, 520).collect();
    assert_eq!(between, [tile(0, 2, 8)]);
}

#[test]
fn paths_are_those_of_the_specification() {
    for (path, resource) in [
        ("checkpoint", Resource::Checkpoint),
        (
            "tile/0/x001/x234/067",
            Resource::Hashes(tile(0, 1_234_067, 256)),
        ),
        ("tile/3/000", Resource::Hashes(tile(3, 0, 256))),
        ("tile/1/x001/000.p/17", Resource::Hashes(tile(1, 1000, 17))),
        (
            "tile/entries/273.p/112",
            Resource::Entries(tile(0, 273, 112)),
        ),
    ] {
        assert_eq!(resource.to_string(), path);
        assert_eq!(Resource::from_path(path), Ok(resource));
    }
    for bad in [
        "",
        "/checkpoint",
        "tile",
        "tile/0",
        "tile/0/1",
        "tile/0/0001",
        "tile/00/001",
        "tile/8/001",
        "tile/-1/001",
        "tile/+1/001",
        "tile/0/x001",
        "tile/0/001/002",
        "tile/0/x000/001",
        "tile/0/001.p/0",
        "tile/0/001.p/256",
        "tile/0/001.p/01",
        "tile/0/001.p/",
        "tile/0/001.p/1/2",
        "tile/entries/x999/x999/x999/x999/x999/x999/999",
        "tile/data/001",
        "tile/0/../001",
        "tile/0/001?x",
    ] {
        assert!(Resource::from_path(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_pruned_log_may_hide_what_ends_at_its_minimum_index() {
    assert_eq!((tile(0, 2, 256).start(), tile(0, 2, 256).end()), (512, 768));
    assert_eq!(
        (tile(1, 1, 3).start(), tile(1, 1, 3).end()),
        (65_536, 131_072)
    );
    // The highest level spans more than any log has.
    assert!(tile(7, 0, 1).end() > 1 << 62);
}

#[test]
fn tiles_alone_give_roots_and_proofs() {
    for size in [1, 2, 255, 256, 257, 1000, 65_536, 66_000] {
        let entries = naive::entries(size);
        let mut tiles = TileSet::new();
        for (tile, content) in tiles_of(size) {
            tiles.insert(tile, &content).unwrap();
        }
        let expected = naive::root(&entries);
        assert_eq!(root(size, &tiles), Ok(expected));
        let old = size * 2 / 3;
        let old_root = naive::root(&entries[..usize::try_from(old).unwrap()]);
        let plan = consistency(old, size).unwrap();
        let proof = plan.prove(&tiles).unwrap();
        assert_eq!(
            verify_consistency(old, old_root, size, expected, &proof),
            Ok(())
        );
        for index in [0, size / 3, size - 1] {
            let plan = inclusion(index, size).unwrap();
            // Only the tiles that the plan names are needed.
            let mut few = TileSet::new();
            for node in plan.nodes() {
                let needed = Tile::of(node, size).unwrap();
                let (tile, content) = tiles_of(size)
                    .into_iter()
                    .find(|(tile, _)| *tile == needed)
                    .unwrap();
                few.insert(tile, &content).unwrap();
            }
            let proof = plan.prove(&few).unwrap();
            let leaf = leaf_hash(&naive::entry(index));
            assert_eq!(
                verify_inclusion(leaf, index, size, &proof, expected),
                Ok(())
            );
        }
    }
}

#[test]
fn a_tile_of_another_size_is_refused() {
    let mut tiles = TileSet::new();
    assert!(tiles.insert(tile(0, 0, 2), &[0; 63]).is_err());
    assert!(tiles.insert(tile(0, 0, 2), &[0; 96]).is_err());
    tiles.insert(tile(0, 0, 2), &[0; 64]).unwrap();
}

proptest! {
    #[test]
    fn a_bundle_gives_its_entries_back(
        entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = bundle::encode(entries.iter().map(Vec::as_slice)).unwrap();
        prop_assert_eq!(bundle::decode(&bytes, entries.len()).unwrap(), entries.clone());
        prop_assert!(bundle::decode(&bytes, entries.len() + 1).is_err());
        if !entries.is_empty() {
            prop_assert!(bundle::decode(&bytes, entries.len() - 1).is_err());
            let cut = &bytes[..cut.index(bytes.len())];
            prop_assert!(bundle::decode(cut, entries.len()).is_err());
        }
    }

    #[test]
    fn every_tile_has_one_path(level in 0_u8..8, index in 0_u64..1 << 54, width in 1_u16..=256) {
        let resource = Resource::Hashes(tile(level, index, width));
        prop_assert_eq!(Resource::from_path(&resource.to_string()), Ok(resource));
    }
}

#[test]
fn an_entry_of_64_kib_has_no_place_in_a_bundle() {
    let large = vec![0; bundle::MAX_ENTRY_BYTES + 1];
    assert!(bundle::encode([large.as_slice()]).is_err());
    assert!(bundle::encode([&large[1..]]).is_ok());
}
