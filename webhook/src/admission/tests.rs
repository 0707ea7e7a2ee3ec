//! The router, asked as the API server asks. The API itself answers from a script, since what counts here is what becomes
//! of its answers; the real one is asked in `tests/cluster`.

use std::{collections::BTreeMap, convert::Infallible, fs, path::Path, sync::Mutex};

use axum::body::Body;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{Request as HttpRequest, Response as HttpResponse};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tower::{ServiceExt as _, service_fn};

use super::*;
use crate::inject::{Level, Sidecar, Sizes};

const KEY: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// Answers of the API, by path; whatever is not there is not found.
#[derive(Default)]
struct Script {
    answers: BTreeMap<String, (u16, Value)>,
    asked: Mutex<Vec<String>>,
}

impl Script {
    fn with(mut self, path: &str, code: u16, answer: Value) -> Self {
        self.answers.insert(path.to_owned(), (code, answer));
        self
    }

    fn namespace(self, name: &str, labels: &Value) -> Self {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.with(&format!("/api/v1/namespaces/{name}"), 200, namespace)
    }

    fn intercepts(self, items: &[Value]) -> Self {
        let list =
            json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "InterceptList", "metadata": {}, "items": items});
        self.with("/apis/sluice.dev/v1alpha1/namespaces/demo/intercepts", 200, list)
    }

    fn client(self: &Arc<Self>) -> kube::Client {
        let script = self.clone();
        let service = service_fn(move |request: HttpRequest<kube::client::Body>| {
            let path = request.uri().path().to_owned();
            let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let not_found = (
                404,
                json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "no", "status": "Failure"}),
            );
            let (code, answer) = script.answers.get(&path).cloned().unwrap_or(not_found);
            script.asked.lock().unwrap().push(path);
            async move {
                if watch {
                    std::future::pending::<()>().await;
                }
                let body = Full::new(Bytes::from(answer.to_string()));
                Ok::<_, Infallible>(HttpResponse::builder().status(code).body(body).unwrap())
            }
        });
        kube::Client::new(service, "default")
    }
}

fn options() -> Options {
    Options {
        image: "agent:1".to_owned(),
        pull_policy: None,
        sidecar: Sidecar::Native,
        controller: "https://sluice-webhook.sluice-system.svc:8444".to_owned(),
        authorities: String::new(),
        sizes: Sizes { cpu: "10m".to_owned(), memory: "32Mi".to_owned(), memory_limit: "256Mi".to_owned() },
        default_level: Level::Privileged,
    }
}

fn app(script: Script) -> (Router, Arc<Script>) {
    let script = Arc::new(script);
    let (cluster, _) = Cluster::new(script.client());
    (router(AppState::new(Arc::new(cluster), options(), Arc::default())), script)
}

async fn post_to(router: Router, path: &str, body: impl Into<Body>) -> (StatusCode, Vec<u8>) {
    let request = HttpRequest::post(path).header("content-type", "application/json").body(body.into()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

/// The `response` of a review's answer.
async fn review(router: Router, path: &str, request: &Value) -> Value {
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
    let (status, body) = post_to(router, path, review.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["response"]["uid"], request["uid"]);
    answer["response"].clone()
}

fn patch_of(response: &Value) -> json_patch::Patch {
    assert_eq!(response["patchType"], "JSONPatch");
    serde_json::from_slice(&BASE64_STANDARD.decode(response["patch"].as_str().unwrap()).unwrap()).unwrap()
}

fn pod_request(fixture: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/pods/{fixture}.json"));
    let fixture: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    json!({
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "demo",
        "operation": "CREATE",
        "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller", "groups": ["system:masters"]},
        "object": fixture["pod"],
        "oldObject": null,
        "dryRun": false,
        "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
    })
}

fn intercept(name: &str, owner: Option<&str>, matches: &Value) -> Value {
    let mut intercept = json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "Intercept",
        "metadata": {"name": name, "namespace": "demo"},
        "spec": {
            "target": {"kind": "Deployment", "name": "add"},
            "ports": [{"port": 8080, "protocol": "TCP"}],
            "match": matches,
            "onUnavailable": "PassThrough",
            "client": {"keyHash": KEY},
        },
    });
    if let Some(owner) = owner {
        intercept["spec"]["owner"] = json!(owner);
    }
    intercept
}

fn intercept_request(operation: &str, user: &str, object: &Value, old: Option<&Value>) -> Value {
    json!({
        "uid": "1", "operation": operation, "namespace": "demo", "name": object["metadata"]["name"],
        "userInfo": {"username": user}, "object": object, "oldObject": old,
    })
}

fn labelled() -> Script {
    Script::default().namespace("demo", &json!({"sluice.dev/inject": "enabled"}))
}

#[tokio::test]
async fn d01_a_pod_of_a_labelled_namespace_is_injected_once() {
    let (router, _) = app(labelled());
    let request = pod_request("deployment");
    let response = review(router.clone(), endpoint::INJECT, &request).await;
    assert_eq!(response["allowed"], true);
    let mut again = request.clone();
    json_patch::patch(&mut again["object"], &patch_of(&response)).unwrap();
    let response = review(router, endpoint::INJECT, &again).await;
    assert_eq!(response, json!({"uid": request["uid"], "allowed": true}));
}

