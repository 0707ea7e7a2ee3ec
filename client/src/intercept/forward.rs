//! The way to an agent by a Kubernetes port-forward to its pod, which takes no more than the kubeconfig.

use std::fmt;
use std::io;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::Client;
use sluice::ByteStream;
use sluice::Forward;
use sluice::Opening;
use sluice_protocol::DEFAULT_TUNNEL_PORT;

/// Port-forwards to one pod.
pub(crate) struct PodForward {
    pods: Api<Pod>,
    namespace: String,
    pod: String,
}

impl PodForward {
    pub(crate) fn new(client: Client, namespace: &str, pod: &str) -> Self {
        Self { pods: Api::namespaced(client, namespace), namespace: namespace.to_owned(), pod: pod.to_owned() }
    }
}

impl Forward for PodForward {
    fn open(&self) -> Opening {
        let (pods, pod) = (self.pods.clone(), self.pod.clone());
        Box::pin(async move {
            // The number is UDP's as well, but here it is the TCP port on the pod's loopback.
            let mut forwarder = pods.portforward(&pod, &[DEFAULT_TUNNEL_PORT]).await.map_err(io::Error::other)?;
            let stream = forwarder.take_stream(DEFAULT_TUNNEL_PORT).ok_or(io::ErrorKind::NotConnected)?;
            Ok(Box::new(stream) as Box<dyn ByteStream>)
        })
    }
}

impl fmt::Debug for PodForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodForward({}/{})", self.namespace, self.pod)
    }
}
