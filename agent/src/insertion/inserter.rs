//! Reads what the kernel tells of held connections, and inserts the agent into them.
//!
//! One task. A held connection is looked at when the kernel tells of it, and again after a moment as long as it is not
//! ready: what was sent must be acknowledged on both sides before two sockets can take over. Bounded: so many at once, so
//! many bytes, so long; what goes beyond is let go, counted, and answered by the app.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use sluice_ebpf_common::insertion::{
    Answer, Event, EventKind, FLAG_CLOCK, FLAG_LAST, FLAG_OLD, Flow, FlowKey, Op, Outcome, State,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpStream,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Inserted, Position, SharedPrograms, diag, lock,
    repair::{End, Repaired},
};
use crate::{
    connection::{Shared, Steered},
    http1::head::RequestKind,
    metrics::NotInserted,
    socket::Socket,
};

/// Most connections that wait for their insertion at once.
const MAX_HOLDS: usize = 4096;
/// How long one is held at most. Its caller repeats what it sent, and the app has not seen it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the held ones are looked at that the kernel has not told of.
const LOOK: Duration = Duration::from_millis(5);
/// How often the kernel, which lets go after a second, is told that somebody works on it.
const KEEP: Duration = Duration::from_millis(300);
/// How long a flow is remembered after its end: as long as packets of it may come (2 × MSL of Linux, and more).
const AFTERWARDS: Duration = Duration::from_secs(90);
/// Attempts at once, when the numbers move between the reading of them and the insertion.
const ATTEMPTS: u32 = 3;

/// A connection that is held.
struct Hold {
    id: u32,
    from: u32,
    bytes: Vec<u8>,
    /// The packet that was held first.
    first: Event,
    since: Instant,
    kept: Instant,
}

/// What became of an attempt.
enum Attempt {
    Inserted,
    /// Not yet.
    Wait,
    /// Never.
    Over(NotInserted),
    /// It is not held any more.
    Gone,
}

/// The task's state.
struct Inserter {
    programs: SharedPrograms,
    shared: Arc<Shared>,
    connections: TaskTracker,
    cut: CancellationToken,
    holds: HashMap<FlowKey, Hold>,
    /// Those that are served, by the flow's key; cancelled when the kernel has given one back, and then still here until
    /// its sockets are closed.
    inserted: HashMap<FlowKey, (u32, CancellationToken)>,
    ended_tx: tokio::sync::mpsc::UnboundedSender<(FlowKey, u32)>,
}