#[tokio::test]
async fn d01_a_pod_of_another_namespace_is_not() {
    let (router, _) = app(Script::default().namespace("demo", &json!({})));
    let response = review(router, endpoint::INJECT, &pod_request("deployment")).await;
    assert!(response["allowed"] == true && response["patch"].is_null());
}

#[tokio::test]
async fn d03_pod_security_is_a_warning() {
    let labels = json!({"sluice.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "baseline"});
    let (router, _) = app(Script::default().namespace("demo", &labels));
    let response = review(router, endpoint::INJECT, &pod_request("deployment")).await;
    assert!(response["allowed"] == true && response["patch"].is_null());
    assert!(response["warnings"][0].as_str().unwrap().contains("Pod Security level baseline"));
}

#[tokio::test]
async fn a_pod_starts_when_the_api_cannot_be_read() {
    let (router, _) = app(Script::default());
    let response = review(router, endpoint::INJECT, &pod_request("deployment")).await;
    assert!(response["allowed"] == true && response["patch"].is_null());
    assert!(response["warnings"][0].as_str().unwrap().contains("cannot be read"));
}

#[tokio::test]
async fn what_is_known_of_a_namespace_is_not_read_again_unless_it_must_be_old() {
    let list = |kind: &str, items: Value| json!({"apiVersion": "v1", "kind": format!("{kind}List"), "metadata": {"resourceVersion": "1"}, "items": items});
    let namespaces = json!([
        {"metadata": {"name": "demo", "labels": {"sluice.dev/inject": "enabled"}}},
        {"metadata": {"name": "old", "labels": {}}},
    ]);
    let range = json!([{"metadata": {"name": "r", "namespace": "demo"}, "spec": {"limits": [
        {"type": "Container", "min": {"memory": "300Mi"}},
    ]}}]);
    let script = Script::default()
        .with("/api/v1/namespaces", 200, list("Namespace", namespaces))
        .with("/api/v1/limitranges", 200, list("LimitRange", range))
        .with("/api/v1/resourcequotas", 200, list("ResourceQuota", json!([])))
        .namespace("old", &json!({"sluice.dev/inject": "enabled"}));
    let script = Arc::new(script);
    let (cluster, following) = Cluster::new(script.client());
    let following = tokio::spawn(following);
    cluster.ready().await;
    script.asked.lock().unwrap().clear();

    let facts = cluster.facts("demo", false).await.unwrap();
    assert_eq!(facts.limit_ranges.len(), 1);
    assert!(!script.asked.lock().unwrap().contains(&"/api/v1/namespaces/demo".to_owned()));
    let facts = cluster.facts("old", false).await.unwrap();
    assert!(inject::asks(&facts.labels), "read again");
    assert!(facts.limit_ranges.is_empty());
    following.abort();
}

#[tokio::test]
async fn the_owner_is_who_creates() {
    let (router, _) = app(Script::default().intercepts(&[]));
    let object = intercept("a", None, &json!({}));
    let response =
        review(router.clone(), endpoint::INTERCEPTS, &intercept_request("CREATE", "adam", &object, None)).await;
    assert_eq!(json!(patch_of(&response)), json!([{"op": "add", "path": "/spec/owner", "value": "adam"}]));
    assert!(response["warnings"].is_null());

    let forged = intercept("a", Some("bertil"), &json!({}));
    let response =
        review(router.clone(), endpoint::INTERCEPTS, &intercept_request("CREATE", "adam", &forged, None)).await;
    let mut stamped = forged.clone();
    json_patch::patch(&mut stamped, &patch_of(&response)).unwrap();
    assert_eq!(stamped["spec"]["owner"], "adam");
    assert!(response["warnings"][0].as_str().unwrap().contains("adam, not bertil"));

    let again = review(router, endpoint::INTERCEPTS, &intercept_request("CREATE", "adam", &stamped, None)).await;
    assert!(again["allowed"] == true && again["patch"].is_null(), "asked again, nothing changes");
}

#[tokio::test]
async fn the_owner_stays() {
    let (router, _) = app(Script::default().intercepts(&[]));
    let old = intercept("a", Some("adam"), &json!({}));
    let update = async |new: &Value, user: &str| {
        review(router.clone(), endpoint::INTERCEPTS, &intercept_request("UPDATE", user, new, Some(&old))).await
    };
    let response = update(&intercept("a", Some("bertil"), &json!({})), "bertil").await;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(403)));
    assert!(response["status"]["message"].as_str().unwrap().contains("from adam to bertil"));
    // Whoever replaces it without the owner has not meant to remove them.
    let response = update(&intercept("a", None, &json!({"method": "GET"})), "bertil").await;
    assert_eq!(json!(patch_of(&response))[0]["value"], "adam");
    let response = update(&intercept("a", Some("adam"), &json!({"method": "GET"})), "carol").await;
    assert!(response["allowed"] == true && response["patch"].is_null());
}

