//! What each component of a cluster is told: command lines and configuration files.
//!
//! Pure, apart from writing those files below the cluster's folder. The paths `/run`, `/var/lib` and `/var/log` that are
//! left at their defaults are the node's own: see `node.rs`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{folder::Folder, keys::CONTEXT};

/// The node's name.
pub(crate) const NODE: &str = "lab1";
/// The node's address in its own network.
pub(crate) const NODE_ADDRESS: &str = "10.89.0.1";
/// The same as an address of the device.
pub(crate) const NODE_PREFIX: &str = "10.89.0.1/24";
/// Where pods are.
const PODS: &str = "10.244.0.0/16";
/// Where the pods of the one node are.
const NODE_PODS: &str = "10.244.77.0/24";
/// Where Services are.
const SERVICES: &str = "10.96.0.0/16";
/// The Service address of the cluster's DNS.
pub(crate) const DNS: &str = "10.96.0.10";
/// What a sandbox consists of; imported before the first pod.
pub(crate) const PAUSE_IMAGE: &str = "sluice.dev/pause:1";
/// Where containerd listens, on the node.
pub(crate) const CONTAINERD: &str = "/run/containerd/containerd.sock";

const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";
const KEYS: [&str; 2] = ["--kubeconfig", "--authentication-kubeconfig"];

/// A program that runs as long as the cluster does.
#[derive(Clone, Debug)]
pub(crate) struct Component {
    pub(crate) name: &'static str,
    pub(crate) arguments: Vec<String>,
    /// TCP port on which it is asked for by those that are started after it.
    pub(crate) port: Option<u16>,
    /// Whether it is in the one program with Kubernetes; on PATH otherwise.
    pub(crate) linked: bool,
}

/// The names of all components, in the order in which they are started.
pub(crate) const NAMES: [&str; 8] = [
    "containerd",
    "etcd",
    "kube-apiserver",
    "kubelet",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "coredns",
];

/// All components in the order in which they are started.
pub(crate) fn components(folder: &Folder, port: u16) -> Vec<Component> {
    let key = |name: &str| folder.keys().join(name).display().to_string();
    let config = |name: &str| folder.config(name).display().to_string();
    let component = |name, arguments: Vec<String>| Component { name, arguments, port: None, linked: true };
    let manager = |name: &str, user: &str| {
        let kubeconfig = key(&format!("{user}.kubeconfig"));
        let mut arguments: Vec<_> = KEYS.iter().map(|flag| format!("{flag}={kubeconfig}")).collect();
        arguments.extend([
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            // Its certificate stays in memory.
            "--cert-dir=".to_owned(),
        ]);
        debug_assert!(NAMES.contains(&name));
        arguments
    };
    let mut controllers = manager("kube-controller-manager", "controller-manager");
    controllers.extend([
        format!("--service-account-private-key-file={}", key("accounts.key")),
        format!("--root-ca-file={}", key("ca.crt")),
        format!("--cluster-signing-cert-file={}", key("ca.crt")),
        format!("--cluster-signing-key-file={}", key("ca.key")),
        "--use-service-account-credentials=true".to_owned(),
        "--allocate-node-cidrs=false".to_owned(),
    ]);
    vec![
        Component { linked: false, ..component("containerd", vec!["-c".to_owned(), config("containerd.toml")]) },
        Component { port: Some(2379), ..component("etcd", etcd()) },
        Component { port: Some(port), ..component("kube-apiserver", apiserver(&key, port)) },
        component(
            "kubelet",
            vec![
                format!("--config={}", config("kubelet.json")),
                format!("--kubeconfig={}", key("kubelet.kubeconfig")),
                format!("--hostname-override={NODE}"),
                format!("--node-ip={NODE_ADDRESS}"),
            ],
        ),
        component("kube-controller-manager", controllers),
        component("kube-scheduler", manager("kube-scheduler", "scheduler")),
        component(
            "kube-proxy",
            vec![
                format!("--kubeconfig={}", key("proxy.kubeconfig")),
                "--proxy-mode=nftables".to_owned(),
                format!("--cluster-cidr={PODS}"),
                format!("--hostname-override={NODE}"),
                "--conntrack-max-per-core=0".to_owned(),
                "--oom-score-adj=0".to_owned(),
            ],
        ),
        component("coredns", vec!["-conf".to_owned(), config("Corefile")]),
    ]
}

