//! f10: large bodies through a connection that the agent has joined.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Host, peers,
    peers::{http1::Http1Caller, pattern},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{OURS, Scene, THEIRS, any, play};

const PORT: u16 = 8081;
const SIZE: u64 = 100_000_000;

/// Seeds of what goes to the app and of what comes back.
const UP: u64 = 1;
const DOWN: u64 = 2;

/// Checks what is uploaded and sends as much as it is asked for. It ends when this is dropped.
fn app(host: &Host) -> Result<AbortOnDropHandle<()>> {
    peers::serve(host, any(PORT), |stream, name| async move { serve(stream, &name).await.ok() })
}

async fn serve(stream: TcpStream, name: &str) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut up, mut down) = (0, 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            match line.split_once(": ") {
                Some(("content-length", length)) => up = length.parse()?,
                Some(("x-wanted", length)) => down = length.parse()?,
                _ if line.is_empty() => break,
                _ => {}
            }
        }
        let checked = pattern::check(&mut stream, UP, up).await;
        let status = if checked.is_ok() { "200 OK" } else { "400 Other bytes" };
        let head = format!("HTTP/1.1 {status}\r\nx-answered-by: {name}\r\ncontent-length: {down}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        pattern::send(&mut stream, DOWN, down).await?;
    }
}

/// A request with so much to upload and to download.
async fn exchange(
    stream: &mut BufReader<TcpStream>,
    ((name, value), by): ((&str, &str), &str),
    up: u64,
    down: u64,
) -> Result<()> {
    let head = format!(
        "POST / HTTP/1.1\r\nHost: app.test\r\n{name}: {value}\r\nContent-Length: {up}\r\nX-Wanted: {down}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    pattern::send(stream, UP, up).await?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(stream.read_line(&mut head).await? > 0, "the connection ended in the head {head:?}");
    }
    ensure!(head.starts_with("HTTP/1.1 200"), "{head:?}");
    ensure!(head.to_ascii_lowercase().contains(&format!("x-answered-by: {by}\r\n")), "{head:?} instead of {by}'s");
    pattern::check(stream, DOWN, down).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f10_100_megabytes_each_way_through_an_inserted_connection() -> Result<()> {
    play(Scene::set("f10", &[PORT]).await?, async |scene| {
        let _apps = [app(&scene.stage.pod)?, app(&scene.stage.laptop)?];
        let connect = async || anyhow::Ok(BufReader::new(scene.stage.caller.connect(scene.stage.pod.at(PORT)).await?));
        let timed = async |what: &str, stream: &mut BufReader<TcpStream>, up, down| {
            let begin = Instant::now();
            exchange(stream, THEIRS, up, down).await.with_context(|| what.to_owned())?;
            eprintln!("f10: {what}: {:?}", begin.elapsed());
            anyhow::Ok(())
        };
        let mut native = connect().await?;
        timed("100 MB to the app, native", &mut native, SIZE, 0).await?;
        timed("100 MB from the app, native", &mut native, 0, SIZE).await?;
        ensure!(scene.insertions().await? == 0, "not native");

        let mut inserted = connect().await?;
        exchange(&mut inserted, THEIRS, 10, 10).await?;
        exchange(&mut inserted, OURS, 10, 1_000).await?;
        timed("100 MB to the app, inserted", &mut inserted, SIZE, 0).await?;
        timed("100 MB from the app, inserted", &mut inserted, 0, SIZE).await?;
        exchange(&mut inserted, OURS, 1_000, 10).await?;
        exchange(&mut inserted, THEIRS, 10, 10).await?;
        ensure!(scene.insertions().await? == 1, "{:?}", scene.look().await?);
        scene.ensure_inserted(1).await
    })
    .await
}

/// At the same time, both ways: a protocol of its own, agreed on through the agent.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f10_100_megabytes_both_ways_at_once_behind_an_upgrade() -> Result<()> {
    play(Scene::set("f10_duplex", &[PORT]).await?, async |scene| {
        let listener = scene.stage.pod.listen(any(PORT))?;
        let app = AbortOnDropHandle::new(tokio::spawn(async move {
            let (stream, _) = listener.accept().await?;
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                ensure!(stream.read_line(&mut head).await? > 0, "the connection ended");
            }
            stream.write_all(b"HTTP/1.1 101 Go on\r\nConnection: Upgrade\r\nUpgrade: bulk\r\n\r\n").await?;
            let (mut from, mut to) = tokio::io::split(stream);
            tokio::try_join!(pattern::check(&mut from, UP, SIZE), pattern::send(&mut to, DOWN, SIZE))?;
            to.shutdown().await?;
            anyhow::Ok(())
        }));
        let mut caller = Http1Caller::connect(&scene.stage.caller, scene.stage.pod.at(PORT)).await?;
        let (name, value) = THEIRS.0;
        let head =
            format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\nConnection: Upgrade\r\nUpgrade: bulk\r\n\r\n");
        caller.send(head.as_bytes()).await?;
        ensure!(caller.response("GET").await?.status == 101);
        let begin = Instant::now();
        let (stream, early) = caller.into_parts();
        let (from, mut to) = stream.into_split();
        let mut from = std::io::Cursor::new(early).chain(from);
        tokio::try_join!(pattern::send(&mut to, UP, SIZE), pattern::check(&mut from, DOWN, SIZE))?;
        eprintln!("f10: 100 MB each way at once: {:?}", begin.elapsed());
        app.await??;
        scene.ensure_inserted(1).await
    })
    .await
}
