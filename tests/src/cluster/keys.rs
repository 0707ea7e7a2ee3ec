//! Certificates and kubeconfigs of a new cluster.
//!
//! Pure: makes texts from nothing, and writes them below the cluster's folder. Nothing of it outlives the cluster.

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

use super::config::{NODE, NODE_ADDRESS};

/// The name of context, cluster and user in each kubeconfig.
pub(crate) const CONTEXT: &str = "sluice";

/// Names under which the API server is called.
const SERVER_NAMES: [&str; 8] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
    "10.96.0.1",
    "127.0.0.1",
    NODE_ADDRESS,
];

/// Who a certificate is for: its name and its group.
struct Holder {
    file: &'static str,
    name: &'static str,
    group: Option<&'static str>,
}

/// Everybody who has a kubeconfig.
const CLIENTS: [Holder; 5] = [
    Holder { file: "admin", name: "sluice-admin", group: Some("system:masters") },
    Holder { file: "controller-manager", name: "system:kube-controller-manager", group: None },
    Holder { file: "scheduler", name: "system:kube-scheduler", group: None },
    Holder { file: "proxy", name: "system:kube-proxy", group: None },
    Holder { file: "kubelet", name: "system:node:lab1", group: Some("system:nodes") },
];

/// Writes all keys to `folder`, and the kubeconfigs for an API server on this port of every loopback address.
pub(crate) fn write(folder: &Path, port: u16) -> Result<()> {
    debug_assert!(CLIENTS[4].name.ends_with(NODE));
    fs::create_dir_all(folder)?;
    let save = |name: &str, text: &str| save(&folder.join(name), text);

    let authority_key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "sluice-test-cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority = params.self_signed(&authority_key)?.pem();
    save("ca.crt", &authority)?;
    save("ca.key", &authority_key.serialize_pem())?;
    let issuer = Issuer::new(params, authority_key);

    let server = Holder { file: "apiserver", name: "kube-apiserver", group: None };
    let (certificate, key) = sign(&issuer, &server, &SERVER_NAMES)?;
    save("apiserver.crt", &certificate)?;
    save("apiserver.key", &key)?;
    let to_kubelet = Holder { file: "", name: "kube-apiserver-kubelet-client", group: Some("system:masters") };
    let (certificate, key) = sign(&issuer, &to_kubelet, &[])?;
    save("apiserver-kubelet.crt", &certificate)?;
    save("apiserver-kubelet.key", &key)?;

    let accounts = KeyPair::generate()?;
    save("accounts.key", &accounts.serialize_pem())?;
    save("accounts.pub", &accounts.public_key_pem())?;

    for client in CLIENTS {
        let (certificate, key) = sign(&issuer, &client, &[])?;
        let kubeconfig = kubeconfig(port, &authority, &certificate, &key);
        save(&format!("{}.kubeconfig", client.file), &format!("{kubeconfig:#}\n"))?;
    }
    Ok(())
}

fn sign(issuer: &Issuer<'_, KeyPair>, holder: &Holder, names: &[&str]) -> Result<(String, String)> {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, holder.name);
    if let Some(group) = holder.group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

/// JSON, which is YAML too.
fn kubeconfig(port: u16, authority: &str, certificate: &str, key: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": CONTEXT, "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority-data": STANDARD.encode(authority),
        }}],
        "users": [{ "name": CONTEXT, "user": {
            "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key),
        }}],
        "contexts": [{ "name": CONTEXT, "context": { "cluster": CONTEXT, "user": CONTEXT } }],
        "current-context": CONTEXT,
    })
}

/// Readable for the owner only: with any of it one is the cluster's administrator.
fn save(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let context = || format!("writing {}", path.display());
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).with_context(context)?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).with_context(context)?;
    file.write_all(text.as_bytes()).with_context(context)
}
