//! Realistic pods with what is expected of them, and properties that hold for all.

use std::{collections::BTreeMap, fs, path::Path};

use json_patch::{Patch, PatchOperation, RemoveOperation, jsonptr::PointerBuf, patch};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::*;

/// A pod as the API server sends it, in its namespace.
#[derive(Deserialize)]
struct Fixture {
    pod: Value,
    namespace: Namespace,
    #[serde(default)]
    options: Choice,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Namespace {
    name: String,
    labels: BTreeMap<String, String>,
    #[serde(default)]
    limit_ranges: Vec<LimitRangeSpec>,
    #[serde(default)]
    quotas: Vec<ResourceQuotaSpec>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choice {
    sidecar: Option<String>,
}

impl Fixture {
    fn options(&self) -> Options {
        match self.options.sidecar.as_deref() {
            None => options(Sidecar::Native),
            Some("container") => options(Sidecar::Container),
            Some(other) => panic!("no sidecar {other}"),
        }
    }

    fn facts(&self) -> NamespaceFacts {
        let Namespace { name, labels, limit_ranges, quotas } = &self.namespace;
        NamespaceFacts {
            name: name.clone(),
            labels: labels.clone(),
            limit_ranges: limit_ranges.clone(),
            quotas: quotas.clone(),
        }
    }
}

fn options(sidecar: Sidecar) -> Options {
    Options {
        image: "registry.example/sluice-agent:0.1.0".to_owned(),
        pull_policy: Some(PullPolicy::IfNotPresent),
        sidecar,
        controller: "https://sluice-webhook.sluice-system.svc:8444".to_owned(),
        authorities: "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".to_owned(),
        sizes: Sizes { cpu: "10m".to_owned(), memory: "32Mi".to_owned(), memory_limit: "256Mi".to_owned() },
        default_level: Level::Privileged,
    }
}

fn fixtures() -> BTreeMap<String, Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pods");
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let fixture = serde_json::from_str(&fs::read_to_string(&path).unwrap());
        (name, fixture.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    };
    fs::read_dir(folder).unwrap().map(read).collect()
}

fn applied(pod: &Value, changes: &Patch) -> Value {
    let mut pod = pod.clone();
    patch(&mut pod, changes).unwrap();
    pod
}

/// Takes away what the operations have added, last first.
fn undone(pod: &Value, original: &Value, changes: &Patch) -> Value {
    let mut pod = pod.clone();
    for operation in changes.iter().rev() {
        let PatchOperation::Add(add) = operation else { panic!("{operation} is no add") };
        let mut tokens: Vec<String> = add.path.tokens().map(|token| token.decoded().into_owned()).collect();
        if tokens.last().map(String::as_str) == Some("-") {
            tokens.pop();
            let list = PointerBuf::from_tokens(&tokens);
            let length = pod.pointer(list.as_str()).and_then(Value::as_array).unwrap().len();
            tokens.push((length - 1).to_string());
        }
        let path = PointerBuf::from_tokens(&tokens);
        let undo = if original.pointer(path.as_str()) == Some(&Value::Null) {
            PatchOperation::Add(json_patch::AddOperation { path, value: Value::Null })
        } else {
            PatchOperation::Remove(RemoveOperation { path })
        };
        patch(&mut pod, &[undo]).unwrap();
    }
    pod
}

fn check_properties(pod: &Value, facts: &NamespaceFacts, options: &Options) {
    let first = decide(pod, facts, options);
    assert_eq!(first.skipped.is_some(), first.patch.is_empty());
    let changed = applied(pod, &first.patch);
    assert_eq!(undone(&changed, pod, &first.patch), *pod, "more than added");
    if first.skipped.is_some() {
        return;
    }
    let second = decide(&changed, facts, options);
    assert_eq!((second.patch.len(), second.skipped), (0, Some(Skip::HasAgent)), "not idempotent");
    let names: Vec<_> = containers(&changed).filter_map(|c| text(c, &["name"])).collect();
    assert_eq!(names.iter().filter(|name| **name == pod::CONTAINER).count(), 1);
    let others: Vec<_> = containers(pod).cloned().collect();
    let kept: Vec<_> = containers(&changed).filter(|c| text(c, &["name"]) != Some("sluice-agent")).cloned().collect();
    assert_eq!(others, kept, "other containers changed or reordered");
    let volumes = list(&changed, "volumes").filter(|v| text(v, &["name"]) == Some("sluice-agent-token")).count();
    assert_eq!(volumes, 1);
}

/// Set `UPDATE_GOLDEN=1` to write down what comes out, and read the difference before it is committed.
#[test]
fn d02_realistic_pods_get_what_is_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden");
    let fixtures = fixtures();
    assert!(fixtures.len() >= 24);
    for (name, fixture) in fixtures {
        let decision = decide(&fixture.pod, &fixture.facts(), &fixture.options());
        let outcome = json!({
            "patch": decision.patch,
            "warnings": decision.warnings,
            "skipped": decision.skipped.as_ref().map(ToString::to_string),
        });
        let text = format!("{outcome:#}\n");
        let path = folder.join(format!("{name}.json"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, text).unwrap();
        } else {
            assert_eq!(fs::read_to_string(&path).unwrap(), text, "{name}");
        }
    }
}

