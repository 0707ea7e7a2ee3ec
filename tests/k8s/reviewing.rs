//! The webhook as a server: reviews of every kind, and certificates that change under load. The case d05.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};
use sluice_tests::{
    eventually,
    peers::http2::{Http2Caller, send_all},
};
use tokio::{io::AsyncReadExt as _, task::JoinSet, time::Instant};

use super::{
    stage::{LIMIT, Stage},
    system,
};

/// The webhook gives up on a slow review before the API server does, which waits for 5 s.
const SLOW: Duration = Duration::from_secs(5);

/// How many pods one command of the load asks for.
const PODS: usize = 10;

/// How late an API server may be that hears of another authority.
const LATE: Duration = Duration::from_secs(5);

/// A review of a pod in this namespace, as an API server sends it.
fn review(namespace: &str, uid: &str) -> Value {
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "generateName": "reviewed-" },
        "spec": { "containers": [{ "name": "app", "image": "app:1" }] } });
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": uid, "operation": "CREATE", "namespace": namespace, "object": pod,
        "resource": { "group": "", "version": "v1", "resource": "pods" }, "userInfo": { "username": "somebody" } } })
}

/// Sends a body to the webhook for pods.
async fn send(caller: &Http2Caller, body: impl Into<Bytes>) -> Result<(u16, Value)> {
    let headers = [("content-type", "application/json")];
    let response = tokio::time::timeout(LIMIT, caller.call("POST", "/inject", &headers, body.into())).await??;
    Ok((response.status, serde_json::from_slice(&response.body).unwrap_or_default()))
}

