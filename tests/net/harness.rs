//! Tests of the laboratory itself: what the other tests' results rest on.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Command,
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

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7);
const ANY_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7);
const SOON: Duration = Duration::from_secs(5);

fn pair(lab: &Lab) -> Result<(Host, Host)> {
    Ok((lab.host("left").build()?, lab.host("right").build()?))
}

async fn echoed(stream: &mut TcpStream, text: &[u8]) -> Result<Duration> {
    let begin = Instant::now();
    stream.write_all(text).await?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await?;
    ensure!(back == text, "not what was sent");
    Ok(begin.elapsed())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn hosts_reach_each_other_over_both_families() -> Result<()> {
    let lab = Lab::new("families")?;
    let (left, right) = pair(&lab)?;
    let stranger = lab.host("stranger").v4("10.1.0.2/24").v6("fd01::2/64").build()?;
    lab.connect(&left, &right)?;
    let app = RawApp::start(&right, ANY_V6, Script::echo())?;
    for to in [right.at(7), right.at_v6(7)?] {
        let mut stream = left.connect(to).await?;
        echoed(&mut stream, b"hello").await?;
        ensure!(stream.local_addr()?.ip() == if to.is_ipv4() { left.at(0).ip() } else { left.at_v6(0)?.ip() });
    }
    ensure!(app.connections().len() == 2);
    ensure!(stranger.address() == Ipv4Addr::new(10, 1, 0, 2));
    let error = stranger.connect(right.at(7)).await.err().context("a host without a link has reached another")?;
    ensure!(format!("{error:#}").contains("unreachable"), "{error:#}");
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a_host_keeps_its_address_on_several_links() -> Result<()> {
    let lab = Lab::new("star")?;
    let (left, middle, right) = (lab.host("left").build()?, lab.host("middle").build()?, lab.host("right").build()?);
    let to_left = lab.connect(&middle, &left)?;
    lab.connect(&middle, &right)?;
    let _app = RawApp::start(&middle, ANY_V6, Script::echo())?;
    let mut from_left = left.connect(middle.at(7)).await?;
    let mut from_right = right.connect(middle.at_v6(7)?).await?;
    echoed(&mut from_left, b"left").await?;
    echoed(&mut from_right, b"right").await?;
    to_left.cut()?;
    echoed(&mut from_right, b"still").await?;
    ensure!(timeout(Duration::from_millis(200), echoed(&mut from_left, b"gone")).await.is_err());
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn labs_with_the_same_hosts_run_side_by_side() -> Result<()> {
    let (one, other) = (Lab::new("same_1")?, Lab::new("same_2")?);
    let (left_1, right_1) = pair(&one)?;
    let (left_2, right_2) = pair(&other)?;
    one.connect(&left_1, &right_1)?;
    other.connect(&left_2, &right_2)?;
    ensure!(right_1.at(7) == right_2.at(7));
    let app_1 = RawApp::start(&right_1, ANY, Script::echo())?;
    let app_2 = RawApp::start(&right_2, ANY, Script::echo())?;
    echoed(&mut left_1.connect(right_1.at(7)).await?, b"one").await?;
    other.finish()?;
    echoed(&mut left_1.connect(right_1.at(7)).await?, b"one again").await?;
    ensure!((app_1.connections().len(), app_2.connections().len()) == (2, 0));
    one.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn cut_is_silent_and_heals() -> Result<()> {
    let lab = Lab::new("cut")?;
    let (left, right) = pair(&lab)?;
    let link = lab.connect(&left, &right)?;
    let app = RawApp::start(&right, ANY_V6, Script::echo())?;
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
    let _app = RawApp::start(&right, ANY_V6, Script::echo())?;
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
    let _app = RawApp::start(&right, ANY_V6, Script::echo())?;
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

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn programs_run_inside_and_die_with_their_handle() -> Result<()> {
    let lab = Lab::new("programs")?;
    let (left, _) = pair(&lab)?;
    let mut command = Command::new("sh");
    command.args(["-c", "readlink /proc/self/ns/net; echo $GREETING; echo oops >&2; exec sleep 1000"]);
    command.env("GREETING", "good morning");
    let process = left.spawn(command)?;
    process.printed("oops", SOON).await?;
    let expected = format!("net:[{}]\ngood morning\noops\n", left.namespace_inode());
    ensure!(process.output() == expected, "{:?} instead of {expected:?}", process.output());
    ensure!(process.is_running() && process.rss_kib()? > 0 && process.open_files()? >= 3);
    let proc_folder = format!("/proc/{}", process.pid());
    ensure!(Path::new(&proc_folder).exists());
    drop(process);
    ensure!(!Path::new(&proc_folder).exists(), "still there, or not waited for");

    let mut command = Command::new("sh");
    command.args(["-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done"]);
    let process = left.spawn(command)?;
    process.printed("ready", SOON).await?;
    ensure!(process.terminate(SOON).await?.code() == Some(7));

    let mut command = Command::new("sh");
    command.args(["-c", "echo last words; exit 3"]);
    let process = left.spawn(command)?;
    let error = process.printed("ready", SOON).await.err().context("waited for a line that never came")?;
    ensure!(format!("{error:#}").contains("last words"), "{error:#}");
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn code_runs_inside() -> Result<()> {
    let lab = Lab::new("inside")?;
    let (left, right) = pair(&lab)?;
    lab.connect(&left, &right)?;
    let _app = RawApp::start(&right, ANY, Script::echo())?;
    let to = right.at(7);
    let took = left.run(move || async move { echoed(&mut TcpStream::connect(to).await?, b"inside").await })?.await??;
    ensure!(took < SOON);
    ensure!(left.tool("ip", &["-o", "link"])?.contains("right"), "the link to the other is not shown");

    let endless = left.run(std::future::pending::<()>)?;
    drop(endless);
    let lost = left.enter(|| panic!("inside"));
    ensure!(lost.is_err_and(|error: anyhow::Error| error.to_string().contains("panicked")));
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn an_unfinished_lab_is_taken_down() -> Result<()> {
    let lab = Lab::new("unfinished")?;
    let (left, right) = pair(&lab)?;
    lab.connect_shaped(&left, &right, Shape::new())?;
    let mut command = Command::new("sleep");
    command.arg("1000");
    let process = left.spawn(command)?;
    let gone = [
        left.namespace_path(),
        right.namespace_path(),
        lab.folder().to_owned(),
        format!("/proc/{}", process.pid()).into(),
    ];
    ensure!(gone.iter().all(|path| path.exists()));
    ensure!(Lab::new("unfinished").is_err(), "two labs of one name");
    drop(lab);
    let left_over: Vec<_> = gone.iter().filter(|path| path.exists()).collect();
    ensure!(left_over.is_empty(), "{left_over:?}");
    ensure!(left.connect(right.at(7)).await.is_err_and(|error| format!("{error:#}").contains("finished")));
    Ok(())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn the_guard_sees_what_is_left_in_a_host() -> Result<()> {
    let lab = Lab::new("guard")?;
    let (left, right) = pair(&lab)?;
    let link = lab.connect(&left, &right)?;
    ensure!(left.nothing_left(Duration::ZERO).await.is_err(), "nothing to compare with");
    left.remember_state()?;
    left.nothing_left(SOON).await?;
    link.lose(Direction::BToA, 1)?;
    left.nothing_left(SOON).await.context("the lab's own filters do not count")?;
    let device = link.device(&left)?.to_owned();
    for (make, undo, shown) in [
        (
            vec!["addr", "add", "192.0.2.1/32", "dev", "lo"],
            vec!["addr", "del", "192.0.2.1/32", "dev", "lo"],
            "192.0.2.1",
        ),
        (
            vec!["-6", "route", "add", "local", "fd99::/64", "dev", "lo"],
            vec!["-6", "route", "del", "local", "fd99::/64", "dev", "lo"],
            "fd99::",
        ),
        (vec!["rule", "add", "fwmark", "1", "table", "9"], vec!["rule", "del", "fwmark", "1", "table", "9"], "0x1"),
        (vec!["link", "set", &device, "down"], vec!["link", "set", &device, "up"], &device),
    ] {
        left.tool("ip", &make)?;
        let error = left.nothing_left(Duration::from_millis(100)).await.err().context(format!("{make:?} not seen"))?;
        ensure!(format!("{error:#}").contains(shown), "{error:#}");
        left.tool("ip", &undo)?;
        link.plug()?;
        left.nothing_left(SOON).await?;
    }
    lab.finish()
}

#[tokio::test]
async fn eventually_says_what_it_saw_last() -> Result<()> {
    let mut attempts = 0;
    let found = eventually(SOON, "the third attempt", || {
        attempts += 1;
        std::future::ready((attempts == 3).then_some("found"))
    });
    ensure!(found.await? == "found");

    let never = || async { Err::<(), _>(io::Error::other("not yet")) };
    let error = eventually(Duration::from_millis(50), "an impossibility", never).await.err().context("came true")?;
    let error = error.to_string();
    ensure!(error.contains("an impossibility") && error.contains("not yet") && error.contains(file!()), "{error}");

    let error = eventually(Duration::from_millis(50), "an answer", std::future::pending::<bool>).await;
    ensure!(error.is_err_and(|error| error.to_string().contains("did not end")));
    Ok(())
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
