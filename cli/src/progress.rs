//! Progress on standard error: a bar where a person watches, a line now and then
//! where nobody does.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

const LINE_EVERY: Duration = Duration::from_secs(5);

/// One step of a long command.
pub(crate) struct Progress {
    step: &'static str,
    bar: ProgressBar,
    /// When the last line was printed; `None` where there is a bar, or nothing at all.
    lines: Option<Mutex<Instant>>,
}

impl Progress {
    /// Starts a step of `total` units.
    pub(crate) fn new(step: &'static str, total: u64) -> Self {
        if output::stderr_is_terminal() {
            let style = ProgressStyle::with_template("{prefix:24} {wide_bar} {pos}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total).with_style(style).with_prefix(step);
            return Self {
                step,
                bar,
                lines: None,
            };
        }
        output::note(&format!("{step} …"));
        let bar = ProgressBar::hidden();
        bar.set_length(total);
        Self {
            step,
            bar,
            lines: Some(Mutex::new(Instant::now())),
        }
    }

    /// A step that nobody sees.
    #[cfg(test)]
    pub(crate) fn hidden() -> Self {
        Self {
            step: "",
            bar: ProgressBar::hidden(),
            lines: None,
        }
    }

    pub(crate) fn advance(&self, units: u64) {
        self.bar.inc(units);
        self.line("");
    }

    /// Where the step is now, in its own words.
    pub(crate) fn at(&self, position: u64, message: String) {
        self.bar.set_position(position);
        self.line(&message);
        self.bar.set_message(message);
    }

    fn line(&self, message: &str) {
        let Some(last) = &self.lines else { return };
        // Whoever finds it taken has nothing to say: somebody else just looks.
        let Ok(mut last) = last.try_lock() else {
            return;
        };
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let total = self.bar.length().unwrap_or_default();
            output::note(&format!(
                "{} {}/{total} {message}",
                self.step,
                self.bar.position()
            ));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
