//! The callers: a pool of connections that are kept alive, and replaced where a server ends one.

use std::{collections::VecDeque, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use sluice_tests::{
    Host,
    peers::http1::{Http1Caller, Response, request},
    random::Random,
    stage::{MATCHING, OTHER},
};

/// What is sent in all.
pub(crate) struct Load {
    /// How many requests.
    pub(crate) requests: usize,
    /// How many connections they come over.
    pub(crate) callers: usize,
    /// One in so many fits the rule.
    pub(crate) fits_once_in: usize,
    /// Most requests of a connection that are sent before the first of them is answered.
    pub(crate) at_once: usize,
}

/// A request and what its answer must be.
struct Ask {
    number: usize,
    method: &'static str,
    taken: bool,
    body: Vec<u8>,
    chunked: bool,
    /// It waits to be told that its body is wanted.
    expects: bool,
}

// === impl Ask ===

impl Ask {
    fn new(random: &mut Random, number: usize, fits_once_in: usize) -> Self {
        let method = random.pick(&["GET", "GET", "POST", "POST", "PUT", "PATCH", "DELETE", "HEAD"]);
        let most = random.pick(&[1, 100, 100, 2_000, 2_000, 20_000, 20_000, 200_000]);
        let size = if matches!(method, "GET" | "HEAD" | "DELETE") { 0 } else { random.below(most) };
        let expects = size > 0 && random.once_in(8);
        let (taken, chunked) = (random.once_in(fits_once_in), size > 0 && random.once_in(2));
        Self { number, method, taken, body: random.bytes(size), chunked, expects }
    }

    /// Head and body.
    fn bytes(&self) -> (Vec<u8>, Vec<u8>) {
        let target = format!("/{}", self.number);
        let mut headers = vec![if self.taken { MATCHING } else { OTHER }];
        let length = self.body.len().to_string();
        if self.expects {
            headers.push(("Expect", "100-continue"));
        }
        let body = match (self.chunked, self.body.is_empty()) {
            (_, true) => Vec::new(),
            (false, _) => {
                headers.push(("Content-Length", &length));
                self.body.clone()
            }
            (true, _) => {
                headers.push(("Transfer-Encoding", "chunked"));
                let chunks = self.body.chunks(7_000);
                let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
                chunks.flat_map(chunk).chain(*b"0\r\n\r\n").collect()
            }
        };
        (request(self.method, &target, &headers, b""), body)
    }

    fn check(&self, answer: &Response) -> Result<()> {
        let by = if self.taken { "laptop" } else { "pod" };
        ensure!(answer.status == 200, "status {}", answer.status);
        ensure!(answer.answered_by() == Some(by), "by {:?} instead of {by}", answer.answered_by());
        ensure!(answer.header("x-target") == Some(&format!("/{}", self.number)), "the answer to another request");
        ensure!(self.method == "HEAD" || answer.body == self.body, "{} bytes that are not those", answer.body.len());
        Ok(())
    }
}

/// Sends all requests to the server and checks each answer; returns how many fitted the rule.
pub(crate) async fn call(from: &Host, to: SocketAddr, load: &Load) -> Result<usize> {
    let taken = try_join_all((0..load.callers).map(async |caller| {
        let mut random = Random::new(u64::try_from(caller)?);
        let (mut numbers, mut asks, mut taken) = ((caller..load.requests).step_by(load.callers), VecDeque::new(), 0);
        let mut connection = None;
        loop {
            // As late as possible: making all of them takes longer than a server waits for the first.
            for number in numbers.by_ref().take(load.at_once - asks.len()) {
                let ask = Ask::new(&mut random, number, load.fits_once_in);
                taken += usize::from(ask.taken);
                asks.push_back(ask);
            }
            if asks.is_empty() {
                return anyhow::Ok(taken);
            }
            let mut open = match connection.take() {
                Some(open) => open,
                None => Http1Caller::connect(from, to).await?,
            };
            if some(&mut open, &mut asks, &mut random, load.at_once).await? {
                connection = Some(open);
            }
        }
    }));
    Ok(taken.await?.into_iter().sum())
}

/// Sends the next requests, one or several at once, and takes those away that are answered. False where the server has
/// ended the connection: what was behind that is not answered and comes again, on another.
async fn some(
    connection: &mut Http1Caller,
    asks: &mut VecDeque<Ask>,
    random: &mut Random,
    at_once: usize,
) -> Result<bool> {
    let most = if random.once_in(3) { 1 + random.below(at_once) } else { 1 };
    // Who expects to be told has nothing behind it.
    let alone = asks.iter().position(|ask| ask.expects).unwrap_or(most).max(1);
    let count = most.min(alone).min(asks.len());
    let mut all = Vec::new();
    for ask in asks.iter().take(count) {
        let (head, body) = ask.bytes();
        all.extend(head);
        if ask.expects {
            connection.send(&std::mem::take(&mut all)).await?;
            let interim = connection.response(ask.method).await.with_context(|| format!("request {}", ask.number))?;
            ensure!(interim.status == 100, "request {}: {} instead of 100", ask.number, interim.status);
        }
        all.extend(body);
    }
    // A server that has said that it ends the connection does not read what is behind that, and may reset it while this is still
    // sending: Go's waits for half a second. What it has said is here.
    let mut sent = connection.send(&all).await;
    for _ in 0..count {
        let Some(ask) = asks.front() else { break };
        let answer = connection.response(ask.method).await;
        if answer.is_err() {
            std::mem::replace(&mut sent, Ok(()))?;
        }
        let answer = answer.and_then(|answer| ask.check(&answer).map(|()| answer));
        let answer =
            answer.with_context(|| format!("{} request {}, {} bytes", ask.method, ask.number, ask.body.len()))?;
        asks.pop_front();
        if answer.header("connection").is_some_and(|options| options.eq_ignore_ascii_case("close")) {
            return Ok(false);
        }
    }
    sent.map(|()| true)
}
