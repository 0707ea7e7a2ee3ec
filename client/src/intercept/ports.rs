//! What `LOCAL:REMOTE` means for a workload: which port of its pods.
//!
//! Owns the resolution, as pure functions on what was read from the cluster. REMOTE is a Service's port, by name or
//! number, which leads to a container's through `targetPort`; where no Service has it, a container's own port.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU16;

use k8s_openapi::api::core::v1::ContainerPort;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use sluice_api::contract::pod;

mod ask;

pub(crate) use ask::PortAsk;
pub(crate) use ask::Remote;

/// Why a port cannot be intercepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error(
        "the Service {service} does not select the pods of {workload}: give another --service; those that do: {}",
        Choices(choices)
    )]
    OtherService { service: String, workload: String, choices: Vec<String> },
    #[error("port {remote} is UDP, which cannot be intercepted yet")]
    Udp { remote: Remote },
    #[error("{workload} has no port {remote}; it has: {}", Choices(choices))]
    Unknown { remote: Remote, workload: String, choices: Vec<String> },
    #[error("the Service {service} sends port {remote} to the port {target:?}, which no container declares")]
    Dangling { remote: Remote, service: String, target: String },
    #[error(
        "port {remote} means different ports in different Services: give --service with one of: {}",
        Choices(choices)
    )]
    Ambiguous { remote: Remote, choices: Vec<String> },
}

/// What it means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Resolved {
    pub(crate) local: NonZeroU16,
    /// As the app in the pod listens on it.
    pub(crate) container: NonZeroU16,
    /// As the user wrote it.
    pub(crate) remote: Remote,
    /// The Services that lead there, if the port was found through any.
    pub(crate) services: Vec<String>,
}

/// What is looked through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// For people.
    pub(crate) workload: &'a str,
    pub(crate) template: &'a PodTemplateSpec,
    /// All of the namespace.
    pub(crate) services: &'a [Service],
    /// `--service`.
    pub(crate) chosen: Option<&'a str>,
}

/// Resolves one port.
pub(crate) fn resolve(ask: &PortAsk, place: Place<'_>) -> Result<Resolved, ResolveError> {
    let selecting: Vec<&Service> = place.services.iter().filter(|service| selects(service, place.template)).collect();
    let candidates = match place.chosen {
        Some(name) => match selecting.iter().find(|service| service.name_any() == name) {
            Some(service) => vec![*service],
            None => {
                return Err(ResolveError::OtherService {
                    service: name.to_owned(),
                    workload: place.workload.to_owned(),
                    choices: selecting.iter().map(|service| service.name_any()).collect(),
                });
            }
        },
        None => selecting,
    };
    let declared = declared(place.template.spec.as_ref());
    let found = through_services(ask, &candidates, &declared)?;
    let resolved = |container, services| Resolved { local: ask.local, container, remote: ask.remote.clone(), services };
    if let Some((container, services)) = found {
        return Ok(resolved(container, services));
    }
    match in_containers(&ask.remote, &declared)? {
        Some(container) => Ok(resolved(container, Vec::new())),
        None => match &ask.remote {
            // Nothing is known of its ports, so that the user knows best.
            Remote::Number(number) if declared.is_empty() && candidates.is_empty() => Ok(resolved(*number, Vec::new())),
            // A Service may send to a port that no container declares.
            Remote::Number(number) if is_target(*number, &candidates) => Ok(resolved(*number, Vec::new())),
            _ => Err(ResolveError::Unknown {
                remote: ask.remote.clone(),
                workload: place.workload.to_owned(),
                choices: choices(&candidates, &declared),
            }),
        },
    }
}

/// Whether a Service sends to the pods of a template.
fn selects(service: &Service, template: &PodTemplateSpec) -> bool {
    let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    let selector =
        service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|selector| !selector.is_empty());
    selector.is_some_and(|selector| {
        selector
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)).is_some_and(|found| found == value))
    })
}

/// The ports of the app's containers, sidecars included, the agent's not.
fn declared(spec: Option<&PodSpec>) -> Vec<&ContainerPort> {
    let Some(spec) = spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars).filter(|container| container.name != pod::CONTAINER);
    containers.flat_map(|container| container.ports.iter().flatten()).collect()
}

type Found = Option<(NonZeroU16, Vec<String>)>;

