//! What the kernel keeps of connections whose callers have gone without a word.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use sluice_tests::{eventually, flows::Flows, peers::http1::Http1Caller};
use tokio::sync::Mutex;

use crate::{
    HTTP, OURS, SOON, Scene, THEIRS, ask,
    supervised::{scene, worker_of},
};

/// The agent looks every minute, and believes it the second time.
const FORGOTTEN: Duration = Duration::from_secs(140);

async fn connect(scene: &Scene, turns: &[((&str, &str), &str)]) -> Result<(u16, Http1Caller)> {
    let stream = scene.stage.caller.connect(scene.stage.pod.at(HTTP)).await?;
    let port = stream.local_addr()?.port();
    let mut caller = Http1Caller::over(stream)?;
    for turn in turns {
        ask(&mut caller, *turn).await?;
    }
    Ok((port, caller))
}

fn known(scene: &Scene) -> Result<BTreeSet<u16>> {
    Ok(Flows::of(u32::try_from(worker_of(scene)?.as_raw())?)?.callers)
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn flows_of_which_the_app_has_no_socket_any_more_are_forgotten() -> Result<()> {
    let scene = scene("forgotten").await?;
    let (native, _native) = connect(&scene, &[THEIRS]).await?;
    let (left, caller) = connect(&scene, &[THEIRS, OURS]).await?;
    let caller = Mutex::new(caller);
    eventually(SOON, "the agent has left the connection again", || async {
        ask(&mut *caller.lock().await, THEIRS).await?;
        ensure!(scene.look().await?.returned == 1, "{:?}", scene.look().await?);
        Ok(())
    })
    .await?;
    // Nobody hears of the sockets' end.
    scene.stage.to_pod.unplug()?;
    scene.stage.pod.tool("ss", &["-K", "sport", "=", &format!(":{HTTP}")])?;
    scene.stage.to_pod.plug()?;
    let (stays, mut staying) = connect(&scene, &[THEIRS]).await?;
    ensure!(known(&scene)? == BTreeSet::from([native, left, stays]), "{:?}", known(&scene)?);
    eventually(FORGOTTEN, "only the connection that is there is known", || async {
        ensure!(known(&scene)? == BTreeSet::from([stays]), "{:?}", known(&scene)?);
        Ok(())
    })
    .await?;
    ask(&mut staying, OURS).await?;
    scene.finish()
}
