//! The three scenes, and what a person is told about them.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::{
    report::{RequestReport, SceneReport, Terminal},
    stage::{Rule, Stage},
};
use crate::peers::http1::Response;

/// The header that the developer's own requests carry.
const HEADER: (&str, &str) = ("x-user", "adam");
const HEADER_LINE: &str = "x-user: adam";
const OTHER: (&str, &str) = ("x-user", "eva");
const OTHER_LINE: &str = "x-user: eva";

const TIC: &str = "POST /tic";

struct Scene {
    name: &'static str,
    title: &'static str,
    explanation: &'static [&'static str],
    rule: Option<Rule>,
    requests: &'static [Request],
}

struct Request {
    header: Option<((&'static str, &'static str), &'static str)>,
    expected: &'static str,
}

/// How many scenes there are.
pub const COUNT: usize = SCENES.len();

const PLAIN: Option<((&str, &str), &str)> = None;
const MINE: Option<((&str, &str), &str)> = Some((HEADER, HEADER_LINE));
const THEIRS: Option<((&str, &str), &str)> = Some((OTHER, OTHER_LINE));

const SCENES: [Scene; 3] = [
    Scene {
        name: "before",
        title: "1  Before",
        explanation: &[
            "The agent is in the pod of add, but nobody intercepts anything. Nothing is attached",
            "in the kernel, nothing stands between tictac and add.",
        ],
        rule: None,
        requests: &[Request { header: PLAIN, expected: "pod" }, Request { header: MINE, expected: "pod" }],
    },
    Scene {
        name: "all-tcp",
        title: "2  All TCP on port grpc (9090)",
        explanation: &[
            "The laptop asks for every connection to add's gRPC port. From now on the add on the laptop",
            "answers, with a debugger attached if you like. tictac and its caller were not restarted.",
        ],
        rule: Some(Rule::AllTcp),
        requests: &[
            Request { header: PLAIN, expected: "laptop" },
            Request { header: MINE, expected: "laptop" },
            Request { header: PLAIN, expected: "laptop" },
        ],
    },
    Scene {
        name: "header",
        title: "3  Only requests with a header",
        explanation: &[
            "Now the laptop asks only for calls that carry x-user: adam, which tictac hands on from its",
            "caller. Everybody else is served by the pod, as before.",
        ],
        rule: Some(Rule::Header { name: HEADER.0, value: HEADER.1 }),
        requests: &[
            Request { header: PLAIN, expected: "pod" },
            Request { header: MINE, expected: "laptop" },
            Request { header: THEIRS, expected: "pod" },
            Request { header: MINE, expected: "laptop" },
            Request { header: PLAIN, expected: "pod" },
        ],
    },
];

/// What scenes are played on.
pub trait Set {
    /// Lets the laptop have what the rule says, from the next connection on.
    fn intercept(&mut self, rule: Rule) -> impl Future<Output = Result<()>>;

    /// Sends a request to `tictac`.
    fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)])
    -> impl Future<Output = Result<Response>>;
}

/// The picture that comes first; `place` says what the four are.
pub fn introduce(terminal: Terminal, place: &str) {
    terminal.title("Sluice: take the requests you choose to your own machine");
    for line in [
        "",
        "     caller ───▶ tictac ───gRPC───▶ add          laptop",
        "      (HTTP)     (pod)             (pod)    ┌──▶ an add of your own",
        "                             Sluice's agent─┘    Sluice's client",
        "",
        "   tictac counts: POST /tic adds one, and add does the adding. The answer says which add it was.",
        place,
        "",
    ] {
        terminal.line(line);
    }
}

/// Plays all scenes and writes into `played` what happened, also when it fails half-way.
pub async fn play(stage: &mut impl Set, terminal: Terminal, played: &mut Vec<SceneReport>) -> Result<()> {
    let mut tics = 0;
    for scene in &SCENES {
        terminal.title(scene.title);
        for line in scene.explanation {
            terminal.line(&format!("   {line}"));
        }
        if let Some(rule) = scene.rule {
            stage.intercept(rule).await?;
        }
        terminal.line("");
        played.push(SceneReport { name: scene.name, requests: Vec::new() });
        for request in scene.requests {
            let report = send(stage, request).await.with_context(|| format!("scene {}", scene.name))?;
            terminal.request(&report);
            tics += 1;
            if let Some(scene) = played.last_mut() {
                scene.requests.push(report);
            }
        }
    }
    let tac = stage.request("GET", "/tac", &[]).await?;
    let value = String::from_utf8_lossy(&tac.body).into_owned();
    ensure!(value == format!("{{\"value\":{tics}}}"), "GET /tac says {value} after {tics} tics");
    terminal.line("");
    terminal.line(&format!("   GET /tac says {value}: whoever added, every tic was counted."));
    Ok(())
}

async fn send(stage: &mut impl Set, request: &Request) -> Result<RequestReport> {
    let headers: Vec<_> = request.header.iter().map(|(header, _)| *header).collect();
    let begin = Instant::now();
    let response = stage.request("POST", "/tic", &headers).await?;
    let micros = begin.elapsed().as_micros();
    ensure!(
        response.status == 200,
        "{TIC} was answered with {}: {}",
        response.status,
        String::from_utf8_lossy(&response.body)
    );
    let answered_by = response.answered_by().context("an answer without a signature")?.to_owned();
    let header = request.header.map(|(_, line)| line);
    Ok(RequestReport { what: TIC, header, expected: request.expected, answered_by, micros })
}

/// Commands with which a person goes on alone.
pub fn invite(stage: &Stage, terminal: Terminal) {
    let caller = format!("nsenter --net={}", stage.caller.namespace_path().display());
    let add = format!("nsenter --net={}", stage.add.namespace_path().display());
    let url = format!("http://{}", stage.tictac_address());
    let (name, value) = HEADER;
    let commands = [
        (
            "A request like anybody's; the answer's header x-answered-by says who has added",
            format!("{caller} curl -si -X POST {url}/tic"),
        ),
        ("One of your own", format!("{caller} curl -si -X POST -H '{name}: {value}' {url}/tic")),
        ("The count", format!("{caller} curl -s {url}/tac")),
        ("What the agent says about itself", format!("{add} curl -s http://127.0.0.1:17090/status")),
        ("What is attached in the kernel", format!("bpftool link show | grep -B1 {}", stage.add.namespace_inode())),
        (
            "The rules; the agent follows when you change them",
            format!("${{EDITOR:-nano}} {}", stage.agent.rules_file().display()),
        ),
        ("What agent, client and services log", format!("tail -f {}/*.log", stage.add.folder().display())),
    ];
    offer(terminal, &commands);
}

/// Shows commands, each with what it is for.
pub fn offer(terminal: Terminal, commands: &[(&str, String)]) {
    terminal.title("Now you: everything stays up until Ctrl-C. In another terminal, as root:");
    for (what, command) in commands {
        terminal.line("");
        terminal.aside(&format!("   # {what}"));
        terminal.line(&format!("   {command}"));
    }
}
