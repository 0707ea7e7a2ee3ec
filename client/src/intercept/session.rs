//! One run of `sluice intercept add`, from the creation of the Intercept to its deletion.
//!
//! Owns the order of things and every way in which it can end. The tunnels go on while the API server is away.

use std::pin::Pin;
use std::time::Duration;

use anyhow::anyhow;
use anyhow::bail;
use futures_util::StreamExt as _;
use kube::ResourceExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use sluice::TakenOver;
use sluice_api::Intercept;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fleet::Fleet;
use super::resource::Wanted;
use super::view::State;
use super::view::View;

/// How long a creation that was interrupted may take to come to its end.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// Shortest and longest pause between attempts to watch.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(3);

/// A wait that takes longer than this is explained.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a run that was ready ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The user asked for it.
    Stopped,
    /// The Intercept was deleted: by `sluice intercept remove`, its time to live, or whoever may.
    Deleted,
    /// The same command was started again.
    TakenOver(TakenOver),
    /// It was stopped and the Intercept could not be deleted.
    LeftBehind,
}

/// What ends a run from outside.
pub(crate) struct Stops<'a> {
    /// The user wants it to end.
    pub(crate) stop: Pin<&'a mut (dyn Future<Output = std::io::Result<()>> + 'a)>,
    /// Whoever waits for it to become ready is gone; afterwards nobody waits.
    pub(crate) abandoned: CancellationToken,
    /// When it has to be ready.
    pub(crate) deadline: Instant,
}

/// Creates the Intercept, calls `ready` once it is, and serves it until something ends that. Whatever happens before it is
/// ready deletes the Intercept.
pub(crate) async fn run(
    wanted: &Wanted,
    fleet: Fleet,
    mut stops: Stops<'_>,
    ready: impl FnOnce(&View) -> anyhow::Result<()>,
) -> anyhow::Result<End> {
    let created = Box::pin(create(wanted, &mut stops)).await?;
    let mut serving = Serving { wanted, fleet, uid: created.uid(), latest: created };
    let outcome = Box::pin(serving.serve(stops, ready)).await;
    let Serving { fleet, latest, .. } = serving;
    let is_ours = !matches!(outcome, Ok(End::Deleted | End::TakenOver(_)));
    let (removed, ()) = tokio::join!(
        async { if is_ours { wanted.remove(&latest).await } else { true } },
        // In parallel: from the goodbye on the app answers.
        fleet.stop(),
    );
    match outcome {
        Ok(End::Stopped) if !removed => Ok(End::LeftBehind),
        outcome => outcome,
    }
}

async fn create(wanted: &Wanted, stops: &mut Stops<'_>) -> anyhow::Result<Intercept> {
    let mut creating = Box::pin(wanted.create());
    let why = tokio::select! {
        biased;
        stopped = stops.stop.as_mut() => {
            stopped?;
            anyhow!("stopped before the intercept was ready")
        }
        () = stops.abandoned.cancelled() => anyhow!("stopped before the intercept was ready"),
        () = tokio::time::sleep_until(stops.deadline) => anyhow!("the API server has not created the Intercept in time"),
        created = &mut creating => return created,
    };
    // Under way already, it is better to know how it ended than to cut it.
    match tokio::time::timeout(SETTLE_LIMIT, creating).await {
        Ok(Ok(created)) => _ = wanted.remove(&created).await,
        Ok(Err(_)) => {}
        Err(_) => Box::pin(wanted.clean_up()).await,
    }
    Err(why)
}

/// Pauses between attempts to watch: a pod that comes while the API server is away waits no longer than the last one.
#[derive(Default)]
struct Retry {
    next: Option<Duration>,
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next.unwrap_or(FIRST_RETRY);
        self.next = Some((pause * 2).min(LAST_RETRY));
        Some(pause)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.next = None;
    }
}

struct Serving<'a> {
    wanted: &'a Wanted,
    fleet: Fleet,
    uid: Option<String>,
    /// As last seen.
    latest: Intercept,
}

impl Serving<'_> {
    async fn serve(
        &mut self,
        mut stops: Stops<'_>,
        ready: impl FnOnce(&View) -> anyhow::Result<()>,
    ) -> anyhow::Result<End> {
        let mut events =
            Box::pin(watcher::watch_object(self.wanted.api(), &self.wanted.name()).backoff(Retry::default()));
        let mut progress = tokio::time::interval_at(Instant::now() + PATIENCE, PATIENCE);
        let mut ready = Some(ready);
        let (mut said, mut watching) = (String::new(), true);
        self.follow();
        loop {
            // Adopted, it may be ready at once.
            if let Some(announce) = ready.take() {
                let view = self.view();
                match view.state {
                    State::Ready => announce(&view)?,
                    State::Rejected => bail!("the intercept is not possible: {}", view.message),
                    State::Pending | State::Waiting | State::Terminating => ready = Some(announce),
                }
            }
            tokio::select! {
                biased;
                stopped = stops.stop.as_mut() => {
                    stopped?;
                    match ready {
                        Some(_) => bail!("stopped before the intercept was ready"),
                        None => return Ok(End::Stopped),
                    }
                }
                () = stops.abandoned.cancelled(), if ready.is_some() => bail!("stopped before the intercept was ready"),
                taken_over = self.fleet.taken_over() => return Ok(End::TakenOver(taken_over)),
                // Cancel safe: an event that was not handed out stays in the stream.
                event = events.next() => match event {
                    Some(Ok(Some(intercept))) if intercept.uid() == self.uid => {
                        if !watching {
                            tracing::info!("the API server answers again");
                            watching = true;
                        }
                        self.latest = intercept;
                        self.follow();
                    }
                    Some(Ok(_)) if ready.is_some() => bail!("the Intercept was deleted before it was ready"),
                    Some(Ok(_)) => return Ok(End::Deleted),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "the watch broke");
                        if watching && is_outage(&error) {
                            tracing::warn!("the API server does not answer: intercepting goes on, new pods have to wait");
                            watching = false;
                        }
                    }
                    None => bail!("the watch of the Intercept ended"),
                },
                () = tokio::time::sleep_until(stops.deadline), if ready.is_some() => return Err(self.too_late()),
                _ = progress.tick(), if ready.is_some() => {
                    let view = self.view();
                    if view.message != said {
                        tracing::info!("waiting: {}", view.message);
                        said = view.message;
                    }
                }
            }
        }
    }

    fn follow(&mut self) {
        let pods = self.latest.status.as_ref().map_or(&[][..], |status| &status.pods);
        self.fleet.follow(pods);
    }

    fn view(&self) -> View {
        View::of(&self.latest).with_ways(|uid| self.fleet.way(uid))
    }

    fn too_late(&self) -> anyhow::Error {
        let view = self.view();
        match view.state {
            State::Pending => anyhow!(
                "the control plane has not looked at the intercept in time: see whether it runs with `kubectl -n \
                 sluice-system get pods`, or run `sluice install` to repair it"
            ),
            _ => {
                // One pod's reason is the message already.
                let pods = if view.lists_several() { format!("\n{}", view.pods()) } else { String::new() };
                anyhow!("the intercept has not become ready in time: {}{}", view.message, pods.trim_end())
            }
        }
    }
}

/// What a watch has now and then is none: it begins again by itself.
fn is_outage(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(_) | watcher::Error::WatchStartFailed(_))
}
