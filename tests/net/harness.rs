//! Tests of the laboratory itself: hosts, programs in them, conditions. What the other tests' results rest on.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Host, Lab, eventually,
    peers::raw::{RawApp, Script},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7);
const ANY_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7);
const SOON: Duration = Duration::from_secs(5);

pub(crate) fn pair(lab: &Lab) -> Result<(Host, Host)> {
    Ok((lab.host("left").build()?, lab.host("right").build()?))
}

pub(crate) async fn echoed(stream: &mut TcpStream, text: &[u8]) -> Result<Duration> {
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
