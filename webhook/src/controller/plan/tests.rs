use serde_json::json;
use sluice_protocol::{
    control::{Held, PortWay, Way},
    key::Identity,
};

use super::*;

const START: &str = "2026-01-01T00:00:00Z";

fn at(seconds: i64) -> Timestamp {
    START.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

/// An Intercept of Deployment `add`, created so many seconds after the start, for requests with `x-user: <user>`.
fn intercept(name: &str, created: i64, user: Option<&str>, ports: &serde_json::Value) -> Intercept {
    let headers: Vec<_> = user.iter().map(|user| json!({"name": "x-user", "value": user})).collect();
    let key = Identity::generate().unwrap().hash();
    serde_json::from_value(json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "Intercept",
        "metadata": {"name": name, "namespace": "demo", "uid": format!("uid-{name}"), "generation": 1,
            "creationTimestamp": at(created).to_string()},
        "spec": {"target": {"kind": "Deployment", "name": "add"}, "ports": ports, "owner": format!("{name}'s owner"),
            "match": {"headers": headers}, "client": {"keyHash": key}}
    }))
    .unwrap()
}

fn numbered() -> serde_json::Value {
    json!([{"port": 8080}])
}

fn pod(name: &str) -> PodFacts {
    PodFacts {
        uid: format!("uid-{name}"),
        name: name.to_owned(),
        node: None,
        ip: "10.0.0.1".to_owned(),
        agent: true,
        ports: vec![("http".to_owned(), 8080)],
        leaving: false,
    }
}

fn heard(pod: &str, intercept: &Intercept, programmed: bool, connected: bool) -> (String, Heard) {
    let held = Held {
        uid: uid(intercept),
        generation: 1,
        programmed,
        connected,
        counters: sluice_protocol::control::Counters::default(),
        existing_connections: 3,
        reset_error: None,
        ways: Vec::new(),
        steering_error: None,
    };
    let report = Report {
        version: "1".to_owned(),
        key_hash: Identity::generate().unwrap().hash(),
        tunnel_port: 17443,
        refused: None,
        error: None,
        intercepts: vec![held],
    };
    (format!("uid-{pod}"), Heard::new(report))
}

fn look(intercepts: &[&Intercept], pods: &[PodFacts], heard: &[(String, Heard)], fresh: bool, now: Timestamp) -> Plan {
    let case = |intercept| Case { intercept, exists: true, pods: pods.to_vec() };
    let cases = intercepts.iter().copied().map(case).collect();
    plan(cases, &mut Overlaps::default(), &heard.iter().cloned().collect(), &|_| fresh, now)
}

fn condition<'a>(plan: &'a Plan, name: &str, kind: &str) -> (&'a str, &'a str) {
    let status = &plan.status[&format!("uid-{name}")];
    let found = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    (&found.status, &found.reason)
}

fn rules(plan: &Plan, pod: &str) -> Vec<String> {
    let rules = plan.rules.get(&format!("uid-{pod}"));
    rules.into_iter().flatten().map(|assigned| assigned.rule.name.clone()).collect()
}

#[test]
fn every_pod_gets_the_rule_and_ready_means_programmed_and_connected_in_all_of_them() {
    let mine = intercept("mine", 0, None, &json!([{"name": "http"}]));
    let pods = [pod("a"), pod("b")];
    let both = |b: (bool, bool)| [heard("a", &mine, true, true), heard("b", &mine, b.0, b.1)];
    for (b, agents, client, ready) in [
        ((true, true), "True", "True", "True"),
        ((true, false), "True", "False", "False"),
        ((false, false), "False", "True", "False"),
    ] {
        let plan = look(&[&mine], &pods, &both(b), false, at(1));
        assert_eq!((rules(&plan, "a"), rules(&plan, "b")), (vec!["mine".to_owned()], vec!["mine".to_owned()]));
        assert_eq!(plan.rules["uid-a"][0].rule.ports[0].port.get(), 8080);
        assert_eq!(condition(&plan, "mine", condition::AGENTS_READY).0, agents, "{b:?}");
        assert_eq!(condition(&plan, "mine", condition::CONNECTED).0, client, "{b:?}");
        assert_eq!(condition(&plan, "mine", condition::READY).0, ready, "{b:?}");
        assert_eq!(plan.status["uid-mine"].client_away_since, None);
    }
}

