//! One request to the kernel over netlink and its answer, or a list of them, without a library around it: three kinds of
//! message of fixed form do not need more.
//!
//! The numbers that more than one of those who ask needs stand here, and each one's own with it.
//!
//! The kernel answers before `send` returns, or while a list is read, so nothing here blocks.

use std::io::{self, Read, Write};

use socket2::{Domain, Protocol, Socket, Type};

// Numbers of the Linux ABI: netlink(7), sock_diag(7), `enum` of net/tcp_states.h.
pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const SOCK_DIAG_BY_FAMILY: u16 = 20;
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;
pub(crate) const IPPROTO_TCP: u8 = 6;
pub(crate) const TCP_ESTABLISHED: u8 = 1;
pub(crate) const TCP_SYN_RECV: u8 = 3;
pub(crate) const TCP_FIN_WAIT1: u8 = 4;
pub(crate) const TCP_FIN_WAIT2: u8 = 5;
pub(crate) const TCP_TIME_WAIT: u8 = 6;
pub(crate) const TCP_CLOSE_WAIT: u8 = 8;
pub(crate) const TCP_LAST_ACK: u8 = 9;
pub(crate) const TCP_LISTEN: u8 = 10;
pub(crate) const TCP_CLOSING: u8 = 11;

/// Length of a message's header.
pub(crate) const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Most bytes that the kernel sends at once of a list (`netlink_recvmsg`, net/netlink/af_netlink.c).
const MAX_PART: usize = 64 << 10;

/// A message being written. Numbers are in host byte order unless the protocol says otherwise.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
}

/// Asks one question after the other, over a socket that is opened with the first of them, and anew after a failure.
#[derive(Debug)]
pub(crate) struct Line {
    family: i32,
    socket: Option<Socket>,
    /// Of the last question.
    number: u32,
}

/// What the kernel answered.
#[derive(Debug)]
pub(crate) struct Answer {
    bytes: Vec<u8>,
}

// === impl Request ===

impl Request {
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        Self { bytes }
    }

    /// Adds the bytes of a fixed part.
    pub(crate) fn with(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    /// Adds an attribute whose length is a multiple of 4, so that nothing needs padding.
    pub(crate) fn attribute<const N: usize>(self, kind: u16, value: [u8; N]) -> Self {
        const { assert!(N.is_multiple_of(4) && N < 256) };
        #[expect(clippy::cast_possible_truncation, reason = "checked above")]
        let length = N as u16 + 4;
        self.with(&length.to_ne_bytes()).with(&kind.to_ne_bytes()).with(&value)
    }

    /// Sends the request and reads one answer; an error that the kernel reports is returned as such.
    pub(crate) fn ask(self, family: i32) -> io::Result<Answer> {
        Line::new(family).ask(self)
    }

    /// Sends the request for a list and shows the body of each answer to `each`.
    pub(crate) fn list(self, family: i32, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let socket = open(family)?;
        self.send(&socket, 0)?;
        let mut part = vec![0; MAX_PART];
        loop {
            let read = (&socket).read(&mut part)?;
            let mut rest = &part[..read];
            while let Some(length) = rest.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize) {
                let answer = rest.get(..length).filter(|answer| answer.len() >= HEADER);
                let answer = Answer { bytes: answer.ok_or(io::ErrorKind::InvalidData)?.to_vec() };
                match answer.error()? {
                    0 if answer.kind() == Some(NLMSG_DONE) => return Ok(()),
                    0 => each(answer.body()),
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                }
                // Each begins at a multiple of 4.
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    fn send(mut self, mut socket: &Socket, number: u32) -> io::Result<()> {
        let length = u32::try_from(self.bytes.len()).map_err(io::Error::other)?;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&number.to_ne_bytes());
        socket.write_all(&self.bytes)
    }
}

fn open(family: i32) -> io::Result<Socket> {
    Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(family)))
}

// === impl Line ===

impl Line {
    /// Of a netlink family. Nothing is opened yet.
    pub(crate) const fn new(family: i32) -> Self {
        Self { family, socket: None, number: 0 }
    }

    /// Opened already, where that works: the first question is as fast as the others.
    pub(crate) fn opened(family: i32) -> Self {
        Self { socket: open(family).ok(), ..Self::new(family) }
    }

    /// As [`Request::ask`].
    pub(crate) fn ask(&mut self, request: Request) -> io::Result<Answer> {
        let answer = self.exchange(request);
        if answer.is_err() {
            // Nobody knows what would come over it next.
            self.socket = None;
        }
        let answer = answer?;
        match answer.error()? {
            0 => Ok(answer),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn exchange(&mut self, request: Request) -> io::Result<Answer> {
        self.number = self.number.wrapping_add(1);
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => open(self.family)?,
        };
        let mut socket = &*self.socket.insert(socket);
        request.send(socket, self.number)?;
        loop {
            let mut bytes = vec![0; 4096];
            let read = socket.read(&mut bytes)?;
            bytes.truncate(read);
            let answer = Answer { bytes };
            // What follows an earlier answer, as an acknowledgement does, answers nothing any more.
            if answer.number().ok_or(io::ErrorKind::InvalidData)? == self.number {
                return Ok(answer);
            }
        }
    }
}

// === impl Answer ===

impl Answer {
    /// What follows the header.
    pub(crate) fn body(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    fn kind(&self) -> Option<u16> {
        self.bytes.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes)
    }

    /// That of the question.
    fn number(&self) -> Option<u32> {
        self.bytes.get(8..12).and_then(|number| number.try_into().ok()).map(u32::from_ne_bytes)
    }

    /// The error of an error message, 0 if it acknowledges or is another message.
    fn error(&self) -> io::Result<i32> {
        match (self.kind(), self.body().first_chunk()) {
            (Some(NLMSG_ERROR), Some(code)) => Ok(-i32::from_ne_bytes(*code)),
            (Some(kind), _) if kind != NLMSG_ERROR => Ok(0),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The value of the first attribute of this kind among those that follow a message's fixed part. Lengths count the four
/// bytes of an attribute's own header, and each attribute begins at a multiple of 4 (netlink(7)).
pub(crate) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(head) = attributes.first_chunk::<4>() {
        let [length, kind] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_ne_bytes);
        let value = attributes.get(4..usize::from(length))?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(usize::from(length).next_multiple_of(4)..)?;
    }
    None
}
