//! A line on a terminal that says how far something is. Nothing where stderr is no terminal.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use burstfs_proto::mgs::StageFigures;

use crate::table::size;

/// Cells of the bar.
const CELLS: u64 = 24;

/// The line.
pub(crate) struct Bar {
    what: &'static str,
    is_shown: bool,
    began: Instant,
    is_dirty: bool,
}

impl Bar {
    /// For something that is `what`; silent if asked.
    pub(crate) fn new(what: &'static str, is_quiet: bool) -> Bar {
        let is_shown = !is_quiet && std::io::stderr().is_terminal();
        Bar { what, is_shown, began: Instant::now(), is_dirty: false }
    }

    /// Shows how far it is.
    pub(crate) fn show(&mut self, figures: &StageFigures) {
        if !self.is_shown {
            return;
        }
        self.is_dirty = true;
        // A terminal that is gone is no reason to stop.
        let _ = write!(std::io::stderr(), "\r\x1b[K{}", line(self.what, figures, self.began.elapsed().as_secs_f64()));
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.is_dirty) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, figures: &StageFigures, secs: f64) -> String {
    let StageFigures { bytes_total, bytes_done, files_total, files_done, .. } = *figures;
    let (done, total) = if bytes_total > 0 { (bytes_done, bytes_total) } else { (files_done, files_total) };
    let full = (done.min(total) * CELLS).checked_div(total).unwrap_or(0);
    let cells: String = (0..CELLS).map(|cell| if cell < full { '#' } else { '.' }).collect();
    let rate = if secs > 0.5 { format!(" {}/s", size((bytes_done as f64 / secs) as u64)) } else { String::new() };
    format!("{what} [{cells}] {files_done} of {files_total} files, {} of {}{rate}", size(bytes_done), size(bytes_total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_far_it_is() {
        let figures =
            StageFigures { bytes_total: 4096, bytes_done: 1024, files_total: 4, files_done: 1, files_failed: 0 };
        let said = line("drained", &figures, 2.0);
        assert_eq!(said, "drained [######..................] 1 of 4 files, 1.0K of 4.0K 512/s");
        assert!(line("drained", &StageFigures::default(), 0.0).ends_with("0 of 0 files, 0 of 0"));
    }
}