#[test]
fn what_is_missing_is_said_for_each_pod() {
    let mine = intercept("mine", 0, None, &json!([{"name": "web"}]));
    let bare = PodFacts { agent: false, ..pod("bare") };
    let plan = look(&[&mine], &[bare, pod("other")], &[], false, at(1));
    let reasons: Vec<_> = plan.status["uid-mine"].pods.iter().map(|pod| pod.reason.as_str()).collect();
    assert!(reasons[0].contains("kubectl label namespace demo sluice.dev/inject=enabled"), "{reasons:?}");
    assert!(reasons[1].contains("\"web\""), "{reasons:?}");
    assert_eq!(rules(&plan, "other"), Vec::<String>::new());
    assert_eq!(condition(&look(&[&mine], &[], &[], false, at(1)), "mine", condition::READY), ("False", "NoPods"));
}

#[test]
fn a_pod_that_is_being_deleted_keeps_its_rules_and_nobody_waits_for_it() {
    let mine = intercept("mine", 0, None, &numbered());
    let pods = [pod("a"), PodFacts { leaving: true, ..pod("b") }];
    let agents = [heard("a", &mine, true, true), heard("b", &mine, true, false)];
    let plan = look(&[&mine], &pods, &agents, false, at(1));
    assert_eq!((rules(&plan, "a"), rules(&plan, "b")), (vec!["mine".to_owned()], vec!["mine".to_owned()]));
    assert_eq!(plan.status["uid-mine"].pods_ready.as_deref(), Some("1/1"));
    assert_eq!(condition(&plan, "mine", condition::READY).0, "True");
}

#[test]
fn a12_connections_from_before_are_told_for_each_pod() {
    let mine = intercept("mine", 0, None, &numbered());
    let (pod_uid, said) = heard("a", &mine, true, true);
    let mut report = Report::clone(&said.report);
    report.intercepts[0].reset_error = Some("no CONFIG_INET_DIAG_DESTROY".to_owned());
    let said = (pod_uid, Heard::new(report));
    let plan = look(&[&mine], &[pod("a"), pod("silent")], &[said], false, at(1));
    let pods = &plan.status["uid-mine"].pods;
    assert_eq!(pods.iter().map(|pod| pod.existing_connections).collect::<Vec<_>>(), [Some(3), None]);
    assert!(pods[0].reason.contains("CONFIG_INET_DIAG_DESTROY"), "{}", pods[0].reason);
}

#[test]
fn the_way_is_passed_on_and_told_for_each_pod() {
    let mut mine = intercept("mine", 0, Some("ann"), &numbered());
    mine.spec.steering = rules::Steering::Insertion;
    let (pod_uid, said) = heard("a", &mine, true, true);
    let mut report = Report::clone(&said.report);
    let way = PortWay { port: 8080, way: Way::Lookup, why: Some("it cannot".to_owned()) };
    report.intercepts[0].ways = vec![way.clone()];
    report.intercepts[0].steering_error = Some("no insertion on port 8080".to_owned());
    report.intercepts[0].reset_error = Some("no CONFIG_INET_DIAG_DESTROY".to_owned());
    let said = (pod_uid, Heard::new(report));
    let plan = look(&[&mine], &[pod("a"), pod("silent")], &[said], false, at(1));
    assert_eq!(plan.rules["uid-a"][0].rule.steering, rules::Steering::Insertion);
    let pods = &plan.status["uid-mine"].pods;
    assert_eq!((&pods[0].ways, &pods[1].ways), (&vec![way], &Vec::new()));
    assert!(pods[0].programmed, "it is in force all the same");
    assert_eq!(pods[0].reason, "no CONFIG_INET_DIAG_DESTROY; no insertion on port 8080");
}

#[test]
fn b16_two_wiretaps_stand_beside_an_intercept() {
    let mut taps = [intercept("one", 1, None, &numbered()), intercept("two", 2, Some("ann"), &numbered())];
    taps.iter_mut().for_each(|tap| tap.spec.mode = rules::Mode::Wiretap);
    let own = intercept("own", 3, None, &numbered());
    let plan = look(&[&taps[0], &taps[1], &own], &[pod("a")], &[], false, at(7));
    assert_eq!(rules(&plan, "a"), ["one", "two", "own"]);
    assert_eq!(plan.rules["uid-a"][0].rule.mode, rules::Mode::Wiretap);
}

