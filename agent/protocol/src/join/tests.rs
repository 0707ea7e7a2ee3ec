use std::io::ErrorKind;
use std::time::Instant;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::duplex::QuicDuplex;
use crate::testing::Tunnel;
use crate::testing::soon;
use crate::testing::tcp_pair;

const MIB: usize = 1 << 20;

/// What lies between caller and server.
#[derive(Clone, Copy, Debug)]
enum Between {
    /// One join of two TCP connections: plain pass-through.
    Pass,
    /// TCP, join, QUIC stream, join, TCP: the tunnel.
    Tunnel,
}

const BOTH: [Between; 2] = [Between::Pass, Between::Tunnel];

/// A caller and a server that talk through joins; in order of the way from caller to server.
struct Line {
    caller: TcpStream,
    server: TcpStream,
    joins: Vec<JoinHandle<JoinOutcome>>,
    _tunnel: Option<Tunnel>,
}

impl Line {
    async fn new(between: Between) -> Self {
        let (caller, near) = tcp_pair().await;
        let (far, server) = tcp_pair().await;
        match between {
            Between::Pass => Self { caller, server, joins: vec![spawn(near, far)], _tunnel: None },
            Between::Tunnel => {
                let tunnel = Tunnel::new().await;
                let (agent, client) = tunnel.stream().await;
                Self { caller, server, joins: vec![spawn(near, agent), spawn(client, far)], _tunnel: Some(tunnel) }
            }
        }
    }

    async fn outcomes(self) -> Vec<JoinOutcome> {
        let mut outcomes = Vec::new();
        for join in self.joins {
            outcomes.push(soon("join", join).await.unwrap());
        }
        outcomes
    }
}

fn spawn<A: Duplex + 'static, B: Duplex + 'static>(mut a: A, mut b: B) -> JoinHandle<JoinOutcome> {
    tokio::spawn(async move { join(&mut a, &mut b).await })
}

/// Bytes that show a loss, a repetition or a swap wherever it happens. To be made before there is a connection: a test is
/// one thread, and a connection whose thread is busy for seconds counts as gone.
fn body(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).unwrap();
    bytes
}

async fn read_all<R: AsyncRead + Unpin>(stream: &mut R) -> (Vec<u8>, io::Result<()>) {
    let mut bytes = Vec::new();
    let end = soon("end of stream", stream.read_to_end(&mut bytes)).await;
    (bytes, end.map(drop))
}

async fn expect_end<R: AsyncRead + Unpin>(stream: &mut R, expected: &[u8]) {
    let (bytes, end) = read_all(stream).await;
    end.unwrap();
    assert!(bytes == expected, "{} bytes instead of {} or other ones", bytes.len(), expected.len());
}

/// The reset is seen by a reader who is waiting.
async fn expect_reset<R: AsyncRead + Unpin>(stream: &mut R) {
    let (_, end) = read_all(stream).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

fn expect_finished(outcome: &JoinOutcome, a_to_b: usize, b_to_a: usize) {
    assert!(matches!(outcome.ending, Ending::Finished), "{outcome:?}");
    assert_eq!((outcome.a_to_b, outcome.b_to_a), (a_to_b as u64, b_to_a as u64));
}

fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

/// Writes until the stream takes no more for now: true back-pressure, however large the buffers on the way are.
async fn fill<W: AsyncWrite + Unpin>(stream: &mut W, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        let piece = &bytes[written..bytes.len().min(written + 64 * 1024)];
        match tokio::time::timeout(Duration::from_millis(500), stream.write(piece)).await {
            Ok(taken) => written += taken.unwrap(),
            Err(_) => break,
        }
    }
    written
}