#[tokio::test]
async fn b15_an_overlap_is_refused_with_name_and_owner() {
    let adam =
        intercept("adam-add", Some("adam@example.org"), &json!({"headers": [{"name": "x-user", "value": "adam"}]}));
    let (router, _) = app(Script::default().intercepts(std::slice::from_ref(&adam)));
    let create = async |matches: Value| {
        let request = intercept_request("CREATE", "bertil", &intercept("b", None, &matches), None);
        review(router.clone(), endpoint::INTERCEPTS, &request).await
    };
    let response = create(json!({})).await;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(409)));
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("adam-add of adam@example.org"), "{message}");
    let response = create(json!({"headers": [{"name": "x-user", "value": "bertil"}]})).await;
    assert_eq!(response["allowed"], true);
    let request = intercept_request("UPDATE", "adam", &adam, Some(&adam));
    assert_eq!(review(router.clone(), endpoint::INTERCEPTS, &request).await["allowed"], true, "no overlap with itself");
}

#[tokio::test]
async fn an_intercept_that_cannot_be_used_is_refused_with_the_reason() {
    let (router, _) = app(Script::default().intercepts(&[]));
    let bad = intercept("a", None, &json!({"headers": [{"type": "RegularExpression", "name": "x", "value": "a)|(b"}]}));
    let response = review(router, endpoint::INTERCEPTS, &intercept_request("CREATE", "adam", &bad, None)).await;
    assert_eq!(response["status"]["code"], 422);
    assert!(response["status"]["message"].as_str().unwrap().contains("regular expression"), "{response}");
}

#[tokio::test]
async fn an_intercept_is_refused_when_nobody_can_tell() {
    let (router, _) = app(Script::default());
    let object = intercept("a", None, &json!({}));
    let response =
        review(router.clone(), endpoint::INTERCEPTS, &intercept_request("CREATE", "adam", &object, None)).await;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(503)));
    let response = review(router, endpoint::INTERCEPTS, &intercept_request("CREATE", "", &object, None)).await;
    assert_eq!(response["status"]["code"], 403, "whose would it be?");
}

#[tokio::test]
async fn d05_what_is_malformed_is_answered() {
    for path in [endpoint::INJECT, endpoint::INTERCEPTS] {
        for body in [
            "",
            "null",
            "{",
            "[]",
            "{}",
            "\u{0}",
            r#"{"request": null}"#,
            r#"{"request": {"uid": "7"}}"#,
            r#"{"request": {"uid": 7, "operation": "CREATE"}}"#,
            r#"{"request": {"uid": "7", "operation": 1}}"#,
        ] {
            let (router, _) = app(labelled());
            let (status, answer) = post_to(router, path, body).await;
            assert_eq!(status, StatusCode::OK, "{body}");
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            assert_eq!(answer["response"]["allowed"], false, "{body}");
            assert_eq!(answer["response"]["status"]["code"], 400, "{body}");
        }
        // A question whose object is nonsense.
        for object in
            [json!(null), json!(1), json!({"spec": []}), json!({"metadata": 1, "spec": {"containers": [null]}})]
        {
            let (router, _) = app(labelled().intercepts(&[]));
            let request = json!({"uid": "7", "operation": "CREATE", "namespace": "demo", "object": object,
                "userInfo": {"username": "adam"}});
            let response = review(router, path, &request).await;
            assert_eq!(response["allowed"], path == endpoint::INJECT, "{object}");
        }
    }
    let deep = "[".repeat(100_000);
    let (router, _) = app(labelled());
    assert_eq!(post_to(router, endpoint::INJECT, deep).await.0, StatusCode::OK);
}

#[tokio::test]
async fn d05_what_is_huge_is_refused() {
    let (router, _) = app(labelled());
    let mut request = pod_request("deployment");
    request["object"]["metadata"]["annotations"] = json!({"big": "x".repeat(MAX_BYTES - 10_000)});
    let response = review(router.clone(), endpoint::INJECT, &request).await;
    assert!(response["patch"].is_string(), "nearly 3 MiB");
    let (status, _) = post_to(router, endpoint::INJECT, "x".repeat(MAX_BYTES + 1)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(start_paused = true)]
async fn d05_who_is_slow_is_answered_before_the_api_server_gives_up() {
    let (router, _) = app(labelled());
    let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>());
    let begun = tokio::time::Instant::now();
    let (status, _) = post_to(router, endpoint::INJECT, never).await;
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(begun.elapsed().as_secs(), DEADLINE.as_secs());
}

#[tokio::test]
async fn d06_many_at_once_are_all_answered() {
    let (router, _) = app(labelled());
    let request = pod_request("istio");
    let asked = (0..250).map(|_| review(router.clone(), endpoint::INJECT, &request));
    for response in futures_util::future::join_all(asked).await {
        assert!(response["patch"].is_string());
    }
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    let router = Router::new()
        .route("/panic", post(async || -> &'static str { panic!("of the test") }))
        .layer(CatchPanicLayer::new());
    assert_eq!(post_to(router, "/panic", "").await.0, StatusCode::INTERNAL_SERVER_ERROR);
}