#[test]
fn of_two_that_want_the_same_the_older_one_has_it_and_the_younger_one_is_told() {
    let (old, new) = (intercept("old", 0, Some("ann"), &numbered()), intercept("new", 5, Some("ann"), &numbered()));
    let other = intercept("other", 6, Some("bob"), &numbered());
    let plan = look(&[&new, &other, &old], &[pod("a")], &[heard("a", &old, true, true)], false, at(7));
    assert_eq!(rules(&plan, "a"), ["old", "other"]);
    assert_eq!(condition(&plan, "new", condition::ACCEPTED), ("False", "Conflict"));
    let said = &plan.status["uid-new"].conditions[0].message;
    assert!(said.contains("old") && said.contains("old's owner"), "{said}");
}

#[test]
fn one_whose_client_is_away_gives_way_after_a_minute_and_ends_after_ten() {
    let mut old = intercept("old", 0, Some("ann"), &numbered());
    let away = look(&[&old], &[pod("a")], &[heard("a", &old, true, false)], false, at(10));
    assert_eq!(condition(&away, "old", condition::CONNECTED), ("False", "ClientAway"));
    old.status = Some(away.status["uid-old"].clone());
    let new = intercept("new", 30, Some("ann"), &numbered());
    let agents = [heard("a", &old, true, false)];
    let soon = look(&[&old, &new], &[pod("a")], &agents, false, at(69));
    assert_eq!((rules(&soon, "a"), soon.ends.len()), (vec!["old".to_owned()], 0));
    let later = look(&[&old, &new], &[pod("a")], &agents, false, at(70));
    assert_eq!(rules(&later, "a"), ["new"]);
    assert_eq!(later.ends["uid-old"], End::TakenOver { by: "new".to_owned(), owner: "new's owner".to_owned() });
    assert!(look(&[&old], &[pod("a")], &agents, false, at(609)).ends.is_empty());
    assert_eq!(look(&[&old], &[pod("a")], &agents, false, at(610)).ends["uid-old"], End::Abandoned);
    // Back in time: nothing happens, and the time is forgotten.
    let back = look(&[&old], &[pod("a")], &[heard("a", &old, true, true)], false, at(500));
    assert_eq!(back.status["uid-old"].client_away_since, None);
    // Without an agent that waits for it, a client cannot be away.
    assert_eq!(look(&[&old], &[], &[], false, at(500)).status["uid-old"].client_away_since, None);
}

#[test]
fn it_ends_when_its_time_is_over() {
    let mut mine = intercept("mine", 0, None, &numbered());
    mine.spec.ttl = Some(serde_json::from_value(json!("90s")).unwrap());
    assert!(look(&[&mine], &[], &[], false, at(89)).ends.is_empty());
    let plan = look(&[&mine], &[pod("a")], &[], false, at(90));
    assert_eq!((&plan.ends["uid-mine"], rules(&plan, "a").len()), (&End::Expired, 0));
}

#[test]
fn nothing_is_concluded_from_the_silence_of_agents_that_have_not_had_time_to_speak() {
    let mut mine = intercept("mine", 0, None, &numbered());
    let ready = look(&[&mine], &[pod("a")], &[heard("a", &mine, true, true)], false, at(1));
    mine.status = Some(ready.status["uid-mine"].clone());
    let new_leader = look(&[&mine], &[pod("a")], &[], true, at(2));
    assert_eq!(new_leader.status["uid-mine"], ready.status["uid-mine"]);
    let later = look(&[&mine], &[pod("a")], &[], false, at(20));
    assert_eq!(condition(&later, "mine", condition::READY), ("False", "NotProgrammed"));
    assert_eq!(rules(&later, "a"), ["mine"], "it gets them all the same when it comes");
}

#[test]
fn a_target_that_does_not_exist_is_said_and_times_of_change_stay_while_nothing_changes() {
    let mut mine = intercept("mine", 0, None, &numbered());
    let lost = |mine: &Intercept, now| {
        let case = Case { intercept: mine, exists: false, pods: Vec::new() };
        plan(vec![case], &mut Overlaps::default(), &BTreeMap::new(), &|_| false, now)
    };
    let first = lost(&mine, at(1));
    assert_eq!(condition(&first, "mine", condition::ACCEPTED), ("False", "NoTarget"));
    mine.status = Some(first.status["uid-mine"].clone());
    assert_eq!(lost(&mine, at(9)).status["uid-mine"], first.status["uid-mine"]);
}
