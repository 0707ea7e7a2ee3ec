//! Being asked to stop, on each operating system.

use std::io;

/// Waits for Ctrl-C, and where there is such a thing, for the system's request to end.
#[cfg(unix)]
pub(crate) async fn stop() -> io::Result<()> {
    use tokio::signal::unix::SignalKind;
    use tokio::signal::unix::signal;

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // The terminal was closed.
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// Waits for Ctrl-C, and where there is such a thing, for the system's request to end.
#[cfg(windows)]
pub(crate) async fn stop() -> io::Result<()> {
    use tokio::signal::windows;

    let mut ctrl_c = windows::ctrl_c()?;
    let mut ctrl_break = windows::ctrl_break()?;
    let mut close = windows::ctrl_close()?;
    let mut shutdown = windows::ctrl_shutdown()?;
    tokio::select! {
        _ = ctrl_c.recv() => {}
        _ = ctrl_break.recv() => {}
        _ = close.recv() => {}
        _ = shutdown.recv() => {}
    }
    Ok(())
}

/// Waits for Ctrl-C, and where there is such a thing, for the system's request to end.
#[cfg(not(any(unix, windows)))]
pub(crate) async fn stop() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}