#[test]
fn d01_realistic_pods_keep_their_properties() {
    for fixture in fixtures().values() {
        check_properties(&fixture.pod, &fixture.facts(), &fixture.options());
    }
}

#[test]
fn d03_pod_security_that_would_refuse_the_pod_leaves_it_alone() {
    for name in ["baseline", "restricted"] {
        let fixture = &fixtures()[name];
        let decision = decide(&fixture.pod, &fixture.facts(), &fixture.options());
        assert!(decision.patch.is_empty());
        assert!(decision.warnings[0].contains(&format!("Pod Security level {name}")), "{:?}", decision.warnings);
    }
    let fixture = &fixtures()["deployment"];
    let strict = Options { default_level: Level::Baseline, ..fixture.options() };
    assert!(matches!(decide(&fixture.pod, &fixture.facts(), &strict).skipped, Some(Skip::PodSecurity { .. })));
    let mut facts = fixture.facts();
    facts.labels.insert(label::POD_SECURITY.to_owned(), "privileged".to_owned());
    assert_eq!(decide(&fixture.pod, &facts, &strict).skipped, None, "the label goes before the default");
    facts.labels.insert(label::POD_SECURITY.to_owned(), "nonsense".to_owned());
    assert!(decide(&fixture.pod, &facts, &strict).skipped.is_some());
}

#[test]
fn d04_what_is_not_ours_is_left_alone() {
    for (name, skip) in [
        ("host-network", Skip::HostNetwork),
        ("mirror", Skip::MirrorPod),
        ("windows", Skip::Windows),
        ("kube-system", Skip::SystemNamespace { namespace: "kube-system".to_owned() }),
        ("user-namespace", Skip::UserNamespace),
    ] {
        let fixture = &fixtures()[name];
        assert_eq!(decide(&fixture.pod, &fixture.facts(), &fixture.options()).skipped, Some(skip), "{name}");
    }
    let fixture = &fixtures()["deployment"];
    for namespace in ["kube-node-lease", "kube-public", "sluice-system"] {
        let facts = NamespaceFacts { name: namespace.to_owned(), ..fixture.facts() };
        let skipped = decide(&fixture.pod, &facts, &fixture.options()).skipped;
        assert_eq!(skipped, Some(Skip::SystemNamespace { namespace: namespace.to_owned() }));
    }
}

#[test]
fn warnings_are_short_enough_to_be_shown() {
    // The API server asks for at most 120 characters and cuts at 4096 in total; with the namespace's name we may exceed the former.
    for fixture in fixtures().values() {
        for warning in decide(&fixture.pod, &fixture.facts(), &fixture.options()).warnings {
            assert!(warning.len() <= 256 && !warning.contains('\n'), "{warning:?}");
        }
    }
}

#[test]
fn the_agent_is_supervised_and_has_three_capabilities_no_probe_and_a_hook_that_gives_up() {
    let fixture = &fixtures()["deployment"];
    let changed = applied(&fixture.pod, &decide(&fixture.pod, &fixture.facts(), &fixture.options()).patch);
    let agent = list(&changed, "initContainers").next().unwrap();
    assert_eq!(agent["args"], json!(["--supervised"]));
    let context = &agent["securityContext"];
    assert_eq!(context["capabilities"], json!({"add": ["BPF", "NET_ADMIN", "PERFMON"], "drop": ["ALL"]}));
    assert_eq!(context["readOnlyRootFilesystem"], true);
    for absent in ["livenessProbe", "readinessProbe", "startupProbe", "ports"] {
        assert!(agent.get(absent).is_none(), "{absent}");
    }
    let hook = json!({"postStart": {"exec": {"command": ["/sluice-agent", "--await-rules", "2"]}}});
    assert_eq!(agent["lifecycle"], hook);
    assert!(agent.pointer("/resources/limits/cpu").is_none());
    assert!(agent.pointer("/resources/requests/cpu").is_some());
}

#[test]
fn what_is_no_pod_is_no_crash() {
    let facts = fixtures()["deployment"].facts();
    for pod in [
        json!(null),
        json!([]),
        json!("pod"),
        json!({}),
        json!({"spec": 1}),
        json!({"spec": {"containers": {}}}),
        json!({"metadata": [], "spec": {"containers": [1, null, {"name": 2}]}}),
    ] {
        let decision = decide(&pod, &facts, &options(Sidecar::Native));
        if decision.skipped.is_none() {
            // The API server has checked the types; whatever comes out is for it to refuse.
            continue;
        }
        assert!(decision.patch.is_empty());
    }
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-z]{1,4}", 1 => Just("sluice-agent".to_owned()), 1 => Just("sluice-agent-token".to_owned())]
}

