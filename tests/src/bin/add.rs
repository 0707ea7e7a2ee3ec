//! `add`: the demo service that adds.

#![forbid(unsafe_code)]

use std::net::SocketAddr;

use anyhow::Result;
use clap::Parser;
use sluice_tests::demo;

/// Adds two numbers: POST /sum over HTTP/1, sluice.demo.Adder/Sum over gRPC
#[derive(Parser)]
struct Arguments {
    /// Address for HTTP
    #[arg(long, default_value = "[::]:8080")]
    http: SocketAddr,
    /// Address for gRPC
    #[arg(long, default_value = "[::]:9090")]
    grpc: SocketAddr,
    /// What the answers are signed with (header x-answered-by)
    #[arg(long, default_value = "pod")]
    signed: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Arguments { http, grpc, signed } = Arguments::parse();
    let stop = demo::stop_on_signal()?;
    let options = demo::add::Options { http, grpc, signed };
    Box::pin(demo::add::run(&options, stop)).await
}
