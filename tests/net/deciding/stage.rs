//! The stage of these tests: a caller, a pod with agent and app, and the laptop whose client takes what fits the rule.
//!
//! The apps are the tests' own. Names say where they run: what the app of the pod answers was passed on, what the one
//! of the laptop answers was taken.

use std::{
    cell::RefCell,
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{Agent, Client, ClientKey, Host, Lab};

/// The port of the app.
pub(crate) const PORT: u16 = 8080;

/// A second one, for another protocol under the same rule.
pub(crate) const SECOND_PORT: u16 = 9090;

/// Name of the app in the pod.
pub(crate) const POD: &str = "pod";

/// Name of the app on the laptop.
pub(crate) const LAPTOP: &str = "laptop";

/// What a request carries that is to be taken, and the rule that says so.
pub(crate) const MINE: (&str, &str) = ("x-user", "adam");
pub(crate) const MINE_MATCHES: &str = "headers: [{name: x-user, value: adam}]";

/// What the rule does not fit.
pub(crate) const OTHER: (&str, &str) = ("x-user", "eva");

/// For what takes moments, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// A test that is not through by then hangs.
const LIMIT: Duration = Duration::from_secs(40);

/// Hosts and programs.
pub(crate) struct Stage {
    pub(crate) caller: Host,
    pub(crate) pod: Host,
    pub(crate) laptop: Host,
    pub(crate) agent: Agent,
    key: ClientKey,
    matching: RefCell<String>,
    _client: Client,
}

/// Where apps listen.
pub(crate) fn on(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

/// Header and answering app of a request, taken or not.
pub(crate) fn side(taken: bool) -> ((&'static str, &'static str), &'static str) {
    if taken { (MINE, LAPTOP) } else { (OTHER, POD) }
}

/// Sets the stage, runs the test on it and sees to it that nothing is left. `name` must be the test's own.
pub(crate) async fn on_stage<T>(name: &str, test: T) -> Result<()>
where
    T: AsyncFnOnce(&Stage) -> Result<()>,
{
    let lab = Lab::new(name)?;
    let stage = Box::pin(Stage::set(&lab)).await?;
    let done = Box::pin(tokio::time::timeout(LIMIT, test(&stage))).await;
    done.with_context(|| format!("not through within {LIMIT:?}"))??;
    ensure!(stage.agent.process().is_running(), "the agent has ended");
    drop(stage);
    lab.finish()
}

impl Stage {
    async fn set(lab: &Lab) -> Result<Self> {
        let host = |name| lab.host(name).build();
        let (caller, pod, laptop) = (host("caller")?, host(POD)?, host(LAPTOP)?);
        lab.connect(&caller, &pod)?;
        lab.connect(&laptop, &pod)?;
        let key = ClientKey::new(lab, LAPTOP)?;
        let agent = Agent::start(&pod, &rules(&key, MINE_MATCHES)).await?;
        let ports = [PORT, SECOND_PORT].map(|port| port.to_string());
        let client = Client::start(&laptop, &agent, &key, &ports.each_ref().map(String::as_str)).await?;
        let matching = RefCell::new(MINE_MATCHES.to_owned());
        Ok(Self { caller, pod, laptop, agent, key, matching, _client: client })
    }

    /// Gives the agent one rule on both ports with this `match` in place of [`MINE_MATCHES`].
    pub(crate) async fn set_match(&self, matching: &str) -> Result<()> {
        // The same rules again are no new version of them, for which one could wait.
        if self.matching.replace(matching.to_owned()) != matching {
            self.agent.set_rules(&rules(&self.key, matching)).await?;
        }
        Ok(())
    }

    /// Gives the agent such a rule which it must refuse, and returns what it says.
    pub(crate) async fn refused_match(&self, matching: &str) -> Result<String> {
        self.agent.set_bad_rules(&rules(&self.key, matching)).await
    }

    /// Where callers find the app of the pod.
    pub(crate) fn app(&self) -> SocketAddr {
        self.pod.at(PORT)
    }

    /// The same at the second port.
    pub(crate) fn second_app(&self) -> SocketAddr {
        self.pod.at(SECOND_PORT)
    }
}

fn rules(key: &ClientKey, matching: &str) -> String {
    format!(
        "intercepts:\n- name: mine\n  ports: [{{port: {PORT}}}, {{port: {SECOND_PORT}}}]\n  match: {{{matching}}}\n  \
         client: {{keyHash: \"{}\"}}\n",
        key.hash()
    )
}
