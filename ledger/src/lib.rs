//! A log that proves what it holds: an append-only Merkle tree over byte strings.
//!
//! Trees and proofs are RFC 6962's; tiles, entry bundles, signed notes, checkpoints and
//! receipts are those of C2SP (tlog-tiles, signed-note, tlog-checkpoint, tlog-proof).
//! Pure: no I/O and no clock. Everything that comes from outside is bounded, and read
//! or refused, never trusted before it is verified.

mod builder;
pub mod bundle;
mod checkpoint;
mod compact;
mod hash;
mod key;
mod note;
pub mod proof;
mod receipt;
mod tile;
mod tree;

pub use builder::{Builder, MissingNode};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use compact::CompactRange;
pub use hash::{Hash, empty_root, leaf_hash, node_hash};
pub use key::{KeyError, LogKey, VerifierKey};
pub use note::{MAX_NOTE_BYTES, Note, NoteError};
pub use receipt::{MAX_RECEIPT_BYTES, Receipt, ReceiptError};
pub use tile::{PathError, Resource, TILE_WIDTH, Tile, TileError, TileSet};
pub use tree::{MAX_SIZE, Node, Nodes, root, subtrees};
