use serde_json::Value;
use serde_json::json;

use super::ask::ParseAskError;
use super::*;

fn template(containers: &Value) -> PodTemplateSpec {
    serde_json::from_value(json!({
        "metadata": {"labels": {"app": "web", "tier": "front"}},
        "spec": {"containers": containers},
    }))
    .unwrap()
}

fn one_container(ports: &Value) -> PodTemplateSpec {
    template(&json!([{"name": "app", "ports": ports}]))
}

fn service(name: &str, selector: &Value, ports: &Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"selector": selector, "ports": ports}})).unwrap()
}

fn web(ports: &Value) -> Service {
    service("web", &json!({"app": "web"}), ports)
}

fn resolved(ask: &str, template: &PodTemplateSpec, services: &[Service], chosen: Option<&str>) -> Result<u16, String> {
    let place = Place { workload: "Deployment/web", template, services, chosen };
    let resolved = resolve(&ask.parse().unwrap(), place).map_err(|error| error.to_string())?;
    Ok(resolved.container.get())
}

#[test]
fn a03_a_port_may_be_typed_in_many_ways() {
    let ask = |text: &str| text.parse::<PortAsk>();
    let (local, number) = (NonZeroU16::new(8080).unwrap(), |n| Remote::Number(NonZeroU16::new(n).unwrap()));
    assert_eq!(ask("8080").unwrap(), PortAsk { local, remote: number(8080) });
    assert_eq!(ask("8080:80").unwrap(), PortAsk { local, remote: number(80) });
    assert_eq!(ask("8080:http/tcp").unwrap(), PortAsk { local, remote: Remote::Name("http".to_owned()) });
    assert_eq!(ask("8080:80/TCP").unwrap(), PortAsk { local, remote: number(80) });
    assert_eq!(ask("8080:80/UDP").unwrap_err().to_string(), "UDP cannot be intercepted yet");
    assert_eq!(ask("8080:80/SCTP"), Err(ParseAskError::Protocol { text: "SCTP".to_owned() }));
    for (text, part) in [("http", "http"), ("http:80", "http"), ("80:", ""), (":80", ""), ("0:80", "0"), ("80:0", "0")]
    {
        assert_eq!(ask(text), Err(ParseAskError::Port { text: part.to_owned() }), "{text}");
    }
    for wrong in ["80:HTTP", "80:70000", "80:a:b", "80:+1", "80:12-3"] {
        assert!(ask(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a03_a_service_port_leads_to_the_container_by_number_or_name() {
    let template = one_container(&json!([{"name": "http", "containerPort": 8080}, {"containerPort": 9000}]));
    let services = [web(&json!([
        {"name": "web", "port": 80, "targetPort": "http"},
        {"name": "admin", "port": 81, "targetPort": 9000},
        {"name": "same", "port": 9000},
        {"name": "hidden", "port": 82, "targetPort": 7777},
        {"name": "zero", "port": 7070, "targetPort": 0},
    ]))];
    for (ask, container) in [
        ("1:80", 8080),
        ("1:web", 8080),
        ("1:81", 9000),
        ("1:admin", 9000),
        ("1:same", 9000),
        ("1:9000", 9000),
        ("1:82", 7777),
        ("1:zero", 7070),
        // No port of the Service: the container's own number or name, or where the Service sends to.
        ("1:8080", 8080),
        ("1:http", 8080),
        ("1:7777", 7777),
    ] {
        assert_eq!(resolved(ask, &template, &services, None), Ok(container), "{ask}");
        assert_eq!(resolved(ask, &template, &services, Some("web")), Ok(container), "{ask}");
    }
}

#[test]
fn a03_the_services_meaning_goes_before_the_containers() {
    let template = one_container(&json!([{"containerPort": 80}, {"containerPort": 8080}]));
    let services = [web(&json!([{"port": 80, "targetPort": 8080}]))];
    assert_eq!(resolved("1:80", &template, &services, None), Ok(8080));
    assert_eq!(resolved("1:80", &template, &[], None), Ok(80));
}

#[test]
fn a03_without_a_service_the_containers_ports_count() {
    let template = one_container(&json!([{"name": "grpc", "containerPort": 50051}]));
    assert_eq!(resolved("1:grpc", &template, &[], None), Ok(50051));
    assert_eq!(resolved("1:50051", &template, &[], None), Ok(50051));
    let error = resolved("1:80", &template, &[], None).unwrap_err();
    assert_eq!(error, "Deployment/web has no port 80; it has: 50051 or grpc (container)");
    let other = [service("other", &json!({"app": "other"}), &json!([{"port": 80}]))];
    assert!(resolved("1:80", &template, &other, None).is_err(), "a Service of other pods says nothing");
}

#[test]
fn a03_a_container_that_declares_nothing_takes_any_number_unless_a_service_says_otherwise() {
    let template = one_container(&Value::Null);
    assert_eq!(resolved("1:3000", &template, &[], None), Ok(3000));
    assert_eq!(resolved("1:http", &template, &[], None).unwrap_err(), "Deployment/web has no port http; it has: none");
    let services = [web(&json!([{"name": "http", "port": 80, "targetPort": 3000}]))];
    assert_eq!(resolved("1:http", &template, &services, None), Ok(3000));
    assert_eq!(resolved("1:3000", &template, &services, None), Ok(3000));
    let error = resolved("1:4000", &template, &services, None).unwrap_err();
    assert_eq!(error, "Deployment/web has no port 4000; it has: 80 or http (Service web)");
}

#[test]
fn a04_two_services_on_one_container_port_are_fine() {
    let template = one_container(&json!([{"name": "http", "containerPort": 8080}]));
    let two = [
        web(&json!([{"name": "http", "port": 80, "targetPort": "http"}])),
        service("web-headless", &json!({"tier": "front"}), &json!([{"name": "http", "port": 80, "targetPort": 8080}])),
    ];
    assert_eq!(resolved("1:80", &template, &two, None), Ok(8080));
    assert_eq!(resolved("1:http", &template, &two, Some("web-headless")), Ok(8080));
}

#[test]
fn a04_services_that_disagree_are_named() {
    let template = one_container(&json!([{"containerPort": 8080}, {"containerPort": 9090}]));
    let two = [
        web(&json!([{"port": 80, "targetPort": 8080}])),
        service("admin", &json!({"app": "web"}), &json!([{"port": 80, "targetPort": 9090}])),
    ];
    let error = resolved("1:80", &template, &two, None).unwrap_err();
    assert!(error.ends_with("give --service with one of: web (port 8080), admin (port 9090)"), "{error}");
    assert_eq!(resolved("1:80", &template, &two, Some("admin")), Ok(9090));
    let error = resolved("1:80", &template, &two, Some("nobody")).unwrap_err();
    assert!(error.contains("Service nobody does not select the pods of Deployment/web"), "{error}");
    assert!(error.ends_with("those that do: web, admin"), "{error}");
}

#[test]
fn a03_a_target_port_that_no_container_has_is_said() {
    let template = one_container(&json!([{"name": "http", "containerPort": 8080}]));
    let services = [web(&json!([{"port": 80, "targetPort": "htpp"}]))];
    let error = resolved("1:80", &template, &services, None).unwrap_err();
    assert_eq!(error, "the Service web sends port 80 to the port \"htpp\", which no container declares");
}

#[test]
fn a03_udp_is_refused_and_tcp_of_the_same_number_found() {
    let udp = one_container(&json!([{"name": "dns", "containerPort": 53, "protocol": "UDP"}]));
    let error = resolved("1:53", &udp, &[], None).unwrap_err();
    assert_eq!(error, "port 53 is UDP, which cannot be intercepted yet");
    let both = one_container(&json!([
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
    ]));
    assert_eq!(resolved("1:53", &both, &[], None), Ok(53));
    let service = [web(&json!([{"name": "dns", "port": 53, "protocol": "UDP"}]))];
    assert!(resolved("1:dns", &both, &service, None).unwrap_err().contains("UDP"));
}

#[test]
fn a03_sidecars_count_and_the_agent_does_not() {
    let template: PodTemplateSpec = serde_json::from_value(json!({
        "metadata": {},
        "spec": {
            "containers": [{"name": "app"}],
            "initContainers": [
                {"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 15000}]},
                {"name": "sluice-agent", "restartPolicy": "Always", "ports": [{"name": "tunnel", "containerPort": 17443}]},
                {"name": "setup", "ports": [{"name": "setup", "containerPort": 1}]},
            ],
        },
    }))
    .unwrap();
    assert_eq!(resolved("1:proxy", &template, &[], None), Ok(15000));
    assert!(resolved("1:tunnel", &template, &[], None).is_err());
    assert!(resolved("1:setup", &template, &[], None).is_err());
}
