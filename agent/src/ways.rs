//! Which way each port is intercepted, and why.
//!
//! Owns the choice, which follows from the rules of a port and from what works in this pod, and the words for it. Runs
//! whenever rules come into force. It steers nothing, and does not find out itself what works.

use std::{cell::LazyCell, collections::BTreeMap};

pub(crate) use sluice_protocol::control::Way;
use sluice_protocol::{
    control::PortWay,
    rules::{Intercept, Steering},
};

use crate::{config, insertion::hints::Hints};

/// The way of one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) way: Way,
    /// Why not insertion, in words.
    pub(crate) why: Option<String>,
}

/// The way of a port with these rules, and with insertion what the kernel has to know of them. `auto` is what is done where
/// no rule asks for a way; `available` says whether insertion works in this pod, or why it does not.
pub(crate) fn choose(
    rules: &[&Intercept],
    auto: config::Steering,
    available: impl FnOnce() -> Result<(), String>,
) -> (Chosen, Option<Hints>) {
    let any = |test: fn(&Intercept) -> bool| rules.iter().any(|rule| test(rule));
    let lookup = |why: String| (Chosen { way: Way::Lookup, why: Some(why) }, None);
    if any(|rule| rule.matches.is_empty()) {
        return lookup("all TCP".to_owned());
    }
    if any(|rule| rule.steering == Steering::Lookup) {
        return lookup("asked for".to_owned());
    }
    if auto == config::Steering::Lookup && !any(|rule| rule.steering == Steering::Insertion) {
        return lookup("this agent's way unless a rule asks for another".to_owned());
    }
    match Hints::new(rules.iter().copied()) {
        Err(rule) => lookup(format!("{rule} has no header condition: every request would have to be looked at")),
        // Last, as it may have to be tried.
        Ok(hints) => match available() {
            Err(why) => lookup(why),
            Ok(()) => (Chosen { way: Way::Insertion, why: None }, Some(hints)),
        },
    }
}

/// The way of every port that these rules name, by number, and what the kernel has to know of those with insertion.
pub(crate) fn of_ports(
    rules: &[Intercept],
    auto: config::Steering,
    available: impl FnOnce() -> Result<(), String>,
) -> (Vec<PortWay>, BTreeMap<u16, Hints>) {
    let mut ports = BTreeMap::<u16, Vec<&Intercept>>::new();
    for rule in rules {
        rule.ports.iter().for_each(|port| ports.entry(port.port.get()).or_default().push(rule));
    }
    let (mut ways, mut inserted) = (Vec::new(), BTreeMap::new());
    // Once for all ports: what does not work may take long to fail.
    let available = LazyCell::new(available);
    for (port, rules) in ports {
        let (Chosen { way, why }, hints) = choose(&rules, auto, || available.clone());
        ways.push(PortWay { port, way, why });
        inserted.extend(hints.map(|hints| (port, hints)));
    }
    (ways, inserted)
}

/// Those of `ways` that are about the ports of `rule`, in its order.
pub(crate) fn of_rule(rule: &Intercept, ways: &[PortWay]) -> Vec<PortWay> {
    let ports = rule.ports.iter().filter_map(|port| ways.iter().find(|way| way.port == port.port.get()));
    ports.cloned().collect()
}

/// Why a rule that asks for insertion does not have it everywhere. `ways` are those of its ports.
pub(crate) fn error(rule: &Intercept, ways: &[PortWay]) -> Option<String> {
    if rule.steering != Steering::Insertion {
        return None;
    }
    let others = ways.iter().filter(|port| port.way != Way::Insertion);
    let others: Vec<_> = others
        .map(|PortWay { port, why, .. }| match why {
            Some(why) => format!("port {port} ({why})"),
            None => format!("port {port}"),
        })
        .collect();
    (!others.is_empty()).then(|| {
        format!(
            "insertion cannot be had on {}: lookup is used; leave `steering` out if that will do",
            others.join(" and ")
        )
    })
}

#[cfg(test)]
mod tests {
    use sluice_protocol::rules::RuleFile;

    use super::*;

    const NO_HEADER: &str = "rule0 has no header condition: every request would have to be looked at";
    const ADAM: &str = "match: {headers: [{name: x-user, value: adam}]}";

    /// Rules on ports, each with its other lines.
    fn rules(rules: &[(&str, &str)]) -> Vec<Intercept> {
        let mut text = "intercepts:\n".to_owned();
        for (number, (ports, rest)) in rules.iter().enumerate() {
            text += &format!(
                "- name: rule{number}\n  ports: [{ports}]\n  client: {{keyHash: \"sha256:{}\"}}\n",
                "0".repeat(64)
            );
            rest.lines().for_each(|line| text += &format!("  {line}\n"));
        }
        RuleFile::parse(&text).unwrap().intercepts
    }

