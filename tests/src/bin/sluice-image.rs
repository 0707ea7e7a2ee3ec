//! `sluice-image`: puts programs into a container image and saves or pushes it. `cargo xtask image` builds them and
//! becomes this.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use sluice_tests::image::{Image, Program, push};

/// Puts programs into a container image, without a container engine
#[derive(Parser)]
#[command(name = "sluice-image")]
struct Arguments {
    /// A program and its place in the image, FILE=/PATH; the first is what the image starts
    #[arg(long = "program", value_name = "FILE=/PATH", required = true, value_parser = program)]
    programs: Vec<Program>,
    /// The image's name, REGISTRY/NAME:TAG
    #[arg(long)]
    name: String,
    /// The user it runs as, UID:GID
    #[arg(long, default_value = "65532:65532")]
    user: String,
    /// Save it to this tar file
    #[arg(long, value_name = "FILE.tar")]
    output: Option<PathBuf>,
    /// Push it under this name
    #[arg(long, value_name = "REGISTRY/NAME:TAG")]
    push: Option<String>,
    /// Fail when it is larger, in MB
    #[arg(long, value_name = "MB")]
    limit: Option<usize>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut programs = arguments.programs.into_iter();
    let first = programs.next().context("no program")?;
    let image = programs.fold(Image::new(&arguments.name, first), Image::with).user(&arguments.user);
    let packed = image.pack()?;
    let size = packed.size();
    println!("{} {} ({}.{} MB)", packed.name(), packed.digest(), size / 1_000_000, size / 100_000 % 10);
    if let Some(limit) = arguments.limit
        && size > limit * 1_000_000
    {
        bail!("the image is larger than {limit} MB");
    }
    if let Some(path) = &arguments.output {
        packed.save(path)?;
        println!("saved to {}", path.display());
    }
    if let Some(name) = &arguments.push {
        println!("pushed {}", Box::pin(push::push(&packed, name)).await?);
    }
    Ok(())
}

fn program(text: &str) -> Result<Program, &'static str> {
    let (file, place) = text.rsplit_once("=/").ok_or("not FILE=/PATH")?;
    Ok(Program::new(file, &format!("/{place}")))
}
