//! What requests cost that nobody takes: no connection of their own, and nothing left of one.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use sluice_tests::{
    Host, eventually,
    peers::http1::{Http1App, Http1Caller},
};

use super::stage::{LAPTOP, MINE, OTHER, POD, PORT, on, on_stage};

const CALLERS: usize = 4;
const REQUESTS_EACH: usize = 500;

/// `TIME_WAIT` in `/proc/net/tcp`.
const TIME_WAIT: &str = "06";

/// How many connections from or to the app's port are in a state, in the host's namespace.
fn connections(host: &Host, state: &'static str) -> Result<usize> {
    let tables = host.enter(|| {
        // The thread's own view: `/proc/net` is the one of the process.
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")))
    })?;
    let port = format!(":{PORT:04X}");
    let mut count = 0;
    for table in tables {
        for line in table?.lines().skip(1) {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (local, remote) = (fields.next().context("no address")?, fields.next().context("no address")?);
            let of_app = local.ends_with(&port) || remote.ends_with(&port);
            count += usize::from(of_app && fields.next() == Some(state));
        }
    }
    Ok(count)
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b13_requests_that_are_not_taken_open_no_connections() -> Result<()> {
    /// `ESTABLISHED` in `/proc/net/tcp`.
    const ESTABLISHED: &str = "01";
    on_stage("b13", async |stage| {
        let app = Http1App::start(&stage.pod, on(PORT), POD)?;
        let local = Http1App::start(&stage.laptop, on(PORT), LAPTOP)?;
        let mut taken = Http1Caller::connect(&stage.caller, stage.app()).await?;
        let mut callers = Vec::new();
        for _ in 0..CALLERS {
            callers.push(Http1Caller::connect(&stage.caller, stage.app()).await?);
        }
        // The callers', and the agent's with both of its ends.
        let all = 3 * (CALLERS + 1);
        eventually(Duration::from_secs(5), "all connections are there", || async {
            let count = connections(&stage.pod, ESTABLISHED).map_err(|error| error.to_string())?;
            if count == all { Ok(()) } else { Err(format!("{count} instead of {all}")) }
        })
        .await?;
        ensure!(connections(&stage.pod, TIME_WAIT)? == 0);

        let passing = try_join_all(callers.iter_mut().map(async |caller| {
            for _ in 0..REQUESTS_EACH {
                let answer = caller.get("/", &[OTHER]).await?;
                ensure!(answer.answered_by() == Some(POD), "by {:?}", answer.answered_by());
            }
            Ok(())
        }));
        let taking = async {
            for _ in 0..100 {
                ensure!(taken.get("/", &[MINE]).await?.answered_by() == Some(LAPTOP));
            }
            Ok(())
        };
        tokio::try_join!(passing, taking)?;

        ensure!(app.requests().len() == CALLERS * REQUESTS_EACH && local.requests().len() == 100);
        ensure!(app.connections().len() == CALLERS + 1, "{:?}", app.connections());
        ensure!(local.connections().len() == 1, "{:?}", local.connections());
        ensure!(connections(&stage.pod, TIME_WAIT)? == 0, "connections were closed");
        ensure!(connections(&stage.pod, ESTABLISHED)? == all, "connections were opened");

        // One each when the callers have gone, and no more: who closes first keeps it.
        drop((callers, taken));
        eventually(Duration::from_secs(5), "all connections are closed", || async {
            let open = connections(&stage.pod, ESTABLISHED).map_err(|error| error.to_string())?;
            if open == 0 { Ok(()) } else { Err(format!("{open} open")) }
        })
        .await?;
        let left = connections(&stage.pod, TIME_WAIT)?;
        ensure!(left <= CALLERS + 1, "{left} in TIME_WAIT");
        Ok(())
    })
    .await
}
