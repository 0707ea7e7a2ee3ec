//! How long the webhook takes to review a pod, under a steady load.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_rustls::TlsConnector;

use super::{
    super::histogram::Histogram,
    report::{Webhook, millis},
};
use crate::{
    cluster::Cluster,
    peers::http2::{Http2Caller, Response},
};

/// Reviews a second.
pub(super) const RATE: u32 = 200;

/// For how long.
pub(super) const SECONDS: u32 = 10;

/// Connections, which stay, as an API server's do.
const CONNECTIONS: usize = 4;

/// For how long an API server waits where nothing else is asked for.
const LIMIT: Duration = Duration::from_secs(10);

/// Where the webhook is.
const NAMESPACE: &str = "sluice-system";

/// The name by which API servers call it.
const NAME: &str = "sluice-webhook.sluice-system.svc";

/// Sends reviews of pods in this namespace, each when it is due, whether the ones before have been answered or not.
pub(super) async fn measure(cluster: &Cluster, namespace: &str) -> Result<Webhook> {
    let (to, connector) = (address(cluster).await?, connector(cluster).await?);
    let mut callers = Vec::new();
    for number in 0..CONNECTIONS {
        let caller = connect(cluster, to, &connector).await?;
        let uid = format!("first-{number}");
        let answer = ask(&caller, review(namespace, &uid)).await;
        check(answer, &uid).context("before the load")?;
        callers.push(caller);
    }
    let uids: Vec<_> = (0..RATE * SECONDS).map(|number| format!("00000000-0000-4000-8000-{number:012}")).collect();
    // Made beforehand, and answers looked into afterwards: neither is the webhook's time.
    let bodies: Vec<_> = uids.iter().map(|uid| review(namespace, uid)).collect();
    let mut due = pace(bodies.len())?;
    let mut asked = JoinSet::new();
    for (number, body) in bodies.into_iter().enumerate() {
        let due = due.recv().await.context("the clock has stopped")?;
        let caller = callers[number % CONNECTIONS].clone();
        asked.spawn(async move {
            let late = due.elapsed();
            let answer = ask(&caller, body).await;
            (number, late, due.elapsed(), answer)
        });
    }
    let (mut latencies, mut slowest, mut lateness) = (Histogram::new(), Duration::ZERO, Histogram::new());
    let (mut errors, mut error) = (0, None);
    while let Some(answered) = asked.join_next().await {
        let (number, late, took, answer) = answered?;
        lateness.record(late);
        latencies.record(took);
        slowest = slowest.max(took);
        if let Err(found) = check(answer, &uids[number]) {
            errors += 1;
            error.get_or_insert_with(|| format!("{found:#}"));
        }
    }
    let percentile = |percent| millis(latencies.percentile(percent));
    Ok(Webhook {
        reviews_per_second: RATE,
        seconds: SECONDS,
        p50_ms: percentile(50),
        p99_ms: percentile(99),
        max_ms: millis(slowest),
        errors,
        error,
        late_p99_ms: millis(lateness.percentile(99)),
    })
}

/// Tells when each is due, at that moment. On a thread of its own: the runtime's timer counts whole milliseconds.
fn pace(count: usize) -> Result<mpsc::UnboundedReceiver<Instant>> {
    let (due_tx, due_rx) = mpsc::unbounded_channel();
    let tell = move || {
        let mut due = Instant::now();
        for _ in 0..count {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if due_tx.send(due).is_err() {
                // Nobody listens any more.
                return;
            }
            due += Duration::from_secs(1) / RATE;
        }
    };
    thread::Builder::new().name("pace".to_owned()).spawn(tell)?;
    Ok(due_rx)
}

async fn ask(caller: &Http2Caller, review: Bytes) -> Result<Response> {
    let headers = [("content-type", "application/json")];
    let answer = tokio::time::timeout(LIMIT, caller.call("POST", "/inject", &headers, review)).await;
    answer.context("not answered in time")?
}

/// That the pod is let in, with a patch.
fn check(answer: Result<Response>, uid: &str) -> Result<()> {
    let Response { status, body, .. } = answer?;
    let said = || String::from_utf8_lossy(&body).into_owned();
    let answer: Value = serde_json::from_slice(&body).with_context(|| format!("{status}: {}", said()))?;
    let response = &answer["response"];
    let patched = response["patch"].as_str().is_some_and(|patch| !patch.is_empty());
    ensure!(status == 200 && response["uid"] == uid && response["allowed"] == true && patched, "{status}: {}", said());
    Ok(())
}