/// Inserts the agent wherever the kernel asks for it, for ever.
pub(crate) async fn run(
    events: RingBuf<MapData>,
    programs: SharedPrograms,
    shared: Arc<Shared>,
    connections: TaskTracker,
    cut: CancellationToken,
) {
    let mut events = match watch(events) {
        Ok(events) => events,
        Err(error) => {
            tracing::error!(%error, "what the packet programs tell cannot be read: nothing is inserted");
            return;
        }
    };
    let (ended_tx, mut ended_rx) = tokio::sync::mpsc::unbounded_channel();
    let (holds, inserted) = (HashMap::new(), HashMap::new());
    let mut inserter = Inserter { programs, shared, connections, cut, holds, inserted, ended_tx };
    let mut afterwards = std::collections::VecDeque::<(Instant, FlowKey, u32)>::new();
    loop {
        let look = if inserter.holds.is_empty() { None } else { Some(Instant::now() + LOOK) };
        let forget = afterwards.front().map(|(at, ..)| *at);
        let next = [look, forget].into_iter().flatten().min();
        // Cancel safe: events stay in the ring, ends in their channel.
        tokio::select! {
            biased;
            ready = events.readable_mut() => match ready {
                Ok(mut ready) => {
                    while let Some(record) = ready.get_inner_mut().next() {
                        if let Some((event, bytes)) = Event::from_bytes(&record) {
                            if event.kind == EventKind::Ended as u32 {
                                afterwards.push_back((Instant::now() + AFTERWARDS, event.key, event.id));
                            }
                            inserter.take(&event, bytes);
                        }
                    }
                    ready.clear_ready();
                }
                Err(error) => {
                    tracing::error!(%error, "what the packet programs tell cannot be read: nothing is inserted any more");
                    return;
                }
            },
            Some((key, id)) = ended_rx.recv() => {
                if inserter.ended(&key, id) {
                    afterwards.push_back((Instant::now() + AFTERWARDS, key, id));
                }
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
        inserter.look();
        while let Some(&(at, key, id)) = afterwards.front()
            && at <= Instant::now()
        {
            afterwards.pop_front();
            let _ = lock(&inserter.programs).command(&key, id, Op::Remove, [0; 4]);
        }
    }
}

#[expect(unsafe_code, reason = "tokio cannot know what it is given")]
fn watch(events: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring buffer owns its descriptor, which stays open and the same for as long as it lives.
    unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }.map_err(io::Error::from)
}

// === impl Inserter ===

impl Inserter {
    fn take(&mut self, event: &Event, bytes: &[u8]) {
        if event.kind == EventKind::Held as u32 {
            self.held(event, bytes);
        } else if event.kind == EventKind::Progress as u32 {
            self.attempt(&event.key);
        } else if event.kind == EventKind::Reset as u32 {
            self.holds.remove(&event.key);
        } else if event.kind == EventKind::Returned as u32
            && let Some((id, token)) = self.inserted.get(&event.key)
            && *id == event.id
        {
            self.shared.metrics.returned();
            token.cancel();
        }
    }

    /// A connection is no longer served; whether its flow is still the agent's.
    fn ended(&mut self, key: &FlowKey, id: u32) -> bool {
        match self.inserted.get(key) {
            Some((held, token)) if *held == id => {
                let own = !token.is_cancelled();
                self.inserted.remove(key);
                own
            }
            _ => false,
        }
    }

    fn held(&mut self, event: &Event, bytes: &[u8]) {
        let now = Instant::now();
        match self.holds.get_mut(&event.key) {
            Some(hold) if hold.id == event.id && hold.to() == event.seq => hold.bytes.extend_from_slice(bytes),
            _ => {
                if self.holds.len() >= MAX_HOLDS {
                    return self.release(&event.key, event.id, NotInserted::Busy);
                }
                let hold =
                    Hold { id: event.id, from: event.seq, bytes: bytes.to_vec(), first: *event, since: now, kept: now };
                self.holds.insert(event.key, hold);
            }
        }
        self.attempt(&event.key);
    }

    /// Looks at those that wait.
    fn look(&mut self) {
        for key in self.holds.keys().copied().collect::<Vec<_>>() {
            self.attempt(&key);
        }
    }

    fn attempt(&mut self, key: &FlowKey) {
        let closing = self.inserted.get(key).is_some_and(|(_, token)| token.is_cancelled());
        for _ in 0..ATTEMPTS {
            let Some(hold) = self.holds.get_mut(key) else { return };
            // Two sockets of the same numbers are there until the last insertion's are closed.
            let attempt = if closing { Ok((Attempt::Wait, None)) } else { insert(&self.programs, key, hold) };
            match attempt {
                Ok((Attempt::Inserted, Some(made))) => return self.serve(key, made),
                Ok((Attempt::Wait, _)) => {
                    if hold.since.elapsed() > PATIENCE {
                        let id = hold.id;
                        return self.release(key, id, NotInserted::NeverReady);
                    }
                    if hold.kept.elapsed() > KEEP {
                        hold.kept = Instant::now();
                        let _ = lock(&self.programs).command(key, hold.id, Op::Keep, [0; 4]);
                    }
                    return;
                }
                Ok((Attempt::Over(why), _)) => {
                    let id = hold.id;
                    return self.release(key, id, why);
                }
                Ok((Attempt::Gone, _)) => {
                    self.holds.remove(key);
                    return;
                }
                // The numbers have moved: once more.
                Ok((Attempt::Inserted, None)) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be joined: the app answers");
                    let id = hold.id;
                    return self.release(key, id, NotInserted::Failed);
                }
            }
        }
    }

    /// The app answers.
    fn release(&mut self, key: &FlowKey, id: u32, why: NotInserted) {
        self.holds.remove(key);
        self.shared.metrics.not_inserted(why);
        if tracing::enabled!(tracing::Level::DEBUG) {
            let flow = lock(&self.programs).flow(key);
            tracing::debug!(peer = %caller_of(key), port = key.port, ?why, ?flow, "a held request goes to the app");
        }
        let _ = lock(&self.programs).command(key, id, Op::Release, [u32::from(why == NotInserted::Closing), 0, 0, 0]);
    }

    fn serve(&mut self, key: &FlowKey, made: Made) {
        let Some(hold) = self.holds.remove(key) else { return };
        self.shared.metrics.inserted(hold.since.elapsed());
        let token = CancellationToken::new();
        self.inserted.insert(*key, (hold.id, token.clone()));
        let id = hold.id;
        let steered = Steered {
            shared: self.shared.clone(),
            caller: Socket::inserted(made.caller),
            peer: caller_of(key),
            destination: pod_of(key),
            port: key.port,
            app: Some(Socket::inserted(made.app)),
            position: made.position,
            inserted: Some(Box::new(Inserted::new(
                *key,
                id,
                self.programs.clone(),
                token,
                self.shared.stopping.clone(),
            ))),
        };
        let (open, cut, peer) = (self.shared.metrics.open(), self.cut.clone(), caller_of(key));
        let (key, ended_tx) = (*key, self.ended_tx.clone());
        self.connections.spawn(async move {
            if let Some(Err(end)) = cut.run_until_cancelled(steered.serve()).await {
                tracing::debug!(error = &end as &dyn std::error::Error, %peer, "an inserted connection broke");
            }
            // Fails at the agent's end only, when nobody needs it.
            let _ = ended_tx.send((key, id));
            drop(open);
        });
    }
}

