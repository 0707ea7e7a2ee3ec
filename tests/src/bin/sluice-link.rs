//! `sluice-link`: moves packets between two TUN devices in two namespaces and delays, reorders, limits or loses them.
//!
//! It makes the devices, says `ok`, and then takes orders (a [`ShapeOrder`] in JSON a line) on its standard input; each
//! is confirmed with `ok`. It ends with its standard input, and the devices end with it. Addresses are not its business.

#![forbid(unsafe_code)]

use std::{
    collections::BinaryHeap,
    fs::File,
    io::{BufRead as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::sched::{CloneFlags, setns};
use sluice_tests::{Direction, Shape, ShapeOrder};
use tun_rs::{DeviceBuilder, SyncDevice};

/// What Ethernet carries, so that a connection over this link is cut into the packets it would really have.
const MTU: u16 = 1500;

/// Packets that may be under way in one direction, whatever their delay: a second at 100 Mbit/s and full size.
const MOST_UNDER_WAY: usize = 8192;

#[derive(Parser)]
struct Arguments {
    /// Namespace of the first end.
    #[arg(long)]
    a: PathBuf,
    /// Name of the device that is made there.
    #[arg(long)]
    a_device: String,
    /// Namespace of the second end.
    #[arg(long)]
    b: PathBuf,
    /// Name of the device that is made there.
    #[arg(long)]
    b_device: String,
}

/// A packet under way. Ordered so that the greatest is the one that arrives first.
#[derive(PartialEq, Eq)]
struct Packet {
    arrives: Instant,
    number: u64,
    bytes: Vec<u8>,
}

/// One direction.
struct Way {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    shape: Shape,
    under_way: BinaryHeap<Packet>,
    number: u64,
    /// When the line has sent all that was accepted so far.
    line_free: Instant,
    /// Arrival of the last packet that keeps its place.
    last_arrival: Instant,
    random: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let a = Arc::new(make_device(&arguments.a, &arguments.a_device)?);
    let b = Arc::new(make_device(&arguments.b, &arguments.b_device)?);
    let (a_to_b, b_to_a) = (Way::new(), Way::new());
    start(&a_to_b, &a, &b)?;
    start(&b_to_a, &b, &a)?;
    let mut answers = std::io::stdout();
    writeln!(answers, "ok")?;
    for line in std::io::stdin().lock().lines() {
        let order: ShapeOrder = serde_json::from_str(&line?).context("reading an order")?;
        match order.direction {
            Direction::AToB => a_to_b.lock().shape = order.shape,
            Direction::BToA => b_to_a.lock().shape = order.shape,
        }
        writeln!(answers, "ok")?;
    }
    Ok(())
}

/// A device belongs to the namespace of the thread that makes it, which is why a thread goes there.
fn make_device(namespace: &Path, name: &str) -> Result<SyncDevice> {
    let file = File::open(namespace).with_context(|| format!("opening {}", namespace.display()))?;
    let name = name.to_owned();
    let maker = thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
        let device = DeviceBuilder::new().name(&name).mtu(MTU).enable(false).build_sync();
        device.with_context(|| format!("making the device {name}"))
    });
    maker.join().map_err(|_| anyhow::anyhow!("making a device panicked"))?
}

fn start(way: &Arc<Way>, from: &Arc<SyncDevice>, to: &Arc<SyncDevice>) -> Result<()> {
    let (way_in, from) = (Arc::clone(way), Arc::clone(from));
    thread::Builder::new().name("take".into()).spawn(move || way_in.take(&from))?;
    let (way_out, to) = (Arc::clone(way), Arc::clone(to));
    thread::Builder::new().name("give".into()).spawn(move || way_out.give(&to))?;
    Ok(())
}

// === impl Way ===

impl Way {
    fn new() -> Arc<Self> {
        let now = Instant::now();
        let random = u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let state = State {
            shape: Shape::new(),
            under_way: BinaryHeap::new(),
            number: 0,
            line_free: now,
            last_arrival: now,
            random,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Takes packets from the device that they leave by.
    fn take(&self, from: &SyncDevice) {
        let mut buffer = vec![0; usize::from(MTU)];
        loop {
            match from.recv(&mut buffer) {
                Ok(length) => {
                    if self.lock().accept(&buffer[..length]) {
                        self.changed.notify_one();
                    }
                }
                // The device reads as broken while it is down.
                Err(error) => pause_after(&error),
            }
        }
    }

    /// Gives packets to the device that they arrive by, each at its time.
    fn give(&self, to: &SyncDevice) {
        loop {
            let packet = self.next();
            // A device that is down loses packets, as a cable does.
            let _ = to.send(&packet.bytes);
        }
    }

    fn next(&self) -> Packet {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            match state.under_way.peek().map(|packet| packet.arrives.saturating_duration_since(now)) {
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    if let Some(packet) = state.under_way.pop() {
                        return packet;
                    }
                }
                Some(wait) => {
                    let woken = self.changed.wait_timeout(state, wait);
                    state = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Decides when a packet arrives; false when it is lost.
    fn accept(&mut self, bytes: &[u8]) -> bool {
        let shape = self.shape;
        let now = Instant::now();
        if self.chance(shape.lost()) || self.under_way.len() >= MOST_UNDER_WAY {
            return false;
        }
        let begins = self.line_free.max(now);
        if begins - now > shape.longest_wait() {
            return false;
        }
        self.line_free = begins + shape.line_time(bytes.len());
        let position = self.random_position();
        let on_time = self.line_free + shape.base_delay() + shape.jitter_at(position);
        let (overtaken_percent, overtaken_by) = shape.overtaken();
        let arrives = if self.chance(overtaken_percent) {
            on_time + overtaken_by
        } else {
            // Jitter alone does not change the order.
            self.last_arrival = self.last_arrival.max(on_time);
            self.last_arrival
        };
        self.number += 1;
        self.under_way.push(Packet { arrives, number: self.number, bytes: bytes.to_vec() });
        true
    }

    fn chance(&mut self, percent: u8) -> bool {
        percent > 0 && self.random() % 100 < u64::from(percent)
    }

    /// Between 0 and 1.
    fn random_position(&mut self) -> f64 {
        const STEPS: u32 = 1 << 16;
        f64::from(u32::try_from(self.random() % u64::from(STEPS)).unwrap_or_default()) / f64::from(STEPS)
    }

    /// xorshift64*: good enough to lose packets by.
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

// === impl Packet ===

impl Ord for Packet {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.arrives, other.number).cmp(&(self.arrives, self.number))
    }
}

impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

fn pause_after(error: &std::io::Error) {
    const PAUSE: Duration = Duration::from_millis(5);
    if error.kind() != std::io::ErrorKind::Interrupted {
        thread::sleep(PAUSE);
    }
}
