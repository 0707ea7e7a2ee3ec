//! Tests of the laboratory's links: what is cut is cut, what is lossy, slow or out of order is so as it was told.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Direction, Host, Lab, Shape, eventually,
    peers::{
        pattern,
        raw::{RawApp, Script},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::harness::{echoed, pair};

const ANY: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7);
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn cut_is_silent_and_heals() -> Result<()> {
    let lab = Lab::new("cut")?;
    let (left, right) = pair(&lab)?;
    let link = lab.connect(&left, &right)?;
    let app = RawApp::start(&right, ANY, Script::echo())?;
    let mut stream = left.connect(right.at(7)).await?;
    echoed(&mut stream, b"before").await?;

    link.cut()?;
    let attempt = left.connect(right.at_v6(7)?);
    ensure!(timeout(Duration::from_millis(300), attempt).await.is_err(), "a SYN has crossed a cut link");
    stream.write_all(b" and during").await?;

    link.heal()?;
    let mut back = [0; 11];
    timeout(SOON, stream.read_exact(&mut back)).await.context("TCP did not repeat what was lost")??;
    ensure!(&back == b" and during");
    ensure!(app.connections()[0].bytes == b"before and during");
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn one_way_can_be_cut() -> Result<()> {
    let lab = Lab::new("one_way")?;
    let (left, right) = pair(&lab)?;
    let link = lab.connect(&left, &right)?;
    let (a, b) = udp_pair(&left, &right).await?;
    link.cut_way(Direction::AToB)?;
    b.send(b"towards a").await?;
    a.send(b"towards b").await?;
    let mut buffer = [0; 16];
    timeout(SOON, a.recv(&mut buffer)).await.context("the other way was cut as well")??;
    ensure!(timeout(Duration::from_millis(200), b.recv(&mut buffer)).await.is_err(), "the way was not cut");
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn an_unplugged_cable_is_noticed_and_can_be_plugged_in_again() -> Result<()> {
    let lab = Lab::new("unplug")?;
    let (left, right) = pair(&lab)?;
    let link = lab.connect(&left, &right)?;
    let _app = RawApp::start(&right, ANY, Script::echo())?;
    link.unplug()?;
    for to in [right.at(7), right.at_v6(7)?] {
        let refused = timeout(SOON, left.connect(to)).await.context("waited for a route")?;
        ensure!(refused.is_err(), "reached {to} without a cable");
    }
    link.plug()?;
    for to in [right.at(7), right.at_v6(7)?] {
        let mut stream = timeout(SOON, left.connect(to)).await??;
        echoed(&mut stream, b"again").await?;
    }
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn loss_takes_the_share_it_is_told_in_each_direction() -> Result<()> {
    const SENT: u32 = 2000;
    let lab = Lab::new("loss")?;
    let (left, right) = pair(&lab)?;
    let link = lab.connect(&left, &right)?;
    link.lose(Direction::AToB, 30)?;
    link.lose(Direction::BToA, 10)?;
    let (a, b) = udp_pair(&left, &right).await?;
    let there = SENT - arrivals(&a, &b, SENT).await?.len_u32();
    let back = SENT - arrivals(&b, &a, SENT).await?.len_u32();
    // More than five standard deviations (20 and 13 packets) in both directions.
    ensure!((500..700).contains(&there), "{there} of {SENT} lost instead of 30 %");
    ensure!((130..270).contains(&back), "{back} of {SENT} lost instead of 10 %");
    link.heal()?;
    ensure!(arrivals(&a, &b, SENT).await?.len_u32() == SENT, "still lossy");
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a_shaped_link_delays() -> Result<()> {
    let lab = Lab::new("delay")?;
    let (left, right) = pair(&lab)?;
    let link = lab.connect_shaped(&left, &right, Shape::new().delay(Duration::from_millis(20)))?;
    let _app = RawApp::start(&right, ANY, Script::echo())?;
    for to in [right.at(7), right.at_v6(7)?] {
        let mut stream = left.connect(to).await?;
        let times = round_trips(&mut stream, 10).await?;
        let (fastest, median) = (times[0], times[5]);
        ensure!(fastest >= Duration::from_millis(40), "{fastest:?} for the way there and back");
        ensure!(median < Duration::from_millis(60), "{median:?} for the way there and back");
    }
    link.shape(Direction::AToB, Shape::new())?;
    let mut stream = left.connect(right.at(7)).await?;
    let median = round_trips(&mut stream, 10).await?[5];
    ensure!((20..35).contains(&median.as_millis()), "{median:?} with a delay in one direction only");
    link.cut()?;
    ensure!(timeout(Duration::from_millis(300), echoed(&mut stream, b"x")).await.is_err(), "not cut");
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a_shaped_link_limits_the_rate() -> Result<()> {
    const RATE: u64 = 10_000_000;
    const BYTES: u64 = 2_500_000;
    let lab = Lab::new("rate")?;
    let (left, right) = pair(&lab)?;
    lab.connect_shaped(&left, &right, Shape::new().rate(RATE))?;
    let listener = right.listen(ANY)?;
    let sender = async {
        let mut stream = left.connect(right.at(7)).await?;
        pattern::send(&mut stream, 1, BYTES).await?;
        anyhow::Ok(stream)
    };
    let receiver = async {
        let (mut stream, _) = listener.accept().await?;
        let begin = Instant::now();
        pattern::check(&mut stream, 1, BYTES).await?;
        anyhow::Ok(begin.elapsed())
    };
    let (_stream, took) = tokio::try_join!(sender, receiver)?;
    // 40 of 1500 bytes are IP and TCP; with timestamps 52.
    let on_the_line = f64::from(u32::try_from(BYTES * 8)?) * 1500.0 / 1448.0;
    let measured = on_the_line / took.as_secs_f64();
    ensure!((8.5e6..11.5e6).contains(&measured), "{measured:.0} bit/s instead of {RATE}");
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a_full_queue_loses_what_does_not_fit() -> Result<()> {
    const SENT: u32 = 400;
    let lab = Lab::new("queue")?;
    let (left, right) = pair(&lab)?;
    // 100 ms worth of queue.
    let link = lab.connect_shaped(&left, &right, Shape::new())?;
    link.shape(Direction::AToB, Shape::new().rate(1_000_000).queue(12_500))?;
    let (a, b) = udp_pair(&left, &right).await?;
    let begin = Instant::now();
    let arrived = arrivals(&a, &b, SENT).await?;
    ensure!(begin.elapsed() < Duration::from_secs(2), "a queue without bounds: {:?}", begin.elapsed());
    ensure!(arrived.len_u32() < SENT / 2, "{} of {SENT} arrived", arrived.len_u32());
    ensure!(!arrived.is_empty() && arrived.is_sorted(), "nothing, or out of order");
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn jitter_spreads_and_reordering_reorders() -> Result<()> {
    const SENT: u32 = 1000;
    let lab = Lab::new("reorder")?;
    let (left, right) = pair(&lab)?;
    let jitter = Shape::new().delay(Duration::from_millis(5)).jitter(Duration::from_millis(10));
    let link = lab.connect_shaped(&left, &right, jitter)?;
    let _app = RawApp::start(&right, ANY, Script::echo())?;
    let times = round_trips(&mut left.connect(right.at(7)).await?, 40).await?;
    ensure!(times[0] >= Duration::from_millis(10), "{:?}: faster than the delay", times[0]);
    ensure!(times[39] - times[0] >= Duration::from_millis(6), "no spread: {:?} to {:?}", times[0], times[39]);

    let (a, b) = udp_pair(&left, &right).await?;
    let arrived = arrivals(&a, &b, SENT).await?;
    ensure!(arrived.len_u32() == SENT && arrived.is_sorted(), "jitter must not lose or reorder");

    link.shape(Direction::AToB, Shape::new().reorder(20, Duration::from_millis(3)))?;
    let arrived = arrivals(&a, &b, SENT).await?;
    let newest = arrived.iter().scan(0, |newest, &number| {
        *newest = number.max(*newest);
        Some(*newest)
    });
    let overtaken = arrived.iter().zip(newest).filter(|&(&number, newest)| number < newest).count();
    ensure!(arrived.len_u32() == SENT, "reordering must not lose");
    ensure!(overtaken > 100, "{overtaken} of {SENT} overtaken with 20 % reordered");

    link.shape(Direction::AToB, Shape::new().loss(50))?;
    let lost = SENT - arrivals(&a, &b, SENT).await?.len_u32();
    ensure!((400..600).contains(&lost), "{lost} of {SENT} lost instead of 50 %");
    lab.finish()
}

/// Two UDP sockets that are connected to each other, with neighbours known: nothing waits for address resolution.
async fn udp_pair(left: &Host, right: &Host) -> Result<(UdpSocket, UdpSocket)> {
    let (a, b) = (left.udp(left.at(0))?, right.udp(right.at(0))?);
    a.connect(b.local_addr()?).await?;
    b.connect(a.local_addr()?).await?;
    let mut buffer = [0; 16];
    eventually(SOON, "both directions work", || async {
        a.send(b"warm").await?;
        timeout(Duration::from_millis(100), b.recv(&mut [0; 16])).await??;
        b.send(b"warm").await?;
        timeout(Duration::from_millis(100), a.recv(&mut [0; 16])).await??;
        anyhow::Ok(())
    })
    .await?;
    while a.try_recv(&mut buffer).is_ok() || b.try_recv(&mut buffer).is_ok() {}
    Ok((a, b))
}

/// Sends numbered packets of 500 bytes, and returns the numbers that arrive in the order in which they do.
async fn arrivals(from: &UdpSocket, to: &UdpSocket, count: u32) -> Result<Vec<u32>> {
    /// The longest pause between two packets that any of the tests' links makes.
    const SILENCE: Duration = Duration::from_millis(300);
    let mut arrived = Vec::new();
    let mut buffer = [0; 500];
    for number in 0..count {
        let mut packet = [0; 500];
        packet[..4].copy_from_slice(&number.to_be_bytes());
        from.send(&packet).await?;
        while to.try_recv(&mut buffer).is_ok() {
            arrived.push(u32::from_be_bytes(buffer[..4].try_into()?));
        }
        tokio::task::yield_now().await;
    }
    while let Ok(received) = timeout(SILENCE, to.recv(&mut buffer)).await {
        received?;
        arrived.push(u32::from_be_bytes(buffer[..4].try_into()?));
    }
    Ok(arrived)
}

/// Round trip times of single bytes, sorted.
async fn round_trips(stream: &mut TcpStream, count: usize) -> Result<Vec<Duration>> {
    stream.set_nodelay(true)?;
    let mut times = Vec::new();
    for _ in 0..count {
        times.push(echoed(stream, b"x").await?);
    }
    times.sort();
    Ok(times)
}

trait LenU32 {
    fn len_u32(&self) -> u32;
}

impl<T> LenU32 for Vec<T> {
    fn len_u32(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}