/// That a proper review is answered with the patch that adds the agent.
async fn ensure_injects(caller: &Http2Caller, namespace: &str, uid: &str) -> Result<()> {
    let (status, answer) = send(caller, review(namespace, uid).to_string()).await?;
    let response = &answer["response"];
    ensure!(status == 200 && response["uid"] == uid && response["allowed"] == true, "{status}: {answer}");
    let patch = response["patch"].as_str().with_context(|| format!("no patch: {answer}"))?;
    let patch = String::from_utf8(BASE64_STANDARD.decode(patch)?)?;
    ensure!(patch.contains("\"sluice-agent\""), "{patch}");
    Ok(())
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn d05_malformed_huge_slow_and_concurrent_reviews_are_answered_and_disturb_nobody() -> Result<()> {
    // Alone, because of the times: what disturbs others is looked for, and not what other tests do to the machine.
    let stage = Stage::alone("d05").await?;
    let namespace = stage.namespace.name();
    let caller = system::caller(&stage.cluster, system::ADMISSION).await?;
    ensure_injects(&caller, namespace, "first").await?;

    // What is no review is refused in words, under the name of the question if there is one.
    let mut wrong = review(namespace, "known");
    wrong["request"]["operation"] = json!(7);
    let bodies = ["", "{", "nothing", "[]", "{\"request\": null}", "\u{0}\u{1}", &wrong.to_string()];
    for body in bodies {
        let (status, answer) = send(&caller, body.to_owned()).await?;
        let response = &answer["response"];
        ensure!(status == 200 && response["allowed"] == false, "{body:?}: {status}: {answer}");
        ensure!(response["status"]["code"] == 400, "{body:?}: {answer}");
        ensure!(
            response["status"]["message"].as_str().is_some_and(|said| said.contains("AdmissionReview")),
            "{answer}"
        );
        ensure!(response["uid"] == if body.contains("known") { "known" } else { "" }, "{answer}");
    }
    // What is a review of something odd is let through as it is.
    for object in [json!(null), json!("pod"), json!({ "spec": "none" }), json!({ "spec": { "containers": {} } })] {
        let mut odd = review(namespace, "odd");
        odd["request"]["object"] = object;
        let (status, answer) = send(&caller, odd.to_string()).await?;
        let left_alone = answer["response"]["allowed"] == true && answer["response"]["patch"].is_null();
        ensure!(status == 200 && left_alone, "{odd}: {status}: {answer}");
    }
    ensure!(caller.call("POST", "/elsewhere", &[], Bytes::new()).await?.status == 404);
    ensure!(caller.get("/inject", &[]).await?.status == 405);
    // More than an object and its predecessor can have; said at once, or only seen on the way.
    for length in [Some("100000000"), None] {
        let mut request = http::Request::post("https://webhook/inject");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let (response, mut body) = caller.open(request.body(())?, false).await?;
        let sending = tokio::spawn(async move { send_all(&mut body, vec![b' '; 4 << 20].into()).await.map(|()| body) });
        let status = tokio::time::timeout(LIMIT, response).await??.status();
        ensure!(status == 413, "{length:?}: {status}");
        sending.abort();
    }
    ensure_injects(&caller, namespace, "after").await?;

    // Those who say half of what they have to say, in TLS or in HTTP, and then nothing.
    let to = system::address(&stage.cluster, system::ADMISSION).await?;
    let mut slow = JoinSet::new();
    for _ in 0..50 {
        let mut stream = stage.cluster.connect(to).await?;
        slow.spawn(async move { Ok::<_, anyhow::Error>(stream.read_to_end(&mut Vec::new()).await.map(|_| 0)?) });
        let (response, mut body) = caller.open(http::Request::post("https://webhook/inject").body(())?, false).await?;
        body.send_data(Bytes::from_static(b"{\"apiVersion\": "), false)?;
        slow.spawn(async move {
            let status = response.await?.status().as_u16();
            drop(body);
            Ok(status)
        });
    }
    // Everybody else is answered meanwhile, each with the answer to their own question.
    let others = system::caller(&stage.cluster, system::ADMISSION).await?;
    let mut reviews = JoinSet::new();
    for number in 0..200 {
        let (caller, namespace) = ([&caller, &others][number % 2].clone(), namespace.to_owned());
        reviews.spawn(async move {
            let began = Instant::now();
            let answered = ensure_injects(&caller, &namespace, &format!("question-{number}")).await;
            answered.with_context(|| format!("question {number}, after {:?}", began.elapsed()))?;
            ensure!(began.elapsed() < SLOW, "question {number} was answered after {:?}", began.elapsed());
            Ok(())
        });
    }
    while let Some(reviewed) = reviews.join_next().await {
        reviewed??;
    }
    let mut ends = BTreeMap::<u16, u32>::new();
    let ended = async {
        while let Some(ended) = slow.join_next().await {
            *ends.entry(ended??).or_default() += 1;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(SLOW * 4, ended).await.context("slow ones are waited for")??;
    // Closed without a word, and HTTP's own word for it.
    ensure!(ends == BTreeMap::from([(0, 50), (408, 50)]), "{ends:?}");
    ensure_injects(&caller, namespace, "last").await?;
    let restarts: Value = system::kubectl(&stage.cluster, &["get", "pods"]).json().await?;
    for pod in restarts["items"].as_array().context("no pods")? {
        ensure!(pod["status"]["containerStatuses"][0]["restartCount"] == 0, "it was restarted: {pod}");
    }
    stage.finish().await
}

/// The Secret with all keys and certificates, as texts.
async fn secret(stage: &Stage) -> Result<BTreeMap<String, String>> {
    let found: Value = system::kubectl(&stage.cluster, &["get", "secret/sluice-webhook-tls"]).json().await?;
    let mut texts = BTreeMap::new();
    for (key, value) in found["data"].as_object().context("an empty Secret")? {
        let value = BASE64_STANDARD.decode(value.as_str().context("no text")?)?;
        texts.insert(key.clone(), String::from_utf8(value)?);
    }
    Ok(texts)
}

/// Puts exactly this into the Secret.
async fn put(stage: &Stage, texts: &BTreeMap<String, String>) -> Result<()> {
    let mut data = json!({});
    for key in secret(stage).await?.into_keys() {
        data[key] = json!(null);
    }
    for (key, text) in texts {
        data[key] = json!(BASE64_STANDARD.encode(text));
    }
    let patch = json!({ "data": data }).to_string();
    let arguments = ["patch", "secret/sluice-webhook-tls", "--type=merge", "--patch", &patch];
    system::kubectl(&stage.cluster, &arguments).run().await.map(drop)
}

/// Gives the control plane these arguments, or none, and waits until it has them.
async fn start_with(stage: &Stage, arguments: Option<&[&str]>) -> Result<()> {
    let at = "/spec/template/spec/containers/0/args";
    let patch = match arguments {
        Some(arguments) => json!([{ "op": "add", "path": at, "value": arguments }]),
        None => json!([{ "op": "add", "path": at, "value": [] }, { "op": "remove", "path": at }]),
    };
    let patch = patch.to_string();
    let patch = ["patch", "deployment/sluice-webhook", "--type=json", "--patch", &patch];
    system::kubectl(&stage.cluster, &patch).run().await?;
    let wait = ["rollout", "status", "deployment/sluice-webhook", "--timeout=120s"];
    system::kubectl(&stage.cluster, &wait).within(LIMIT).run().await?;
    // Two that have other lives in mind must not turn one authority: what is early for one is late for the other.
    eventually(LIMIT, "the replicas of before are gone", || async {
        let pods = ["get", "pods", "--selector=app.kubernetes.io/name=sluice-webhook"];
        let pods: Value = system::kubectl(&stage.cluster, &pods).json().await?;
        let pods = pods["items"].as_array().context("no pods")?;
        ensure!(pods.len() == 2 && pods.iter().all(|pod| pod["metadata"]["deletionTimestamp"].is_null()), "{pods:?}");
        Ok(())
    })
    .await
}

/// An authority at the end of its life, with its key.
fn ending_authority(left: Duration) -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Sluice control plane, of a test");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.not_before = (SystemTime::now() - left * 3).into();
    params.not_after = (SystemTime::now() + left).into();
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Pods are created all the time, by dry runs through the API server and by reviews over a new connection each; gives how
/// many until `stop`, or the first that was not injected.
async fn load(stage: &Stage, stop: &tokio::sync::Notify) -> Result<(usize, usize)> {
    let namespace = stage.namespace.name();
    let pod = |number: usize| {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("asked-{number}") },
            "spec": { "containers": [{ "name": "app", "image": "app:1" }] } })
    };
    let list =
        json!({ "apiVersion": "v1", "kind": "List", "items": (0..PODS).map(pod).collect::<Vec<_>>() }).to_string();
    let (mut created, mut reviewed) = (0, 0);
    let creating = async {
        loop {
            let names = "jsonpath={.spec.initContainers[*].name}{\"\\n\"}";
            let dry_run = ["create", "--dry-run=server", "-f", "-", "-o", names];
            let said = stage.namespace.kubectl(&dry_run).input(&list).run().await?;
            let injected = said.lines().filter(|line| *line == "sluice-agent").count();
            ensure!(injected == PODS, "after {created} pods {injected} of {PODS} were injected: {said:?}");
            created += PODS;
        }
    };
    let to = system::address(&stage.cluster, system::ADMISSION).await?;
    let reviewing = async {
        let mut known = VecDeque::new();
        loop {
            // What an API server trusts that is slow to learn: the newest that it can have known for so long.
            known.push_back((Instant::now(), system::authorities(&stage.cluster).await?));
            // Where this machine has stood still, what was seen before is older than any API server would be.
            while known.get(1).is_some_and(|(since, _)| since.elapsed() > LATE || known[0].0.elapsed() > LATE * 2) {
                known.pop_front();
            }
            let authorities = &known[0].1;
            let stream = match Box::pin(system::connect(&stage.cluster, to, authorities)).await {
                Ok(stream) => stream,
                Err(error) => {
                    let (age, log) = (known[0].0.elapsed(), system::log(&stage.cluster).await?);
                    bail!("review {reviewed}, by authorities of {age:?} ago: {error:#}; {log}");
                }
            };
            let caller = Box::pin(Http2Caller::over(stream)).await?;
            ensure_injects(&caller, namespace, "load").await?;
            reviewed += 1;
        }
    };
    let failed: Result<()> = tokio::select! {
        failed = creating => failed,
        failed = reviewing => failed,
        () = stop.notified() => Ok(()),
    };
    failed?;
    Ok((created, reviewed))
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn d05_certificates_and_their_authority_are_replaced_under_load_without_one_failed_admission() -> Result<()> {
    /// A certificate of the least life there may be is renewed every 40 s.
    const LIVES: [&str; 2] = ["--certificate-life=60s", "--authority-life=12m"];
    let stage = Stage::alone("d05-turn").await?;
    let before = secret(&stage).await?;
    let outcome = Box::pin(async {
        Box::pin(start_with(&stage, Some(&LIVES))).await?;
        Box::pin(replaced_under_load(&stage, &before)).await
    });
    let outcome = outcome.await;
    // Agents that were injected before know the authority of then.
    put(&stage, &before).await?;
    start_with(&stage, None).await?;
    outcome?;
    eventually(LIMIT, "the authority of before is known again, and no other", || async {
        let known = system::authorities(&stage.cluster).await?;
        ensure!(known.trim() == before["ca.crt"].trim(), "{known}");
        Ok(())
    })
    .await?;
    stage.finish().await
}

async fn replaced_under_load(stage: &Stage, before: &BTreeMap<String, String>) -> Result<()> {
    let stop = tokio::sync::Notify::new();
    let (load, turned) = tokio::join!(Box::pin(load(stage, &stop)), async {
        let turned = Box::pin(turn(stage, before)).await;
        // Waits for nobody: it is remembered if the load has failed already.
        stop.notify_one();
        turned
    });
    let (created, reviewed) = load?;
    turned?;
    ensure!(created >= 20 * PODS && reviewed >= 50, "too little load: {created} pods, {reviewed} reviews");
    Ok(())
}

/// Waits until the Secret is as it should be.
async fn becomes(
    stage: &Stage,
    what: &str,
    is: impl Fn(&BTreeMap<String, String>) -> bool,
) -> Result<BTreeMap<String, String>> {
    eventually(LIMIT, what, || async {
        let found = secret(stage).await?;
        ensure!(is(&found), "entries {:?}", found.keys().collect::<Vec<_>>());
        Ok(found)
    })
    .await
}

/// Sees a whole turn of the authority: a successor is made known, issues, is renewed, and the old one is forgotten.
async fn turn(stage: &Stage, before: &BTreeMap<String, String>) -> Result<()> {
    let (ending, key) = ending_authority(Duration::from_secs(100))?;
    let mut texts = before.clone();
    for entry in ["ca-next.crt", "ca-next.key"] {
        texts.remove(entry);
    }
    // As if it had issued for years: what is served is still of one that is known.
    texts.insert("ca-previous.crt".to_owned(), before["ca.crt"].clone());
    texts.insert("ca.crt".to_owned(), ending.clone());
    texts.insert("ca.key".to_owned(), key);
    put(stage, &texts).await?;
    let known = becomes(stage, "a successor is known", |found| found.contains_key("ca-next.crt")).await?;
    let successor = known["ca-next.crt"].clone();
    let is_current = successor.clone();
    let promoted = becomes(stage, "it issues", move |found| found["ca.crt"] == is_current).await?;
    ensure!(promoted["ca-previous.crt"] == ending, "the one before is not known any more");
    let first = promoted["tls.crt"].clone();
    let renewed = becomes(stage, "its certificate is renewed", move |found| found["tls.crt"] != first).await?;
    ensure!(renewed["ca.crt"] == successor, "it was replaced too early");
    let last = becomes(stage, "the one before is forgotten", |found| !found.contains_key("ca-previous.crt")).await?;
    let certificates: BTreeSet<_> = [before, &promoted, &renewed, &last].map(|texts| &texts["tls.crt"]).into();
    ensure!(certificates.len() >= 3, "{} certificates", certificates.len());
    eventually(LIMIT, "the API server trusts the successor alone", || async {
        let known = system::authorities(&stage.cluster).await?;
        ensure!(known.trim() == successor.trim(), "{known}");
        Ok(())
    })
    .await
}
