//! a13: how connections end, and what happens when an end does not read: each end sees of the other what it would see
//! without Sluice.
//!
//! Every scene is played twice for each way through the agent: with the same bytes directly between caller and app, and
//! through it. What both ends have seen must be the same.

mod scene;

use anyhow::Result;
use sluice_tests::peers::raw::Script;

use self::scene::{Scene, Theatre, Way, answer, answer_to_end, begun_answer, head, kept_alive, request};

/// Less than what sockets take while nobody reads.
const SOME: usize = 48 << 10;

/// More than all sockets and windows on the way take while nobody reads.
const TOO_MUCH: usize = 12 << 20;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a13_half_close() -> Result<()> {
    let scenes: [fn(Way) -> Scene; 5] = [
        |way| {
            let request = request(way, SOME);
            Scene::new("the caller has sent all, then the app answers")
                .caller(Script::new().send(&request).half_close())
                .app(Script::new().read_to_end().send(&answer(SOME)))
        },
        |way| {
            Scene::new("the app has sent all, then the caller sends the rest")
                .caller(Script::new().send(&head(way, SOME)).read_to_end().send(&vec![b'r'; SOME]))
                .app(Script::new().read_until(b"\r\n\r\n").send(&answer_to_end(SOME)).half_close())
        },
        |way| {
            Scene::new("both send all at once")
                .caller(Script::new().send(&request(way, SOME)).half_close())
                .app(Script::new().read_until(b"\r\n\r\n").send(&answer_to_end(SOME)).half_close())
        },
        |way| {
            let (request, answer) = (request(way, SOME), kept_alive(SOME));
            Scene::new("the caller closes a connection that could have gone on")
                .caller(Script::new().send(&request).read(answer.len()).half_close())
                .app(Script::new().read(request.len()).send(&answer))
        },
        |_| {
            Scene::new("the caller closes and has said nothing")
                .caller(Script::new().half_close())
                .app(Script::new().read_to_end().send(&answer(SOME)))
                .not_decided()
        },
    ];
    Theatre::new("a13_half", scenes.len()).await?.play(&scenes).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a13_reset() -> Result<()> {
    let scenes: [fn(Way) -> Scene; 6] = [
        |way| {
            let begun = [head(way, SOME), vec![b'r'; 10]].concat();
            Scene::new("the caller resets in the middle of its request")
                .caller(Script::new().send(&begun).read(CONTINUE.len()).reset())
                .app(Script::new().read(begun.len()).send(CONTINUE))
        },
        |way| {
            let begun = [head(way, 2), vec![b'r'; 1]].concat();
            Scene::new("the app resets in the middle of its answer")
                .caller(Script::new().send(&begun).read(begun_answer().len()).send(b"r"))
                .app(Script::new().read(begun.len()).send(&begun_answer()).read(1).reset())
        },
        |way| {
            Scene::new("the caller resets right behind what it has sent")
                .caller(Script::new().send(&[head(way, SOME), vec![b'r'; 10]].concat()).reset())
                .app(Script::new())
        },
        |way| {
            let request = request(way, 10);
            Scene::new("the app resets right behind the beginning of its answer")
                .caller(Script::new().send(&request))
                .app(Script::new().read(request.len()).send(&begun_answer()).reset())
        },
        |way| {
            let request = request(way, 10);
            Scene::new("the app resets instead of an answer")
                .caller(Script::new().send(&request))
                .app(Script::new().read(request.len()).reset())
        },
        |way| {
            let request = request(way, 10);
            Scene::new("the app answers and closes without having read all")
                .caller(Script::new().send(&request))
                .app(Script::new().read(request.len() - 1).send(&answer_to_end(100)).close())
        },
    ];
    Theatre::new("a13_reset", scenes.len()).await?.play(&scenes).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a13_end_with_data_pending() -> Result<()> {
    let scenes: [fn(Way) -> Scene; 4] = [
        |way| {
            let request = request(way, 10);
            Scene::new("the app has closed behind data that the caller has not read")
                .caller(Script::new().send(&request).hold())
                .app(Script::new().read(request.len()).send(&answer_to_end(SOME)).close())
        },
        |way| {
            Scene::new("the caller has closed behind data that the app has not read")
                .caller(Script::new().send(&request(way, SOME)).close())
                .app(Script::new().hold())
        },
        |way| {
            let request = request(way, 10);
            Scene::new("the app closes without an answer")
                .caller(Script::new().send(&request).hold())
                .app(Script::new().read(request.len()).close())
        },
        |way| {
            let request = request(way, 10);
            Scene::new("the app closes in the middle of its answer")
                .caller(Script::new().send(&request).hold())
                .app(Script::new().read(request.len()).send(&begun_answer()).close())
        },
    ];
    Theatre::new("a13_pending", scenes.len()).await?.play(&scenes).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a13_zero_window() -> Result<()> {
    let scenes: [fn(Way) -> Scene; 4] = [
        |way| {
            let request = request(way, 10);
            Scene::new("the caller does not read for a while")
                .caller(Script::new().send(&request).hold())
                .app(Script::new().read(request.len()).send(&answer_to_end(TOO_MUCH)).close())
                .stalls()
        },
        |way| {
            Scene::new("the app does not read for a while")
                .caller(Script::new().send(&request(way, TOO_MUCH)).half_close())
                .app(Script::new().hold().read_to_end().send(&answer(SOME)))
                .stalls()
        },
        |way| {
            let request = request(way, 10);
            Scene::new("the caller resets what it does not read")
                .caller(Script::new().send(&request).read(1000).hold().reset())
                .app(Script::new().read(request.len()).send(&answer_to_end(TOO_MUCH)))
                .stalls()
        },
        |way| {
            Scene::new("the app resets what it does not read")
                .caller(Script::new().send(&request(way, TOO_MUCH)))
                .app(Script::new().read(100).hold().reset())
                .stalls()
        },
    ];
    Theatre::new("a13_window", scenes.len()).await?.play(&scenes).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a13_ends_between_requests() -> Result<()> {
    let scenes: [fn(Way) -> Scene; 5] = [
        |way| {
            let (request, answer) = (request(way, SOME), kept_alive(SOME));
            Scene::new("the app closes a connection that could have gone on")
                .caller(Script::new().send(&request).hold())
                .app(Script::new().read(request.len()).send(&answer).close())
                .of_app_only()
        },
        |way| {
            let (request, answer) = (request(way, SOME), kept_alive(SOME));
            Scene::new("the app resets a connection that could have gone on")
                .caller(Script::new().send(&request).read(answer.len()).hold())
                .app(Script::new().read(request.len()).send(&answer).hold().reset())
                .of_app_only()
        },
        |way| {
            let (request, answer) = (request(way, SOME), kept_alive(SOME));
            Scene::new("the caller resets a connection that could have gone on")
                .caller(Script::new().send(&request).read(answer.len()).hold().reset())
                .app(Script::new().read(request.len()).send(&answer))
        },
        |way| {
            let (request, answer) = (request(way, 10), kept_alive(10));
            Scene::new("the caller closes in the middle of the next head")
                .caller(Script::new().send(&request).read(answer.len()).send(b"GET /next HTTP/1.1\r\nHo").half_close())
                .app(Script::new().read(request.len()).send(&answer))
                .of_app_only()
        },
        |way| {
            let (request, answer) = (request(way, 10), kept_alive(SOME));
            Scene::new("the app has sent all, then the caller asks again")
                .caller(Script::new().send(&request).read_to_end().send(&request))
                .app(Script::new().read(request.len()).send(&answer).half_close())
                .of_app_only()
        },
    ];
    Theatre::new("a13_between", scenes.len()).await?.play(&scenes).await
}
