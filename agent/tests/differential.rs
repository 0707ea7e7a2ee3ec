//! Case f09: what the kernel's scanner takes for proven is so for the agent's parser.
//!
//! The compiled program runs in the kernel (`BPF_PROG_TEST_RUN`) on heads that are made up and changed at random. Whatever
//! it calls clean the parser must read in the same way: no rule fits, the messages end at the same bytes, nothing is asked
//! that the kernel does not follow. What it does not call clean may be anything; how often that happens is counted, so that
//! a scanner which proves nothing does not pass.
//!
//! `SLUICE_DIFFERENTIAL_CASES` says how many; ten million take six minutes.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where it cannot go on")]

use std::collections::BTreeMap;

#[path = "kernel/namespace.rs"]
#[expect(dead_code, reason = "shared with the tests of the kernel part, which need more of it")]
mod namespace;

use sluice_agent::{
    http1::{
        Doubt,
        body::Body,
        head::{Parsed, RequestKind, Upgrade, parse_request, parse_response},
    },
    insertion::{Begun, Outcome, Programs, Scanned, hints::Hints},
    kernel::{Kernel, LoadOptions},
};
use sluice_protocol::rules::{RuleFile, matcher::RuleSet};

const PORT: u16 = 8080;
/// Ports with rules of a kind: all of them; the same as wiretaps; those of which the kernel knows the only exact name and its
/// value without looking into its maps; and the name alone.
const PORTS: [(u16, &str, &[&str]); 4] = [
    (PORT, "Intercept", &RULES),
    (8081, "Wiretap", &RULES),
    (8082, "Intercept", &[RULES[0], RULES[2]]),
    (8083, "Intercept", &[RULES[0], "[{name: X-Dev, value: Anna}]"]),
];

/// Conditions of every kind, on names of many lengths.
const RULES: [&str; 4] = [
    "[{name: x-dev, value: anna}]",
    "[{name: x-a, value: '1'}, {name: x-bb, type: RegularExpression, value: '^y'}]",
    "[{name: x-sluice-developer-name, type: RegularExpression, value: 'a.*z'}]",
    "[{name: eightlet, value: 'exactly sixteen.'}, {name: cookie, value: 'a=1; b=2'}]",
];

const CASES: u64 = 60_000;

/// xorshift64*: the same cases for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

const NAMES: [&str; 19] = [
    "Host",
    "x-dev",
    "X-Dev",
    "X-DEV",
    "x-dex",
    "x-a",
    "x-bb",
    "X-Sluice-Developer-Name",
    "eightlet",
    "cookie",
    "Accept",
    "User-Agent",
    "x-eightee",
    "a",
    "If-None-Match",
    "baggage",
    "X_Y",
    "x.y!#$%&'*+^`|~",
    "x-dev1",
];
const VALUES: [&str; 14] = [
    "anna",
    "Anna",
    "ann",
    "annaa",
    " anna",
    "anna ",
    "1",
    "y",
    "axz",
    "exactly sixteen.",
    "a=1; b=2",
    "*/*",
    "",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)",
];
/// Names that rules ask for by value, and others; and values that none of them has.
const USUAL: [&str; 10] =
    ["Host", "x-dev", "X-DEV", "eightlet", "cookie", "x-a", "Accept", "User-Agent", "x-sluice-developer-nama", "a"];
const OTHER: [&str; 8] =
    ["Anna", "annaa", "ann", "exactly sixteen!", "a=1; b=22", "*/*", "", "Mozilla/5.0 (X11; Linux x86_64)"];
const FRAMING: [&str; 15] = [
    "Content-Length: 5\r\n",
    "content-length:0\r\n",
    "Content-Length: 12x\r\n",
    "Content-Length: 5 \r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "connection: Close\r\n",
    "Connection: upgrade\r\n",
    "Upgrade: websocket\r\n",
    "Expect: 100-continue\r\n",
    "Content-Length: +5\r\n",
    "Connection: keep-alive, close\r\n",
    "Content-Length: 99999999999\r\n",
];