// === impl Hold ===

impl Hold {
    /// The number behind the held bytes.
    fn to(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the kernel holds less than a window")]
        self.from.wrapping_add(self.bytes.len() as u32)
    }
}

/// The two sockets of an insertion, and where the connection is.
struct Made {
    caller: TcpStream,
    app: TcpStream,
    position: Position,
}

/// Tries to join one connection. `Inserted` without sockets where its numbers have moved meanwhile.
fn insert(programs: &SharedPrograms, key: &FlowKey, hold: &Hold) -> io::Result<(Attempt, Option<Made>)> {
    let programs = lock(programs);
    let Some(flow) = programs.flow(key) else { return Ok((Attempt::Gone, None)) };
    if flow.id != hold.id || flow.state != State::Held as u32 {
        return Ok((Attempt::Gone, None));
    }
    let Some((facing_caller, facing_app)) = programs.facing(key.port) else { return Ok((Attempt::Gone, None)) };
    if flow.caller_ack != flow.sent_end || flow.app_ack != hold.from || flow.held_to != hold.to() {
        return Ok((Attempt::Wait, None));
    }
    if flow.flags & FLAG_LAST != 0 {
        return Ok((Attempt::Over(NotInserted::Closing), None));
    }
    let is_open = [Answer::Head, Answer::Chunks].iter().any(|open| *open as u32 == flow.answer);
    if is_open && flow.asked != flow.answered {
        return Ok((Attempt::Wait, None));
    }
    let Some(position) = position(&flow) else { return Ok((Attempt::Over(NotInserted::OpenAnswer), None)) };
    let (caller, pod) = (caller_of(key), pod_of(key));
    let Some(info) = diag::info(pod, caller)? else {
        return Ok((Attempt::Over(NotInserted::NoSocket), None));
    };
    let options = if info.timestamps { 12 } else { 0 };
    let (told, tells) = info.scales;
    let (may_send, allowed) = info.windows;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let now_ms = Duration::from(now).as_millis();
    let age = now_ms.saturating_sub(u128::from(hold.first.at / 1_000_000));
    #[expect(clippy::cast_possible_truncation, reason = "timestamps wrap")]
    let (now_ms, age) = (now_ms as u32, age as u32);
    let facing_caller = End {
        local: SocketAddr::new(pod.ip(), facing_caller),
        peer: caller,
        send: flow.sent_end,
        receive: hold.from,
        mss: info.send_mss + options,
        scales: info.scales,
        selective: info.selective,
        timestamp: info.timestamps.then(|| {
            let known = flow.flags & FLAG_CLOCK != 0;
            let clock = now_ms.wrapping_add(flow.app_clock) & !1;
            let echoed = hold.first.tsecr.wrapping_add(1) & !1;
            let is_behind = clock.wrapping_sub(hold.first.tsecr) > u32::MAX / 2;
            if !known || is_behind { echoed.wrapping_add(2) } else { clock }
        }),
        windows: (hold.first.window << told, allowed),
    };
    let facing_app = End {
        local: SocketAddr::new(pod.ip(), facing_app),
        peer: caller,
        send: hold.from.wrapping_sub(flow.din),
        receive: flow.sent_end.wrapping_sub(flow.dout),
        mss: info.told_mss + options,
        scales: (tells, told),
        selective: info.selective,
        timestamp: info.timestamps.then(|| hold.first.tsval.wrapping_add(age).wrapping_add(1)),
        windows: (allowed, may_send),
    };
    let caller = Repaired::new(&facing_caller)?;
    caller.received(&hold.bytes)?;
    let app = Repaired::new(&facing_app)?;
    let numbers = [flow.sent_end, flow.app_ack, hold.to(), 0];
    match programs.command(key, hold.id, Op::Insert, numbers) {
        Outcome::Done => {}
        Outcome::Moved | Outcome::More => return Ok((Attempt::Inserted, None)),
        _ => return Ok((Attempt::Gone, None)),
    }
    let app = TcpStream::from_std(app.open(false)?.into())?;
    let caller = TcpStream::from_std(caller.open(true)?.into())?;
    Ok((Attempt::Inserted, Some(Made { caller, app, position })))
}

