//! How far a command that takes long has come: a line on stderr that is rewritten, if
//! that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over bytes, or a count where nobody knows how many there are.
#[derive(Debug)]
pub struct Meter {
    bar: ProgressBar,
}

impl Meter {
    /// A meter over `total` bytes, if that is known.
    pub fn bytes(total: Option<u64>) -> Meter {
        let (bar, template) = match total {
            Some(total) => (
                ProgressBar::new(total),
                "{bar:24} {percent:>3}% {binary_bytes_per_sec:>12} {eta:>4}  {wide_msg}",
            ),
            None => (
                ProgressBar::no_length(),
                "{spinner} {binary_bytes} {binary_bytes_per_sec}  {wide_msg}",
            ),
        };
        // Without a terminal it draws nothing.
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        if total.is_none() {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Meter { bar }
    }

    /// So many bytes are done; `text` says what at.
    pub fn set(&self, bytes: u64, text: impl FnOnce() -> String) {
        if !self.bar.is_hidden() {
            self.bar.set_message(text());
        }
        self.bar.set_position(bytes);
    }

    /// There are so many bytes.
    pub fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Prints a line of stderr above the meter.
    pub fn above(&self, line: impl std::fmt::Display) {
        self.bar.suspend(|| super::output::note(line));
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