#[tokio::test]
async fn both_directions_carry_eight_mebibytes_at_once() {
    for between in BOTH {
        let (up, down) = (body(8 * MIB), body(8 * MIB));
        let mut line = Line::new(between).await;
        let (mut caller_read, mut caller_write) = line.caller.split();
        let (mut server_read, mut server_write) = line.server.split();
        let send_up = async {
            caller_write.write_all(&up).await.unwrap();
            caller_write.shutdown().await.unwrap();
        };
        let send_down = async {
            server_write.write_all(&down).await.unwrap();
            server_write.shutdown().await.unwrap();
        };
        tokio::join!(send_up, send_down, expect_end(&mut server_read, &up), expect_end(&mut caller_read, &down));
        for outcome in line.outcomes().await {
            expect_finished(&outcome, 8 * MIB, 8 * MIB);
        }
    }
}

#[tokio::test]
async fn a13_half_close_leaves_the_other_direction_open() {
    for between in BOTH {
        for caller_first in [true, false] {
            let mut line = Line::new(between).await;
            let (first, second) =
                if caller_first { (&mut line.caller, &mut line.server) } else { (&mut line.server, &mut line.caller) };
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            expect_end(second, b"question").await;
            let answer = body(MIB);
            let (_, ()) = tokio::join!(
                async {
                    second.write_all(&answer).await.unwrap();
                    second.shutdown().await.unwrap();
                },
                expect_end(first, &answer)
            );
            let (up, down) = if caller_first { (8, MIB) } else { (MIB, 8) };
            for outcome in line.outcomes().await {
                expect_finished(&outcome, up, down);
            }
        }
    }
}

#[tokio::test]
async fn a13_reset_is_passed_on_in_each_direction() {
    for between in BOTH {
        for by_caller in [true, false] {
            let mut line = Line::new(between).await;
            line.caller.write_all(b"hello").await.unwrap();
            line.server.read_exact(&mut [0; 5]).await.unwrap();
            let (side, joins) = if by_caller {
                reset(line.caller);
                expect_reset(&mut line.server).await;
                (Side::A, line.joins)
            } else {
                reset(line.server);
                expect_reset(&mut line.caller).await;
                (Side::B, line.joins)
            };
            for outcome in joins {
                let outcome = soon("join", outcome).await.unwrap();
                match outcome.ending {
                    Ending::Broken { side: by, error } => {
                        assert_eq!((by, error.kind()), (side, ErrorKind::ConnectionReset), "{between:?}");
                    }
                    Ending::Finished => panic!("{between:?}: a reset is no proper end"),
                }
            }
        }
    }
}

/// A server that answers without reading everything and closes makes its kernel send a reset right behind the answer.
#[tokio::test]
async fn a13_bytes_right_before_a_reset_arrive() {
    for between in BOTH {
        for by_caller in [true, false] {
            let line = Line::new(between).await;
            let (mut from, mut to) = if by_caller { (line.caller, line.server) } else { (line.server, line.caller) };
            from.write_all(b"last words").await.unwrap();
            reset(from);
            let (heard, end) = soon("the last words", read_all(&mut to)).await;
            assert_eq!(heard, b"last words", "{between:?}");
            assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset, "{between:?}");
        }
    }
}

#[tokio::test]
async fn a13_data_before_the_end_arrives_however_late_it_is_read() {
    for between in BOTH {
        let sent = body(16 * MIB);
        let Line { mut caller, mut server, joins, _tunnel } = Line::new(between).await;
        // The receiver reads nothing until its window is shut all the way back to the sender.
        let written = fill(&mut caller, &sent).await;
        assert!(written < sent.len(), "{between:?}: the buffers between are larger than the test assumes");
        let (_, ()) = tokio::join!(
            async {
                caller.write_all(&sent[written..]).await.unwrap();
                drop(caller); // end of stream at once behind the last byte
            },
            expect_end(&mut server, &sent)
        );
        drop(server);
        for join in joins {
            expect_finished(&soon("join", join).await.unwrap(), sent.len(), 0);
        }
    }
}

