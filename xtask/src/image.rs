//! `cargo xtask image`: builds Sluice's programs optimised and puts each into a container image.
//!
//! The images are made by `sluice-image`, of which this only writes the command line: what is in which image stands here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cargo, system};

/// An image: its programs, each with its place in the image. The first is what the image starts.
#[derive(Debug)]
struct Image {
    /// What it is called on the command line, and the last part of its name.
    name: &'static str,
    /// The package that the programs are in.
    package: &'static str,
    programs: &'static [(&'static str, &'static str)],
    /// Who it runs as, where a pod says nothing else.
    user: &'static str,
    /// Most megabytes that it may have.
    limit: u32,
}

/// All images that Sluice consists of.
const IMAGES: [Image; 2] = [
    Image {
        name: "agent",
        package: "sluice-agent",
        programs: &[("sluice-agent", "/sluice-agent")],
        // Container runtimes give the capabilities that a pod adds to root only. The pod drops all the others.
        user: "0:0",
        limit: 25,
    },
    Image {
        name: "webhook",
        package: "sluice-webhook",
        programs: &[("sluice-webhook", "/sluice-webhook")],
        user: "65532:65532",
        limit: 40,
    },
];

/// Takes symbols out of programs, and shows which libraries they need.
const TOOLS: &[system::Tool] = &[("strip", "binutils"), ("ldd", "libc-bin")];

/// Where images are named after, unless they are pushed elsewhere.
const REGISTRY: &str = "sluice.dev";

/// Arguments of `cargo xtask image`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ImageArgs {
    /// Which image; the agent's if nothing is said.
    #[arg(default_value = IMAGES[0].name)]
    image: String,
    /// Where to save it; target/images/NAME.tar if it is not pushed either.
    #[arg(long, value_name = "FILE.tar")]
    output: Option<PathBuf>,
    /// Push it to a registry under this name.
    #[arg(long, value_name = "REGISTRY/NAME:TAG")]
    push: Option<String>,
    /// Its name in the file.
    #[arg(long, value_name = "REGISTRY/NAME:TAG")]
    name: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &ImageArgs) -> Result<ExitCode> {
    let Some(image) = IMAGES.iter().find(|image| image.name == args.image) else {
        let names: Vec<_> = IMAGES.iter().map(|image| image.name).collect();
        bail!("there is no image {:?}, there is: {}", args.image, names.join(", "));
    };
    system::provide(TOOLS)?;
    build(&["--release", "-p", image.package])?;
    build(&["-p", "sluice-tests", "--bin", "sluice-image"])?;

    let folder = cargo::program("sluice-image", false)?.with_file_name("../images");
    let stripped = folder.join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("making {}", stripped.display()))?;
    let mut command = Command::new(cargo::program("sluice-image", false)?);
    command.env("PATH", system::path()?);
    for (program, place) in image.programs {
        let file = stripped.join(program);
        strip(&cargo::program(program, true)?, &file)?;
        command.arg("--program").arg(format!("{}={place}", file.display()));
    }
    let default = format!("{REGISTRY}/{}:{}", image.name, env!("CARGO_PKG_VERSION"));
    let name = args.name.as_ref().or(args.push.as_ref()).unwrap_or(&default);
    command.args(["--name", name, "--user", image.user, "--limit", &image.limit.to_string()]);
    let saved = match (&args.output, &args.push) {
        (None, None) => {
            let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
            Some(folder.join(format!("{}.tar", image.name)))
        }
        (output, _) => output.clone(),
    };
    if let Some(path) = saved {
        command.arg("--output").arg(path);
    }
    if let Some(name) = &args.push {
        command.args(["--push", name]);
    }
    let status = command.status().context("cannot run sluice-image")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn build(arguments: &[&str]) -> Result<()> {
    let status = cargo::command(&[&["build", "--quiet"], arguments].concat())?.status().context("cannot run cargo")?;
    ensure!(status.success(), "the build failed");
    Ok(())
}

/// Symbols are two fifths of a program and of no use in a pod.
fn strip(program: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip").args(["--strip-all", "-o"]).arg(to).arg(program).status();
    ensure!(status.context("cannot run strip (package binutils)")?.success(), "strip failed");
    Ok(())
}
