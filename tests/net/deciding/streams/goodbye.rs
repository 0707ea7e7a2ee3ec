//! A server says goodbye (GOAWAY): what was begun ends well, and what comes next finds its way.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use h2::Reason;
use sluice_tests::{
    eventually,
    peers::{ANSWERED_BY, http2::Http2Caller},
};
use tokio::time::timeout;

use super::{Apps, answered, connect, echo, open};
use crate::stage::{SOON, on_stage, side};

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_an_app_that_says_goodbye_loses_nothing() -> Result<()> {
    on_stage("b09_goaway", async |stage| {
        let apps = Apps::start(stage)?;
        let mut caller = connect(stage).await?;
        let begun = [false, true].map(async |taken| {
            let (answer, _) = open(&caller, taken, "/wait", true).await?;
            apps.of(taken).has("/wait").await?;
            anyhow::Ok((answer, taken))
        });
        let begun = try_join_all(begun).await?;

        // The laptop's process goes first: the caller has nothing to do with that.
        apps.laptop.say_goodbye();
        for number in 0..20 {
            for taken in [true, false] {
                echo(&caller, taken, &format!("/laptop/{number}"), &Bytes::from_static(b"x")).await?;
            }
        }
        eventually(SOON, "the laptop's process has a new connection", || async { apps.laptop.connections() == 2 })
            .await
            .context("or nobody has noticed its goodbye")?;

        // The app's goodbye is passed on at once, though a request is open whose answer takes long.
        apps.pod.say_goodbye();
        let mut number = 0;
        eventually(SOON, "the caller is told to come again", || {
            number += 1;
            let caller = &caller;
            async move {
                match once(caller, false, &format!("/told/{number}")).await {
                    Ok(Told::Gone) => Ok(Ok(())),
                    Ok(Told::Answered | Told::Refused) => Err("it may go on"),
                    Err(lost) => Ok(Err(lost)),
                }
            }
        })
        .await??;
        let old = std::mem::replace(&mut caller, connect(stage).await?);
        for taken in [true, false] {
            echo(&caller, taken, "/again", &Bytes::from_static(b"x")).await?;
        }
        ensure!(apps.pod.connections() == 2);

        // Whatever was begun ends well.
        apps.pod.release();
        apps.laptop.release();
        for (answer, taken) in begun {
            drop(answered(answer, taken).await?);
        }
        drop(old);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_each_request_is_served_once_while_apps_come_and_go() -> Result<()> {
    const REQUESTS: usize = 300;
    on_stage("b09_goaways", async |stage| {
        let apps = Apps::start(stage)?;
        let mut caller = connect(stage).await?;
        let mut connections = 1;
        for number in 0..REQUESTS {
            match number % 40 {
                10 => apps.pod.say_goodbye(),
                30 => apps.laptop.say_goodbye(),
                _ => {}
            }
            let (taken, path) = (number % 2 == 0, format!("/{number}"));
            while once(&caller, taken, &path).await? != Told::Answered {
                connections += 1;
                ensure!(connections < 50, "told to come again each time");
                caller = connect(stage).await?;
            }
            ensure!(apps.of(taken).seen(&path).times == 1, "{path}: {:?}", apps.of(taken).seen(&path));
            ensure!(apps.of(!taken).seen(&path).times == 0, "{path} went to the other side as well");
        }
        ensure!(apps.pod.connections() > 3 && apps.laptop.connections() > 3, "the goodbyes were not noticed");
        Ok(())
    })
    .await
}

/// What a caller learns of a request.
#[derive(PartialEq, Eq)]
enum Told {
    /// It was answered, by the right side.
    Answered,
    /// Nobody has looked at it: it may try again.
    Refused,
    /// The same, and so it will be with all others on this connection.
    Gone,
}

async fn once(caller: &Http2Caller, taken: bool, path: &str) -> Result<Told> {
    let gone = |error: &h2::Error| error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    let (answer, _) = match open(caller, taken, path, true).await {
        Ok(opened) => opened,
        Err(error) if error.downcast_ref().is_some_and(gone) => return Ok(Told::Gone),
        Err(error) => return Err(error),
    };
    match timeout(SOON, answer).await.with_context(|| format!("{path}: no answer"))? {
        Ok(response) => {
            let by = response.headers().get(ANSWERED_BY);
            ensure!(by.is_some_and(|by| by == side(taken).1), "{path}: answered by {by:?}: {response:?}");
            Ok(Told::Answered)
        }
        Err(error) if error.reason() == Some(Reason::REFUSED_STREAM) => Ok(Told::Refused),
        Err(error) if gone(&error) => Ok(Told::Gone),
        Err(error) => bail!("{path}: lost: {error}"),
    }
}
