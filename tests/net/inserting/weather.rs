//! f05: networks and callers of every kind. Every answer is checked, byte by byte.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use sluice_tests::{
    Direction, Host,
    peers::{
        http1::{Http1App, request},
        pattern,
    },
    stage::{MATCHING, OTHER},
};

use crate::{
    OURS, Scene, THEIRS, any, ask,
    callers::{Load, call},
    play,
    programs::{PORT, echo},
    supervised,
};

const LOAD: Load = Load { requests: 600, callers: 12, fits_once_in: 4, at_once: 1 };

/// A scene with apps that send back what they get, the load on it, and whether the agent was inserted into all of that.
async fn under(name: &str, prepare: impl AsyncFnOnce(&Scene) -> Result<SocketAddr>) -> Result<()> {
    play(Scene::set(name, &[PORT]).await?, async |scene| {
        let (stage, to) = (&scene.stage, prepare(scene).await?);
        let _app = Http1App::with(&stage.pod, any(PORT), "pod", echo)?;
        let local = Http1App::with(&stage.laptop, any(PORT), "laptop", echo)?;
        let taken = Box::pin(call(&stage.caller, to, &LOAD)).await?;
        ensure!(local.requests().len() == taken, "{} requests at the laptop, {taken} fit", local.requests().len());
        let look = scene.look().await?;
        ensure!(look.steered == 0, "steered: {look:?}");
        scene.ensure_inserted(u64::try_from(LOAD.callers)?).await
    })
    .await
}

/// Sets kernel parameters of a host, by their path below `/proc/sys/net`.
fn set(host: &Host, parameters: &'static [(&'static str, &'static str)]) -> Result<()> {
    host.enter(move || {
        for (name, value) in parameters {
            let path = format!("/proc/sys/net/{name}");
            fs::write(&path, value).with_context(|| format!("writing {path}"))?;
        }
        Ok(())
    })?
}

/// A request gets lost between the packet programs and the app, and comes again in one packet with the next one, which fits.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_what_the_app_lacks_and_comes_again_with_a_request_is_given_to_it() -> Result<()> {
    play(Scene::set("f05_lacks", &[]).await?, async |scene| {
        let mut caller = scene.connect().await?;
        ask(&mut caller, THEIRS).await?;
        // Packets are lost behind the programs: they have seen it.
        scene.stage.to_pod.cut_way(Direction::AToB)?;
        caller.send(&request("GET", "/first", &[THEIRS.0], b"")).await?;
        scene.stage.to_pod.heal()?;
        caller.send(&request("GET", "/second", &[OURS.0], b"")).await?;
        for by in ["pod", "laptop"] {
            let answer = caller.response("GET").await?;
            ensure!(answer.answered_by() == Some(by), "by {:?}, not by {by}", answer.answered_by());
        }
        scene.ensure_inserted(1).await
    })
    .await
}

