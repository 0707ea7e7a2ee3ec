//! What the comparison says, beside what the matcher of the agent does with requests.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};
use sluice_protocol::rules::{
    RuleFile,
    matcher::{Request, RuleSet, Seen},
};

use super::*;

const METHODS: &[&str] = &["GET", "PUT"];
const PATHS: &[&str] = &["/", "/v1", "/v1/", "/v1/x", "/v10", "/v2", "*"];
const NAMES: &[&str] = &["a", "b"];
const VALUES: &[&str] = &["1", "2", "12", ""];

/// Every one of these fits something of the alphabets above.
const EXPRESSIONS: &[&str] = &["1.*", "2|12", ".*"];
const PATH_EXPRESSIONS: &[&str] = &["/v1.*", "/v2", ".*x"];

#[derive(Clone, Debug)]
struct Head {
    method: &'static str,
    path: &'static str,
    headers: Vec<(String, String)>,
}

impl Request for Head {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn headers(&self, seen: &mut Seen<'_>) {
        self.headers.iter().for_each(|(name, value)| seen.header(name, value.as_bytes()));
    }
}

/// Any headers and members, also several times.
fn heads() -> impl Strategy<Value = Head> {
    let pairs = || vec((select(NAMES), select(VALUES)), 0..4);
    (select(METHODS), select(PATHS), pairs(), pairs()).prop_map(|(method, path, headers, members)| {
        let members: Vec<_> = members.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let headers = headers.chain([("baggage".to_owned(), members.join(","))]).collect();
        Head { method, path, headers }
    })
}

fn rules() -> impl Strategy<Value = Value> {
    let exact = (select(NAMES), select(VALUES)).prop_map(|(name, value)| json!({"name": name, "value": value}));
    let expression = (select(NAMES), select(EXPRESSIONS))
        .prop_map(|(name, value)| json!({"type": "RegularExpression", "name": name, "value": value}));
    let headers = vec(prop_oneof![3 => exact.clone(), 1 => expression], 0..3);
    let sound: Vec<_> = PATHS.iter().filter(|path| path.starts_with('/')).copied().collect();
    let path = prop_oneof![
        Just(Value::Null),
        (select(&["Exact", "PathPrefix"][..]), select(sound))
            .prop_map(|(kind, path)| json!({"type": kind, "value": path})),
        select(PATH_EXPRESSIONS).prop_map(|path| json!({"type": "RegularExpression", "value": path})),
    ];
    let method = prop_oneof![Just(Value::Null), select(METHODS).prop_map(Value::from)];
    (headers, vec(exact, 0..3), path, method).prop_map(|(headers, baggage, path, method)| {
        let mut rule = json!({"headers": headers, "baggage": baggage});
        [("path", path), ("method", method)].into_iter().filter(|(_, value)| !value.is_null()).for_each(
            |(key, value)| {
                rule[key] = value;
            },
        );
        rule
    })
}

/// The rule in an agent.
fn agent(matches: &Value) -> RuleSet {
    let key = spec("Pod/a", &json!([{"port": 80}]), matches).client.key_hash;
    let rule = json!({"name": "a", "ports": [{"port": 80}], "match": matches, "client": {"keyHash": key}});
    let file = RuleFile::parse(&json!({"intercepts": [rule]}).to_string()).unwrap();
    RuleSet::compile(&file).unwrap()
}

fn fits(agent: &RuleSet, head: &Head) -> bool {
    let port = agent.port(80).unwrap();
    port.all_tcp().is_some() || port.decide(head).taken_by.is_some()
}

/// Names that occur more than once.
fn repeated<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let mut times = BTreeMap::<_, usize>::new();
    names.for_each(|name| *times.entry(name.to_owned()).or_default() += 1);
    times.into_iter().filter(|(_, times)| *times > 1).map(|(name, _)| name).collect()
}

/// Headers and members that a request carries more than once.
fn repeats(head: &Head) -> bool {
    let (members, headers): (Vec<_>, Vec<_>) = head.headers.iter().partition(|(name, _)| name == "baggage");
    let members = members.iter().flat_map(|(_, value)| value.split(',')).filter_map(|member| member.split('=').next());
    !repeated(members).is_empty() || !repeated(headers.iter().map(|(name, _)| name.as_str())).is_empty()
}

/// A request that fits both, made of what they ask for.
fn witness(a: &Match, b: &Match) -> Option<Head> {
    let rules = [a, b];
    let method = rules.iter().find_map(|rule| rule.method.as_ref());
    let method = METHODS.iter().find(|known| method.is_none_or(|method| method.as_str() == **known))?;
    let path = PATHS.iter().find(|known| {
        rules
            .iter()
            .filter_map(|rule| rule.path.as_ref())
            .all(|path| matcher::path_fits(path, known.as_bytes()).unwrap())
    })?;
    let mut headers = BTreeSet::new();
    let conditions = || rules.iter().flat_map(|rule| &rule.headers);
    let (exact, expressions): (Vec<_>, Vec<_>) = conditions().partition(|header| header.kind() == MatchType::Exact);
    headers.extend(exact.iter().map(|header| (header.name().as_str().to_owned(), header.value().to_owned())));
    for header in expressions {
        let fit = |value: &str| matcher::header_fits(header, value.as_bytes()).unwrap();
        if !headers.iter().any(|(name, value)| name == header.name().as_str() && fit(value)) {
            let value = VALUES.iter().find(|value| fit(value))?;
            headers.insert((header.name().as_str().to_owned(), (*value).to_owned()));
        }
    }
    let members: BTreeSet<_> = rules
        .iter()
        .flat_map(|rule| &rule.baggage)
        .map(|member| format!("{}={}", member.name(), member.value()))
        .collect();
    headers.insert(("baggage".to_owned(), members.into_iter().collect::<Vec<_>>().join(",")));
    Some(Head { method, path, headers: headers.into_iter().collect() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn b15_two_rules_overlap_exactly_when_some_request_fits_both(
        one in rules(), other in rules(), heads in vec(heads(), 1..24),
    ) {
        let specs = [&one, &other].map(|rule| spec("Pod/a", &json!([{"port": 80}]), rule));
        let found = relation(&specs[0], &specs[1]);
        let (one, other) = (agent(&one), agent(&other));
        prop_assert_eq!(found, relation(&specs[1], &specs[0]));
        let [a, b] = [&specs[0].matches, &specs[1].matches];
        if found == Disjoint {
            for head in heads.iter().filter(|head| fits(&one, head) && fits(&other, head)) {
                // The exception, and nothing else.
                prop_assert!(repeats(head), "{head:?}");
            }
        }
        if found == Overlap {
            let witness = witness(a, b);
            prop_assert!(witness.is_some(), "no request fits both");
            let witness = witness.unwrap();
            prop_assert!(fits(&one, &witness) && fits(&other, &witness), "{witness:?}");
            // It repeats nothing that a rule does not ask for twice.
            let twice = |rule: &Match| {
                !repeated(rule.headers.iter().map(|header| header.name().as_str())).is_empty()
                    || !repeated(rule.baggage.iter().map(BaggageMatch::name)).is_empty()
            };
            prop_assert!(!repeats(&witness) || twice(a) || twice(b), "{witness:?}");
        }
    }
}