fn request(random: &mut Random) -> Vec<u8> {
    let method =
        random.pick(&["GET", "GET", "GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "M-X"]);
    let target =
        random.pick(&["/", "/a/b?c=d", "/long/path/with/many/segments?and=query", "http://h/x", "*", "/%20", "/\"<>"]);
    let version = if random.below(16) == 0 { random.pick(&["HTTP/1.0", "HTTP/1.2"]) } else { "HTTP/1.1" };
    let mut text = format!("{method} {target} {version}\r\n").into_bytes();
    lines(random, &mut text);
    text
}

fn answer(random: &mut Random) -> Vec<u8> {
    let status = random.pick(&[
        "200 OK",
        "204 No Content",
        "304 Not Modified",
        "404 Not Found",
        "100 Continue",
        "103 Hints",
        "200",
        "200 ",
        "101 X",
        "99 X",
    ]);
    let version = random.pick(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]);
    let mut text = format!("{version} {status}\r\n").into_bytes();
    lines(random, &mut text);
    text
}

fn lines(random: &mut Random, text: &mut Vec<u8>) {
    // Of most, all is usual but for one thing, if any: what is odd throughout is never proven, and says nothing.
    let odd = random.below(4) == 0;
    let body = random.pick(&["", "", "hello"]);
    for _ in 0..random.below(9) {
        if random.below(if odd { 5 } else { 60 }) == 0 {
            text.extend(random.pick(&FRAMING).bytes());
            continue;
        }
        let (names, values) = if odd { (&NAMES[..], &VALUES[..]) } else { (&USUAL[..], &OTHER[..]) };
        let blank = random.pick(&[" ", " ", " ", " ", if odd { "\t" } else { "" }]);
        text.extend(format!("{}:{blank}{}\r\n", random.pick(names), random.pick(values)).bytes());
    }
    if random.below(4) == 0 {
        text.extend(b"Transfer-Encoding: chunked\r\n\r\n");
        for _ in 0..random.below(3) {
            let size = 1 + random.below(40);
            text.extend(format!("{size:x}{}\r\n{}\r\n", random.pick(&["", "", "", ";a=b"]), "z".repeat(size)).bytes());
        }
        text.extend(random.pick(&["0\r\n\r\n", "0\r\n\r\n", "000\r\n\r\n", "0\r\nX-Sum: 1\r\n\r\n"]).bytes());
        return;
    }
    if !body.is_empty() || random.below(2) == 0 {
        text.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
    }
    text.extend(b"\r\n");
    text.extend(if odd { random.pick(&["", "hello", "5\r\nhello\r\n0\r\n\r\n"]) } else { body }.bytes());
}

/// One to three messages, changed in a few places, cut anywhere.
fn case(random: &mut Random, make: fn(&mut Random) -> Vec<u8>) -> Vec<u8> {
    let mut text: Vec<u8> = (0..=random.below(3)).flat_map(|_| make(random)).collect();
    for _ in 0..random.below(6).saturating_sub(3) {
        let at = random.below(text.len());
        match random.below(5) {
            0 => text[at] = u8::try_from(random.below(256)).unwrap(),
            1 => text.insert(at, u8::try_from(random.below(256)).unwrap()),
            2 => _ = text.remove(at),
            3 => text[at] ^= 0x20,
            _ => text.insert(at, random.pick(&["\r", "\n", " ", "\t", ":", "\0"]).as_bytes()[0]),
        }
    }
    if random.below(4) == 0 {
        text.truncate(1 + random.below(text.len()));
    }
    text
}

/// What the parser says of requests of which `found` are said to be clean; where the next begins.
fn check_requests(
    rules: &RuleSet,
    port: u16,
    text: &[u8],
    [next, found, heads, flags]: [u32; 4],
) -> Result<(), String> {
    let (mut at, port) = (0_usize, rules.port(port).unwrap());
    for number in 0..found {
        let parsed = parse_request(text.get(at..).ok_or("begins behind the end")?, |view| port.decide(view));
        let Parsed::Head((head, fits)) = parsed else { return Err(format!("request {number} at {at}: {parsed:?}")) };
        let Body::Length(length) = head.body else { return Err(format!("request {number} has a body of chunks")) };
        let is_head = head.kind == RequestKind::Head;
        if fits.taken_by.is_some() || (!fits.copied_to.is_empty() && flags & 8 == 0) {
            return Err(format!("request {number} fits a rule"));
        }
        if head.upgrade != Upgrade::None || is_head != (heads >> number & 1 == 1) {
            return Err(format!("request {number} is of another kind: {head:?}"));
        }
        if head.close != (flags & 1 != 0) && (head.close || number + 1 == found) {
            return Err(format!("request {number}: close {}", head.close));
        }
        at += head.len + usize::try_from(length).unwrap();
    }
    if at == next as usize && at >= text.len() { Ok(()) } else { Err(format!("ends at {at} of {}", text.len())) }
}

/// As [`check_requests`], for answers to requests of which those in the bits of `owed` are `HEAD`.
fn check_answers(text: &[u8], owed: u32, [next, found, _, flags]: [u32; 4]) -> Result<(), String> {
    let (mut at, mut whole) = (0_usize, 0_u32);
    while at < text.len() {
        let kind = if owed >> whole & 1 == 1 { RequestKind::Head } else { RequestKind::Other };
        let parsed = parse_response(&text[at..], kind);
        let Parsed::Head(head) = parsed else { return Err(format!("answer at {at}: {parsed:?}")) };
        at += head.len;
        if head.status < 200 {
            continue;
        }
        if head.close && flags & 1 == 0 && head.body != Body::UntilClose {
            return Err(format!("the answer that ends at {at} is the last"));
        }
        let length = match head.body {
            Body::Length(length) => length,
            Body::UntilClose => {
                let same = flags & 2 != 0 && at == next as usize && whole == found;
                return if same { Ok(()) } else { Err(format!("the answer at {at} has no length: {next} {found}")) };
            }
            mut chunked @ Body::Chunked(_) => {
                let taken = chunked.take(&text[at..]).map_err(|doubt| format!("chunks from {at}: {doubt:?}"))?;
                if !chunked.is_done() {
                    // It goes on where the parser can be told to go on.
                    let left = u64::from(next).wrapping_sub(text.len() as u64);
                    return if flags & 4 != 0 && whole == found && chunked == Body::within_chunk(left) {
                        Ok(())
                    } else {
                        Err(format!("chunks from {at} go on"))
                    };
                }
                taken as u64
            }
        };
        at += usize::try_from(length).unwrap();
        whole += u32::from(at <= text.len());
    }
    if flags & 6 == 0 && at == next as usize && whole == found {
        Ok(())
    } else {
        Err(format!("{whole} answers end at {at}, not {found} at {next}"))
    }
}

/// What the kernel says of text, which comes in one packet or, if it is an answer, in several.
fn scan(programs: &Programs, random: &mut Random, port: u16, text: &[u8], owed: Option<u32>) -> (Outcome, [u32; 4]) {
    let Some(owed) = owed else {
        let (outcome, numbers, _) = programs.scan(port, text, Scanned::Requests).unwrap();
        return (outcome, numbers);
    };
    let mut cuts: Vec<_> = (0..random.below(5)).map(|_| random.below(text.len())).collect();
    cuts.extend([0, text.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    pieces(programs, text, owed, &cuts)
}

/// As [`Programs::scan`], for answers in packets that begin and end at `cuts`; the program at the devices' egress does it like
/// that.
fn pieces(programs: &Programs, text: &[u8], owed: u32, cuts: &[usize]) -> (Outcome, [u32; 4]) {
    /// Behind a chunk's data: `CHUNKS` of the program.
    const CHUNKS: u32 = u32::MAX;
    let (mut begun, mut at, mut whole, mut last) = (Begun::default(), 0_usize, 0, 0);
    let (mut running, mut outcome, mut flags) = (false, Outcome::Undecided, 0);
    for cut in cuts.windows(2) {
        if running && at <= cut[1] {
            (running, whole) = (false, whole + 1);
        }
        let (from, to) = (cut[0].max(at), cut[1]);
        if from >= to {
            // All of it belongs to a body.
            continue;
        }
        let (numbers, goes_on);
        let answers = Scanned::Answers { heads: owed >> whole, begun };
        (outcome, numbers, goes_on) = programs.scan(PORT, &text[from..to], answers).unwrap();
        match (outcome, numbers) {
            (Outcome::More, [_, _, found, closes]) => {
                (begun, at, flags) = (goes_on, to, 0);
                (whole, last) = (whole + found, last | closes);
            }
            (Outcome::Done, [next, found, _, told]) => {
                begun = Begun { kept: if told & 4 == 0 { [0; 2] } else { [CHUNKS, 0] }, ..Begun::default() };
                at = from + next as usize;
                (whole, last, flags) = (whole + found, last | told & 1, told & 6);
                running = flags == 0 && at > to;
                if flags & 2 != 0 {
                    // Only the end of the connection ends it.
                    break;
                }
            }
            _ => break,
        }
    }
    (outcome, [u32::try_from(at).unwrap(), whole, 0, last | flags])
}

/// The programs with the rules of all [`PORTS`], and the rules.
fn load() -> (Programs, RuleSet) {
    let rules =
        PORTS.iter().flat_map(|(port, mode, rules)| rules.iter().enumerate().map(move |rule| (port, mode, rule)));
    let rules = rules.map(|(port, mode, (n, headers))| {
        let key = "0".repeat(64);
        format!(
            "{{name: r{port}-{n}, mode: {mode}, client: {{keyHash: 'sha256:{key}'}}, ports: [{{port: {port}}}], \
             match: {{headers: {headers}}}}}"
        )
    });
    let text = format!("intercepts: [{}]", rules.collect::<Vec<_>>().join(", "));
    let file = RuleFile::parse(&text).unwrap();
    let rules = RuleSet::compile(&file).unwrap();
    let mut kernel = Kernel::load(LoadOptions::default()).unwrap();
    let listeners = kernel.take_listeners().unwrap();
    let mut programs = Programs::load(&listeners, None).unwrap();
    let hints = PORTS.map(|(port, ..)| {
        let rules = file.intercepts.iter().filter(|rule| rule.ports.iter().any(|named| named.port.get() == port));
        (port, Hints::new(rules).unwrap())
    });
    programs.apply(&BTreeMap::from(hints), &[]).unwrap();
    (programs, rules)
}

fn differ(seed: u64, cases: u64) {
    let (programs, rules) = load();
    let mut random = Random(seed | 1);
    let (mut proven, mut copied, mut asked) = ([0_u64; 2], 0_u64, 0_u64);
    for number in 0..cases {
        let is_answer = random.below(4) == 0;
        let owed = u32::try_from(random.below(4)).unwrap();
        let (port, ..) = PORTS[random.below(PORTS.len())];
        let text = case(&mut random, if is_answer { answer } else { request });
        // Of some, every beginning: as if the rest were in another packet.
        let from = if random.below(64) == 0 { 1 } else { text.len() };
        for end in from..=text.len() {
            let text = &text[..end];
            asked += 1;
            let (outcome, numbers) = scan(&programs, &mut random, port, text, is_answer.then_some(owed));
            let checked = match outcome {
                Outcome::Done if is_answer => check_answers(text, owed, numbers),
                Outcome::Done => check_requests(&rules, port, text, numbers),
                Outcome::State if !is_answer => match parse_request(text, |_| ()) {
                    Parsed::Doubt(Doubt::NotHttp) => Ok(()),
                    // What reads byte by byte knows by the first one.
                    Parsed::Partial if !matches!(text[0], b'A'..=b'Z' | b'-' | b'_' | b'\r') => Ok(()),
                    other => Err(format!("taken for no HTTP: {other:?}")),
                },
                Outcome::Undecided | Outcome::State | Outcome::More => Ok(()),
                other => Err(format!("{other:?}")),
            };
            proven[usize::from(is_answer)] += u64::from(outcome == Outcome::Done);
            copied += u64::from(outcome == Outcome::Done && !is_answer && numbers[3] & 8 != 0);
            if let Err(why) = checked {
                panic!(
                    "case {number} of seed {seed}, answer {is_answer} to {owed}: {why}\n{:?}\n{numbers:?}",
                    text.escape_ascii().to_string()
                );
            }
        }
    }
    println!("{asked} cases, proven: {} requests ({copied} for wiretaps), {} answers", proven[0], proven[1]);
    let enough = proven[0] > cases / 20 && proven[1] > cases / 60 && copied > cases / 10_000;
    assert!(enough, "hardly anything was proven: {proven:?} of {asked}, {copied} for wiretaps");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn f09_what_the_kernel_proves_the_parser_says_too() {
    let cases = std::env::var("SLUICE_DIFFERENTIAL_CASES").map_or(CASES, |cases| cases.parse().expect("a number"));
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    // So that a failure can be had again.
    let seed = std::env::var("SLUICE_DIFFERENTIAL_SEED")
        .map_or(u64::try_from(seed & 0xffff_ffff).unwrap(), |seed| seed.parse().unwrap());
    println!("seed {seed}");
    namespace::in_namespace(|| differ(seed, cases));
}

/// An app's packets begin and end anywhere: whole answers are followed through all of them.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn f09_answers_are_followed_wherever_packets_end() {
    let texts = [
        "HTTP/1.1 200 OK\r\nServer: BaseHTTP/0.6 Python/3.11.2\r\nX-Answered-By: pod\r\nContent-Length: 12\r\n\r\nhello, world",
        "HTTP/1.1 200 OK\r\nX-Target: /a\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n5\r\nhello\r\n0\r\nX-End: 1\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nX: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 000000012\r\nX: y\r\n\r\nhello, world",
    ];
    namespace::in_namespace(|| {
        let (programs, _) = load();
        for (first, second) in [(0, 1), (1, 0), (1, 2), (2, 3), (3, 1)] {
            let text = [texts[first], texts[second]].concat().into_bytes();
            for one in 1..text.len() {
                for other in one + 1..text.len() {
                    ends_well(&programs, &text, &[0, one, other, text.len()]);
                }
            }
        }
        // Longer than what is looked at at once behind the beginning of a line.
        let lines: String = (0..40).map(|n| format!("X-Line-{n}: {}\r\n", "v".repeat(n * 2))).collect();
        let long = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 12\r\n\r\nhello, world");
        let text = [&long, texts[1]].concat().into_bytes();
        for one in (1..text.len()).step_by(3) {
            for length in [1, 2, 13, 64, 2000, 2048] {
                ends_well(&programs, &text, &[0, one, (one + length).min(text.len() - 1), text.len()]);
            }
        }
    });
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn f09_lines_that_do_not_end_as_they_should_are_not_followed_wherever_packets_end() {
    let texts = [
        "HTTP/1.1 404 Not Found\rContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: y\rContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\rX: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\ra\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r0\r\n\r\n",
    ];
    namespace::in_namespace(|| {
        let (programs, _) = load();
        for text in texts.map(str::as_bytes) {
            for one in 1..text.len() {
                for other in one + 1..text.len() {
                    let cuts = [0, one, other, text.len()];
                    let (outcome, numbers) = pieces(&programs, text, 0, &cuts);
                    assert_ne!(outcome, Outcome::Done, "cut at {cuts:?}: {}, {numbers:?}", text.escape_ascii());
                }
            }
        }
    });
}

/// Two whole answers, which end with the text.
fn ends_well(programs: &Programs, text: &[u8], cuts: &[usize]) {
    let expected = (Outcome::Done, [u32::try_from(text.len()).unwrap(), 2, 0, 0]);
    assert_eq!(pieces(programs, text, 0, cuts), expected, "cut at {cuts:?}: {}", text.escape_ascii());
}
