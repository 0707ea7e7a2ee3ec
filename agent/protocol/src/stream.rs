//! The messages that open a stream: [`Open`] from the agent, [`Reply`] from the client.
//!
//! Owns their layout and limits. Runs on both ends, inside the task of the stream. Knows nothing of QUIC (any
//! [`AsyncRead`] and [`AsyncWrite`] will do), sets no time limit and reads not one byte more than the message, so that
//! what follows is the payload's.
//!
//! Layout: version (1 byte), length of the body (2 bytes, big endian), body (JSON). Unknown fields are ignored.

use std::io;
use std::net::SocketAddr;

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;

/// Version of the layout, the first byte of each message.
pub const VERSION: u8 = 1;

/// Longest body in bytes. Whoever reads allocates that much at most, and only for a peer whose key is known.
pub const MAX_BODY: usize = 16 << 10;

const HEADER: usize = 3;

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadMessageError {
    /// The stream ended before the message was complete, or failed.
    #[error("the stream ended before the message was complete")]
    Read(#[source] io::Error),
    /// The first byte is not [`VERSION`].
    #[error("message of version {found}: this end speaks version {VERSION}")]
    Version {
        /// What came instead.
        found: u8,
    },
    /// The body is longer than [`MAX_BODY`].
    #[error("message of {length} bytes: at most {MAX_BODY} are allowed")]
    TooLong {
        /// The announced length.
        length: usize,
    },
    /// The body is not what it should be.
    #[error("the message cannot be understood")]
    Body(#[source] serde_json::Error),
}

/// Why a message could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteMessageError {
    /// The message does not fit into [`MAX_BODY`].
    #[error("message of {length} bytes: at most {MAX_BODY} are allowed")]
    TooLong {
        /// The length it would have.
        length: usize,
    },
    /// The message cannot be put into words.
    #[error("the message cannot be encoded")]
    Body(#[source] serde_json::Error),
    /// The stream failed.
    #[error("the stream failed")]
    Write(#[source] io::Error),
}

/// What a stream carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// The bytes of one TCP connection.
    Tcp,
    /// The bytes of one connection that carries HTTP requests, of which only the matching ones.
    Http,
    /// Something that this version does not know: refuse the stream.
    #[serde(other)]
    Unknown,
}

/// The first message on a stream, written by the agent.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Open {
    /// Name of the intercept that diverts this connection.
    pub intercept: String,
    /// What follows once the client has accepted.
    pub kind: Kind,
    /// The port of the workload: the REMOTE half of the client's `--port`.
    pub port: u16,
    /// Who called.
    pub peer: SocketAddr,
    /// Whom it called.
    pub destination: SocketAddr,
    /// It is a copy for a wiretap: whatever is answered is thrown away, so it need not be sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy: bool,
}

/// Why a client does not take a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RefusedReason {
    /// Nobody listens on the local port.
    NobodyListens,
    /// The local port does not answer in time.
    TimedOut,
    /// The user named no local port for this one.
    UnknownPort,
    /// A [`Kind`] that this client does not know.
    UnknownKind,
    /// The client could not understand what opened the stream.
    Malformed,
    /// The client is being stopped or is at its limit.
    Unavailable,
    /// Any other reason, newer ones included: see the detail.
    #[serde(other)]
    Other,
}

/// The first message back, written by the client.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "reply")]
pub enum Reply {
    /// The local process is connected: from here on the stream carries its bytes.
    Accepted,
    /// The stream ends here, the agent decides what becomes of the connection.
    Refused {
        /// The reason, for programs.
        reason: RefusedReason,
        /// The reason, for people.
        #[serde(default)]
        detail: String,
    },
}

/// Writes what opens a stream.
///
/// # Errors
/// The message is too long or the stream fails.
pub async fn write_open<W: AsyncWrite + Unpin>(stream: &mut W, open: &Open) -> Result<(), WriteMessageError> {
    write(stream, open).await
}

/// Reads what opens a stream. Not cancel safe: a message read in part is lost.
///
/// # Errors
/// The stream ends early, or its bytes are no such message.
pub async fn read_open<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Open, ReadMessageError> {
    read(stream).await
}

/// Writes the answer to an [`Open`].
///
/// # Errors
/// The message is too long or the stream fails.
pub async fn write_reply<W: AsyncWrite + Unpin>(stream: &mut W, reply: &Reply) -> Result<(), WriteMessageError> {
    write(stream, reply).await
}

/// Reads the answer to an [`Open`]. Not cancel safe: a message read in part is lost.
///
/// # Errors
/// The stream ends early, or its bytes are no such message.
pub async fn read_reply<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Reply, ReadMessageError> {
    read(stream).await
}

async fn write<W: AsyncWrite + Unpin, M: Serialize>(stream: &mut W, message: &M) -> Result<(), WriteMessageError> {
    let bytes = encode(message)?;
    stream.write_all(&bytes).await.map_err(WriteMessageError::Write)?;
    stream.flush().await.map_err(WriteMessageError::Write)
}

async fn read<R: AsyncRead + Unpin, M: DeserializeOwned>(stream: &mut R) -> Result<M, ReadMessageError> {
    let mut header = [0; HEADER];
    // Byte by byte judgement: a peer of another version may never send a second one.
    stream.read_exact(&mut header[..1]).await.map_err(ReadMessageError::Read)?;
    check_version(header[0])?;
    stream.read_exact(&mut header[1..]).await.map_err(ReadMessageError::Read)?;
    let mut body = vec![0; body_length(header)?];
    stream.read_exact(&mut body).await.map_err(ReadMessageError::Read)?;
    serde_json::from_slice(&body).map_err(ReadMessageError::Body)
}

/// One message as bytes, in one piece so that it leaves in one packet.
fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, WriteMessageError> {
    let mut bytes = vec![VERSION, 0, 0];
    serde_json::to_writer(&mut bytes, message).map_err(WriteMessageError::Body)?;
    let length = bytes.len() - HEADER;
    match u16::try_from(length) {
        Ok(short) if length <= MAX_BODY => bytes[1..HEADER].copy_from_slice(&short.to_be_bytes()),
        _ => return Err(WriteMessageError::TooLong { length }),
    }
    Ok(bytes)
}

fn check_version(found: u8) -> Result<(), ReadMessageError> {
    if found == VERSION { Ok(()) } else { Err(ReadMessageError::Version { found }) }
}

fn body_length([_, high, low]: [u8; HEADER]) -> Result<usize, ReadMessageError> {
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length <= MAX_BODY { Ok(length) } else { Err(ReadMessageError::TooLong { length }) }
}

#[cfg(test)]
mod tests;