fn through_services(ask: &PortAsk, services: &[&Service], declared: &[&ContainerPort]) -> Result<Found, ResolveError> {
    let remote = || ask.remote.clone();
    let mut found: Vec<(NonZeroU16, String)> = Vec::new();
    let mut failed = None;
    for service in services {
        let name = service.name_any();
        let mut fitting =
            service_ports(service).filter(|port| ask.remote.is(port.port, port.name.as_deref())).peekable();
        if fitting.peek().is_none() {
            continue;
        }
        // DNS has the same number twice.
        let Some(port) = fitting.find(|port| is_tcp(port.protocol.as_deref())) else {
            failed = Some(ResolveError::Udp { remote: remote() });
            continue;
        };
        match target(port, declared) {
            Ok(container) => found.push((container, name)),
            Err(target) => failed = Some(ResolveError::Dangling { remote: remote(), service: name, target }),
        }
    }
    let distinct: BTreeSet<_> = found.iter().map(|(container, _)| *container).collect();
    match (distinct.first(), distinct.len(), failed) {
        (None, _, Some(error)) => Err(error),
        (None, _, None) => Ok(None),
        (Some(container), 1, _) => Ok(Some((*container, found.into_iter().map(|(_, name)| name).collect()))),
        _ => Err(ResolveError::Ambiguous {
            remote: remote(),
            choices: found.into_iter().map(|(container, name)| format!("{name} (port {container})")).collect(),
        }),
    }
}

/// The container's port that a Service's port leads to, or the name that leads nowhere.
fn target(port: &ServicePort, declared: &[&ContainerPort]) -> Result<NonZeroU16, String> {
    let (number, name) = match &port.target_port {
        Some(IntOrString::String(name)) => (None, name.clone()),
        Some(IntOrString::Int(number)) if *number != 0 => (as_port(*number), number.to_string()),
        // Left out, or zero as some write it: the same as the Service's.
        _ => (as_port(port.port), port.port.to_string()),
    };
    let named = || declared.iter().find(|port| is_tcp(port.protocol.as_deref()) && port.name.as_ref() == Some(&name));
    number.or_else(|| as_port(named()?.container_port)).ok_or(name)
}

fn in_containers(remote: &Remote, declared: &[&ContainerPort]) -> Result<Option<NonZeroU16>, ResolveError> {
    let mut fitting = declared.iter().filter(|port| remote.is(port.container_port, port.name.as_deref())).peekable();
    let any = fitting.peek().is_some();
    match fitting.find(|port| is_tcp(port.protocol.as_deref())) {
        Some(port) => Ok(as_port(port.container_port)),
        None if any => Err(ResolveError::Udp { remote: remote.clone() }),
        None => Ok(None),
    }
}

fn is_target(number: NonZeroU16, services: &[&Service]) -> bool {
    let target = IntOrString::Int(i32::from(number.get()));
    let tcp =
        services.iter().flat_map(|service| service_ports(service)).filter(|port| is_tcp(port.protocol.as_deref()));
    tcp.into_iter().any(|port| port.target_port.as_ref() == Some(&target))
}

fn choices(services: &[&Service], declared: &[&ContainerPort]) -> Vec<String> {
    let tcp = |protocol: &Option<String>| is_tcp(protocol.as_deref());
    let of_services = services.iter().flat_map(|service| {
        let ports = service_ports(service).filter(|port| tcp(&port.protocol));
        ports.map(|port| format!("{} (Service {})", named(port.port, port.name.as_deref()), service.name_any()))
    });
    let of_containers = declared.iter().filter(|port| tcp(&port.protocol));
    let of_containers =
        of_containers.map(|port| format!("{} (container)", named(port.container_port, port.name.as_deref())));
    of_services.chain(of_containers).collect()
}

fn service_ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    service.spec.iter().flat_map(|spec| spec.ports.iter().flatten())
}

fn named(number: i32, name: Option<&str>) -> String {
    name.map_or_else(|| number.to_string(), |name| format!("{number} or {name}"))
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

fn as_port(number: i32) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}

struct Choices<'a>(&'a [String]);

impl fmt::Display for Choices<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("none") } else { f.write_str(&self.0.join(", ")) }
    }
}

#[cfg(test)]
mod tests;
