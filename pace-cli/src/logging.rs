//! Logs to stderr, as much as `PACE_LOG_LEVEL` says.

use std::io::IsTerminal;

use pace_runtime::config::LogLevel;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;

/// Installs the subscriber of this process.
pub(crate) fn init(level: LogLevel) {
    let filter = match level {
        LogLevel::Debug => LevelFilter::TRACE,
        LogLevel::Profile => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::None => LevelFilter::OFF,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .finish()
        // What libraries log is not ours to show: an HTTP client's records hold the requests' secrets.
        .with(filter_fn(|metadata| metadata.target().starts_with("pace")));
    // Not `init`, which would take in the records of the `log` crate, too.
    tracing::subscriber::set_global_default(subscriber).expect("the only subscriber of this process");
}