/// Where the Service for admission is.
async fn address(cluster: &Cluster) -> Result<SocketAddr> {
    let get = ["--namespace", NAMESPACE, "get", "service/sluice-webhook"];
    let service: Value = cluster.kubectl(&get).json().await?;
    let address = service["spec"]["clusterIP"].as_str().context("no cluster IP")?;
    Ok(SocketAddr::new(address.parse()?, 443))
}

/// Trusts whom the API server trusts.
async fn connector(cluster: &Cluster) -> Result<TlsConnector> {
    let found: Value = cluster.kubectl(&["get", "mutatingwebhookconfiguration/sluice"]).json().await?;
    let bundle = found["webhooks"][0]["clientConfig"]["caBundle"].as_str().context("no authority")?;
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(&BASE64_STANDARD.decode(bundle)?) {
        roots.add(authority?)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions()?.with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn connect(cluster: &Cluster, to: SocketAddr, connector: &TlsConnector) -> Result<Http2Caller> {
    let stream = cluster.connect(to).await?;
    stream.set_nodelay(true)?;
    let stream = connector.connect(ServerName::try_from(NAME)?, stream).await.context("the TLS handshake")?;
    Box::pin(Http2Caller::over(stream)).await
}

/// The review of a pod of a Deployment, as an API server sends it.
fn review(namespace: &str, uid: &str) -> Bytes {
    let token = "kube-api-access-x7v2k";
    let probe = json!({ "httpGet": { "path": "/healthz", "port": "http", "scheme": "HTTP" }, "timeoutSeconds": 1,
        "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 });
    let container = json!({
        "name": "shop", "image": "registry.example/shop:1.4.2", "imagePullPolicy": "IfNotPresent",
        "args": ["--listen=:8080", "--log-format=json"],
        "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" },
            { "name": "metrics", "containerPort": 9100, "protocol": "TCP" }],
        "env": [{ "name": "DATABASE_HOST", "value": "db.shop.svc" },
            { "name": "POD_NAME", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } } },
            { "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "db", "key": "password" } } }],
        "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } },
        "volumeMounts": [{ "name": "config", "mountPath": "/etc/shop", "readOnly": true },
            { "name": token, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true }],
        "livenessProbe": probe, "readinessProbe": probe,
        "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
    });
    let taken = |reason: &str| {
        json!({ "key": format!("node.kubernetes.io/{reason}"), "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 300 })
    };
    let volumes = json!([
        { "name": "config", "configMap": { "name": "shop", "defaultMode": 420 } },
        { "name": token, "projected": { "defaultMode": 420, "sources": [
            { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
            { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
            { "downwardAPI": { "items": [{ "path": "namespace",
                "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }] } }] } },
    ]);
    let owned = json!({ "f:metadata": { "f:generateName": {}, "f:labels": { ".": {}, "f:app": {}, "f:pod-template-hash": {} },
            "f:ownerReferences": { ".": {}, "k:{\"uid\":\"6a1c6f5e-8f54-4f0c-9c2a-3d3f1f9c0001\"}": {} } },
        "f:spec": { "f:containers": { "k:{\"name\":\"shop\"}": { ".": {}, "f:args": {}, "f:image": {}, "f:name": {},
            "f:env": {}, "f:ports": {}, "f:resources": {}, "f:volumeMounts": {}, "f:livenessProbe": {} } },
            "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:volumes": {} } });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "shop-6d8f9c7b5-", "namespace": namespace, "creationTimestamp": null,
            "labels": { "app": "shop", "pod-template-hash": "6d8f9c7b5" },
            "annotations": { "prometheus.io/scrape": "true", "prometheus.io/port": "9100" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-6d8f9c7b5",
                "uid": "6a1c6f5e-8f54-4f0c-9c2a-3d3f1f9c0001", "controller": true, "blockOwnerDeletion": true }],
            "managedFields": [{ "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
                "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1", "fieldsV1": owned }],
        },
        "spec": {
            "containers": [container], "volumes": volumes, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30, "priority": 0,
            "preemptionPolicy": "PreemptLowerPriority", "enableServiceLinks": true,
            "serviceAccount": "default", "serviceAccountName": "default", "securityContext": { "runAsNonRoot": true },
            "tolerations": [taken("not-ready"), taken("unreachable")],
        },
        "status": {},
    });
    let (kind, resource) = (
        json!({ "group": "", "version": "v1", "kind": "Pod" }),
        json!({ "group": "", "version": "v1", "resource": "pods" }),
    );
    let controller = "system:serviceaccount:kube-system:replicaset-controller";
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
    let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": uid, "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
        "namespace": namespace, "operation": "CREATE", "object": pod, "oldObject": null, "dryRun": false,
        "options": { "apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions" },
        "userInfo": { "username": controller, "uid": "7f3c1b1e-51e4-4b8b-b2de-2d0a1f9c0002", "groups": groups } } });
    review.to_string().into()
}
