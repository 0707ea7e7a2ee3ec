//! The index gives what a look at each rule in turn gives.

use std::{cmp::Reverse, fmt::Write as _};

use proptest::{prelude::*, sample::select};

use super::*;

/// A request over small alphabets, so that many fit.
#[derive(Clone, Debug)]
struct Head {
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
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

/// Names and values that requests have: the same header in two cases, one of the same length, baggage sound and broken.
const HEADERS: &[(&str, &str)] = &[
    ("a", "1"),
    ("A", "2"),
    ("a", "12"),
    ("b", "1"),
    ("b", ""),
    ("baggage", "k=1"),
    ("Baggage", "k=2;p=1,l=1"),
    ("baggage", "k=%31,l=1 2"),
    ("baggage", ""),
    ("user-agent", "kube-probe/1"),
    ("user-agent", "1"),
];

fn heads() -> impl Strategy<Value = Head> {
    let headers = proptest::collection::vec(select(HEADERS), 0..6);
    (select(&["GET", "PUT"][..]), select(&["/", "/x", "/x/y", "*"][..]), headers)
        .prop_map(|(method, path, headers)| Head { method, path, headers })
}

/// Lines of a rule, as in a file.
fn rules() -> impl Strategy<Value = String> {
    let header = select(
        &[
            "{name: a, value: \"1\"}",
            "{name: A, value: \"2\"}",
            "{name: b, value: \"\"}",
            "{name: baggage, value: \"k=1\"}",
            "{type: RegularExpression, name: a, value: \"1.*\"}",
            "{type: RegularExpression, name: b, value: \"1|2\"}",
            "{type: RegularExpression, name: user-agent, value: \".*\"}",
        ][..],
    );
    let member = select(&["{name: k, value: \"1\"}", "{name: k, value: \"2\"}", "{name: l, value: \"1\"}"][..]);
    let path = select(
        &[
            "",
            "path: {value: /x}",
            "path: {type: Exact, value: /x}",
            "path: {type: RegularExpression, value: \"/x.*\"}",
            "path: {value: /}",
        ][..],
    );
    let list = |item| proptest::collection::vec(item, 0..3);
    let age = select(&["", "created: 2026-01-01T00:00:00Z", "created: 2026-02-01T00:00:00Z"][..]);
    let more = select(&["", "mode: Wiretap", "includeProbes: true"][..]);
    let method = select(&["", "method: GET"][..]);
    (list(header.boxed()), list(member.boxed()), path, method, age, more).prop_map(
        |(headers, baggage, path, method, age, more)| {
            let mut conditions =
                vec![format!("headers: [{}]", headers.join(", ")), format!("baggage: [{}]", baggage.join(", "))];
            conditions.extend([path, method].into_iter().filter(|c| !c.is_empty()).map(str::to_owned));
            format!("  match: {{{}}}\n  {age}\n  {more}\n", conditions.join(", "))
        },
    )
}

fn file(rules: &[String]) -> RuleFile {
    let mut text = "intercepts:\n".to_owned();
    for (number, rule) in rules.iter().enumerate() {
        let key = format!("sha256:{:064x}", 1);
        let _ = write!(text, "- name: r{number}\n  ports: [{{port: 80}}]\n  client: {{keyHash: \"{key}\"}}\n{rule}");
    }
    RuleFile::parse(&text).unwrap()
}

/// Whether `request` fits, condition by condition.
fn fits(rule: &Intercept, request: &Head) -> bool {
    let values = |name: &str| {
        let name = name.to_owned();
        let named = request.headers.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(&name));
        named.map(|(_, value)| value.as_bytes())
    };
    let matches = &rule.matches;
    let is_probe = values("user-agent").any(|value| value.starts_with(b"kube-probe/"));
    matches.headers.iter().all(|h| values(h.name().as_str()).any(|value| header_fits(h, value).unwrap()))
        && matches.baggage.iter().all(|b| values("baggage").any(|value| baggage_fits(b, value)))
        && matches.path.as_ref().is_none_or(|path| path_fits(path, request.path.as_bytes()).unwrap())
        && matches.method.as_ref().is_none_or(|method| method.as_str() == request.method)
        && (rule.include_probes || !is_probe)
}

