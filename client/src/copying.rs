//! The copy of a connection for a wiretap, on its last stretch: from the agent to the local process.
//!
//! Owns the question when the local process is done with it. Its answers are read, so that it can go on, and thrown away.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sluice_protocol::duplex::Duplex as _;
use sluice_protocol::stream::Kind;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// How long an answer may pause before it counts as complete.
const QUIET: Duration = Duration::from_secs(1);

/// How many of these an answer may take to begin: somebody may be at a breakpoint.
const PATIENCE: u32 = 600;

/// Bytes that are moved at once.
const BUFFER: usize = 16 << 10;

/// Moves what comes `from` the agent to the local process, until that is done with it.
///
/// # Errors
/// The copy has a gap, or broke off: the local process's connection is reset.
pub(crate) async fn copy<R: AsyncRead + Unpin>(from: &mut R, local: &mut TcpStream, kind: Kind) -> io::Result<()> {
    let outcome = serve(from, local, kind).await;
    if outcome.is_err() {
        local.abort();
    }
    outcome
}

async fn serve<R: AsyncRead + Unpin>(from: &mut R, local: &mut TcpStream, kind: Kind) -> io::Result<()> {
    let (mut answers, mut requests) = local.split();
    let spoken = AtomicBool::new(false);
    let feeding = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return io::Result::Ok(());
            }
            // What has been said before is no answer to this.
            spoken.store(false, Relaxed);
            requests.write_all(&buffer[..read]).await?;
        }
    };
    let listening = async {
        let mut buffer = vec![0; BUFFER];
        while answers.read(&mut buffer).await? > 0 {
            spoken.store(true, Relaxed);
        }
        io::Result::Ok(())
    };
    let mut listening = std::pin::pin!(listening);
    tokio::select! {
        biased;
        fed = feeding => fed?,
        done = &mut listening => return done,
    }
    if kind == Kind::Tcp {
        requests.shutdown().await?;
        return listening.await;
    }
    // Requests are not ended by the end of a connection: many a server gives up one whose caller has gone.
    let mut answered = spoken.swap(false, Relaxed);
    for _ in 0..PATIENCE {
        if let Ok(done) = tokio::time::timeout(QUIET, &mut listening).await {
            return done;
        }
        let speaks = spoken.swap(false, Relaxed);
        if answered && !speaks {
            break;
        }
        answered |= speaks;
    }
    Ok(())
}