    /// The choice for one port with rules of these lines.
    fn chosen(lines: &[&str], available: &Result<(), String>) -> (Way, Option<String>) {
        let rules = rules(&lines.iter().map(|lines| ("{port: 80}", *lines)).collect::<Vec<_>>());
        let rules: Vec<_> = rules.iter().collect();
        let (Chosen { way, why }, hints) = choose(&rules, config::Steering::Auto, || available.clone());
        assert_eq!(way == Way::Insertion, hints.is_some());
        (way, why)
    }

    #[test]
    fn the_first_reason_against_insertion_decides() {
        let baggage = "match: {baggage: [{name: sluice, value: adam}], path: {value: /v1}}";
        let insertion = format!("steering: insertion\n{ADAM}");
        let lookup = format!("steering: lookup\n{ADAM}");
        let tap = format!("mode: Wiretap\n{ADAM}");
        let (path, method) = ("match: {path: {value: /v1}}", "match: {method: GET}");
        let no_header = Some(NO_HEADER);
        for (rules, works, fails) in [
            (&[""][..], Some("all TCP"), "all TCP"),
            (&["mode: Wiretap", ADAM], Some("all TCP"), "all TCP"),
            (&[&lookup, ""], Some("all TCP"), "all TCP"),
            (&[ADAM, &lookup], Some("asked for"), "asked for"),
            (&[&insertion, &lookup], Some("asked for"), "asked for"),
            (&[path], no_header, NO_HEADER),
            (&[method, ADAM], no_header, NO_HEADER),
            (&["steering: insertion\nmatch: {method: GET}"], no_header, NO_HEADER),
            (&[ADAM], None, "no CAP_BPF"),
            (&[baggage], None, "no CAP_BPF"),
            (&[&insertion, &tap], None, "no CAP_BPF"),
        ] {
            let way = if works.is_none() { Way::Insertion } else { Way::Lookup };
            assert_eq!(chosen(rules, &Ok(())), (way, works.map(str::to_owned)), "{rules:?}");
            let unavailable = Err("no CAP_BPF".to_owned());
            assert_eq!(chosen(rules, &unavailable), (Way::Lookup, Some(fails.to_owned())), "{rules:?}");
        }
    }

    #[test]
    fn what_works_is_tried_once_for_all_ports_and_not_where_none_asks() {
        let tried = std::cell::Cell::new(0);
        let ways = |rules: &[Intercept]| {
            of_ports(rules, config::Steering::Auto, || {
                tried.set(tried.get() + 1);
                Err("no CAP_BPF".to_owned())
            })
        };
        ways(&rules(&[("{port: 80}", ""), ("{port: 81}", "match: {method: GET}")]));
        assert_eq!(tried.get(), 0);
        let (told, inserted) = ways(&rules(&[("{port: 80}, {port: 81}", ADAM), ("{port: 82}", ADAM)]));
        assert!(told.iter().all(|port| port.why.as_deref() == Some("no CAP_BPF")) && inserted.is_empty());
        assert_eq!(tried.get(), 1);
    }

    #[test]
    fn each_port_has_its_own_way_and_a_rule_is_told_what_it_asked_for_in_vain() {
        let insertion = format!("steering: insertion\n{ADAM}");
        let rules = rules(&[("{port: 82}, {port: 80}", &insertion), ("{port: 81}, {port: 80}", "")]);
        let ways = of_ports(&rules, config::Steering::Auto, || Ok(())).0;
        let words = |ways: &[PortWay]| ways.iter().map(PortWay::to_string).collect::<Vec<_>>();
        assert_eq!(words(&ways), ["port 80: lookup (all TCP)", "port 81: lookup (all TCP)", "port 82: insertion"]);
        let own = of_rule(&rules[0], &ways);
        assert_eq!(words(&own), ["port 82: insertion", "port 80: lookup (all TCP)"]);
        let unmet = |rule, available: &Result<(), String>| {
            let ways = of_rule(rule, &of_ports(&rules, config::Steering::Auto, || available.clone()).0);
            error(rule, &ways)
        };
        let told = unmet(&rules[0], &Ok(())).unwrap();
        assert!(told.starts_with("insertion cannot be had on port 80 (all TCP): lookup is used"), "{told}");
        let told = unmet(&rules[0], &Err("no CAP_BPF".to_owned())).unwrap();
        assert!(told.contains("on port 82 (no CAP_BPF) and port 80 (all TCP): "), "{told}");
        assert_eq!(unmet(&rules[1], &Ok(())), None);
        assert_eq!(error(&rules[0], &of_ports(&rules[..1], config::Steering::Auto, || Ok(())).0), None);
    }
}
