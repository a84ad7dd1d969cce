//! The log of a function: lines of JSON on standard output, as Lambda's filter by level reads them.

use std::env;

use stopover::values::text::excerpt;
use tracing_subscriber::filter::LevelFilter;

/// Starts it, at the level that the deployment has chosen (`AWS_LAMBDA_LOG_LEVEL`).
///
/// Each line has its `timestamp`: a line without one counts as INFO, so that with `LogLevel: WARN` errors would be dropped
/// (Lambda developer guide, "log level filtering").
pub fn start() {
    let level = env::var("AWS_LAMBDA_LOG_LEVEL").ok().and_then(|level| level.parse().ok());
    tracing_subscriber::fmt().json().with_target(false).with_max_level(level.unwrap_or(LevelFilter::INFO)).init();
    // What the standard library prints of a panic has no level and no timestamp.
    std::panic::set_hook(Box::new(|panic| {
        let (place, reason) =
            (panic.location().map(tracing::field::display), panic.payload_as_str().unwrap_or_default());
        tracing::error!(place, reason = excerpt(&reason), "a mistake of this program: it panicked");
    }));
}
