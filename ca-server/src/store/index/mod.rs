//! What the engines' indexes over the log have in common: what a run of entries adds,
//! which conditions narrow a question down, and how a page is filled. The SQL is each
//! engine's own.

mod check;
mod conditions;
mod handle;
mod run;
mod search;
mod subject;

pub(super) use check::EpochRows;
pub use check::{IndexCheck, Mismatch};
pub(super) use conditions::{Condition, Value, on_bounds, on_subjects, on_validity};
pub(super) use handle::{IndexerHandle, IndexerOrders, Order};
pub(super) use run::{Bounds, BoundsRow, Run, epoch, epoch_ends_at, key_column};
pub(super) use search::{Extent, Index, list};
pub(super) use subject::{Digest, SubjectIds, SubjectKey, digest};