fn any_map() -> impl Strategy<Value = Option<Map<String, Value>>> {
    let key = prop_oneof![
        Just("sluice.dev/inject".to_owned()),
        Just("sluice.dev/agent".to_owned()),
        Just("sluice.dev/agent-config".to_owned()),
        "[a-z~/.]{1,6}"
    ];
    let value = prop_oneof!["[a-z]{0,4}", Just("enabled".to_owned()), Just("disabled".to_owned())];
    prop::option::of(prop::collection::btree_map(key, value.prop_map(Value::from), 0..4).prop_map(Map::from_iter))
}

fn any_containers() -> impl Strategy<Value = Vec<Value>> {
    let container = (any_name(), prop::option::of(any::<u16>()), any::<bool>()).prop_map(|(name, port, extra)| {
        let mut container = json!({"name": name, "image": "x"});
        if let Some(port) = port {
            container["ports"] = json!([{"containerPort": port}]);
        }
        if extra {
            container["unknownField"] = json!({"deep": [1, 2, 3]});
        }
        container
    });
    prop::collection::vec(container, 0..4)
}

fn any_pod() -> impl Strategy<Value = Value> {
    let volumes = prop::option::of(prop::collection::vec(any_name().prop_map(|name| json!({"name": name})), 0..3));
    let optional = |list: Vec<Value>, choice: u8| match choice {
        0 => None,
        1 => Some(Value::Null),
        _ => Some(Value::Array(list)),
    };
    (any_map(), any_map(), any_containers(), any_containers(), 0..4_u8, volumes, any::<[bool; 3]>()).prop_map(
        move |(labels, annotations, init, main, init_choice, volumes, [metadata, host_network, never])| {
            let mut pod = json!({"spec": {"containers": main}, "unknown": true});
            if let Some(init) = optional(init, init_choice) {
                pod["spec"]["initContainers"] = init;
            }
            if let Some(volumes) = volumes {
                pod["spec"]["volumes"] = volumes.into();
            }
            if host_network && never {
                pod["spec"]["hostNetwork"] = true.into();
            } else if never {
                pod["spec"]["restartPolicy"] = "Never".into();
            }
            if metadata {
                pod["metadata"] = json!({"creationTimestamp": null});
                for (name, map) in [("labels", labels), ("annotations", annotations)] {
                    if let Some(map) = map {
                        pod["metadata"][name] = Value::Object(map);
                    }
                }
            }
            pod
        },
    )
}

fn read(value: &Value) -> quantity::Quantity<'_> {
    quantity::Quantity::parse(value.as_str().unwrap()).unwrap()
}

proptest! {
    #[test]
    fn d01_any_pod_is_only_added_to_and_only_once(pod in any_pod(), native in any::<bool>()) {
        let labels = BTreeMap::from([(label::INJECT.to_owned(), label::ENABLED.to_owned())]);
        let facts = NamespaceFacts { name: "demo".to_owned(), labels, ..NamespaceFacts::default() };
        check_properties(&pod, &facts, &options(if native { Sidecar::Native } else { Sidecar::Container }));
    }

    /// Whatever a LimitRange that is possible at all demands, the agent's container meets it.
    #[test]
    fn d02_limit_ranges_are_met(
        (min, max) in (1..4000_u64).prop_flat_map(|min| (Just(min), min..8000)),
        default in any::<Option<bool>>(),
        ratio in any::<bool>(),
        quota in any::<bool>(),
        unit in prop_oneof![Just(("cpu", "m")), Just(("memory", "Mi"))],
    ) {
        let (resource, suffix) = unit;
        let amount = |number: u64| json!({resource: format!("{number}{suffix}")});
        let mut item = json!({"type": "Container", "min": amount(min), "max": amount(max)});
        if let Some(low) = default {
            item["default"] = amount(if low { min } else { max });
        }
        if ratio {
            item["maxLimitRequestRatio"] = json!({resource: "1"});
        }
        let range: LimitRangeSpec = serde_json::from_value(json!({"limits": [item]})).unwrap();
        let hard = if quota { json!({format!("limits.{resource}"): "100"}) } else { json!({}) };
        let quota: ResourceQuotaSpec = serde_json::from_value(json!({"hard": hard})).unwrap();
        let facts = NamespaceFacts { limit_ranges: vec![range], quotas: vec![quota.clone()], ..NamespaceFacts::default() };
        let resources = resources::of(&json!({"spec": {}}), &facts, &options(Sidecar::Native).sizes).unwrap();

        let of = |number: u64| format!("{number}{suffix}");
        let (low, high) = (of(min), of(max));
        let (low, high) = (quantity::Quantity::parse(&low).unwrap(), quantity::Quantity::parse(&high).unwrap());
        let request = resources["requests"][resource].clone();
        prop_assert!(read(&request) >= low && read(&request) <= high);
        // What the API server fills in when there is no limit.
        let filled = json!(of(if default == Some(true) { min } else { max }));
        let limit = resources["limits"].get(resource).unwrap_or(&filled).clone();
        prop_assert!(read(&limit) >= read(&request) && read(&limit) <= high);
        if ratio {
            prop_assert_eq!(read(&limit), read(&request));
        }
        if quota.hard.is_some_and(|hard| !hard.is_empty()) {
            prop_assert!(resources["limits"].get(resource).is_some());
        }
    }
}
