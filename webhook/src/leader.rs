//! One replica that does what only one may do, by a Lease.
//!
//! Owns the election. A Lease keeps nobody from acting: a replica that was asleep may believe to lead until it looks
//! again. So whatever the leader writes it writes with the version it has read, or by server-side apply, and an old
//! leader does no harm. Whether a lease has run out is judged by this replica's own clock, from when it last saw the
//! lease change, as Kubernetes' own components do: clocks of different machines are never compared.

use std::{future::Future, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use sluice_api::contract::object;
use tokio::{sync::watch, time::Instant};

/// How long a lease is good for after its last renewal.
pub const DURATION: Duration = Duration::from_secs(15);
/// How long a leader that cannot renew goes on.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks.
pub const PERIOD: Duration = Duration::from_secs(2);

/// What a look at the lease leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Create,
    Renew,
    TakeOver,
    Wait,
}

/// What is known about the lease.
#[derive(Debug)]
struct Election {
    identity: String,
    seen: Option<(LeaseSpec, Instant)>,
    renewed: Option<Instant>,
}

/// Takes part in the election until it is dropped, and tells `leads` the outcome. When `stop` is done it steps down, so
/// that the next one need not wait, and ends.
pub async fn run(client: Client, namespace: String, identity: String, leads: watch::Sender<bool>, stop: impl Future) {
    let api = Api::<Lease>::namespaced(client, &namespace);
    let mut election = Election { identity, seen: None, renewed: None };
    let mut stop = std::pin::pin!(stop);
    loop {
        let turn = tokio::time::timeout(DEADLINE / 2, Box::pin(election.turn(&api))).await;
        let failure = match turn {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{:#}", anyhow::Error::new(error))),
            Err(_) => Some("the API server does not answer".to_owned()),
        };
        if let Some(error) = failure {
            tracing::warn!(error, "lease not renewed");
        }
        let now_leads = election.leads(Instant::now());
        if leads.send_if_modified(|leads| std::mem::replace(leads, now_leads) != now_leads) {
            tracing::info!(
                identity = election.identity,
                "{}",
                if now_leads { "leads" } else { "does not lead any more" }
            );
        }
        // Both arms lose nothing when the other is done.
        tokio::select! {
            biased;
            _ = &mut stop => break,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
    if leads.send_replace(false)
        && let Err(error) = Box::pin(election.step_down(&api)).await
    {
        tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "lease not given back");
    }
}

// === impl Election ===

impl Election {
    async fn turn(&mut self, api: &Api<Lease>) -> kube::Result<()> {
        let lease = api.get_opt(object::LEASE).await?;
        let now = Instant::now();
        let spec = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let action = self.judge(spec.as_ref(), now);
        let renewed = |transitions| LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: Some(MicroTime(Timestamp::now())),
            lease_transitions: Some(transitions),
            ..spec.clone().unwrap_or_default()
        };
        let transitions = spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
        let acquired =
            |transitions| LeaseSpec { acquire_time: Some(MicroTime(Timestamp::now())), ..renewed(transitions) };
        let spec = match action {
            Action::Wait => return Ok(()),
            Action::Create => acquired(0),
            Action::Renew => renewed(transitions),
            Action::TakeOver => acquired(transitions.saturating_add(1)),
        };
        let written = match lease {
            None => {
                let metadata = ObjectMeta { name: Some(object::LEASE.to_owned()), ..ObjectMeta::default() };
                api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
            }
            // With the version that was read: of two who try, one succeeds.
            Some(lease) => {
                api.replace(object::LEASE, &PostParams::default(), &Lease { spec: Some(spec), ..lease }).await
            }
        };
        match written {
            Ok(lease) => {
                self.renewed = Some(now);
                self.seen = lease.spec.map(|spec| (spec, now));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What to do about a lease as it was read at `now`.
    fn judge(&mut self, lease: Option<&LeaseSpec>, now: Instant) -> Action {
        let Some(lease) = lease else { return Action::Create };
        let holder = lease.holder_identity.as_deref().unwrap_or_default();
        if holder == self.identity {
            return Action::Renew;
        }
        self.renewed = None;
        if holder.is_empty() {
            return Action::TakeOver;
        }
        match &self.seen {
            Some((seen, since)) if seen == lease => {
                let seconds = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                let duration = seconds.map_or(DURATION, Duration::from_secs);
                if now.duration_since(*since) > duration { Action::TakeOver } else { Action::Wait }
            }
            _ => {
                self.seen = Some((lease.clone(), now));
                Action::Wait
            }
        }
    }

    fn leads(&self, now: Instant) -> bool {
        self.renewed.is_some_and(|renewed| now.duration_since(renewed) < DEADLINE)
    }

    async fn step_down(&self, api: &Api<Lease>) -> kube::Result<()> {
        let Some(mut lease) = api.get_opt(object::LEASE).await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(self.identity.as_str()) {
            spec.holder_identity = Some(String::new());
            api.replace(object::LEASE, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, renewals: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(Timestamp::from_second(renewals).unwrap())),
            ..LeaseSpec::default()
        }
    }

    fn election() -> Election {
        Election { identity: "a".to_owned(), seen: None, renewed: None }
    }

    #[test]
    fn a_lease_that_is_renewed_is_respected_however_old_it_says_it_is() {
        let (mut election, start) = (election(), Instant::now());
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            assert_eq!(election.judge(Some(&lease("b", second.try_into().unwrap())), now), Action::Wait);
        }
    }

    #[test]
    fn a_lease_that_stands_still_is_taken_over() {
        let (mut election, start) = (election(), Instant::now());
        let theirs = lease("b", 0);
        assert_eq!(election.judge(Some(&theirs), start), Action::Wait);
        assert_eq!(election.judge(Some(&theirs), start + DURATION), Action::Wait);
        assert_eq!(election.judge(Some(&theirs), start + DURATION + Duration::from_millis(1)), Action::TakeOver);
    }

    #[test]
    fn a_lease_of_nobody_is_taken_at_once() {
        assert_eq!(election().judge(None, Instant::now()), Action::Create);
        assert_eq!(election().judge(Some(&lease("", 0)), Instant::now()), Action::TakeOver);
    }

    #[test]
    fn who_cannot_renew_ends_before_another_begins() {
        const { assert!(DEADLINE.as_secs() < DURATION.as_secs()) };
        let now = Instant::now();
        let mut election = Election { renewed: Some(now), ..election() };
        assert!(election.leads(now + DEADLINE - Duration::from_millis(1)));
        assert!(!election.leads(now + DEADLINE));
        // And at once when somebody else holds it.
        assert_eq!(election.judge(Some(&lease("b", 0)), now), Action::Wait);
        assert!(!election.leads(now));
    }
}
