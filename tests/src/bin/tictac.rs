//! `tictac`: the demo service that counts.

#![forbid(unsafe_code)]

use std::net::SocketAddr;

use anyhow::Result;
use clap::Parser;
use http::Uri;
use sluice_tests::demo;

/// Counts: POST /tic adds one, GET /tac tells the number
#[derive(Parser)]
struct Arguments {
    /// Address for HTTP
    #[arg(long, default_value = "[::]:8080")]
    http: SocketAddr,
    /// The gRPC port of `add`, which does the adding
    #[arg(long, value_name = "http://HOST:PORT")]
    add: Uri,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Arguments { http, add } = Arguments::parse();
    let stop = demo::stop_on_signal()?;
    demo::tictac::run(&demo::tictac::Options { http, add }, stop).await
}