#[tokio::test]
async fn a13_a_slow_reader_holds_the_sender_back_and_gets_every_byte() {
    for between in BOTH {
        let sent = body(24 * MIB);
        let Line { mut caller, mut server, joins, _tunnel } = Line::new(between).await;
        let written = fill(&mut server, &sent).await;
        // Kernel buffers (at most 4 + 6 MiB per TCP connection here), a stream's window and one scratch per join.
        assert!(written < 22 * MIB, "{between:?}: {written} bytes are held somewhere");
        // The opposite direction is not held back by that.
        caller.write_all(b"still here").await.unwrap();
        let mut word = [0; 10];
        soon("opposite direction", server.read_exact(&mut word)).await.unwrap();
        assert_eq!(&word, b"still here");
        let rest = async {
            server.write_all(&sent[written..]).await.unwrap();
            drop(server);
        };
        tokio::join!(rest, expect_end(&mut caller, &sent));
        drop(caller);
        for join in joins {
            expect_finished(&soon("join", join).await.unwrap(), 10, sent.len());
        }
    }
}

/// A server that turns a large upload down before it has read it: what it said must get through, as it would over one
/// TCP connection.
#[tokio::test]
async fn a13_an_early_answer_is_heard_by_a_caller_that_goes_on_sending() {
    for between in BOTH {
        for _ in 0..8 {
            let Line { mut caller, mut server, joins, _tunnel } = Line::new(between).await;
            let answer = body(48 * 1024);
            let (mut caller_read, mut caller_write) = caller.split();
            let upload = async {
                let piece = vec![b'x'; 256 * 1024];
                // Ends by an error or, if that is how it ends, by the system taking everything.
                for _ in 0..64 {
                    if caller_write.write_all(&piece).await.is_err() {
                        break;
                    }
                }
            };
            let turn_down = async {
                server.read_exact(&mut [0; 1000]).await.unwrap();
                server.write_all(&answer).await.unwrap();
                server.shutdown().await.unwrap();
                drop(server); // with unread data: a reset follows
            };
            let mut heard = vec![0; answer.len()];
            let hear = soon("early answer", caller_read.read_exact(&mut heard));
            let (_, (), heard_all) = tokio::join!(upload, turn_down, hear);
            heard_all.unwrap();
            assert!(heard == answer, "{between:?}");
            drop(caller);
            for join in joins {
                soon("join", join).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_caller_that_vanishes_after_its_end_of_stream_does_not_harm_what_it_sent() {
    for between in BOTH {
        let Line { mut caller, mut server, joins, _tunnel } = Line::new(between).await;
        let request = body(64 * 1024);
        caller.write_all(&request).await.unwrap();
        caller.shutdown().await.unwrap();
        let mut got = vec![0; request.len()];
        soon("request", server.read_exact(&mut got)).await.unwrap();
        assert!(got == request);
        expect_end(&mut server, b"").await;
        reset(caller);
        // The server learns of it once it writes.
        let write = async {
            loop {
                if let Err(error) = server.write_all(&[0; 1024]).await {
                    return error.kind();
                }
            }
        };
        let kind = soon("failing write", write).await;
        assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{kind:?}");
        for join in joins {
            soon("join", join).await.unwrap();
        }
    }
}

#[tokio::test]
async fn bytes_read_before_come_first() {
    let (mut caller, mut near) = tcp_pair().await;
    let (mut far, mut server) = tcp_pair().await;
    caller.write_all(b" world").await.unwrap();
    caller.shutdown().await.unwrap();
    server.write_all(b" yourself").await.unwrap();
    server.shutdown().await.unwrap();
    let start = JoinStart { to_a: Bytes::from_static(b"hello"), to_b: Bytes::from(body(3 * MIB)) };
    let to_b = start.to_b.clone();
    let joined = tokio::spawn(async move { join_with(&mut near, &mut far, start).await });
    expect_end(&mut server, &[&to_b, b" world".as_slice()].concat()).await;
    expect_end(&mut caller, b"hello yourself").await;
    expect_finished(&soon("join", joined).await.unwrap(), 3 * MIB + 6, 14);
}

#[tokio::test]
async fn a_join_that_is_cancelled_does_not_look_like_an_end() {
    for between in BOTH {
        let mut line = Line::new(between).await;
        line.caller.write_all(b"hello").await.unwrap();
        line.server.read_exact(&mut [0; 5]).await.unwrap();
        line.joins[0].abort();
        expect_reset(&mut line.caller).await;
        expect_reset(&mut line.server).await;
    }
}

#[tokio::test]
async fn a_lost_connection_resets_both_ends() {
    let mut line = Line::new(Between::Tunnel).await;
    line.caller.write_all(b"hello").await.unwrap();
    line.server.read_exact(&mut [0; 5]).await.unwrap();
    crate::close::CloseCode::Stopped.close(&line._tunnel.as_ref().unwrap().client);
    expect_reset(&mut line.caller).await;
    expect_reset(&mut line.server).await;
    for outcome in line.outcomes().await {
        assert!(matches!(outcome.ending, Ending::Broken { .. }));
    }
}

#[tokio::test]
async fn a_dropped_stream_is_reset_and_a_finished_one_is_not() {
    let tunnel = Tunnel::new().await;
    let (agent, mut client) = tunnel.stream().await;
    drop(agent);
    expect_reset(&mut client).await;

    let (mut agent, mut client) = tunnel.stream().await;
    agent.write_all(b"all of it").await.unwrap();
    agent.shutdown().await.unwrap();
    drop(agent);
    expect_end(&mut client, b"all of it").await;
}

#[tokio::test]
async fn an_end_that_takes_nothing_and_gives_nothing_is_given_up() {
    let tunnel = Tunnel::new().await;
    let (mut caller, near) = tcp_pair().await;
    let (agent, mut client) = tunnel.stream().await;
    let joined = spawn(near, agent);
    // The client stops reading but its own direction stays open and silent.
    let (_, recv) = client.halves_mut();
    recv.stop(crate::close::STREAM_ABORTED).unwrap();
    let since = Instant::now();
    let write = async {
        loop {
            if let Err(error) = caller.write_all(&[0; 1024]).await {
                return error;
            }
        }
    };
    let (error, outcome) = soon("given up", async { tokio::join!(write, joined) }).await;
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    let Ending::Broken { side: Side::B, error } = outcome.unwrap().ending else { panic!("no proper end") };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert!(since.elapsed() > LINGER && since.elapsed() < LINGER * 3, "{:?}", since.elapsed());
}

/// Ten thousand of these must fit into an agent's memory limit.
#[tokio::test]
async fn a_join_is_small_and_holds_nothing_while_idle() {
    let (_caller, mut near) = tcp_pair().await;
    let (mut far, _server) = tcp_pair().await;
    assert!(size_of_val(&join(&mut near, &mut far)) <= 640, "{}", size_of_val(&join(&mut near, &mut far)));
    assert!(size_of::<Join<'_, TcpStream, QuicDuplex>>() <= 256, "{}", size_of::<Join<'_, TcpStream, QuicDuplex>>());
}

#[tokio::test]
async fn many_short_joins_run_side_by_side() {
    let tunnel = Tunnel::new().await;
    let mut tasks = tokio::task::JoinSet::new();
    for length in (0..64).map(|n| 1 + 1000 * n) {
        let (mut caller, near) = tcp_pair().await;
        let (far, mut server) = tcp_pair().await;
        let (agent, client) = tunnel.stream().await;
        spawn(near, agent);
        spawn(client, far);
        tasks.spawn(async move {
            let request = body(length);
            for _ in 0..10 {
                caller.write_all(&request).await.unwrap();
                let mut got = vec![0; request.len()];
                server.read_exact(&mut got).await.unwrap();
                assert!(got == request);
                server.write_all(&got).await.unwrap();
                caller.read_exact(&mut got).await.unwrap();
                assert!(got == request);
            }
        });
    }
    while let Some(done) = soon("requests", tasks.join_next()).await {
        done.unwrap();
    }
}
