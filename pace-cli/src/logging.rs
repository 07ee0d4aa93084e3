//! Logs to stderr, as much as `PACE_LOG_LEVEL` says.

use std::io::IsTerminal;

use pace_runtime::config::LogLevel;
use tracing::level_filters::LevelFilter;

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
    tracing_subscriber::fmt()
        .with_max_level(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}
