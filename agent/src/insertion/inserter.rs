//! Reads what the kernel tells of held connections, and inserts the agent into them.
//!
//! One task. A held connection is looked at when the kernel tells of it, and again after a moment as long as it is not
//! ready: what was sent must be acknowledged on both sides before two sockets can take over. Bounded: so many at once, so
//! many bytes, so long; what goes beyond is let go, counted, and answered by the app.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use aya::maps::{MapData, RingBuf};
use sluice_ebpf_common::insertion::{Event, EventKind, FlowKey, Op};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Inserted, SharedPrograms, copies,
    joining::{Attempt, Hold, Made, Ready, Wait, caller_of, insert, pod_of},
    lock,
    sweep::Sweep,
};
use crate::{
    connection::{Shared, Steered},
    metrics::NotInserted,
    socket::Socket,
};

/// Most connections that wait for their insertion at once.
const MAX_HOLDS: usize = 4096;
/// How often the held ones are looked at that the kernel has not told of.
const LOOK: Duration = Duration::from_millis(5);
/// How often the kernel, which lets go after a second, is told that somebody works on it.
const KEEP: Duration = Duration::from_millis(300);
/// How long the app may go on to send while a connection is held for the agent. It would never stand still if the app had
/// more to send than the caller's window takes.
const STREAMING: Duration = Duration::from_millis(3);
/// How long a flow is remembered after its end: as long as packets of it may come (2 × MSL of Linux, and more).
const AFTERWARDS: Duration = Duration::from_secs(90);
/// Attempts at once, when the numbers move between the reading of them and the insertion.
const ATTEMPTS: u32 = 3;

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
    ready: Ready,
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
    let mut sweep = Sweep::new(programs.clone());
    let ready = Ready::new();
    let mut inserter = Inserter { programs, shared, connections, cut, holds, inserted, ended_tx, ready };
    let mut afterwards = std::collections::VecDeque::<(Instant, FlowKey, u32)>::new();
    loop {
        let look = if inserter.holds.is_empty() { None } else { Some(Instant::now() + LOOK) };
        let forget = afterwards.front().map(|(at, ..)| *at);
        let next = [look, forget, inserter.ready.stock.due()].into_iter().flatten().min();
        // Cancel safe: events stay in the ring, ends in their channel.
        tokio::select! {
            biased;
            ready = events.readable_mut() => match ready {
                Ok(mut ready) => {
                    while let Some(record) = ready.get_inner_mut().next() {
                        if let Some((event, bytes)) = Event::from_bytes(&record) {
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
            swept = sweep.run() => {
                if let Err(error) = swept {
                    tracing::warn!(error = &error as &dyn std::error::Error, "flows whose callers have gone are not forgotten");
                }
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
        inserter.look();
        inserter.ready.stock.look();
        while let Some(&(at, key, id)) = afterwards.front()
            && at <= Instant::now()
        {
            afterwards.pop_front();
            let _ = lock(&inserter.programs).command(&key, id, Op::Remove, &[]);
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
        } else if event.kind == EventKind::Copied as u32 {
            copies::deliver(&self.shared, &event.key, bytes);
        } else if event.kind == EventKind::Progress as u32 {
            self.attempt(&event.key);
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
        if !self.holds.get_mut(&event.key).is_some_and(|hold| hold.add(event, bytes)) {
            if self.holds.len() >= MAX_HOLDS {
                return self.release(&event.key, event.id, NotInserted::Busy);
            }
            self.holds.insert(event.key, Hold::new(event, bytes));
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
            let id = hold.id;
            let attempt = if closing {
                Ok(Attempt::Wait(Wait::Closing))
            } else {
                insert(&self.programs, key, hold, &mut self.ready)
            };
            match attempt {
                Ok(Attempt::Inserted(made)) => return self.serve(key, made),
                Ok(Attempt::Wait(wait)) if hold.may_wait_for(wait) => return keep(&self.programs, key, hold, wait),
                Ok(Attempt::Wait(_)) => return self.release(key, id, NotInserted::NeverReady),
                Ok(Attempt::Over(why)) => return self.release(key, id, why),
                Ok(Attempt::Gone) => {
                    self.holds.remove(key);
                    return;
                }
                // Once more.
                Ok(Attempt::Moved) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be joined: the app answers");
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
        let _ = lock(&self.programs).command(key, id, Op::Release, &[u32::from(why == NotInserted::Closing)]);
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
                made.timed,
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

/// Holds on. An app that does not stop sending is stopped; one that has been stopped within a line is let on until it has sent
/// more. It repeats what was kept back only after a while, which doubles.
fn keep(programs: &SharedPrograms, key: &FlowKey, hold: &mut Hold, wait: Wait) {
    let streams = hold.since.elapsed() > STREAMING;
    let op = match wait {
        Wait::Answer(end) if streams && !hold.blocked && hold.let_on != Some(end) => Op::Block,
        Wait::Line(end) if hold.blocked => {
            hold.let_on = Some(end);
            Op::Unblock
        }
        _ if hold.kept.elapsed() > KEEP => Op::Keep,
        _ => return,
    };
    hold.kept = Instant::now();
    hold.blocked = (hold.blocked || op == Op::Block) && op != Op::Unblock;
    let _ = lock(programs).command(key, hold.id, op, &[]);
}
