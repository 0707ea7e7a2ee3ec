//! f01 as packets: a connection that goes from native to inserted and back, twice, as the caller sees it and as the app
//! does.
//!
//! The caller's view is taken at its network device. The app's is what nftables logs in the pod: behind the packet programs
//! on the way in, before them on the way out. At the pod's device, beside the caller's packets, those can be seen that the
//! programs redirect between the agent and the app: the pod sends them to itself.

mod pcap;
mod view;

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use sluice_tests::{
    Host, Process,
    peers::{
        http1::{Http1Caller, request},
        pattern,
    },
};

use self::{pcap::Packet, view::View};
use crate::{HTTP, OURS, SOON, THEIRS, ask, supervised};

/// The group to which nftables logs.
const GROUP: &str = "7";

/// A running tcpdump.
struct Capture {
    process: Process,
    file: PathBuf,
}

// === impl Capture ===

impl Capture {
    /// Everything of TCP that is seen at a device, or in a group of nftables' log.
    async fn start(host: &Host, device: &str, filter: &str) -> Result<Self> {
        let file = host.folder().join(format!("{}-{device}.pcap", host.name()));
        let mut command = Command::new("tcpdump");
        // Each packet at once, as root, and no more of it than its head.
        command.args(["-U", "--immediate-mode", "-Z", "root", "-s", "200", "-i", device, "-w"]).arg(&file).arg(filter);
        let process = host.spawn(command)?;
        process.printed("listening on", SOON).await.context("`tcpdump` (package tcpdump) is needed")?;
        Ok(Self { process, file })
    }

    async fn stop(self) -> Result<Vec<Packet>> {
        self.process.terminate(SOON).await?;
        let said = self.process.output();
        ensure!(said.contains("\n0 packets dropped by kernel"), "the capture is not whole: {said}");
        let file = fs::read(&self.file).with_context(|| format!("reading {}", self.file.display()))?;
        pcap::read(&file).with_context(|| format!("reading {}", self.file.display()))
    }
}

/// Lets nftables log what the app gets and sends, each packet at once.
fn log_the_apps_packets(pod: &Host) -> Result<()> {
    let log = format!("log group {GROUP} snaplen 128 queue-threshold 1");
    let text = format!(
        "table ip view {{\nchain to {{ type filter hook input priority 0\ntcp dport {HTTP} {log}\n}}\n\
         chain from {{ type filter hook output priority 0\ntcp sport {HTTP} {log}\n}}\n}}\n"
    );
    let file = pod.folder().join("view.nft");
    fs::write(&file, text)?;
    pod.tool("nft", &["-f", &file.to_string_lossy()])?;
    Ok(())
}

/// Asks, with a body of many packets, and gets it back.
async fn upload(caller: &mut Http1Caller, (header, by): ((&str, &str), &str)) -> Result<()> {
    let whole = request("POST", "/", &[header], &pattern::body(1, 20_000));
    caller.send(&whole).await?;
    let answer = tokio::time::timeout(SOON, caller.response("POST")).await.context("no answer")??;
    ensure!(answer.answered_by() == Some(by) && answer.request_seen() == whole, "by {:?}", answer.answered_by());
    Ok(())
}

/// Asks for both sides in one packet: what is the app's behind what is the laptop's passes through the agent.
async fn both(caller: &mut Http1Caller) -> Result<()> {
    let turns = [OURS, THEIRS];
    caller.send(&turns.map(|(header, _)| request("GET", "/", &[header], b"")).concat()).await?;
    for (_, by) in turns {
        let answer = tokio::time::timeout(SOON, caller.response("GET")).await.context("no answer")??;
        ensure!(answer.answered_by() == Some(by), "by {:?} instead of {by}", answer.answered_by());
    }
    Ok(())
}

fn v4(address: SocketAddr) -> Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => bail!("{address} instead of an IPv4 address"),
    }
}

fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?)
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f01_both_ends_see_one_connection_without_gap_repetition_or_reset() -> Result<()> {
    let scene = supervised::scene("f01_views").await?;
    let (caller, pod) = (&scene.stage.caller, &scene.stage.pod);
    log_the_apps_packets(pod)?;
    let tcp = format!("tcp and host {}", caller.address());
    let at_caller = Capture::start(caller, scene.stage.to_pod.device(caller)?, &tcp).await?;
    let at_pod = Capture::start(pod, scene.stage.to_pod.device(pod)?, &tcp).await?;
    let at_app = Capture::start(pod, &format!("nflog:{GROUP}"), "").await?;

    let stream = caller.connect(scene.to()).await?;
    let (own, app) = (v4(stream.local_addr()?)?, v4(scene.to())?);
    let mut connection = Http1Caller::over(stream)?;
    let mut marks = Vec::new();
    for round in 0..3 {
        marks.push((now()?, "native".to_owned()));
        ask(&mut connection, THEIRS).await.with_context(|| format!("round {round}"))?;
        upload(&mut connection, THEIRS).await.with_context(|| format!("round {round}"))?;
        let (inserted, returned) = (scene.insertions().await?, scene.look().await?.returned);
        ensure!(
            returned == inserted && returned >= round,
            "round {round}: {inserted} times inserted, {returned} returned"
        );
        if round == 2 {
            break;
        }
        marks.push((now()?, "inserted".to_owned()));
        both(&mut connection).await.with_context(|| format!("round {round}"))?;
        upload(&mut connection, OURS).await.with_context(|| format!("round {round}"))?;
        upload(&mut connection, THEIRS).await.with_context(|| format!("round {round}"))?;
        // The agent leaves when nothing has happened for a moment.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    connection.half_close().await?;
    ensure!(connection.try_response("GET").await?.is_none(), "more than the end");
    scene.ensure_none_let_go_but(&[]).await?;

    let (at_caller, at_pod, at_app) = (at_caller.stop().await?, at_pod.stop().await?, at_app.stop().await?);
    let callers = View::new("the caller's view", &at_caller, own, app);
    let apps = View::new("the app's view", &at_app, own, app);
    eprintln!("{}", view::side_by_side(&callers, &apps, &marks));
    let (caller_saw, app_saw) = (callers.unbroken()?, apps.unbroken()?);
    eprintln!("the caller: {caller_saw:?}, the app: {app_saw:?}");
    let less = |way: usize| caller_saw.bytes[way].checked_sub(app_saw.bytes[way]);
    ensure!(less(0) > Some(40_000) && less(1) > Some(40_000), "the app has seen what the laptop was asked");
    at_the_pods_device(&at_pod, &at_caller, own, app, &marks)?;
    scene.finish()
}

/// That the pod has sent to the caller what the caller has got, from the app's port and from nowhere else, and has sent
/// packets to itself while the agent was in the connection, and only then.
fn at_the_pods_device(
    packets: &[Packet],
    at_caller: &[Packet],
    own: SocketAddrV4,
    app: SocketAddrV4,
    marks: &[(Duration, String)],
) -> Result<()> {
    let of_the_pod = packets.iter().find(|packet| packet.from == app).context("nothing of the app's")?.sender;
    let (to_itself, on_the_wire): (Vec<_>, Vec<_>) =
        packets.iter().partition(|packet| packet.sender == of_the_pod && packet.from.ip() == own.ip());
    let key = |packet: &Packet| (packet.from, packet.to, packet.seq, packet.ack, packet.flags, packet.length);
    let mut sent: Vec<_> = on_the_wire.into_iter().map(key).collect();
    let mut got: Vec<_> = at_caller.iter().map(key).collect();
    sent.sort_unstable();
    got.sort_unstable();
    ensure!(sent == got, "the pod's device has seen {sent:?}\nthe caller's {got:?}");
    let mut counts = Vec::new();
    for (number, (from, mark)) in marks.iter().enumerate() {
        let until = marks.get(number + 1).map_or(Duration::MAX, |(next, _)| *next);
        let count = to_itself.iter().filter(|packet| (*from..until).contains(&packet.at)).count();
        ensure!((count > 0) == (mark == "inserted"), "{mark}, phase {number}: {count} packets between agent and app");
        counts.push((mark, count));
    }
    eprintln!("redirected between the agent and the app: {counts:?}");
    Ok(())
}