fn etcd() -> Vec<String> {
    [
        "--data-dir=/var/lib/etcd",
        &format!("--listen-client-urls={ETCD}"),
        &format!("--advertise-client-urls={ETCD}"),
        &format!("--listen-peer-urls={ETCD_PEER}"),
        &format!("--initial-advertise-peer-urls={ETCD_PEER}"),
        &format!("--initial-cluster=default={ETCD_PEER}"),
        // The data live in memory and die with the cluster.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn apiserver(key: &dyn Fn(&str) -> String, port: u16) -> Vec<String> {
    vec![
        format!("--etcd-servers={ETCD}"),
        format!("--advertise-address={NODE_ADDRESS}"),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--secure-port={port}"),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--client-ca-file={}", key("ca.crt")),
        format!("--tls-cert-file={}", key("apiserver.crt")),
        format!("--tls-private-key-file={}", key("apiserver.key")),
        format!("--kubelet-client-certificate={}", key("apiserver-kubelet.crt")),
        format!("--kubelet-client-key={}", key("apiserver-kubelet.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-signing-key-file={}", key("accounts.key")),
        format!("--service-account-key-file={}", key("accounts.pub")),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--cert-dir=/run/kubernetes".to_owned(),
    ]
}

/// Writes the configuration files.
pub(crate) fn write(folder: &Folder) -> Result<()> {
    let network = folder.config("net.d");
    fs::create_dir_all(&network)?;
    // The program may run in a container or a virtual machine that cannot raise its own score, hence 0 and restrict.
    let containerd = format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = "{CONTAINERD}"

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{}"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#,
        network.display()
    );
    save(&folder.config("containerd.toml"), &containerd)?;
    // Each pod has a routed link of its own, so that traffic between pods is seen by the node's rules for Services; on a
    // bridge this takes a kernel module.
    let pods = json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            { "type": "ptp", "ipMasq": true, "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": NODE_PODS }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            }},
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    save(&network.join("pods.conflist"), &pods.to_string())?;
    save(&folder.config("kubelet.json"), &kubelet(folder).to_string())?;
    // Names outside the cluster are unknown, not looked for: nothing here depends on another network.
    save(&folder.config("resolv.conf"), "nameserver 127.0.0.1\n")?;
    let dns = format!(
        ".:53 {{\n    bind {NODE_ADDRESS}\n    errors\n    ready {NODE_ADDRESS}:8181\n    kubernetes cluster.local in-addr.arpa {{\n        kubeconfig {} {CONTEXT}\n    }}\n    cache 5\n}}\n",
        folder.keys().join("admin.kubeconfig").display()
    );
    save(&folder.config("Corefile"), &dns)
}

fn kubelet(folder: &Folder) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": folder.keys().join("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", folder.cgroup()),
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "enforceNodeAllocatable": ["pods"],
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "failCgroupV1": false,
        "failSwapOn": false,
        // Images are imported once and cannot be pulled again.
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false,
        "oomScoreAdj": 0,
        "resolvConf": folder.config("resolv.conf"),
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
    })
}

/// What makes CoreDNS, a process on the node, the cluster's DNS.
pub(crate) fn dns_service() -> Value {
    let ports = |extra: &[(&str, Value)]| -> Vec<Value> {
        [("dns", "UDP"), ("dns-tcp", "TCP")]
            .iter()
            .map(|(name, protocol)| {
                let mut port = json!({ "name": name, "protocol": protocol, "port": 53 });
                extra.iter().for_each(|(field, value)| port[field] = value.clone());
                port
            })
            .collect()
    };
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kube-dns", "namespace": "kube-system" },
            "spec": { "clusterIP": DNS, "ports": ports(&[("targetPort", json!(53))]) },
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns-node", "namespace": "kube-system",
                "labels": {
                    "kubernetes.io/service-name": "kube-dns",
                    "endpointslice.kubernetes.io/managed-by": "sluice.dev",
                },
            },
            "addressType": "IPv4",
            "ports": ports(&[]),
            "endpoints": [{ "addresses": [NODE_ADDRESS], "conditions": { "ready": true } }],
        },
    ]})
}

fn save(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
