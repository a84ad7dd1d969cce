//! Progress on standard error: bars on a terminal, else plain lines.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::pin::pin;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use stopover::oci::Digest;
use stopover::operate::report::Bytes;

/// How often a line gives the progress of everything.
const LINES: Duration = Duration::from_secs(5);

/// How long work may take without a message.
const SILENCE: Duration = Duration::from_secs(1);

/// Does `work`, and says that it is under way if it takes long.
pub(super) async fn shown<T>(name: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    if let Ok(done) = tokio::time::timeout(SILENCE, &mut work).await {
        return done;
    }
    if !std::io::stderr().is_terminal() {
        eprintln!("{name}: under way");
        return work.await;
    }
    let style = ProgressStyle::with_template("{spinner}     {msg}: under way, {elapsed}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
    let spinner = ProgressBar::new_spinner().with_style(style).with_message(name.to_owned()).with_elapsed(SILENCE);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    spinner.finish_and_clear();
    done
}

/// The progress of several blobs, as bars or as lines.
pub(super) struct Display {
    size: u64,
    began: Instant,
    kind: Kind,
}

enum Kind {
    Bars { all: MultiProgress, total: ProgressBar, each: HashMap<Digest, ProgressBar> },
    Lines { said: Instant },
    Failures,
}

impl Display {
    /// A display for `size` bytes in all; a quiet one shows failures only.
    pub(super) fn new(size: u64, quiet: bool) -> Self {
        let began = Instant::now();
        let kind = if quiet {
            Kind::Failures
        } else if std::io::stderr().is_terminal() {
            let all = MultiProgress::new();
            let total = all.add(bar(size, "total"));
            Kind::Bars { all, total, each: HashMap::new() }
        } else {
            Kind::Lines { said: began }
        };
        Self { size, began, kind }
    }

    /// Shows that `written` bytes of a blob are stored.
    pub(super) fn advance(&mut self, digest: &Digest, size: u64, written: u64) {
        if let Kind::Bars { all, total, each } = &mut self.kind
            && written > 0
        {
            let bar = each
                .entry(digest.clone())
                .or_insert_with(|| all.insert_before(total, bar(size, short(digest)).with_position(written)));
            bar.set_position(written);
        }
    }

    /// Ends the bar of a blob: it is stored, or has failed.
    pub(super) fn end(&mut self, digest: &Digest, size: u64, failure: Option<&str>) {
        let line = match failure {
            None => format!("{} {} stored", short(digest), Bytes(size)),
            Some(failure) => format!("{digest} {} failed: {failure}", Bytes(size)),
        };
        match &mut self.kind {
            Kind::Bars { all, each, .. } => {
                each.remove(digest).inspect(ProgressBar::finish_and_clear);
                // Without a terminal, no lines are needed.
                let _ = all.println(line);
            }
            Kind::Failures if failure.is_none() => {}
            Kind::Lines { .. } | Kind::Failures => eprintln!("{line}"),
        }
    }

    /// Shows that `written` bytes of all blobs are stored.
    pub(super) fn total(&mut self, written: u64) {
        match &mut self.kind {
            Kind::Bars { total, .. } => total.set_position(written),
            Kind::Lines { said } if said.elapsed() >= LINES => {
                *said = Instant::now();
                eprintln!("{}", summary(written, self.size, self.began.elapsed()));
            }
            Kind::Lines { .. } | Kind::Failures => {}
        }
    }

    pub(super) fn finish(self) {
        if let Kind::Bars { total, .. } = self.kind {
            total.finish_and_clear();
        }
    }
}

/// Bytes, speed and the time that is left at that speed.
fn summary(written: u64, size: u64, elapsed: Duration) -> String {
    let speed = written * 1000 / u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let left = size.saturating_sub(written).checked_div(speed);
    let left = left.map_or_else(|| "no end in sight".to_owned(), |seconds| format!("{seconds} s left"));
    let percent = (written * 100).checked_div(size).unwrap_or(100);
    format!("{} of {} ({percent} %), {}/s, {left}", Bytes(written), Bytes(size), Bytes(speed))
}

/// `sha256:` and as many digits as people compare.
fn short(digest: &Digest) -> String {
    digest.as_str().chars().take("sha256:".len() + 12).collect()
}

fn bar(size: u64, name: impl Into<String>) -> ProgressBar {
    let template =
        "{prefix:19} [{bar:30}] {decimal_bytes:>9} of {decimal_total_bytes:>9} {decimal_bytes_per_sec:>11} {eta:>4}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(size).with_style(style.progress_chars("=> ")).with_prefix(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_how_fast_and_how_long_still() {
        let second = Duration::from_secs(1);
        assert_eq!(summary(2_000_000, 10_000_000, second), "2.0 MB of 10.0 MB (20 %), 2.0 MB/s, 4 s left");
        assert_eq!(summary(0, 1000, second), "0 B of 1.0 kB (0 %), 0 B/s, no end in sight");
        assert_eq!(summary(0, 0, Duration::ZERO), "0 B of 0 B (100 %), 0 B/s, no end in sight");
    }
}
