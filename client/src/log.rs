//! Log lines for a person at a terminal: on standard error, the message first, no time, no module names.

use std::fmt;
use std::io;

use tracing::Event;
use tracing::Level;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::FormatEvent;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::registry::LookupSpan;

struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        line.write_str(match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            Level::INFO => "",
            Level::DEBUG | Level::TRACE => "debug: ",
        })?;
        context.field_format().format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

/// From here on, what the library logs is shown.
pub(crate) fn start(verbose: bool) {
    // QUIC's own lines are for whoever works on QUIC.
    show(if verbose { "off,sluice=debug" } else { "off,sluice=info" });
}

/// The same for a command that has many tunnels and tells of them itself, by the names of pods.
pub(crate) fn start_intercept(verbose: bool) {
    show(if verbose { "off,sluice=debug" } else { "off,sluice=info,sluice::tunnel=off" });
}

fn show(filter: &str) {
    let lines = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter));
    // Files and pipes get no escape sequences, and neither does a terminal: there is nothing to set off.
    lines.with_writer(io::stderr).with_ansi(false).event_format(Lines).init();
}
