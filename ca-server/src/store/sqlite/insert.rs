//! Multi-row INSERT statements that stay prepared.
//!
//! A statement for every possible number of rows would fill memory, and preparing one
//! anew costs more than running it. So there are a few sizes; a batch takes the next
//! larger one, and the rows that it leaves unbound are NULL and filtered out.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, Sqlite, query::Query, sqlite::SqliteArguments};

/// Rows that one statement takes at most.
pub(super) const MAX_ROWS: usize = 512;

const SIZES: [usize; 18] = [
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, MAX_ROWS,
];

/// What a statement does that can't insert one of its rows.
#[derive(Clone, Copy)]
pub(super) enum OnFailure {
    /// It has not happened.
    Undo,
    /// The rows before it stay: for a transaction that is given up as a whole. To be able to
    /// undo a part of one, SQLite keeps a copy of each page that a statement changes.
    GiveUp,
}

/// The INSERT statements of one table.
pub(super) struct Inserts(Vec<(usize, Arc<str>)>);

impl Inserts {
    /// Statements for a table and its columns. The first column is never NULL: that is
    /// how unbound rows are told apart. `suffix` follows the rows (`ON CONFLICT …`).
    pub(super) fn new(table: &str, columns: &[&str], suffix: &str, on_failure: OnFailure) -> Self {
        let insert = match on_failure {
            OnFailure::Undo => "INSERT",
            OnFailure::GiveUp => "INSERT OR FAIL",
        };
        let names = columns.join(", ");
        let row = format!("({})", vec!["?"; columns.len()].join(","));
        let numbered: Vec<_> = (1..=columns.len()).map(|n| format!("column{n}")).collect();
        let numbered = numbered.join(", ");
        Self(
            SIZES
                .into_iter()
                .map(|size| {
                    let rows = vec![row.as_str(); size].join(",");
                    let sql = format!(
                        "{insert} INTO {table} ({names}) SELECT {numbered} \
                         FROM (VALUES {rows}) WHERE column1 IS NOT NULL {suffix}"
                    );
                    (size, Arc::from(sql))
                })
                .collect(),
        )
    }

    /// The statement for that many rows (1…[`MAX_ROWS`]); bind them row by row.
    pub(super) fn rows(&self, rows: usize) -> Query<'static, Sqlite, SqliteArguments> {
        let at = self
            .0
            .partition_point(|(size, _)| *size < rows)
            .min(self.0.len() - 1);
        sqlx::query(AssertSqlSafe(Arc::clone(&self.0[at].1)))
    }
}
