//! Who may intercept, and whom the control plane and the agents talk to: the cases d07 and d08.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use sluice_tests::{
    eventually,
    peers::{http1::Http1Caller, http2::Http2Caller},
};

use super::{
    laptop::Laptop,
    stage::{LIMIT, Stage, output, text},
    system,
};

/// The header in which an agent says which pod it believes to be in.
const UID: &str = "sluice-pod-uid";

/// The agent's port for metrics, in its pod.
const ADMIN: u16 = 17090;

async fn intercepts(stage: &Stage) -> Result<usize> {
    let found: Value = stage.namespace.kubectl(&["get", "intercepts"]).json().await?;
    Ok(found["items"].as_array().context("no list")?.len())
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn d07_who_lacks_the_right_is_told_which_one_and_who_has_it_in_one_namespace_works_there_only() -> Result<()> {
    let (stage, other) = (Stage::new("d07").await?, Stage::new("d07-other").await?);
    stage.deploy("add", 1).await?;
    other.deploy("add", 1).await?;
    let laptop = Laptop::start("laptop").await?;
    let port = laptop.port("http");
    let (here, there) = (stage.namespace.name(), other.namespace.name());

    let vic = stage.user_with("vic", Some("view")).await?;
    let refused = vic.fail(&["intercept", "add", "add", "--port", &port]).await?;
    let right = format!("no right to create intercepts.sluice.dev in the namespace {here}");
    ensure!(refused.contains(&right) && refused.contains(&vic.name), "{refused}");
    ensure!(refused.contains("`edit`"), "nothing to do is said: {refused}");
    let nobody = stage.user_with("nobody", None).await?;
    let refused = nobody.fail(&["intercept", "list"]).await?;
    ensure!(refused.contains(&format!("no right to list intercepts.sluice.dev in the namespace {here}")), "{refused}");

    let ann = stage.user("ann").await?;
    let elsewhere = ["intercept", "add", "add", "--port", &port, "--namespace", there];
    // Not even the workload can be looked at.
    let refused = ann.fail(&elsewhere).await?;
    ensure!(refused.contains("no right to get ") && refused.contains(there), "{refused}");
    // Where everything but the one right is hers, it is that one that is missing.
    let subject = format!("--serviceaccount={here}:ann");
    let bind = ["create", "rolebinding", "ann", "--clusterrole=view", &subject];
    other.namespace.kubectl(&bind).run().await?;
    let right = format!("no right to create intercepts.sluice.dev in the namespace {there}");
    // The API server takes a moment to know of a role binding.
    let known = eventually(LIMIT, "her role in the other namespace is known", || async {
        let refused = ann.fail(&elsewhere).await?;
        ensure!(!refused.contains("no right to get "), "{refused}");
        Ok(refused)
    });
    let refused = Box::pin(known).await?;
    ensure!(refused.contains(&right) && refused.contains(&ann.name), "{refused}");

    let intercepting = ann.intercept(&["add", "--port", &port]).await?;
    stage.call(&["http://add/sum", "--count", "20"]).await?.all_by("laptop", 20)?;
    other.call(&["http://add/sum", "--count", "20"]).await?.all_by("pod", 20)?;
    let found = stage.intercept("add").await?;
    ensure!(found["spec"]["owner"] == ann.name.as_str(), "{}", found["spec"]);
    // Seeing is `view`'s right, ending it is not.
    let seen = vic.succeed(&["intercept", "list"]).await?;
    ensure!(seen.contains(&ann.name), "{seen}");
    let refused = vic.fail(&["intercept", "remove", "add"]).await?;
    ensure!(
        refused.contains(&format!("no right to delete intercepts.sluice.dev in the namespace {here}")),
        "{refused}"
    );
    stage.call(&["http://add/sum", "--count", "20"]).await?.all_by("laptop", 20)?;
    intercepting.stop().await?;
    stage.call(&["http://add/sum", "--count", "20"]).await?.all_by("pod", 20)?;
    ensure!(intercepts(&stage).await? == 0 && intercepts(&other).await? == 0, "Intercepts are left");
    other.finish().await?;
    stage.finish().await
}

/// A token of the namespace's own account, with these options.
async fn token(stage: &Stage, options: &[&str]) -> Result<String> {
    let create = ["create", "token", "default", "--duration=10m"];
    Ok(stage.namespace.kubectl(&create).arguments(options).run().await?.trim().to_owned())
}

/// The same token as it would have been an hour ago. The API server gives none that lives less than ten minutes, so it is
/// signed here, with the key that the API server of a cluster of our own signs with.
fn expired(stage: &Stage, token: &str) -> Result<String> {
    let mut parts = token.split('.');
    let (head, claims) = (parts.next().context("no head")?, parts.next().context("no claims")?);
    let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims)?)?;
    for time in ["iat", "nbf", "exp"] {
        claims[time] = json!(claims[time].as_i64().context("no time")? - 3600);
    }
    let folder = stage.cluster.kubeconfig().parent().context("no folder")?;
    let key = PrivatePkcs8KeyDer::from_pem_file(folder.join("keys/accounts.key")).context("the accounts' key")?;
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der(), &random);
    let said = format!("{head}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature =
        key.map_err(|_| anyhow::anyhow!("the accounts' key is of another kind"))?.sign(&random, said.as_bytes());
    let signature = signature.map_err(|_| anyhow::anyhow!("signing failed"))?;
    Ok(format!("{said}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
}

/// A token whose signature is that of another one.
fn forged(token: &str) -> Result<String> {
    let (said, signature) = token.rsplit_once('.').context("no signature")?;
    let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(signature)?;
    *bytes.last_mut().context("an empty signature")? ^= 1;
    Ok(format!("{said}.{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)))
}

/// Comes to the agents' door as an agent does; gives the status and, if that is no success, what is said.
async fn knock(stage: &Stage, token: Option<&str>, uid: &str) -> Result<(u16, String)> {
    eventually(LIMIT, "the replica that leads answers", || async {
        let caller: Http2Caller = system::caller(&stage.cluster, system::AGENTS).await?;
        let mut request = http::Request::post("https://sluice-webhook.sluice-system.svc/v1/agents").header(UID, uid);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let (response, body) = caller.open(request.body(())?, false).await?;
        let (head, mut stream) = response.await?.into_parts();
        let status = head.status.as_u16();
        // The other one says so; which one is reached is the Service's choice.
        ensure!(status != 421, "another replica leads");
        let said = stream.data().await.transpose()?.unwrap_or_default();
        drop(body);
        Ok((status, String::from_utf8_lossy(&said).into_owned()))
    })
    .await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn d08_agents_with_a_wrong_token_are_refused_logged_and_counted() -> Result<()> {
    let stage = Stage::new("d08").await?;
    stage.deploy("add", 2).await?;
    let pods: Value = stage.namespace.kubectl(&["get", "pods", "--selector=app=add"]).json().await?;
    let pod = |index: usize, field: &str| pods["items"][index]["metadata"][field].as_str().unwrap_or_default();
    let (name, uid, other_uid) = (pod(0, "name"), pod(0, "uid"), pod(1, "uid"));
    ensure!(!uid.is_empty() && !other_uid.is_empty(), "{pods}");
    let bound = |name| ["--bound-object-kind=Pod".to_owned(), format!("--bound-object-name={name}")];
    let audience = "--audience=sluice";
    let [kind, to] = bound(name);
    let good = token(&stage, &[audience, &kind, &to]).await?;
    // Agents come in by this door: whatever is refused below is refused for what is wrong with it.
    let (status, said) = knock(&stage, Some(&good), uid).await?;
    ensure!(status == 200, "{status}: {said}");

    let for_other = token(&stage, &["--audience=another", &kind, &to]).await?;
    let for_api_server = token(&stage, &[&kind, &to]).await?;
    let unbound = token(&stage, &[audience]).await?;
    let [kind, to] = bound("caller");
    let of_caller = token(&stage, &[audience, &kind, &to]).await?;
    let caller = stage.namespace.get("pod/caller").await?;
    let caller_uid = caller["metadata"]["uid"].as_str().context("no uid")?;
    // A pod that is there only to go.
    let mut gone = stage.template(&json!({ "app": "gone" }));
    gone["apiVersion"] = json!("v1");
    gone["kind"] = json!("Pod");
    gone["metadata"]["name"] = json!("gone");
    stage.namespace.apply(&gone).await?;
    let gone = stage.namespace.get("pod/gone").await?;
    let gone_uid = gone["metadata"]["uid"].as_str().context("no uid")?;
    let [kind, to] = bound("gone");
    let of_gone = token(&stage, &[audience, &kind, &to]).await?;
    stage.namespace.kubectl(&["delete", "pod/gone", "--now"]).within(LIMIT).run().await?;

    let forged = forged(&good)?;
    let expired = if stage.cluster.is_own() { Some(expired(&stage, &good)?) } else { None };
    let mut cases = vec![
        ("no token", None, uid, 401, "no_token", "no bearer token"),
        ("another pod's", Some(&good), other_uid, 403, "other_pod", name),
        ("a wrong audience", Some(&for_other), uid, 401, "bad_token", "the token is not valid"),
        ("the API server's", Some(&for_api_server), uid, 401, "bad_token", "the token is not valid"),
        ("a false signature", Some(&forged), uid, 401, "bad_token", "the token is not valid"),
        ("a pod's that is gone", Some(&of_gone), gone_uid, 401, "bad_token", "the token is not valid"),
        ("no pod's", Some(&unbound), uid, 403, "no_pod", "bound to no pod"),
        ("a pod's without agent", Some(&of_caller), caller_uid, 403, "unknown_pod", "has no agent"),
    ];
    if let Some(expired) = &expired {
        cases.push(("expired", Some(expired), uid, 401, "bad_token", "the token is not valid"));
    }
    for (what, token, uid, expected, reason, words) in cases {
        let before = system::refused(&stage.cluster, reason).await?;
        let (status, said) = knock(&stage, token.map(String::as_str), uid).await?;
        ensure!(status == expected && said.contains(words), "{what}: {status}: {said}");
        ensure!(system::refused(&stage.cluster, reason).await? > before, "{what}: not counted as {reason}");
        let log = system::log(&stage.cluster).await?;
        // A text with quotation marks is logged with them escaped.
        let escaped = said.trim().replace('"', "\\\"");
        let logged = |line: &&str| line.contains("agent refused") && line.contains(&escaped);
        let line = log.lines().rfind(logged).with_context(|| format!("{what}: {said:?} is not in the log"))?;
        ensure!(line.contains(&format!("status={expected}")), "{what}: {line}");
    }
    // The real agents are where they were.
    let (ann, laptop) = (stage.user("ann").await?, Laptop::start("laptop").await?);
    let intercepting = ann.intercept(&["add", "--port", &laptop.port("http")]).await?;
    stage.becomes("add", "True", "2/2").await?;
    stage.call(&["http://add/sum", "--count", "20"]).await?.all_by("laptop", 20)?;
    intercepting.stop().await?;
    stage.finish().await
}

/// How many clients the agent of a pod has refused, asked through a port-forward: it tells on its loopback only.
async fn keys_refused(stage: &Stage, pod: &str) -> Result<u64> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (pod, ports) = (format!("pod/{pod}"), format!("{port}:{ADMIN}"));
    let forward = stage.namespace.kubectl(&["port-forward", &pod, &ports]).within(LIMIT).run();
    let asked = eventually(LIMIT, "the agent's metrics are had", || async {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        let response = Http1Caller::over(stream)?.get("/metrics", &[("host", "agent")]).await?;
        let metrics = String::from_utf8(response.body)?;
        let count = metrics.lines().find_map(|line| line.strip_prefix("sluice_agent_keys_refused_total "));
        Ok::<u64, anyhow::Error>(count.with_context(|| format!("no such counter: {metrics}"))?.parse()?)
    });
    tokio::select! {
        ended = forward => anyhow::bail!("port-forward ended: {ended:?}"),
        asked = asked => asked,
    }
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn d08_a_client_with_another_key_is_refused_logged_and_counted_by_the_agent() -> Result<()> {
    let stage = Stage::new("d08-key").await?;
    stage.deploy("add", 1).await?;
    let (ann, eve) = (stage.user("ann").await?, stage.user_with("eve", None).await?);
    let (laptop, stranger) = (Laptop::start("laptop").await?, Laptop::start("stranger").await?);
    let intercepting = ann.intercept(&["add", "--port", &laptop.port("http")]).await?;
    let found = stage.becomes("add", "True", "1/1").await?;
    let pod = &found["status"]["pods"][0];
    let text_of = |field: &str| pod[field].as_str().with_context(|| format!("no {field}: {pod}"));
    let (name, tunnel, agent_key) = (text_of("name")?, text_of("tunnel")?, text_of("keyHash")?);
    ensure!(keys_refused(&stage, name).await? == 0, "refused before anybody came");

    // She knows where the agent is and what key it has, and lacks only the one that the Intercept names.
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("other").display().to_string();
    let own = output(eve.sluice(&["key", "--key-file", &file])?).await?;
    ensure!(own.status.success(), "{}", text(&own));
    let own = String::from_utf8(own.stdout)?;
    let port = stranger.port("8080");
    let arguments = ["tunnel", "--agent", tunnel, "--agent-key", agent_key, "--key-file", &file, "--port", &port];
    let said = folder.path().join("said");
    let mut command = eve.sluice_nearby(&arguments)?;
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&said)?);
    let mut tunnelling = command.spawn()?;
    let log = eventually(LIMIT, "the agent's log tells of the key", || async {
        let log = stage.namespace.kubectl(&["logs", name, "--container=sluice-agent"]).run().await?;
        let line = log.lines().find(|line| line.contains("refused a client: no rule names its key"));
        line.map(str::to_owned).with_context(|| log.clone())
    })
    .await?;
    ensure!(log.contains(own.trim()), "another key than {own}: {log}");
    ensure!(keys_refused(&stage, name).await? > 0, "not counted");
    eventually(LIMIT, "she is told why", || async {
        let said = std::fs::read_to_string(&said)?;
        ensure!(said.contains("does not admit this client") && said.matches(own.trim()).count() >= 2, "{said}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    // All goes to where it went, also while she tries again.
    stage.call(&["http://add/sum", "--count", "50"]).await?.all_by("laptop", 50)?;
    ensure!(tunnelling.try_wait()?.is_none(), "she gave up");
    tunnelling.kill().await?;
    intercepting.stop().await?;
    stage.finish().await
}