/// The same, and the caller repeats it by itself, later than a request is held that waits for what is before it.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_what_the_app_lacks_for_seconds_lets_no_request_go() -> Result<()> {
    play(supervised::scene("f05_lacks_long").await?, async |scene| {
        let mut caller = scene.connect().await?;
        ask(&mut caller, THEIRS).await?;
        scene.stage.to_pod.cut_way(Direction::AToB)?;
        caller.send(&request("GET", "/first", &[THEIRS.0], b"")).await?;
        caller.send(&request("POST", "/second", &[OURS.0], &[b'x'; 20_000])).await?;
        // Whatever becomes of them meanwhile, it becomes with what is lost.
        tokio::time::sleep(Duration::from_secs(5)).await;
        scene.stage.to_pod.heal()?;
        for by in ["pod", "laptop"] {
            let answer = caller.response("GET").await?;
            ensure!(answer.answered_by() == Some(by), "by {:?}, not by {by}", answer.answered_by());
        }
        scene.ensure_inserted(1).await?;
        // And it goes back, with what it has been sent twice.
        while scene.look().await?.returned == 0 {
            ask(&mut caller, THEIRS).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_fine_weather() -> Result<()> {
    under("f05_fine", async |scene| Ok(scene.stage.pod.at(PORT))).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_ipv6() -> Result<()> {
    under("f05_v6", async |scene| scene.stage.pod.at_v6(PORT)).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_a_caller_without_timestamps() -> Result<()> {
    under("f05_ts", async |scene| {
        set(&scene.stage.caller, &[("ipv4/tcp_timestamps", "0")])?;
        Ok(scene.stage.pod.at(PORT))
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_a_caller_without_sack() -> Result<()> {
    under("f05_sack", async |scene| {
        set(&scene.stage.caller, &[("ipv4/tcp_sack", "0")])?;
        Ok(scene.stage.pod.at(PORT))
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_a_caller_without_any_option() -> Result<()> {
    under("f05_plain", async |scene| {
        let off = [("ipv4/tcp_timestamps", "0"), ("ipv4/tcp_sack", "0"), ("ipv4/tcp_window_scaling", "0")].as_slice();
        set(&scene.stage.caller, off)?;
        Ok(scene.stage.pod.at(PORT))
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_a_caller_with_a_small_receive_buffer() -> Result<()> {
    under("f05_small", async |scene| {
        set(&scene.stage.caller, &[("ipv4/tcp_rmem", "4096 8192 8192")])?;
        Ok(scene.stage.pod.at(PORT))
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_an_app_with_a_small_receive_buffer() -> Result<()> {
    under("f05_small_app", async |scene| {
        set(&scene.stage.pod, &[("ipv4/tcp_rmem", "4096 8192 8192")])?;
        Ok(scene.stage.pod.at(PORT))
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_small_packets() -> Result<()> {
    under("f05_mtu", async |scene| {
        for host in [&scene.stage.caller, &scene.stage.pod] {
            host.tool("ip", &["link", "set", "dev", scene.stage.to_pod.device(host)?, "mtu", "1280"])?;
            host.tool("ip", &["link", "set", "dev", scene.stage.to_pod.device(host)?, "gso_max_segs", "1"])?;
        }
        Ok(scene.stage.pod.at(PORT))
    })
    .await
}

/// Lost behind the packet programs of the pod, and on the way from them to the caller.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_five_percent_of_the_packets_lost_at_the_devices() -> Result<()> {
    under("f05_loss", async |scene| {
        for direction in [Direction::AToB, Direction::BToA] {
            scene.stage.to_pod.lose(direction, 5)?;
        }
        Ok(scene.stage.pod.at(PORT))
    })
    .await
}

/// Lost before the packet programs see them.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_five_percent_of_the_packets_lost_on_the_way() -> Result<()> {
    under("f05_way", async |scene| {
        let stage = &scene.stage;
        let router = stage.lab.host("router").build()?;
        set(&router, &[("ipv4/ip_forward", "1")])?;
        let lossy =
            "table ip way {\nchain on { type filter hook forward priority 0; numgen random mod 100 < 5 drop\n}\n}\n";
        let file = stage.lab.folder().join("way.nft");
        fs::write(&file, lossy)?;
        router.tool("nft", &["-f", &file.to_string_lossy()])?;
        for (host, other) in [(&stage.caller, &stage.pod), (&stage.pod, &stage.caller)] {
            let link = stage.lab.connect(host, &router)?;
            let (device, via, own) = (link.device(host)?, router.address().to_string(), host.address().to_string());
            host.tool("ip", &["link", "set", "dev", device, "gso_max_segs", "1"])?;
            host.tool(
                "ip",
                &["route", "replace", &other.address().to_string(), "via", &via, "dev", device, "src", &own],
            )?;
        }
        // The agent looks for devices when rules come.
        let rules = fs::read_to_string(scene.agent.rules_file())?;
        scene.agent.set_rules(&rules.replace("mine", "others")).await?;
        Ok(stage.pod.at(PORT))
    })
    .await
}

/// As a mesh's proxy calls: nothing that the packet programs see. Such connections pass through the agent.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_callers_inside_the_pod() -> Result<()> {
    play(Scene::set("f05_lo", &[PORT]).await?, async |scene| {
        let pod = &scene.stage.pod;
        let _app = Http1App::with(pod, any(PORT), "pod", echo)?;
        let local = Http1App::with(&scene.stage.laptop, any(PORT), "laptop", echo)?;
        let mut taken = 0;
        for to in [(Ipv4Addr::LOCALHOST, PORT).into(), pod.at(PORT), pod.at_v6(PORT)?] {
            taken += Box::pin(call(pod, to, &LOAD)).await.with_context(|| format!("to {to}"))?;
        }
        ensure!(local.requests().len() == taken, "{} requests at the laptop, {taken} fit", local.requests().len());
        let look = scene.look().await?;
        ensure!(look.steered >= 3 * u64::try_from(LOAD.callers)? && look.held == 0, "{look:?}");
        // Who comes from outside still meets the app.
        let mut caller = scene.connect().await?;
        ask(&mut caller, THEIRS).await?;
        ensure!(scene.look().await?.passed == look.passed + 1, "passed");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_two_hundred_connections_are_joined_at_once() -> Result<()> {
    const CALLERS: usize = 200;
    play(Scene::set("f05_many", &[]).await?, async |scene| {
        let mut callers = try_join_all((0..CALLERS).map(async |_| {
            let mut caller = scene.connect().await?;
            ask(&mut caller, THEIRS).await?;
            anyhow::Ok(caller)
        }))
        .await?;
        ensure!(scene.insertions().await? == 0, "not native");
        for turn in [OURS, THEIRS, OURS, THEIRS] {
            let all = callers.iter_mut().enumerate().map(async |(number, caller)| {
                ask(caller, turn).await.with_context(|| format!("{}, connection {number}", turn.1))
            });
            try_join_all(all).await?;
        }
        ensure!(scene.insertions().await? == 200, "{:?}", scene.look().await?);
        ensure!(scene.app.connections().len() == CALLERS, "the app has seen other connections");
        scene.ensure_inserted(200).await
    })
    .await
}

/// Bodies of many packets, which come as few large ones, of either side and in either order.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_bodies_of_200_kb() -> Result<()> {
    const SIZE: u64 = 200_000;
    play(Scene::set("f05_gso", &[]).await?, async |scene| {
        for first in [MATCHING, OTHER] {
            let mut caller = scene.connect().await?;
            for round in 0..40 {
                let header = if (round % 3 == 0) == (first == MATCHING) { MATCHING } else { OTHER };
                let by = if header == MATCHING { "laptop" } else { "pod" };
                let whole = request("POST", "/", &[header], &pattern::body(round, SIZE));
                caller.send(&whole).await?;
                let answer = caller.response("POST").await.with_context(|| format!("round {round}"))?;
                ensure!(answer.answered_by() == Some(by), "round {round}: by {:?}", answer.answered_by());
                ensure!(answer.request_seen() == whole, "round {round}: other bytes");
            }
        }
        scene.ensure_inserted(2).await
    })
    .await
}
