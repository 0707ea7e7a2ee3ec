//! QUIC's datagrams over a byte stream, where a byte stream is all there is: a Kubernetes port-forward.
//!
//! Owns the framing and the copying both ways. Runs on both ends, inside one task per stream. It looks into no datagram,
//! authenticates nobody (QUIC does, end to end) and keeps nothing for later: what finds no room is lost, as on any
//! network, and QUIC sends it again.
//!
//! Layout: length (2 bytes, big endian), datagram. An empty one is skipped.

use std::io;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UdpSocket;

/// Longest datagram in bytes. QUIC here sends 1452 at most (quinn's bound on path MTU discovery).
pub const MAX_DATAGRAM: usize = 2048;

const HEADER: usize = 2;

/// Bytes that are gathered from the socket before they are written, and read before they are sent. A stream that does not
/// take them makes the socket's own buffer fill up, whose size the system bounds.
const BATCH: usize = 16 << 10;

/// Why a bridge ended.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// A length above [`MAX_DATAGRAM`]: the other end speaks something else.
    #[error("a frame of {length} bytes: at most {MAX_DATAGRAM} are allowed")]
    TooLong {
        /// The announced length.
        length: usize,
    },
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Cut,
    /// The stream failed.
    #[error("the stream failed")]
    Stream(#[source] io::Error),
    /// The socket failed.
    #[error("the UDP socket failed")]
    Socket(#[source] io::Error),
}

/// Copies datagrams between `stream` and `socket`, which must be connected, until the stream ends or one of them fails.
/// A socket has no end, so whoever owns the other side of it drops this future.
///
/// # Errors
/// [`BridgeError`]; a stream that ends between two frames is none.
pub async fn bridge<S: AsyncRead + AsyncWrite>(stream: S, socket: &UdpSocket) -> Result<(), BridgeError> {
    let (read, write) = tokio::io::split(stream);
    tokio::select! {
        result = unframe(read, socket) => result,
        result = frame(write, socket) => result,
    }
}

/// Socket to stream.
async fn frame<W: AsyncWrite + Unpin>(mut stream: W, socket: &UdpSocket) -> Result<(), BridgeError> {
    // One byte more than allowed, to notice what was longer.
    let mut datagram = vec![0; MAX_DATAGRAM + 1];
    let mut batch = Vec::with_capacity(BATCH + HEADER + MAX_DATAGRAM);
    loop {
        let mut received = socket.recv(&mut datagram).await;
        loop {
            match received {
                Ok(length) => append(&mut batch, &datagram[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_loss(&error) => {}
                Err(error) => return Err(BridgeError::Socket(error)),
            }
            if batch.len() >= BATCH {
                break;
            }
            received = socket.try_recv(&mut datagram);
        }
        stream.write_all(&batch).await.map_err(BridgeError::Stream)?;
        stream.flush().await.map_err(BridgeError::Stream)?;
        batch.clear();
    }
}

/// Stream to socket.
async fn unframe<R: AsyncRead + Unpin>(mut stream: R, socket: &UdpSocket) -> Result<(), BridgeError> {
    let mut bytes = vec![0; BATCH];
    let mut filled = 0;
    loop {
        match stream.read(&mut bytes[filled..]).await.map_err(BridgeError::Stream)? {
            0 if filled == 0 => return Ok(()),
            0 => return Err(BridgeError::Cut),
            read => filled += read,
        }
        let mut start = 0;
        while let Some(datagram) = first(&bytes[start..filled])? {
            start += HEADER + datagram.len();
            if datagram.is_empty() {
                continue;
            }
            match socket.send(datagram).await {
                Err(error) if !is_loss(&error) => return Err(BridgeError::Socket(error)),
                Ok(_) | Err(_) => {}
            }
        }
        bytes.copy_within(start..filled, 0);
        filled -= start;
    }
}

/// Appends a frame; what is too long is lost, as it would be on a network.
fn append(batch: &mut Vec<u8>, datagram: &[u8]) {
    if let (Ok(length), true) = (u16::try_from(datagram.len()), datagram.len() <= MAX_DATAGRAM) {
        batch.extend_from_slice(&length.to_be_bytes());
        batch.extend_from_slice(datagram);
    }
}

/// The datagram of the first frame, once all of it is there.
fn first(bytes: &[u8]) -> Result<Option<&[u8]>, BridgeError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*header));
    if length > MAX_DATAGRAM { Err(BridgeError::TooLong { length }) } else { Ok(rest.get(..length)) }
}

/// What a UDP socket reports of one datagram and which says nothing about the next.
fn is_loss(error: &io::Error) -> bool {
    use io::ErrorKind;

    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::Interrupted
            | ErrorKind::OutOfMemory
    ) || cfg!(windows) && error.raw_os_error() == Some(10040) // WSAEMSGSIZE: longer than the buffer
}

#[cfg(test)]
mod tests;
