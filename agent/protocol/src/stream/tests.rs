use std::collections::VecDeque;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::*;

/// Gives its pieces one per read and says "not yet" before each.
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    ready: bool,
}

impl Pieces {
    fn new<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self { pieces: pieces.into_iter().map(<[u8]>::to_vec).collect(), ready: false }
    }

    fn rest(&self) -> Vec<u8> {
        self.pieces.iter().flatten().copied().collect()
    }
}

impl AsyncRead for Pieces {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.ready = !this.ready;
        if this.ready {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(mut piece) = this.pieces.pop_front() {
            let taken = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..taken]);
            if taken < piece.len() {
                this.pieces.push_front(piece.split_off(taken));
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn open() -> Open {
    Open {
        intercept: "adam-add".to_owned(),
        kind: Kind::Http,
        port: 8080,
        peer: "10.1.0.7:40112".parse().unwrap(),
        destination: "[fd00::2]:8080".parse().unwrap(),
        copy: false,
    }
}

fn message(body: &str) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body.as_bytes());
    bytes
}

fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, ReadMessageError> {
    run(read(&mut &bytes[..]))
}

/// What agents and clients out there speak: a change here breaks them, see the crate's documentation.
#[test]
fn the_bytes_on_the_wire_stay_as_they_are() {
    let golden = message(
        r#"{"intercept":"adam-add","kind":"http","port":8080,"peer":"10.1.0.7:40112","destination":"[fd00::2]:8080"}"#,
    );
    assert_eq!(encode(&open()).unwrap(), golden);
    assert_eq!(decode::<Open>(&golden).unwrap(), open());

    let accepted = message(r#"{"reply":"accepted"}"#);
    assert_eq!(encode(&Reply::Accepted).unwrap(), accepted);
    assert_eq!(decode::<Reply>(&accepted).unwrap(), Reply::Accepted);

    let refused = message(r#"{"reply":"refused","reason":"nobodyListens","detail":"127.0.0.1:80"}"#);
    let reply = Reply::Refused { reason: RefusedReason::NobodyListens, detail: "127.0.0.1:80".to_owned() };
    assert_eq!(encode(&reply).unwrap(), refused);
    assert_eq!(decode::<Reply>(&refused).unwrap(), reply);
}

#[test]
fn messages_of_newer_peers_are_understood_as_far_as_possible() {
    let newer = r#"{"sni":"x","kind":"udp","intercept":"i","port":1,"peer":"[::1]:1","destination":"[::1]:2"}"#;
    assert_eq!(decode::<Open>(&message(newer)).unwrap().kind, Kind::Unknown);
    let newer = r#"{"reply":"refused","reason":"tooHot","retryAfter":5}"#;
    let understood = Reply::Refused { reason: RefusedReason::Other, detail: String::new() };
    assert_eq!(decode::<Reply>(&message(newer)).unwrap(), understood);
    assert_eq!(decode::<Reply>(&message(r#"{"reply":"accepted","since":1}"#)).unwrap(), Reply::Accepted);
    assert!(matches!(decode::<Reply>(&message(r#"{"reply":"later"}"#)), Err(ReadMessageError::Body(_))));
}

#[test]
fn a_message_split_anywhere_is_read_and_what_follows_is_left() {
    let bytes = encode(&open()).unwrap();
    for first in 0..=bytes.len() {
        for second in [first, (first + 1).min(bytes.len()), first.midpoint(bytes.len())] {
            let mut pieces = Pieces::new([&bytes[..first], &bytes[first..second], &bytes[second..], b"GET /"]);
            pieces.pieces.retain(|piece| !piece.is_empty());
            assert_eq!(run(read_open(&mut pieces)).unwrap(), open(), "split at {first} and {second}");
            assert_eq!(pieces.rest(), b"GET /");
        }
    }
    let mut glued = Pieces::new([[&bytes[..], b"GET /"].concat().as_slice()]);
    assert_eq!(run(read_open(&mut glued)).unwrap(), open());
    assert_eq!(glued.rest(), b"GET /");
    let mut single = Pieces::new(bytes.chunks(1));
    assert_eq!(run(read_open(&mut single)).unwrap(), open());
}

#[test]
fn a_message_cut_short_anywhere_is_an_error() {
    let bytes = encode(&open()).unwrap();
    for length in 0..bytes.len() {
        let error = decode::<Open>(&bytes[..length]).unwrap_err();
        assert!(
            matches!(&error, ReadMessageError::Read(source) if source.kind() == io::ErrorKind::UnexpectedEof),
            "{length}: {error:?}"
        );
    }
}

#[test]
fn another_version_is_refused_by_its_first_byte() {
    for found in [0, VERSION + 1, b'G'] {
        assert!(matches!(decode::<Open>(&[found]), Err(ReadMessageError::Version { found: f }) if f == found));
    }
}

#[test]
fn long_messages_are_refused_before_they_are_read() {
    let longest = format!(r#"{{"reply":"accepted","x":"{}"}}"#, "x".repeat(MAX_BODY - 27));
    assert_eq!(longest.len(), MAX_BODY);
    assert_eq!(decode::<Reply>(&message(&longest)).unwrap(), Reply::Accepted);
    let announced = u16::try_from(MAX_BODY + 1).unwrap().to_be_bytes();
    let error = decode::<Reply>(&[VERSION, announced[0], announced[1]]).unwrap_err();
    assert!(matches!(error, ReadMessageError::TooLong { length } if length == MAX_BODY + 1), "{error:?}");
}

#[test]
fn long_messages_are_not_written() {
    for length in [MAX_BODY, 1 << 17] {
        let reply = Reply::Refused { reason: RefusedReason::Other, detail: "x".repeat(length) };
        let mut sink = Vec::new();
        let error = run(write_reply(&mut sink, &reply)).unwrap_err();
        assert!(matches!(error, WriteMessageError::TooLong { length: l } if l > length), "{error:?}");
        assert!(sink.is_empty());
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Tcp), Just(Kind::Http)]
}

fn addresses() -> impl Strategy<Value = SocketAddr> {
    any::<(std::net::IpAddr, u16)>().prop_map(SocketAddr::from)
}

proptest! {
    #[test]
    fn every_message_survives_the_wire(
        intercept in ".{0,64}", kind in kinds(), port: u16, peer in addresses(), destination in addresses(),
        copy: bool, detail in ".{0,200}", cut: proptest::sample::Index,
    ) {
        let open = Open { intercept, kind, port, peer, destination, copy };
        let mut bytes = Vec::new();
        run(write_open(&mut bytes, &open)).unwrap();
        let cut = cut.index(bytes.len());
        prop_assert_eq!(run(read_open(&mut Pieces::new([&bytes[..cut], &bytes[cut..]].into_iter().filter(|p| !p.is_empty())))).unwrap(), open);

        let reply = Reply::Refused { reason: RefusedReason::TimedOut, detail };
        let mut bytes = Vec::new();
        run(write_reply(&mut bytes, &reply)).unwrap();
        prop_assert_eq!(run(read_reply(&mut bytes.as_slice())).unwrap(), reply);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes: Vec<u8>, body: Vec<u8>) {
        let _ = decode::<Open>(&bytes);
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        let framed = [&[VERSION, length[0], length[1]], body.as_slice()].concat();
        let _ = decode::<Open>(&framed);
        let _ = decode::<Reply>(&framed);
    }
}
