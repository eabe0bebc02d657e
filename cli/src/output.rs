//! What the command prints: text for people or JSON for programs, on standard
//! output; notes and progress on standard error.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How facts are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value (with --watch, one on each line).
    Json,
}

/// Prints one JSON value over several lines.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    out.flush()
}

/// Prints one JSON value on one line, for streams of them.
pub(crate) fn json_line(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    out.flush()
}

/// Prints text that ends with a line break of its own.
pub(crate) fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A note for the person at the terminal. A closed standard error is nobody to tell.
pub(crate) fn note(message: &str) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}

/// Whether a person watches standard error.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// An instant in RFC 3339, UTC, whole seconds.
pub(crate) fn instant(at: OffsetDateTime) -> String {
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole
        .format(&Rfc3339)
        .unwrap_or_else(|_| whole.unix_timestamp().to_string())
}

/// A span in the two largest units that matter: `59m 12s`, `3d 4h`, `0s`.
pub(crate) fn span(seconds: i64) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut left = seconds.abs();
    let mut parts = Vec::new();
    for (size, unit) in UNITS {
        if left >= size || (size == 1 && parts.is_empty()) {
            parts.push(format!("{}{unit}", left / size));
            left %= size;
        } else if !parts.is_empty() {
            // Only neighbouring units: `3d`, never `3d 5s`.
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    parts.join(" ")
}

/// Where `now` lies in a validity: `59m 12s left`, `expired 3m ago`, `starts in 2m`.
pub(crate) fn remaining(
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    now: OffsetDateTime,
) -> String {
    if now < not_before {
        format!("starts in {}", span((not_before - now).whole_seconds()))
    } else if now > not_after {
        format!("expired {} ago", span((now - not_after).whole_seconds()))
    } else {
        format!("{} left", span((not_after - now).whole_seconds()))
    }
}

/// Columns of text, as wide as their widest cell; numbers go to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    left: usize,
}

impl Table {
    /// The first `left` columns are aligned to the left, the others to the right.
    pub(crate) fn new(left: usize, header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(ToString::to_string).collect()],
            left,
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                // Writing to a String can't fail.
                if column < self.left {
                    let _ = write!(line, "{cell:<width$}");
                } else {
                    let _ = write!(line, "{cell:>width$}");
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn spans_show_two_neighbouring_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3_552, "59m 12s"),
            (3_605, "1h"),
            (90_000, "1d 1h"),
            (-61, "1m 1s"),
            (315_360_000, "3650d"),
        ] {
            assert_eq!(span(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn remaining_names_the_side_that_now_is_on() {
        let (from, to) = (
            datetime!(2026-01-01 00:00 UTC),
            datetime!(2026-01-01 01:00 UTC),
        );
        assert_eq!(
            remaining(from, to, datetime!(2025-12-31 23:59 UTC)),
            "starts in 1m"
        );
        assert_eq!(
            remaining(from, to, datetime!(2026-01-01 00:30 UTC)),
            "30m left"
        );
        assert_eq!(
            remaining(from, to, datetime!(2026-01-01 01:00:05 UTC)),
            "expired 5s ago"
        );
    }

    #[test]
    fn instants_have_whole_seconds() {
        assert_eq!(
            instant(datetime!(2026-01-01 00:00:01.5 UTC)),
            "2026-01-01T00:00:01Z"
        );
    }

    #[test]
    fn tables_align_names_left_and_numbers_right() {
        let mut table = Table::new(1, &["path", "p50"]);
        table.row(vec!["token".into(), "1.25".into()]);
        assert_eq!(table.render(), "path    p50\ntoken  1.25\n");
    }
}
