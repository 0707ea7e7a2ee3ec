//! gRPC through a header rule: metadata decides each call of one connection, whatever its kind.

mod endings;
mod moody;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use futures_util::{future::try_join_all, stream};
use sluice_tests::peers::{
    grpc::{GrpcApp, GrpcCaller, Words, with_metadata},
    pattern,
};
use tonic::{Request, Streaming};

use super::stage::{LAPTOP, MINE, OTHER, POD, PORT, on, on_stage, side};

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_metadata_decides_calls_of_all_kinds_on_one_connection() -> Result<()> {
    const ROUNDS: u32 = 20;
    on_stage("b09_kinds", async |stage| {
        let app = GrpcApp::start(&stage.pod, on(PORT), POD)?;
        let local = GrpcApp::start(&stage.laptop, on(PORT), LAPTOP)?;
        let caller = GrpcCaller::connect(&stage.caller, stage.app()).await?;
        let rounds = (0..ROUNDS).flat_map(|round| [(round, false), (round, true)]);
        // All at once: calls of both sides are interleaved on the wire.
        try_join_all(rounds.map(async |(round, taken)| {
            let (mark, expected) = side(taken);
            let number = round.to_string();
            let metadata = [mark, ("x-round", number.as_str())];
            let texts = ["a", number.as_str(), "\u{20ac}"];
            let said = caller.say(&number, &metadata).await?;
            ensure!(said.by == expected && said.text == number, "{said:?}");
            let gathered = caller.gather(&texts, &metadata).await?;
            ensure!(gathered.by == expected && gathered.text == texts.concat() && gathered.number == 3, "{gathered:?}");
            let repeated = caller.repeat(&number, round, &metadata).await?;
            ensure!(repeated.iter().all(|words| words.by == expected && words.text == number), "{repeated:?}");
            ensure!(repeated.iter().map(|words| words.number).eq(0..round), "{repeated:?}");
            let chatted = caller.chat(&texts, &metadata).await?;
            ensure!(chatted.iter().all(|words| words.by == expected), "{chatted:?}");
            ensure!(chatted.iter().map(|words| words.text.as_str()).eq(texts), "{chatted:?}");
            anyhow::Ok(())
        }))
        .await?;
        for (app, mark) in [(&app, OTHER), (&local, MINE)] {
            let calls = app.calls();
            ensure!(calls.len() == 4 * usize::try_from(ROUNDS)?, "{} calls", calls.len());
            let peers: BTreeSet<_> = calls.iter().map(|call| call.peer).collect();
            ensure!(peers.len() == 1 && !peers.contains(&None), "not one connection: {peers:?}");
            for kind in ["Say", "Gather", "Repeat", "Chat"] {
                let of_kind = calls.iter().filter(|call| call.method == kind);
                let rounds: BTreeSet<_> = of_kind.map(|call| call.metadata.get("x-round").cloned()).collect();
                ensure!(rounds.len() == usize::try_from(ROUNDS)?, "{kind}: {rounds:?}");
            }
            ensure!(calls.iter().all(|call| call.metadata.get(mark.0).is_some_and(|value| value == mark.1)));
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_a_conversation_goes_on_while_others_come_and_go() -> Result<()> {
    on_stage("b09_chat", async |stage| {
        let _apps = [GrpcApp::start(&stage.pod, on(PORT), POD)?, GrpcApp::start(&stage.laptop, on(PORT), LAPTOP)?];
        let caller = GrpcCaller::connect(&stage.caller, stage.app()).await?;
        let mut talks = Vec::new();
        for taken in [false, true, true, false] {
            let (words_tx, words_rx) = tokio::sync::mpsc::channel(1);
            let words = stream::unfold(words_rx, |mut rx| async move { Some((rx.recv().await?, rx)) });
            let request = with_metadata(Request::new(words), &[side(taken).0])?;
            let mut client = caller.client();
            let answers = tokio::spawn(async move { client.chat(request).await });
            talks.push((words_tx, answers, None::<Streaming<Words>>, taken));
        }
        for number in 0..50 {
            for (words_tx, opening, answers, taken) in &mut talks {
                words_tx.send(Words::said("ping", number)).await?;
                let answers = match answers {
                    Some(answers) => answers,
                    None => answers.insert(opening.await??.into_inner()),
                };
                let heard = answers.message().await?.context("the conversation has ended")?;
                ensure!(heard.number == number && heard.by == side(*taken).1, "{heard:?}");
            }
            let taken = number % 2 == 0;
            let said = caller.say("meanwhile", &[side(taken).0]).await?;
            ensure!(said.by == side(taken).1, "{said:?}");
        }
        for (words_tx, _, answers, _) in &mut talks {
            // Replaced, so that the app sees the end of this direction.
            drop(std::mem::replace(words_tx, tokio::sync::mpsc::channel(1).0));
            ensure!(answers.as_mut().context("no answers")?.message().await?.is_none(), "an answer to nothing");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_big_messages_go_through_all_windows() -> Result<()> {
    on_stage("b09_big", async |stage| {
        let _apps = [GrpcApp::start(&stage.pod, on(PORT), POD)?, GrpcApp::start(&stage.laptop, on(PORT), LAPTOP)?];
        let caller = GrpcCaller::connect(&stage.caller, stage.app()).await?;
        let text = |seed, length| {
            let bytes = pattern::body(seed, length);
            bytes.into_iter().map(|byte| char::from(byte & 0x7f)).collect::<String>()
        };
        // More than every window on the way, and below what gRPC takes by default.
        let big = text(5, 3_000_000);
        let parts = [text(6, 400_000), text(7, 300_000), text(8, 700_000)];
        let parts = parts.each_ref().map(String::as_str);
        let calls = [false, true, false, true].into_iter().map(async |taken| {
            let (mark, expected) = side(taken);
            let said = caller.say(&big, &[mark]).await?;
            ensure!(said.by == expected && said.text == big, "{} bytes by {}", said.text.len(), said.by);
            let gathered = caller.gather(&parts, &[mark]).await?;
            ensure!(gathered.by == expected && gathered.text == parts.concat(), "{} bytes", gathered.text.len());
            let repeated = caller.repeat(parts[0], 4, &[mark]).await?;
            ensure!(repeated.len() == 4 && repeated.iter().all(|words| words.by == expected && words.text == parts[0]));
            let chatted = caller.chat(&parts, &[mark]).await?;
            ensure!(chatted.iter().map(|words| words.text.as_str()).eq(parts), "{} answers", chatted.len());
            ensure!(chatted.iter().all(|words| words.by == expected));
            Ok(())
        });
        try_join_all(calls).await?;
        Ok(())
    })
    .await
}
