//! The Kubernetes cluster that the user's kubeconfig names.
//!
//! Owns finding and reading the kubeconfig and making a client from it. Errors of the API are put into words by
//! [`explain`]. It reads no resource by itself.

use anyhow::Context as _;
use anyhow::anyhow;
use anyhow::bail;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::Config;
use kube::client::ConfigExt as _;
use kube::config::KubeConfigOptions;
use kube::config::Kubeconfig;
use kube::config::KubeconfigError;
use tower::BoxError;
use tower::ServiceBuilder;

use crate::cli;

mod explain;

pub(crate) use explain::is_not_found;
pub(crate) use explain::is_refusal;

/// A cluster, as the user sees it.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// The kubeconfig's name for it.
    pub(crate) context: String,
    /// Its address.
    url: String,
    /// The namespace that the user asked for, or else the context's.
    pub(crate) namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig. Nothing is sent to the cluster yet.
    pub(crate) async fn connect(options: &cli::Cluster) -> anyhow::Result<Self> {
        let (config, context) = match Kubeconfig::read() {
            Ok(kubeconfig) => from_kubeconfig(kubeconfig, options).await?,
            // In a pod there is no kubeconfig and none is needed.
            Err(error) if is_missing(&error) && options.context.is_none() => match Config::incluster() {
                Ok(config) => (config, "in-cluster".to_owned()),
                Err(_) => bail!("{NO_KUBECONFIG}"),
            },
            Err(error) if is_missing(&error) => bail!("{NO_KUBECONFIG}"),
            Err(error) => {
                return Err(error).context("the kubeconfig cannot be used: check the file that KUBECONFIG names");
            }
        };
        let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let url = config.cluster_url.to_string();
        let url = url.trim_end_matches('/').to_owned();
        let client = prompt_client(config).map_err(|error| {
            let message =
                format!("the kubeconfig's context {context} cannot be used: check its certificates and login");
            anyhow!("{}", explain::chained(&message, &error))
        })?;
        Ok(Self { client, context, url, namespace })
    }
}

/// A client whose connections send at once what there is. The usual one waits for more (RFC 896) until the API server has
/// acknowledged what came before, which it does after up to 40 ms: too long for a tunnel's datagrams in a port-forward.
fn prompt_client(config: Config) -> kube::Result<Client> {
    // Proxies are the usual client's to handle.
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    // Names and certificates are the next connector's to look at.
    tcp.enforce_http(false);
    tcp.set_connect_timeout(config.connect_timeout);
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https));
    Ok(Client::new(service, config.default_namespace))
}

const NO_KUBECONFIG: &str = "no cluster is configured: there is no kubeconfig at $KUBECONFIG or ~/.kube/config. Get one \
                             from whoever runs your cluster, or set KUBECONFIG to where it is";

async fn from_kubeconfig(kubeconfig: Kubeconfig, options: &cli::Cluster) -> anyhow::Result<(Config, String)> {
    let known: Vec<_> = kubeconfig.contexts.iter().map(|context| context.name.clone()).collect();
    let choices = || if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let context = match options.context.clone().or_else(|| kubeconfig.current_context.clone()) {
        Some(context) if !context.is_empty() => context,
        _ => bail!("the kubeconfig names no current context: give --context; it has: {}", choices()),
    };
    if !known.contains(&context) {
        bail!("the kubeconfig has no context {context:?}: give --context; it has: {}", choices());
    }
    let chosen = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &chosen)
        .await
        .with_context(|| format!("the kubeconfig's context {context} cannot be used"))?;
    Ok((config, context))
}

fn is_missing(error: &KubeconfigError) -> bool {
    match error {
        KubeconfigError::ReadConfig(error, _) => error.kind() == std::io::ErrorKind::NotFound,
        KubeconfigError::FindPath => true,
        _ => false,
    }
}