proptest! {
    // Each compiles every expression for every request: few take long enough.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn b14_the_index_decides_as_a_look_at_each_rule_does(
        rules in proptest::collection::vec(rules(), 1..8),
        heads in proptest::collection::vec(heads(), 1..8),
    ) {
        let file = file(&rules);
        let set = RuleSet::compile(&file).unwrap();
        let mut order: Vec<_> = file.intercepts.iter().filter(|rule| !rule.matches.is_empty()).collect();
        // With the place in the file, so that it does not depend on the sort being stable.
        order = order.into_iter().enumerate().map(|(at, rule)| {
            ((Reverse(rule.matches.conditions()), rule.created.is_none(), rule.created, at), rule)
        }).collect::<BTreeMap<_, _>>().into_values().collect();
        for head in &heads {
            let found = set.port(80).map(|port| port.decide(head)).unwrap_or_default();
            let fitting = || order.iter().filter(|rule| fits(rule, head));
            let taken = fitting().find(|rule| rule.mode == Mode::Intercept).map(|rule| &rule.name);
            let copied: Vec<_> = fitting().filter(|rule| rule.mode == Mode::Wiretap).map(|rule| &rule.name).collect();
            prop_assert_eq!(found.taken_by.as_ref().map(|rule| &rule.intercept.name), taken);
            prop_assert_eq!(found.copied_to.iter().map(|rule| &rule.intercept.name).collect::<Vec<_>>(), copied);
        }
    }
}

#[test]
fn b14_more_conditions_than_fit_the_stack_are_told_apart() {
    let rules: Vec<_> = (0..1500).map(|n| format!("  match: {{headers: [{{name: a, value: \"v{n}\"}}]}}\n")).collect();
    let set = RuleSet::compile(&file(&rules)).unwrap();
    let port = set.port(80).unwrap();
    struct One(String);
    impl Request for One {
        fn method(&self) -> &[u8] {
            b"GET"
        }
        fn path(&self) -> &[u8] {
            b"/"
        }
        fn headers(&self, seen: &mut Seen<'_>) {
            seen.header("A", self.0.as_bytes());
        }
    }
    for n in 0..1500 {
        let taken = port.decide(&One(format!("v{n}"))).taken_by.map(|rule| rule.intercept.name.clone());
        assert_eq!(taken, Some(format!("r{n}")));
    }
    assert!(port.decide(&One("v1500".to_owned())).taken_by.is_none());
}

/// For people: `cargo test --release -p sluice-protocol what_a_decision_costs -- --ignored --nocapture`.
#[test]
#[ignore = "prints how long a decision takes, and judges nothing"]
fn what_a_decision_costs() {
    const TIMES: u32 = 100_000;
    let names = ["host", "accept", "user-agent", "x-request-id", "x-user", "traceparent", "cookie", "content-type"];
    let head = Head { method: "GET", path: "/v1/items", headers: names.map(|name| (name, "some value")).to_vec() };
    for count in [1, 10, 250] {
        let rule = |n| format!("  match: {{headers: [{{name: x-user, value: \"v{n}\"}}]}}\n");
        let set = RuleSet::compile(&file(&(0..count).map(rule).collect::<Vec<_>>())).unwrap();
        let port = set.port(80).unwrap();
        let begin = std::time::Instant::now();
        for _ in 0..TIMES {
            assert!(std::hint::black_box(port.decide(std::hint::black_box(&head))).taken_by.is_none());
        }
        println!("{count} rules: {:?} for a request with 8 headers that fits none", begin.elapsed() / TIMES);
    }
}