/// Where the connection is, `None` where only its app knows.
fn position(flow: &Flow) -> Option<Position> {
    let (mut owed, mut heads) = (flow.asked.wrapping_sub(flow.answered), flow.heads);
    let mut running = None;
    if flow.answer == Answer::Ending as u32 && owed == 1 {
        // All of it has been sent and acknowledged, and the last of it looked like the end.
        owed = 0;
        heads = 0;
    } else if (flow.answer == Answer::Unknown as u32 || flow.answer == Answer::Ending as u32) && owed > 0 {
        return None;
    } else if flow.answer == Answer::Length as u32 {
        running = Some(u64::from(flow.answer_end.wrapping_sub(flow.sent_end)));
    }
    let behind = flow.next_head.wrapping_sub(flow.held_from);
    Some(Position {
        begun: flow.asked > 0 || flow.flags & FLAG_OLD != 0,
        // Behind the next head nothing is held, so what is ahead of it is a body.
        body: if behind < u32::MAX / 2 { u64::from(behind) } else { 0 },
        owed: (0..owed)
            .map(|n| if heads >> (n & 31) & 1 == 0 { RequestKind::Other } else { RequestKind::Head })
            .collect(),
        running,
    })
}

fn address(words: [u32; 4]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(sluice_ebpf_common::bytes_of(words))).to_canonical()
}

pub(super) fn caller_of(key: &FlowKey) -> SocketAddr {
    SocketAddr::new(address(key.caller), key.caller_port)
}

fn pod_of(key: &FlowKey) -> SocketAddr {
    SocketAddr::new(address(key.pod), key.port)
}
