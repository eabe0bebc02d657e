//! How many lines of one kind a log gets: who is refused must not be able to fill the disk.

use std::time::Duration;

use tokio::time::Instant;

/// Counts lines in windows of [`LineLimit::WINDOW`].
#[derive(Debug, Default)]
pub struct LineLimit {
    begun: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl LineLimit {
    /// Length of a window.
    pub const WINDOW: Duration = Duration::from_secs(10);

    /// Asks for one line of at most `most` in this window. Says how many were left out before
    /// it, for that line to tell, or `None` if this one is left out as well.
    pub fn take(&mut self, now: Instant, most: u32) -> Option<u64> {
        if self.is_over(now) {
            self.begun = Some(now);
            self.lines = 0;
        }
        if self.lines >= most {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }

    /// Whether the last window has ended.
    pub fn is_over(&self, now: Instant) -> bool {
        self.begun
            .is_none_or(|begun| now.duration_since(begun) >= Self::WINDOW)
    }

    /// How many were left out since the last line.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_logs_few_lines_and_counts_the_rest() {
        let mut limit = LineLimit::default();
        let begun = Instant::now();
        let lines = (0..500).filter(|_| limit.take(begun, 20).is_some()).count();
        assert_eq!(lines, 20);
        assert_eq!(limit.left_out(), 480);
        assert_eq!(limit.take(begun + LineLimit::WINDOW, 20), Some(480));
        assert_eq!(limit.take(begun + LineLimit::WINDOW, 20), Some(0));
    }
}
