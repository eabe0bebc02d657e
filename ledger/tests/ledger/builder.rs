//! A tree that grows in steps, stopped and resumed between them, leaves the tiles of the
//! whole.

use std::collections::BTreeMap;

use citadel_ledger::{Builder, Hash, Tile, TileSet, leaf_hash, root};
use proptest::prelude::*;

use crate::naive;

/// Tiles as a store keeps them: one row a tile, replaced as it grows.
#[derive(Default)]
struct Rows(BTreeMap<(u8, u64), Vec<u8>>);

impl Rows {
    fn keep(&mut self, tiles: Vec<(Tile, Vec<u8>)>) {
        for (tile, content) in tiles {
            self.0.insert((tile.level, tile.index), content);
        }
    }

    fn load(&self, tiles: impl Iterator<Item = Tile>) -> TileSet {
        let mut set = TileSet::new();
        for tile in tiles {
            let row = &self.0[&(tile.level, tile.index)];
            let content = &row[..usize::from(tile.width.get()) * Hash::BYTES];
            set.insert(tile, content).unwrap();
        }
        set
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn steps_leave_the_tiles_of_the_whole(steps in prop::collection::vec(0_u64..700, 1..8)) {
        let (mut rows, mut builder, mut size) = (Rows::default(), Builder::new(), 0);
        for step in steps {
            for index in size..size + step {
                builder.append(leaf_hash(&naive::entry(index)));
            }
            size += step;
            rows.keep(builder.take_tiles());
            prop_assert!(builder.take_tiles().is_empty(), "nothing has changed");
            let expected = naive::root(&naive::entries(size));
            prop_assert_eq!((builder.size(), builder.root()), (size, expected));
            let all = rows.load(Tile::between(0, size));
            prop_assert_eq!(root(size, &all).unwrap(), expected);
            // Every earlier state can be read from the tiles of the later one.
            let earlier = size / 3;
            let all = rows.load(Tile::between(0, earlier));
            prop_assert_eq!(root(earlier, &all).unwrap(), naive::root(&naive::entries(earlier)));
            builder = Builder::resume(size, &rows.load(Builder::edge_of(size))).unwrap();
            prop_assert_eq!((builder.size(), builder.root()), (size, expected));
        }
    }
}

#[test]
fn an_edge_that_is_missing_is_named() {
    let error = Builder::resume(3, &TileSet::new()).unwrap_err();
    assert_eq!((error.level, error.index), (1, 0));
    assert!(Builder::resume(0, &TileSet::new()).is_ok());
}

#[test]
fn full_tiles_of_three_levels() {
    let mut builder = Builder::new();
    let mut rows = Rows::default();
    // Leaves are hashes already: 65,536 + 256 + 3 of them.
    for index in 0..65_795_u64 {
        builder.append(leaf_hash(&index.to_be_bytes()));
        if index % 10_000 == 0 {
            rows.keep(builder.take_tiles());
        }
    }
    rows.keep(builder.take_tiles());
    let set = rows.load(Tile::between(0, 65_795));
    assert_eq!(root(65_795, &set).unwrap(), builder.root());
    assert_eq!(rows.0[&(2, 0)].len(), Hash::BYTES);
    assert_eq!(rows.0[&(1, 1)].len(), Hash::BYTES);
}
