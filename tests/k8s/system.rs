//! The control plane as one meets it from outside: its endpoints by HTTPS, its log, its metrics, and putting it back.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use sluice_tests::{
    binaries,
    cluster::{Cluster, Kubectl},
    peers::{http1::Http1Caller, http2::Http2Caller},
};
use tokio::{net::TcpStream, process::Command};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::stage::{Images, SYSTEM, output, text};

/// Port of the Service for admission.
pub(crate) const ADMISSION: u16 = 443;
/// Port of the Service for agents.
pub(crate) const AGENTS: u16 = 8444;
/// Port of the control plane's pods for metrics.
const METRICS: u16 = 8080;
/// The name in its certificate by which API servers and agents call it.
const NAME: &str = "sluice-webhook.sluice-system.svc";

/// kubectl in the control plane's namespace.
pub(crate) fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Kubectl {
    cluster.kubectl(&["--namespace", SYSTEM]).arguments(arguments)
}

/// The authorities that the API server trusts now, in PEM; the same for every webhook of ours.
pub(crate) async fn authorities(cluster: &Cluster) -> Result<String> {
    let found: Value = cluster.kubectl(&["get", "mutatingwebhookconfiguration/sluice"]).json().await?;
    let bundles = found["webhooks"].as_array().context("no webhooks")?.iter();
    let mut bundles = bundles.map(|hook| hook["clientConfig"]["caBundle"].as_str().unwrap_or_default());
    let first = bundles.next().context("no webhook")?;
    ensure!(!first.is_empty() && bundles.all(|other| other == first), "webhooks with different authorities: {found}");
    Ok(String::from_utf8(BASE64_STANDARD.decode(first)?)?)
}

/// Where a port of the control plane's Service is.
pub(crate) async fn address(cluster: &Cluster, port: u16) -> Result<SocketAddr> {
    let service: Value = kubectl(cluster, &["get", "service/sluice-webhook"]).json().await?;
    let address = service["spec"]["clusterIP"].as_str().context("no cluster IP")?;
    Ok(SocketAddr::new(address.parse()?, port))
}

/// A TLS connection to the Service, verified as an API server does that trusts `authorities`.
pub(crate) async fn connect(cluster: &Cluster, to: SocketAddr, authorities: &str) -> Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        roots.add(authority?)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions()?.with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = cluster.connect(to).await?;
    let connector = TlsConnector::from(Arc::new(config));
    Box::pin(connector.connect(ServerName::try_from(NAME)?, stream)).await.context("the TLS handshake")
}

/// The same for requests, with what is trusted at the moment.
pub(crate) async fn caller(cluster: &Cluster, port: u16) -> Result<Http2Caller> {
    let (to, authorities) = (address(cluster, port).await?, authorities(cluster).await?);
    let stream = Box::pin(connect(cluster, to, &authorities)).await?;
    Box::pin(Http2Caller::over(stream)).await
}

/// What all replicas have logged.
pub(crate) async fn log(cluster: &Cluster) -> Result<String> {
    let selector = "--selector=app.kubernetes.io/name=sluice-webhook";
    kubectl(cluster, &["logs", selector, "--tail=-1"]).run().await
}

/// How many agents all replicas have refused for this reason.
pub(crate) async fn refused(cluster: &Cluster, reason: &str) -> Result<u64> {
    let selector = "--selector=app.kubernetes.io/name=sluice-webhook";
    let pods: Value = kubectl(cluster, &["get", "pods", selector]).json().await?;
    let mut sum = 0;
    for pod in pods["items"].as_array().context("no pods")? {
        let address = pod["status"]["podIP"].as_str().context("a replica without address")?;
        let to = SocketAddr::new(address.parse()?, METRICS);
        let response = Http1Caller::over(cluster.connect(to).await?)?.get("/metrics", &[("host", "metrics")]).await?;
        let metrics = String::from_utf8(response.body)?;
        let start = format!("sluice_webhook_agents_refused_total{{reason=\"{reason}\"}} ");
        let Some(count) = metrics.lines().find_map(|line| line.strip_prefix(&start)) else {
            bail!("no counter for {reason}: {metrics}");
        };
        sum += count.parse::<u64>()?;
    }
    Ok(sum)
}

/// `sluice install` or `sluice uninstall`, as the administrator.
pub(crate) async fn administer(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(binaries::find("sluice")?);
    command.args(arguments).env("KUBECONFIG", cluster.kubeconfig()).env("RUST_BACKTRACE", "0");
    let output = output(command).await?;
    ensure!(output.status.success(), "sluice {}: {}", arguments.join(" "), text(&output));
    Ok(text(&output))
}

/// Installs the same images again, for the tests that come after one that has taken the control plane away.
pub(crate) async fn reinstall(cluster: &Cluster, images: &Images) -> Result<()> {
    let images = ["install", "--webhook-image", &images.webhook, "--agent-image", &images.agent];
    administer(cluster, &images).await.map(drop)
}
